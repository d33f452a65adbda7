"""A job's state as one document, made from what history holds: what `GET /jobs/{jobId}` answers.

The same for every transport that asks rather than listens; nothing is kept for it.
"""

from typing import Any, Final

from relay.core import payload
from relay.core.errors import DecodeError
from relay.core.event import COMPLETED, FAILED, PROGRESS, JobEvent
from relay.core.history import History

_TAKEN: Final = ("data", "result", "error", "failedReason", "processingTime")
# Fewer brackets cannot be nested too deep for any encoder, nor for what the document adds around them.
_HARMLESS_BRACKETS: Final = 200


def job_document(history: History, job_id: str, queue: str | None) -> dict[str, Any] | None:
    """What is known of the job; None where nothing is. Every field is there, null where unknown."""
    events = history.snapshot(job_id, queue)
    if not events:
        return None
    newest = events[-1]
    fields: dict[str, Any] = {}
    for event in events:
        fields |= _fields(event.data)
    return {
        "jobId": job_id,
        "queueName": newest.queue,
        "event": newest.name,
        "status": _status(events, fields),
        "progress": fields.get("progress", history.progress(job_id, queue)),
        **{name: fields.get(name) for name in _TAKEN},
        "id": newest.id,
        "updatedAt": newest.at_ms,
    }


def _fields(data: bytes) -> dict[str, Any]:
    """What an event says, in a form that can be encoded again.

    How deep a reader or a writer goes hangs on the stack below it, so what was understood when it came may
    be too deep now. Such an event is told without its fields.
    """
    try:
        fields = payload.parse_object(data)
        if data.count(b"[") + data.count(b"{") > _HARMLESS_BRACKETS:
            payload.encode([[[[[[[[fields]]]]]]]])
    except (DecodeError, RecursionError):
        return {}
    return fields


def _status(events: list[JobEvent], fields: dict[str, Any]) -> str:
    """After the end `completed`, `failed` or `cancelled`; before it what the publisher says."""
    names = {event.name for event in events}
    status = fields.get("status")
    if COMPLETED in names:
        return "completed"
    if FAILED in names:
        return "cancelled" if status == "cancelled" else "failed"
    if type(status) is str:
        return status
    return "active" if PROGRESS in names else events[-1].name.removeprefix("job-")
