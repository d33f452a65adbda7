"""Celery's Redis result backend: what it stores of a task at each of its states, it publishes too.

Key and channel have one name, `celery-task-meta-<task id>` behind the app's `global_keyprefix`, and hold
the same bytes (SETEX and PUBLISH in one MULTI), so that a GET reads what the newest message said. The
event id is made of these bytes: both ways, and every relay, agree on it.

Only what stands in a list here is told. Never: `args`, `kwargs`, `traceback`, `worker`, which may hold
what a browser must not see. Results are read as JSON, Celery's default; what another `result_serializer`
or `result_compression` wrote is refused, and pickle is never opened.
"""

from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

from relay.core import payload
from relay.core.errors import AmendedReason, DecodeError, InvalidReason
from relay.core.event import COMPLETED, FAILED, PROGRESS, TERMINAL, Draft, Identity, is_name
from relay.sources.channel import percent
from relay.sources.template import ChannelTemplate

_TASK_KEY: Final = "celery-task-meta-"
_PREFIX_ENDS: Final = (":", "_", "-", ".")
_EVENT_ID_BYTES: Final = 8

# Where tasks keep a percentage beside the names that `percent` knows, and a count of what is done.
_PERCENT: Final = ("percentage", "pct", "process_percent", "pct_complete")
_DONE: Final = ("done", "completed", "processed", "at")
# What Celery itself writes into the meta of STARTED; it tells of the worker.
_OF_THE_WORKER: Final = ("pid", "hostname")


class CelerySource:
    """The tasks of one Celery app.

    A task is told of by these fields, where it gives them:

    - `status`: `active`, `retrying`, `completed`, `failed` or `cancelled`
    - `stage`: the state as Celery has it, while the task is active: `STARTED`, `PROGRESS` or one of its own
    - `progress`, `data`: what `update_state(meta=…)` was given, and the percentage in it
    - `result`: of a task that succeeded
    - `error`, `failedReason`: the exception's type and message; the message of a retry's cause too
    - `finishedOn`: when it ended, in Unix milliseconds
    - `name`, `retries`, and the queue as the job's own: only with `result_extended = True`
    """

    def __init__(self, key_prefix: str = "") -> None:
        """Nothing but names follow from the prefix.

        Args:
            key_prefix: the app's `result_backend_transport_options["global_keyprefix"]`, as it is there.
        """
        if key_prefix and not key_prefix.endswith(_PREFIX_ENDS):
            key_prefix += "_"  # Celery does the same
        prefix = key_prefix + _TASK_KEY
        # Not by way of `parse`: a brace in the app's prefix is no placeholder.
        self.pattern = ChannelTemplate(prefix + "{jobId}", [prefix, ""], ["jobId"]).pattern
        self._prefix = prefix.encode()

    def key(self, job_id: str) -> bytes:
        """The Redis key that holds the task's last state; also its channel."""
        return self._prefix + job_id.encode()

    def identify(self, channel: bytes) -> Identity | None:
        """The task that `channel` tells; None where it is no task's.

        Raises:
            DecodeError: the task's id cannot name a job.
        """
        if not channel.startswith(self._prefix):
            return None
        try:
            job_id = channel[len(self._prefix) :].decode()
        except UnicodeDecodeError:
            raise DecodeError(InvalidReason.NO_IDENTITY) from None
        if not is_name(job_id):
            raise DecodeError(InvalidReason.NO_IDENTITY)
        return Identity(self, channel, job_id, None)

    def parse(self, identity: Identity, message: bytes) -> Draft:
        """The draft in `message`, a task's state as Celery stores it.

        Raises:
            DecodeError: it is no JSON object, or none with a state in it.
        """
        if not message.startswith(b"{"):
            # Celery's JSON begins so and nothing else that it can be told to write does.
            raise DecodeError(InvalidReason.UNSUPPORTED)
        stored = payload.parse_object(message)
        state = stored.get("status")
        if type(state) is not str:
            raise DecodeError(InvalidReason.UNSUPPORTED)
        assert identity.job_id is not None  # the channel tells it
        amended: list[AmendedReason] = []
        task_id = stored.get("task_id")
        if task_id is not None and task_id != identity.job_id:
            amended.append(AmendedReason.MISMATCH)
        name, fields = _told(state, stored.get("result"))
        return Draft(
            name, identity.job_id, _queue(stored, amended), {**fields, **_extended(stored, ended=name in TERMINAL)},
            id=event_id(message),
            # These two Celery writes by itself when a run of the task begins or another is to come.
            # A PROGRESS may also come late from a run that was ended from outside.
            runs=state in ("STARTED", "RETRY"),
            amended=tuple(amended),
        )  # fmt: skip


def event_id(message: bytes) -> str:
    """The event id that these bytes have, wherever they were read."""
    return f"c-{blake2b(message, digest_size=_EVENT_ID_BYTES).hexdigest()}"


def _told(state: str, result: Any) -> tuple[str, dict[str, Any]]:
    """The event's name and fields by state; `result` is the task's, its meta, or its exception."""
    match state:
        case "SUCCESS":
            return COMPLETED, {"status": "completed", "result": result}
        case "FAILURE":
            return FAILED, {"status": "failed", **_exception(result)}
        case "REVOKED":
            return FAILED, {"status": "cancelled", **_exception(result)}
        case "RETRY":
            # No progress: the next run counts anew, and until then the last one is the truth.
            reason = _exception(result).get("failedReason")
            return PROGRESS, {"status": "retrying"} | ({"failedReason": reason} if reason else {})
        case _:
            return PROGRESS, {"status": "active", "stage": state, **_meta(state, result)}


def _meta(state: str, meta: Any) -> dict[str, Any]:
    """`data` and `progress` of what a task told of itself."""
    if state == "STARTED" and type(meta) is dict:
        meta = {name: value for name, value in meta.items() if name not in _OF_THE_WORKER}
    fields: dict[str, Any] = {}
    if meta not in (None, {}):
        fields["data"] = meta
    progress = _progress(meta)
    if progress is not None:
        fields["progress"] = min(max(progress, 0), 100)
    return fields


def _progress(meta: Any) -> float | None:
    if type(meta) is not dict:
        return percent({"percent": meta})
    candidates = [meta, *({"percent": meta.get(name)} for name in _PERCENT)]
    candidates += ({"current": meta.get(name), "total": meta.get("total")} for name in _DONE)
    return next((found for one in candidates if (found := percent(one)) is not None), None)


def _exception(result: Any) -> dict[str, Any]:
    """`error` and `failedReason` of an exception as Celery stores it, or of what a task put in its place.

    Its message is the list of its arguments; those that are no texts (an error number, a time limit)
    tell a reader nothing, so that an exception without any text is told by its type.
    """
    stored = result if type(result) is dict else {"exc_message": result}
    error = stored.get("exc_type")
    if type(error) is not str or not error:
        error = None
    message = stored.get("exc_message", stored.get("message"))
    arguments = message if type(message) is list else [message]
    texts = [argument for argument in arguments if type(argument) is str and argument]
    reason = ", ".join(texts) or error
    return {"error": error or "failed"} | ({"failedReason": reason} if reason else {})


def _extended(stored: dict[str, Any], *, ended: bool) -> dict[str, Any]:
    """The other fields that a client may see."""
    fields: dict[str, Any] = {}
    done = stored.get("date_done")
    if ended and type(done) is str:
        with suppress(ValueError):
            moment = datetime.fromisoformat(done)
            # Older releases wrote UTC without saying so.
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            fields["finishedOn"] = round(moment.timestamp() * 1000)
    if type(stored.get("name")) is str:
        fields["name"] = stored["name"]
    if type(stored.get("retries")) is int:
        fields["retries"] = stored["retries"]
    return fields


def _queue(stored: dict[str, Any], amended: list[AmendedReason]) -> str | None:
    queue = stored.get("queue")
    if queue is None:
        return None
    if type(queue) is not str or not is_name(queue):
        amended.append(AmendedReason.QUEUE_NAME)
        return None
    return queue
