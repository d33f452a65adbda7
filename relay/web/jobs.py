"""What history holds of jobs, for those who ask: `GET /jobs/{jobId}`, `/jobs`, `/jobs/{jobId}/history`.

A long poll watches its job while it waits, as a session that nothing is sent to: its messages are parsed,
and it counts as a connection and ends in a drain like one.
"""

import asyncio
from typing import Any, Final

import orjson
from aiohttp import web

from relay.core.closing import CloseReason
from relay.core.document import job_document
from relay.core.errors import CommandError, ErrorCode
from relay.core.event import JobEvent, is_name
from relay.core.grants import Grants
from relay.core.session import Lookup, Session
from relay.core.wire import JobsCommand
from relay.web.gateway import Gateway
from relay.web.handshake import INVALID_TOKEN, RETRY_AFTER_SECONDS
from relay.web.responses import NOT_FOUND, error_response, json_response
from relay.web.visit import Reception, job_id_of, list_parameter, queue_of, wait_seconds_of

MAX_IDS: Final = 100
MAX_QUEUE_JOBS: Final = 1000


class Poll:
    """The watcher behind a long poll: `news` is set whenever something came, or the end has begun."""

    transport_name = "longpoll"
    __slots__ = ("news", "opened_at", "reason", "remote", "session")

    def __init__(self, gateway: Gateway, remote: str, grants: Grants) -> None:
        self.remote = remote
        self.opened_at = gateway.loop.time()
        self.session = Session(gateway.hub, gateway.new_id(), self, grants)
        self.reason: CloseReason | None = None
        self.news = asyncio.Event()

    def flush(self) -> None:
        """The session has something to send: the answer will be made from history."""
        self.session.outbox.clear()
        self.news.set()

    def close(self, reason: CloseReason) -> None:
        """Have the poll answered now; idempotent."""
        self.reason = self.reason or reason
        self.news.set()


class Jobs:
    """The handlers. What may not be watched is refused before history or Redis is asked about it."""

    def __init__(self, gateway: Gateway, reception: Reception) -> None:
        self._gateway = gateway
        self.reception = reception
        self._history = gateway.hub.history

    async def one(self, request: web.Request) -> web.StreamResponse:
        """`GET /jobs/{jobId}`: the job's document, 304 if it is the one the client has, or 404.

        With `wait` (seconds) or `since` (an event id) held until there is something newer, or answered 204.
        """
        grants = await self.reception.admit(request)
        job_id, queue = job_id_of(request), queue_of(request)
        wait_seconds = wait_seconds_of(request)
        if not grants.may_watch_job(job_id, queue):
            self.reception.forbid()
        if wait_seconds is not None:
            return await self._hold(request, grants, job_id, queue, wait_seconds)
        await self._refresh([job_id], queue)
        document = self._document(job_id, queue)
        return _unknown() if document is None else json_response(request, document)

    async def many(self, request: web.Request) -> web.StreamResponse:
        """`GET /jobs?ids=` or `GET /jobs?queueName=`: documents by job id; unknown jobs are left out."""
        grants = await self.reception.admit(request)
        queue = queue_of(request)
        ids = list_parameter(request, "ids")
        if len(ids) > MAX_IDS:
            raise CommandError(ErrorCode.BAD_REQUEST, f"at most {MAX_IDS} ids at once")
        if not ids and queue is None:
            raise CommandError(ErrorCode.BAD_REQUEST, "say which: ids=a,b,c or queueName=q")
        faults: dict[str, ErrorCode] = {}
        for job_id in ids:
            if not is_name(job_id):
                faults[job_id] = ErrorCode.INVALID_JOB_ID
            elif not grants.may_watch_job(job_id, queue):
                faults[job_id] = ErrorCode.FORBIDDEN
        wanted = [job_id for job_id in ids if job_id not in faults]
        if queue is not None and not ids:
            if not grants.may_watch_queue(queue):
                self.reception.forbid()
        elif not wanted and ErrorCode.FORBIDDEN in faults.values():
            self.reception.forbid()
        if not self._history.exposed:
            return error_response(404, NOT_FOUND, "history is off")
        if queue is not None and not ids:
            if self._gateway.hub.stores_queues:
                await self._looked_up(Lookup([], queue))
            ids = wanted = self._history.newest_of_queue(queue, MAX_QUEUE_JOBS)
        else:
            await self._refresh(wanted, queue)
        jobs: dict[str, Any] = {}
        for job_id in ids:
            if job_id in faults:
                jobs[job_id] = {"error": {"code": faults[job_id].value}}
            elif (document := self._document(job_id, queue)) is not None:
                jobs[job_id] = document
        return json_response(request, {"jobs": jobs})

    async def history(self, request: web.Request) -> web.StreamResponse:
        """`GET /jobs/{jobId}/history`: every event that history holds of the job, oldest first."""
        grants = await self.reception.admit(request)
        job_id, queue = job_id_of(request), queue_of(request)
        if not grants.may_watch_job(job_id, queue):
            self.reception.forbid()
        events = await self.events_of(job_id, queue)
        if not events:
            return _unknown()
        return json_response(request, {"events": [told(event) for event in events]})

    async def events_of(self, job_id: str, queue: str | None) -> list[JobEvent]:
        """Every event that history holds of the job, oldest first, with what Redis knows of it read in; who
        asks has been judged."""
        await self._refresh([job_id], queue)
        return self._history.events(job_id, queue) if self._history.exposed else []

    async def _hold(
        self,
        request: web.Request,
        grants: Grants,
        job_id: str,
        queue: str | None,
        wait_seconds: float,
    ) -> web.Response:
        """The answer to a long poll."""
        self.reception.make_room(request)
        gateway, since = self._gateway, request.query.get("since")
        deadline = gateway.loop.time() + wait_seconds
        asked_at = gateway.hub.position()
        poll = Poll(gateway, self.reception.address_of(request), grants)
        gateway.enter(poll)
        try:
            await self._watch(poll.session, job_id, queue)
            while (document := self._newer(job_id, queue, since, asked_at)) is None:
                async with asyncio.timeout_at(deadline):
                    await poll.news.wait()
                poll.news.clear()
                if poll.reason is not None:
                    return _ended(poll.reason)
            return json_response(request, document)
        except TimeoutError:
            if self._document(job_id, queue) is None:
                return _unknown()
            return web.Response(status=204, headers={"Cache-Control": "no-store"})
        finally:
            poll.session.end()
            gateway.leave(poll)

    async def _watch(self, session: Session, job_id: str, queue: str | None) -> None:
        """Subscribe, with what Redis holds of the job taken into history first."""
        echo: dict[str, Any] = {}
        lookup = session.obey(JobsCommand(True, False, [job_id], queue, echo, None))
        if lookup is not None:
            await self._looked_up(lookup)
            session.resolve()

    def _newer(
        self, job_id: str, queue: str | None, since: str | None, asked_at: int
    ) -> dict[str, Any] | None:
        """The job's document, unless the client has it. With history off only what came since
        `asked_at` is told."""
        if not self._history.exposed:
            newest = self._history.snapshot(job_id, queue)[-1:]
            if not newest or newest[0].seq <= asked_at:
                return None
        document = job_document(self._history, job_id, queue)
        return document if document is not None and document["id"] != since else None

    def _document(self, job_id: str, queue: str | None) -> dict[str, Any] | None:
        return job_document(self._history, job_id, queue) if self._history.exposed else None

    async def _refresh(self, job_ids: list[str], queue: str | None) -> None:
        """Have Redis asked about those jobs of which a source there may know more than we do."""
        hub = self._gateway.hub
        wanted = [job_id for job_id in job_ids if hub.needs_lookup(job_id, queue)]
        if wanted:
            await self._looked_up(Lookup(wanted))

    async def _looked_up(self, lookup: Lookup) -> None:
        done = asyncio.Event()
        self._gateway.look_up(lookup, done.set)
        await done.wait()


def told(event: JobEvent) -> dict[str, Any]:
    """One event as a history tells it."""
    return {"event": event.name, "id": event.id, "data": orjson.Fragment(event.data)}


def _unknown() -> web.Response:
    return error_response(404, NOT_FOUND, "nothing is known of this job")


def _ended(reason: CloseReason) -> web.Response:
    """The answer to a poll that was ended before it was over."""
    match reason.code:
        case 3000:
            response = error_response(401, ErrorCode.UNAUTHORIZED, reason.text)
            response.headers["WWW-Authenticate"] = INVALID_TOKEN
        case 1008:
            response = error_response(403, ErrorCode.FORBIDDEN, reason.text)
        case _:
            response = error_response(503, ErrorCode.UNAVAILABLE, f"{reason.text}; ask again")
            response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response
