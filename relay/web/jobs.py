"""The job documents for polling, `GET /jobs/{jobId}` and `GET /jobs`, from history."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiohttp import web

from relay.core.document import job_document
from relay.core.errors import CommandError, ErrorCode
from relay.core.event import is_name
from relay.core.history import History
from relay.web.responses import NOT_FOUND, error_response, json_response

MAX_IDS: Final = 100
MAX_QUEUE_JOBS: Final = 1000

LookUp = Callable[[Sequence[str], Callable[[], None]], None]


class Jobs:
    """The handlers. `look_up` asks Redis about jobs that are not known well enough, then calls back."""

    def __init__(
        self,
        history: History,
        needs_lookup: Callable[[str, str | None], bool],
        look_up: LookUp,
    ) -> None:
        self._history = history
        self._needs_lookup = needs_lookup
        self._look_up = look_up

    async def one(self, request: web.Request) -> web.StreamResponse:
        """`GET /jobs/{jobId}`: the job's document, 304 if it is the one the client has, or 404."""
        queue = _queue(request)
        job_id = request.match_info["jobId"]
        if not is_name(job_id):
            raise CommandError(ErrorCode.INVALID_JOB_ID, "this can be no job id")
        await self._refresh([job_id], queue)
        document = self._document(job_id, queue)
        if document is None:
            return error_response(404, NOT_FOUND, "nothing is known of this job")
        return json_response(request, document)

    async def many(self, request: web.Request) -> web.StreamResponse:
        """`GET /jobs?ids=` or `GET /jobs?queueName=`: documents by job id; unknown jobs are left out."""
        queue = _queue(request)
        if not self._history.exposed:
            return error_response(404, NOT_FOUND, "history is off")
        ids = list_parameter(request, "ids")
        if len(ids) > MAX_IDS:
            raise CommandError(ErrorCode.BAD_REQUEST, f"at most {MAX_IDS} ids at once")
        if ids:
            await self._refresh([job_id for job_id in ids if is_name(job_id)], queue)
        elif queue is not None:
            ids = self._history.newest_of_queue(queue, MAX_QUEUE_JOBS)
        else:
            raise CommandError(ErrorCode.BAD_REQUEST, "say which: ids=a,b,c or queueName=q")
        jobs: dict[str, Any] = {}
        for job_id in ids:
            if not is_name(job_id):
                jobs[job_id] = {"error": {"code": ErrorCode.INVALID_JOB_ID.value}}
            elif (document := self._document(job_id, queue)) is not None:
                jobs[job_id] = document
        return json_response(request, {"jobs": jobs})

    def _document(self, job_id: str, queue: str | None) -> dict[str, Any] | None:
        return job_document(self._history, job_id, queue) if self._history.exposed else None

    async def _refresh(self, job_ids: list[str], queue: str | None) -> None:
        """Have Redis asked about those jobs of which a source there may know more than we do."""
        wanted = [job_id for job_id in job_ids if self._needs_lookup(job_id, queue)]
        if wanted:
            done = asyncio.Event()
            self._look_up(wanted, done.set)
            await done.wait()


def _queue(request: web.Request) -> str | None:
    queue = request.query.get("queueName")
    if queue is not None and not is_name(queue):
        raise CommandError(ErrorCode.INVALID_QUEUE_NAME, "this can be no queue name")
    return queue


def list_parameter(request: web.Request, name: str) -> list[str]:
    """A list in the query: repeated, or given once and split at commas; each member once, in order."""
    values = request.query.getall(name, [])
    if len(values) == 1:
        values = values[0].split(",")
    return list(dict.fromkeys(value for value in values if value))
