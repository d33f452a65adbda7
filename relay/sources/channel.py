"""Plain JSON messages on a channel of the operator's choosing: the default dialect.

What the channel tells (job, queue, event) wins over the payload; what it does not tell is read from
the payload. What is merely odd in a payload is put right; only a message without an identity, or one
that is no JSON object, is refused.
"""

from typing import Any, Final

from relay.core import payload
from relay.core.errors import AmendedReason, DecodeError, InvalidReason
from relay.core.event import (
    COMPLETED,
    FAILED,
    PROGRESS,
    RUNNING_STATUSES,
    Draft,
    Identity,
    event_name,
    is_event_id,
    is_name,
)
from relay.sources.template import ChannelTemplate

_COMPLETED_STATUSES: Final = frozenset(
    {"completed", "complete", "succeeded", "success", "finished", "done"}
)
_FAILED_STATUSES: Final = frozenset({"failed", "failure", "error", "cancelled"})
_LEADING_EVENT_ID: Final = b'{"eventId":"'
_JOB_ID: Final = ("jobId", "job_id")
_QUEUE: Final = ("queueName", "queue_name", "queue")
_RESULT: Final = ("result", "returnvalue")
# Other spellings, and what makes a message something else than a progress or needs to be put right.
_NOT_PLAIN: Final = frozenset(
    {*_JOB_ID[1:], *_QUEUE[1:], *_RESULT, "type", "error", "failedReason"}
)
_ENDED_STATUSES: Final = _COMPLETED_STATUSES | _FAILED_STATUSES


class ChannelSource:
    """Messages on the channels of one template."""

    def __init__(self, template: ChannelTemplate) -> None:
        self.pattern = template.pattern
        self._template = template

    def identify(self, channel: bytes) -> Identity | None:
        """What `channel` tells; None where it is not of the template's shape.

        Raises:
            DecodeError: a placeholder of it holds what cannot be a job's or a queue's name.
        """
        found = self._template.match(channel)
        if found is None:
            return None
        try:
            told = {name: value.decode() for name, value in found.items()}
        except UnicodeDecodeError:
            raise DecodeError(InvalidReason.NO_IDENTITY) from None
        job_id, queue = told.get("jobId"), told.get("queueName")
        if not ((job_id is None or is_name(job_id)) and (queue is None or is_name(queue))):
            raise DecodeError(InvalidReason.NO_IDENTITY)
        event = event_name(told.get("event"))
        return Identity(self, channel, job_id, queue, event)

    def parse(self, identity: Identity, message: bytes) -> Draft:
        """The draft in `message`, put right where it can be.

        Raises:
            DecodeError: no JSON object in UTF-8, or no identity in channel and payload.
        """
        fields = payload.parse_object(message)
        if identity.event is None and _NOT_PLAIN.isdisjoint(fields):
            draft = _plain_progress(identity, message, fields)
            if draft is not None:
                return draft
        return _any_message(identity, message, fields)


def _plain_progress(identity: Identity, message: bytes, fields: dict[str, Any]) -> Draft | None:
    """The draft of a flat progress in which nothing is to be put right; None leaves `fields` as they are.

    Nearly every watched message is one. It comes to what `_any_message` would make of it, for a third
    of the interpreter's steps.
    """
    job_id, queue = identity.job_id, identity.queue
    if job_id is None or fields.get("jobId") != job_id or fields.get("queueName", queue) != queue:
        return None
    progress, status, name = fields.get("progress"), fields.get("status"), fields.get("event")
    if (
        (type(progress) is not int and type(progress) is not float)
        or not 0 <= progress <= 100
        or (type(status) is not str and status is not None)
    ):
        return None
    names_progress = name == PROGRESS or name == "progress"
    if not names_progress and (
        name is not None or (status is not None and status.lower() in _ENDED_STATUSES)
    ):
        return None
    event_id = data = None
    if "eventId" in fields:
        event_id = _leading_event_id(message, fields)
        if event_id is None:
            return None
    elif (
        "event" not in fields
        and status is not None
        and ("queueName" in fields) is (queue is not None)
    ):
        # A line break would end the line in an event stream.
        data = None if b"\n" in message or b"\r" in message else message
    if names_progress:
        del fields["event"]
    del fields["jobId"]
    fields.pop("queueName", None)
    ts = fields.get("ts")
    return Draft(
        PROGRESS, job_id, queue, fields, data=data,
        id=event_id, runs=status in RUNNING_STATUSES, ts_ms=ts if type(ts) in (int, float) else None,
    )  # fmt: skip


def _any_message(identity: Identity, message: bytes, fields: dict[str, Any]) -> Draft:
    """The draft in `fields`, which is what JSON there is in `message`, put right where it can be.

    Raises:
        DecodeError: neither the channel nor the payload tells the job.
    """
    fields = _flatten(fields)
    amended: list[AmendedReason] = []
    job_id = _job_id(identity, fields, amended)
    queue = _queue(identity, fields, amended)
    event_id = _leading_event_id(message, fields) or _event_id(fields, amended)
    name = _name(identity, fields, amended)
    runs = fields.get("status") in RUNNING_STATUSES if _is_text(fields, "status") else False
    _put_progress_right(fields)
    if name == COMPLETED or "returnvalue" in fields:
        fields["result"] = _take(fields, _RESULT)
    _put_error_right(fields, failed=name == FAILED)
    ts = fields.get("ts")
    return Draft(
        name, job_id, queue, fields,
        id=event_id, runs=runs, ts_ms=ts if type(ts) in (int, float) else None,
        amended=tuple(dict.fromkeys(amended)),  # a message is counted once a reason
    )  # fmt: skip


def _flatten(message: dict[str, Any]) -> dict[str, Any]:
    """The wrapped form `{event, data: {jobId, …}}` as the flat one; a flat message as it is."""
    inner = message.get("data")
    if type(inner) is not dict or not _names_job(inner) or _names_job(message):
        return message
    outer = {name: value for name, value in message.items() if name != "data"}
    # The inner object describes the job; of the outer one only what it does not say itself counts,
    # save the event's name and id, whose place is outside.
    event = {name: outer[name] for name in ("event", "type") if event_name(outer.get(name))}
    if is_event_id(outer.get("eventId")):
        event["eventId"] = outer["eventId"]
    return {**outer, **inner, **event}


def _names_job(fields: dict[str, Any]) -> bool:
    return any(fields.get(name) is not None for name in _JOB_ID)


def _job_id(identity: Identity, fields: dict[str, Any], amended: list[AmendedReason]) -> str:
    told = identity.job_id
    given = _take(fields, _JOB_ID)
    if told is not None:
        if given is not None and _as_id(given) != told:
            amended.append(AmendedReason.MISMATCH)
        return told
    candidate = _as_id(fields.pop("id", None) if given is None else given)
    if candidate is None or not is_name(candidate):
        raise DecodeError(InvalidReason.NO_IDENTITY)
    return candidate


def _queue(identity: Identity, fields: dict[str, Any], amended: list[AmendedReason]) -> str | None:
    candidate = _take(fields, _QUEUE)
    told = identity.queue
    if told is not None:
        if candidate is not None and candidate != told:
            amended.append(AmendedReason.MISMATCH)
        return told
    if candidate is None:
        return None
    if type(candidate) is not str or not is_name(candidate):
        amended.append(AmendedReason.QUEUE_NAME)
        return None
    return candidate


def _leading_event_id(message: bytes, fields: dict[str, Any]) -> str | None:
    """The id that the append script puts in front of a payload: the stream's own, whatever the payload
    itself says further on."""
    if not message.startswith(_LEADING_EVENT_ID):
        return None
    end = message.find(b'"', len(_LEADING_EVENT_ID))
    event_id = message[len(_LEADING_EVENT_ID) : end].decode(errors="replace")
    if "\\" in event_id or not is_event_id(event_id):
        return None  # a publisher's own, to be read like any other field
    fields.pop("eventId", None)
    return event_id


def _event_id(fields: dict[str, Any], amended: list[AmendedReason]) -> str | None:
    if "eventId" not in fields:
        return None
    event_id = fields.pop("eventId")
    if is_event_id(event_id):
        return event_id  # type: ignore[no-any-return]
    if event_id is not None:
        amended.append(AmendedReason.EVENT_ID)
    return None


def _name(identity: Identity, fields: dict[str, Any], amended: list[AmendedReason]) -> str:
    """The event's name: from the channel, else from `event` or `type`, else from what is told."""
    given = None
    for alias in ("event", "type"):
        name = event_name(fields.get(alias))
        if name is not None:
            del fields[alias]  # any other value is the publisher's own field, and passed on
            given = given or name
    told = identity.event
    if told is not None and given is not None and given != told:
        amended.append(AmendedReason.MISMATCH)
    if told is not None or given is not None:
        return told or given  # type: ignore[return-value]
    status = fields["status"].lower() if _is_text(fields, "status") else ""
    if status in _COMPLETED_STATUSES:
        return COMPLETED
    if status in _FAILED_STATUSES:
        return FAILED
    if fields.get("error") is not None or fields.get("failedReason") is not None:
        return FAILED
    for alias in _RESULT:
        if alias in fields and (fields[alias] is not None or "progress" not in fields):
            return COMPLETED
    return PROGRESS


def percent(value: dict[str, Any]) -> int | float | None:
    """The progress in an object such as `{"percent": 40}` or `{"current": 2, "total": 5}`.

    A quotient is clamped to 0-100 before it is rounded, since it may be infinite.
    """
    for name in ("percent", "progress"):
        number = _number(value.get(name))
        if number is not None:
            return number
    current, total = _number(value.get("current")), _number(value.get("total"))
    if current is None or total is None or total <= 0:
        return None
    exact = min(max(100 * current / total, 0.0), 100.0)
    return int(exact) if exact == int(exact) else round(exact, 2)


def _put_progress_right(fields: dict[str, Any]) -> None:
    """Leave a number from 0 to 100 in `progress`, or nothing where none can be made out."""
    if "progress" not in fields:
        return
    progress = fields.pop("progress")
    if type(progress) is dict:
        beside = fields.get("data")
        if beside is None:
            fields["data"] = progress
        elif type(beside) is dict:
            fields["data"] = {**progress, **beside}
        progress = percent(progress)
    number = _number(progress)
    if number is not None:
        fields["progress"] = min(max(number, 0), 100)


def _put_error_right(fields: dict[str, Any], *, failed: bool) -> None:
    """Put an error's message in the place of an object.

    A failed job has an error in any case: else the reason, else what the status says.
    """
    error = fields.get("error")
    if type(error) is dict:
        message = error.get("message")
        error = fields["error"] = message if type(message) is str else None
    if failed and error is None:
        error = fields.get("failedReason")
        if error is None:
            error = fields["status"] if _is_text(fields, "status") else "failed"
        fields["error"] = error


def _take(fields: dict[str, Any], aliases: tuple[str, ...]) -> Any:
    """Remove all `aliases`; the first that is there and not null is the value."""
    found = None
    for alias in aliases:
        if alias in fields:
            value = fields.pop(alias)
            if found is None:
                found = value
    return found


def _as_id(value: object) -> str | None:
    if type(value) is int:
        return str(value)
    return value if type(value) is str else None


def _number(value: object) -> int | float | None:
    return value if type(value) in (int, float) else None  # type: ignore[return-value]


def _is_text(fields: dict[str, Any], name: str) -> bool:
    return type(fields.get(name)) is str
