"""What a publisher says of a job: the flat payload, and the channel that the template gives for it.

Pure: no connection and no clock. What the relay could not place is refused here, where the mistake is,
with advice; the relay itself could only count and drop it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from relay.core import payload as json_payload
from relay.core.event import event_name, is_name
from relay.sources.template import ChannelTemplate

DEFAULT_CHANNEL: Final = "jobs:{queueName}:{jobId}"
# What a job is in whose publisher names no queue, where the channel needs one: the name that queue
# libraries use for it too.
DEFAULT_QUEUE: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What goes to Redis: `payload` is a JSON object in UTF-8 that begins with its brace.

    `queue` is None where neither channel nor payload tells it, `event` where the payload leaves it to
    the relay to read it off the status.
    """

    channel: str
    payload: bytes
    job: str
    queue: str | None
    event: str | None


def flat_payload(
    event: str,
    job: str | int,
    fields: Mapping[str, Any],
    queue: str | None,
    status: str | None,
    data: object,
    now_ms: int,
) -> dict[str, Any]:
    """The payload of an event with its own `fields`; of the others, what is None is left out."""
    others = {"queueName": queue, "status": status, "data": data}
    told = {name: value for name, value in others.items() if value is not None}
    return {"event": event, "jobId": job, **fields, **told, "ts": now_ms}


def error_fields(error: str | BaseException) -> dict[str, str]:
    """What a `job-failed` says; of an exception, its type and, as the reason, its text."""
    if isinstance(error, str):
        return {"error": error}
    text = str(error)
    return {"error": type(error).__name__, **({"failedReason": text} if text else {})}


def parse_template(text: str) -> ChannelTemplate:
    """The channel template in `text`.

    Raises:
        ValueError: it is none.
    """
    try:
        return ChannelTemplate.parse(text)
    except ValueError as error:
        raise ValueError(f"channel template {text!r}: {error}") from None


def compose(
    template: ChannelTemplate, payload: Mapping[str, Any], *, keep_event_id: bool = True
) -> Message:
    """The message that carries `payload`, on the channel that `template` gives for it.

    Args:
        template: of the channel.
        payload: a flat one, in any spelling that the relay understands.
        keep_event_id: False leaves an `eventId` out, because whoever sends the message adds another.

    Raises:
        ValueError: the job is missing or no valid name, the template needs an event that the
            payload does not tell, or a value is no JSON; the text says what to do.
    """
    job = _name("job", _first(payload, "jobId", "job_id", "id"))
    if job is None:
        raise ValueError('the payload names no job: add "jobId" beside its other fields')
    queue = _name("queue", _first(payload, "queueName", "queue_name", "queue"))
    if queue is None and template.names("queueName"):
        queue = DEFAULT_QUEUE
    event = event_name(_first(payload, "event", "type"))
    if event is None and template.names("event"):
        raise ValueError(
            f"the channel {template.text} has the event of job {job!r} in it: name it as "
            '"event", for instance "job-progress"'
        )
    channel = template.format(job_id=job, queue=queue, event=event or "")
    _check_way_back(template, channel, job, queue)
    fields = dict(payload)
    if not keep_event_id:
        fields.pop("eventId", None)
    try:
        encoded = json_payload.encode(fields)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the payload of job {job!r} is no JSON ({error}): make it of dicts, lists, strings, "
            "numbers, booleans and None"
        ) from error
    return Message(channel=channel, payload=encoded, job=job, queue=queue, event=event)


def _first(payload: Mapping[str, Any], *names: str) -> object:
    for name in names:
        if payload.get(name) is not None:
            return payload[name]
    return None


def _name(what: str, value: object) -> str | None:
    if type(value) is int:
        value = str(value)
    if value is None:
        return None
    if not isinstance(value, str) or not is_name(value) or not _is_utf8(value):
        raise ValueError(
            f"{value!r} cannot name a {what}: it takes 1 to 256 characters, none of them a control"
        )
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _check_way_back(template: ChannelTemplate, channel: str, job: str, queue: str | None) -> None:
    """The relay reads the names off the channel: refuse what it would take for another job's."""
    told = template.match(channel.encode()) or {}
    names = {"jobId": job, "queueName": queue or ""}
    for placeholder, name in names.items():
        if told.get(placeholder, name.encode()) != name.encode():
            raise ValueError(
                f"the channel {channel} would be read as {placeholder} "
                f"{told[placeholder].decode(errors='replace')!r} and not {name!r}: use a name "
                f"without the characters that part the placeholders of {template.text}"
            )
