"""Server-Sent Events (WHATWG HTML §9.2): a session whose client only listens.

`GET /jobs/{jobId}/events` and `GET /events` subscribe by their query; what follows is the session of a
WebSocket with another format and another end. aiohttp reads the request and its middlewares judge it; then
the transport is taken over, so that a slow reader's congestion reaches its outbox and an idle stream holds no
task. The body ends with the connection (RFC 9112 §6.3), so that all watchers can share a frame's bytes.

There is nothing to hear from such a client: it counts as gone when its output stays unsent.
"""

import asyncio
import random
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.utils import formatdate
from typing import Final

from aiohttp import web

from relay.core.closing import CloseReason
from relay.core.errors import CommandError, ErrorCode, SessionError
from relay.core.grants import Grants
from relay.core.outbox import Verdict
from relay.core.session import Session
from relay.core.wire import (
    EVENT_STREAM,
    JobsCommand,
    QueueCommand,
    parse_command,
    retry_line,
)
from relay.web.flusher import pour
from relay.web.gateway import Gateway
from relay.web.handshake import SECURITY_HEADERS
from relay.web.takeover import release
from relay.web.visit import Reception, job_id_of, list_parameter, queue_of
from relay.web.websocket import CLOSE_TIMEOUT_SECONDS

# When an EventSource comes back by itself; spread, so that a crash does not bring all back at once.
RETRY_MS: Final = (1000, 3000)
HEARTBEAT: Final = b":\n\n"
_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "Connection": "close",
    **SECURITY_HEADERS,
}
_Subscribe = JobsCommand | QueueCommand
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


class EventStream(asyncio.Protocol):
    """The protocol of a transport whose request asked for events.

    `last_seen_at` is when output was last seen to leave (loop time, seconds).
    """

    transport_name = EVENT_STREAM.transport
    __slots__ = (
        "_commands", "_gateway", "_left_bytes", "_timer", "_transport", "last_seen_at",
        "messages_received", "opened_at", "reason", "remote", "sent_bytes", "session",
    )  # fmt: skip

    def __init__(
        self,
        gateway: Gateway,
        transport: asyncio.Transport,
        remote: str,
        grants: Grants,
        commands: Sequence[_Subscribe],
    ) -> None:
        self._gateway = gateway
        self._transport = transport
        self._commands = deque(commands)  # what the query asked for and is not done yet
        self._timer: asyncio.TimerHandle | None = None
        self._left_bytes = 0  # what the system had taken of our output at the last heartbeat
        self.remote = remote
        self.session = Session(gateway.hub, gateway.new_id(), self, grants, EVENT_STREAM)
        self.opened_at = self.last_seen_at = gateway.loop.time()
        self.reason: CloseReason | None = None  # set when the end has begun
        self.sent_bytes = 0
        self.messages_received = 0

    # What the transport tells

    def data_received(self, data: bytes) -> None:
        """Nothing is expected; whatever comes behind the request is not listened to."""

    def eof_received(self) -> None:
        if self.reason is None:
            self.reason = CloseReason.CLIENT_CLOSED
            self.session.end()
        self._cut_off_later()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.reason is None:
            # The system has given up on output that nobody confirmed.
            unsent = isinstance(exc, TimeoutError)
            self.reason = CloseReason.HEARTBEAT_TIMEOUT if unsent else CloseReason.CONNECTION_LOST
        self.session.end()
        self._gateway.closed(self)

    def pause_writing(self) -> None:
        self.session.outbox.becomes(congested=True)

    def resume_writing(self) -> None:
        self.session.outbox.becomes(congested=False)
        self.flush()

    # What the relay tells

    def start(self, response: bytes) -> None:
        """Send the head and what the session already has to say, then subscribe."""
        self._write(
            response
            + retry_line(random.randint(*RETRY_MS))
            + b"\n"
            + self.session.outbox.take(self._gateway.hub.high_water_bytes)
        )
        self._subscribe()

    def flush(self) -> None:
        """Hand to the transport what it takes."""
        if self.reason is not None:
            return
        verdict = pour(self.session, self._write, self._gateway.hub.high_water_bytes)
        if verdict is Verdict.OVERFLOW:
            self.close(CloseReason.SLOW_CONSUMER)

    def ping(self) -> None:
        """Look whether output has left, and send a comment for proxies and for the system to deliver."""
        if self.reason is not None:
            return
        unsent_bytes = self._transport.get_write_buffer_size()
        left_bytes = self.sent_bytes - unsent_bytes
        if not unsent_bytes or left_bytes > self._left_bytes:
            self.last_seen_at = self._gateway.loop.time()
        self._left_bytes = left_bytes
        if not self.session.outbox.congested:
            self._write(HEARTBEAT)

    def close(self, reason: CloseReason) -> None:
        """Begin the end: what is pending if the transport takes it, `relay-close`, then the end of the
        connection. Idempotent: the first reason stands."""
        self.flush()
        if self.reason is not None:
            return
        self.reason = reason
        self.session.end()
        farewell = {"code": reason.code, "reason": reason.text}
        self._write(EVENT_STREAM.reply("relay-close", farewell))
        self._transport.close()
        self._cut_off_later()

    def cut_off(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    # Inside

    def _subscribe(self) -> None:
        """Do what the query asked for, until that is done or has to wait for Redis."""
        try:
            while self._commands and self.reason is None:
                lookup = self.session.obey(self._commands.popleft())
                if lookup is not None:
                    self._gateway.look_up(lookup, self._looked_up)
                    return
        except SessionError as error:
            self.close(error.reason)
        except Exception:  # noqa: BLE001  a bug of ours costs this session and no other
            self._fail()

    def _looked_up(self) -> None:
        # This may be called at once, within `_subscribe`.
        self._gateway.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.reason is not None:
            return
        try:
            self.session.resolve()
        except SessionError as error:
            self.close(error.reason)
        except Exception:  # noqa: BLE001  as above
            self._fail()
        self._subscribe()

    def _fail(self) -> None:
        """A bug of ours: this session ends, the others go on."""
        self._gateway.log.exception("session_failed", connection_id=self.session.connection_id)
        self.close(CloseReason.INTERNAL_ERROR)

    def _cut_off_later(self) -> None:
        if self._timer is None:
            self._timer = self._gateway.loop.call_later(
                CLOSE_TIMEOUT_SECONDS, self._transport.abort
            )

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self.sent_bytes += len(data)
        self._gateway.stats.delivered_bytes += len(data)


class EventStreams:
    """The handlers."""

    def __init__(self, gateway: Gateway, reception: Reception) -> None:
        self._gateway = gateway
        self._reception = reception

    async def one(self, request: web.Request) -> web.StreamResponse:
        """`GET /jobs/{jobId}/events`: the events of one job."""
        grants = await self._reception.admit(request)
        data = {
            "jobId": job_id_of(request),
            "queueName": queue_of(request),
            "since": _last_event_id(request),
        }
        return self._open(request, grants, [_parsed("subscribe-to-job", data)])

    async def many(self, request: web.Request) -> web.StreamResponse:
        """`GET /events?jobs=a,b&queues=q`: the events of jobs and of whole queues."""
        grants = await self._reception.admit(request)
        job_ids = list_parameter(request, "jobs")
        queues = list_parameter(request, "queues")
        snapshot = _flag(request, "snapshot")
        limit = self._gateway.hub.max_subscriptions
        if not job_ids and not queues:
            raise CommandError(ErrorCode.BAD_REQUEST, "say which: jobs=a,b or queues=q")
        if len(job_ids) + len(queues) > limit:
            raise CommandError(
                ErrorCode.TOO_MANY_SUBSCRIPTIONS,
                f"at most {limit} jobs and queues in one stream; open another",
            )
        commands: list[_Subscribe] = []
        if job_ids:
            commands.append(_jobs_command(request, job_ids, alone=not queues))
        for queue in queues:
            data = {"queueName": queue, "snapshot": snapshot}
            commands.append(_parsed("subscribe-to-queue", data))
        return self._open(request, grants, commands)

    def _open(
        self, request: web.Request, grants: Grants, commands: Sequence[_Subscribe]
    ) -> web.StreamResponse:
        """The stream; once its head is sent a refusal has no status any more, so that comes first."""
        if not any(_allows(grants, command) for command in commands):
            self._reception.forbid()
        self._reception.make_room(request)
        return _Opening(self._gateway, self._reception.address_of(request), grants, commands)


class _Opening(web.StreamResponse):
    """Takes the transport over when aiohttp would write the head: every middleware has added its
    headers by then."""

    def __init__(
        self, gateway: Gateway, remote: str, grants: Grants, commands: Sequence[_Subscribe]
    ) -> None:
        super().__init__(headers=_HEADERS)
        self._gateway = gateway
        self._remote = remote
        self._grants = grants
        self._commands = commands

    async def prepare(self, request: web.BaseRequest) -> None:
        congested = request.protocol.writing_paused
        transport = release(request)
        if transport is None:
            return
        stream = EventStream(self._gateway, transport, self._remote, self._grants, self._commands)
        stream.session.outbox.becomes(congested=congested)
        transport.set_protocol(stream)
        _give_up_after(transport, self._gateway.patience_seconds)
        self._gateway.adopt(stream, transport, self._head())

    async def write_eof(self, data: bytes = b"") -> None:
        """The stream goes on without aiohttp."""

    def _head(self) -> bytes:
        headers = {"Date": formatdate(usegmt=True)}
        lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in headers.items())]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        # aiohttp reads a header's odd bytes so; what is echoed of them leaves as it came.
        return "\r\n".join(lines).encode(errors="surrogateescape") + b"\r\n\r\n"


def _jobs_command(request: web.Request, job_ids: list[str], *, alone: bool) -> JobsCommand:
    """The subscribe to all these jobs. Raises CommandError where nothing is left to subscribe to."""
    last_id = _last_event_id(request)
    since = None if last_id is None else dict.fromkeys(job_ids, last_id)
    data = {"jobIds": job_ids, "queueName": queue_of(request), "since": since}
    command = _parsed("subscribe-to-jobs", data)
    assert isinstance(command, JobsCommand)
    if alone and not command.job_ids:
        raise CommandError(ErrorCode.INVALID_JOB_ID, "none of these can be a job id")
    command.since_of_one = True
    return command


def _parsed(event: str, data: Mapping[str, object]) -> _Subscribe:
    command = parse_command({"event": event, "data": data})
    assert isinstance(command, JobsCommand | QueueCommand)
    return command


def _allows(grants: Grants, command: _Subscribe) -> bool:
    """Whether something of what the command asks for may be watched."""
    if isinstance(command, QueueCommand):
        return grants.may_watch_queue(command.queue)
    return any(grants.may_watch_job(job_id, command.queue) for job_id in command.job_ids)


def _last_event_id(request: web.Request) -> str | None:
    """Where the client stands. The header is what an EventSource knows when it comes back, the query
    what a page knew when it made it."""
    return request.headers.get("Last-Event-ID") or request.query.get("lastEventId") or None


def _flag(request: web.Request, name: str) -> bool:
    value = _FLAGS.get(request.query.get(name, "false").lower())
    if value is None:
        raise CommandError(ErrorCode.BAD_REQUEST, f"{name} is true or false")
    return value


def _give_up_after(transport: asyncio.Transport, seconds: float) -> None:
    """Have the system end the connection where the peer confirms nothing for so long (RFC 5482): a few
    bytes to a machine that is gone would lie in its buffer for a quarter of an hour."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    sock = transport.get_extra_info("socket")
    if option is not None and sock is not None and sock.family != socket.AF_UNIX:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))
