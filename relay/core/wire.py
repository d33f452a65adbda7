"""The client protocol: a text message becomes a Command, a reply becomes a frame.

Each message is `{"event": NAME, "data": {…}}` with an optional `ref` that the answer bears. Parsing
raises `CommandError` for what is at fault and nothing else, whatever the bytes are.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from relay.core import payload
from relay.core.errors import TEMPORARY, CommandError, ErrorCode
from relay.core.event import is_name, text_frame

Ref = str | float | None
MAX_REF_CHARACTERS: Final = 64
_MAX_DEPTH: Final = 254  # orjson writes no deeper; what a client sends must fit into its answer
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
    repeats it; `since` maps job ids to event ids.
    """

    subscribe: bool
    batch: bool
    job_ids: list[str]
    queue: str | None
    echo: dict[str, Any]
    ref: Ref
    since: dict[str, str] = field(default_factory=dict)
    refused: dict[str, ErrorCode] = field(default_factory=dict)


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

    data: object
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


def encode_reply(event: str, data: object, ref: Ref = None) -> bytes:
    """A server message as one text frame."""
    reply: dict[str, object] = {"event": event, "data": data}
    if ref is not None:
        reply["ref"] = ref
    return text_frame(payload.encode(reply))


def encode_error(error: CommandError) -> bytes:
    """The `error` reply to a message at fault."""
    data = error_body(error.code, error.message)
    data["temporary"] = error.code in TEMPORARY
    return encode_reply("error", data, error.ref)


def error_body(code: ErrorCode, message: str) -> dict[str, object]:
    """What an error says, over WebSocket and HTTP alike."""
    return {"code": code.value, "message": message}
