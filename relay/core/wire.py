"""The client protocol: a text message becomes a Command; an event and a reply become bytes.

Each message is `{"event": NAME, "data": {…}}` with an optional `ref` that the answer bears. Parsing
raises `CommandError` for what is at fault and nothing else, whatever the bytes are. What the relay says
is written as WebSocket text frames (RFC 6455 §5.6) or as Server-Sent Events (WHATWG HTML §9.2).
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from relay.core import payload
from relay.core.errors import TEMPORARY, CommandError, ErrorCode
from relay.core.event import JobEvent, is_name, text_frame

Ref = str | int | float | None
MAX_REF_CHARACTERS: Final = 64
_MAX_DEPTH: Final = 254  # orjson writes no deeper; what a client sends must fit into its answer
# An event id comes back in the header Last-Event-ID, where none of these can stand.
_NOT_IN_A_HEADER: Final = re.compile(r"[\x00-\x1f\x7f]")
COMMANDS: Final = frozenset(
    {
        "subscribe-to-job",
        "subscribe-to-jobs",
        "subscribe-to-queue",
        "unsubscribe-from-job",
        "unsubscribe-from-jobs",
        "unsubscribe-from-queue",
        "authenticate",
        "ping",
    }
)


@dataclass(slots=True)
class JobsCommand:
    """`subscribe-to-job(s)` and `unsubscribe-from-job(s)`.

    `refused` holds the ids of a batch that break the rules; `echo` is the request's data as the answer
    repeats it; `since` maps job ids to event ids, with `since_of_one` all to one: the client does not say
    which of the jobs bears it.
    """

    subscribe: bool
    batch: bool
    job_ids: list[str]
    queue: str | None
    echo: dict[str, Any]
    ref: Ref
    since: dict[str, str] = field(default_factory=dict)
    refused: dict[str, ErrorCode] = field(default_factory=dict)
    since_of_one: bool = False


@dataclass(slots=True)
class QueueCommand:
    """`subscribe-to-queue` and `unsubscribe-from-queue`."""

    subscribe: bool
    queue: str
    snapshot: bool
    echo: dict[str, Any]
    ref: Ref


@dataclass(slots=True)
class AuthenticateCommand:
    """`authenticate`: a first or a newer token."""

    token: str
    ref: Ref


@dataclass(slots=True)
class PingCommand:
    """`ping`: `data` comes back as it is."""

    data: Any
    ref: Ref


Command = JobsCommand | QueueCommand | AuthenticateCommand | PingCommand


def command_name(message: object) -> str:
    """The message's event as a metric label; "other" where it is none of the protocol's."""
    name = message.get("event") if type(message) is dict else None
    return name if type(name) is str and name in COMMANDS else "other"


def parse_json(text: bytes) -> object:
    """The JSON value in a client's message. Raises CommandError."""
    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise CommandError(ErrorCode.BAD_REQUEST, "the message is not JSON") from None
    if text.count(b"[") + text.count(b"{") > _MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: object) -> None:
    try:
        orjson.dumps(value)
    except TypeError:
        raise CommandError(
            ErrorCode.BAD_REQUEST, f"the message is nested deeper than {_MAX_DEPTH} levels"
        ) from None


def parse_command(message: object) -> Command:
    """The command that a client's JSON value is. Raises CommandError."""
    if type(message) is not dict:
        raise CommandError(ErrorCode.BAD_REQUEST, "the message is not a JSON object")
    ref = _ref(message)
    try:
        return _parse(message, ref)
    except CommandError as error:
        error.ref = ref
        raise


def _parse(message: dict[str, Any], ref: Ref) -> Command:
    name = message.get("event")
    if type(name) is not str:
        raise CommandError(ErrorCode.BAD_REQUEST, "the field event is missing or not a string")
    if name not in COMMANDS:
        raise CommandError(ErrorCode.UNKNOWN_EVENT, f"there is no event {name[:64]!r}")
    if name == "ping":
        return PingCommand(message.get("data"), ref)
    data = message.get("data")
    if type(data) is not dict:
        raise CommandError(ErrorCode.BAD_REQUEST, "the field data is missing or not an object")
    if name == "authenticate":
        token = data.get("token")
        if type(token) is not str:
            raise CommandError(ErrorCode.BAD_REQUEST, "data.token is missing or not a string")
        return AuthenticateCommand(token, ref)
    subscribe = name.startswith("subscribe")
    if name.endswith("queue"):
        return _queue_command(data, ref, subscribe=subscribe)
    if name.endswith("jobs"):
        return _batch_command(data, ref, subscribe=subscribe)
    return _job_command(data, ref, subscribe=subscribe)


def _job_command(data: dict[str, Any], ref: Ref, *, subscribe: bool) -> JobsCommand:
    job_id = _as_id(data.get("jobId"))
    if job_id is None:
        raise CommandError(ErrorCode.BAD_REQUEST, "data.jobId is missing or not a string")
    if not is_name(job_id):
        raise CommandError(
            ErrorCode.INVALID_JOB_ID, "a jobId has 1 to 256 characters, none of them a control"
        )
    queue = _queue_name(data)
    echo = _echo(data, queue, jobId=job_id)
    since: dict[str, str] = {}
    given = data.get("since") if subscribe else None
    if given is not None:
        if type(given) is not str:
            raise CommandError(ErrorCode.BAD_REQUEST, "data.since is not an event id (a string)")
        since[job_id] = given
    return JobsCommand(subscribe, False, [job_id], queue, echo, ref, since)


def _batch_command(data: dict[str, Any], ref: Ref, *, subscribe: bool) -> JobsCommand:
    given = data.get("jobIds")
    if type(given) is not list:
        raise CommandError(ErrorCode.BAD_REQUEST, "data.jobIds is missing or not a list")
    ids = [_as_id(value) for value in given]
    job_ids: dict[str, None] = {}
    refused: dict[str, ErrorCode] = {}
    for job_id in ids:
        if job_id is None:
            raise CommandError(ErrorCode.BAD_REQUEST, "data.jobIds holds what is not a string")
        if is_name(job_id):
            job_ids[job_id] = None
        else:
            refused[job_id] = ErrorCode.INVALID_JOB_ID
    queue = _queue_name(data)
    since: dict[str, str] = {}
    given_since = data.get("since") if subscribe else None
    if given_since is not None:
        if type(given_since) is not dict or any(
            type(value) is not str for value in given_since.values() if value is not None
        ):
            raise CommandError(
                ErrorCode.BAD_REQUEST, "data.since is not an object of event ids by job id"
            )
        since = {job_id: value for job_id, value in given_since.items() if value is not None}
    echo = _echo(data, queue, jobIds=ids)
    return JobsCommand(subscribe, True, list(job_ids), queue, echo, ref, since, refused)


def _queue_command(data: dict[str, Any], ref: Ref, *, subscribe: bool) -> QueueCommand:
    queue = _queue_name(data)
    if queue is None:
        raise CommandError(ErrorCode.BAD_REQUEST, "data.queueName is missing")
    snapshot = data.get("snapshot", False) if subscribe else False
    if type(snapshot) is not bool:
        raise CommandError(ErrorCode.BAD_REQUEST, "data.snapshot is neither true nor false")
    return QueueCommand(subscribe, queue, snapshot, _echo(data, queue), ref)


def _ref(message: dict[str, Any]) -> Ref:
    if "ref" not in message:
        return None
    ref = message["ref"]
    if type(ref) in (int, float) or (type(ref) is str and len(ref) <= MAX_REF_CHARACTERS):
        return ref  # type: ignore[no-any-return]
    raise CommandError(
        ErrorCode.BAD_REQUEST, f"ref is neither a number nor a string up to {MAX_REF_CHARACTERS}"
    )


def _queue_name(data: dict[str, Any]) -> str | None:
    queue = data.get("queueName")
    if queue is None:
        return None
    if type(queue) is not str:
        raise CommandError(ErrorCode.BAD_REQUEST, "data.queueName is not a string")
    if not is_name(queue):
        raise CommandError(
            ErrorCode.INVALID_QUEUE_NAME,
            "a queueName has 1 to 256 characters, none of them a control",
        )
    return queue


def _echo(data: dict[str, Any], queue: str | None, **normalised: object) -> dict[str, Any]:
    echo = {**data, **normalised}
    echo.pop("since", None)
    if queue is None:
        echo.pop("queueName", None)
    return echo


def _as_id(value: object) -> str | None:
    if type(value) is int:
        return str(value)
    return value if type(value) is str else None


class _WebSocketFormat:
    """Text frames, one JSON object each."""

    transport = "websocket"

    def event(self, event: JobEvent) -> bytes:
        # The name is of a safe alphabet (see `event_name`); an id may hold anything, and nearly never does: then it
        # is quoted in a tenth of the time that the encoder takes.
        id = event.id
        if id.isascii() and id.isprintable() and '"' not in id and "\\" not in id:
            quoted = b'"%b"' % id.encode()
        else:
            quoted = orjson.dumps(id)
        name = event.name.encode()
        return text_frame(b'{"event":"%b","data":%b,"id":%b}' % (name, event.data, quoted))

    def reply(self, event: str, data: object, ref: Ref = None) -> bytes:
        reply: dict[str, object] = {"event": event, "data": data}
        if ref is not None:
            reply["ref"] = ref
        return text_frame(payload.encode(reply))


class _EventStreamFormat:
    """Server-Sent Events. Encoded JSON has no raw line break, so data is always one line."""

    transport = "sse"

    def event(self, event: JobEvent) -> bytes:
        # Without an id the client keeps the one before: it may be told this event again, and misses none.
        bears_id = _NOT_IN_A_HEADER.search(event.id) is None
        id_line = b"id: %b\n" % event.id.encode() if bears_id else b""
        return b"event: %b\ndata: %b\n%b\n" % (event.name.encode(), event.data, id_line)

    def reply(self, event: str, data: object, ref: Ref = None) -> bytes:
        # A page's EventSource has an event "error" of its own: the connection was lost.
        name = b"relay-error" if event == "error" else event.encode()
        back_ms = data.get("retryAfterMs") if type(data) is dict else None
        retry = b"" if back_ms is None else retry_line(back_ms)
        return b"%bevent: %b\ndata: %b\n\n" % (retry, name, payload.encode(data))


WEBSOCKET: Final = _WebSocketFormat()
EVENT_STREAM: Final = _EventStreamFormat()


def retry_line(milliseconds: int) -> bytes:
    """Tells an EventSource how long to wait before it comes back."""
    return b"retry: %d\n" % milliseconds


def error_data(error: CommandError) -> dict[str, object]:
    """The data of the `error` that answers a message at fault."""
    return {**error_body(error.code, error.message), "temporary": error.code in TEMPORARY}


def error_body(code: ErrorCode, message: str) -> dict[str, object]:
    """What an error says, over WebSocket and HTTP alike."""
    return {"code": code.value, "message": message}
