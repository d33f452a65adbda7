"""A job's state as one document, made from what history holds: what `GET /jobs/{jobId}` answers.

The same for every transport that asks rather than listens; nothing is kept for it.
"""

from typing import Any

import orjson

from relay.core.event import COMPLETED, FAILED, PROGRESS, JobEvent
from relay.core.history import History

_TAKEN = ("data", "result", "error", "failedReason", "processingTime")


def job_document(history: History, job_id: str, queue: str | None) -> dict[str, Any] | None:
    """What is known of the job; None where nothing is. Every field is there, null where unknown."""
    events = history.snapshot(job_id, queue)
    if not events:
        return None
    newest = events[-1]
    fields: dict[str, Any] = {}
    for event in events:
        fields |= orjson.loads(event.data)
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
