"""What the demo's API and its worker agree on: where jobs wait, how they stand, and what is published of them.

The payloads are the flat form of docs/protocol.md, on the default channel `jobs:{queueName}:{jobId}`. The
newest of each job is also kept under `state_key`, in one transaction with its publication: what an
application has in its database, for whoever cannot listen.
"""

import secrets
import string
import time
from typing import Any

import orjson

QUEUE_NAME = "similarity-operations"
# Redis lists of JSON documents. The worker moves a job from the one to the other (BLMOVE), so that what a
# killed worker was at is known to the next one.
WAITING_LIST = "demo:similarity:waiting"
RUNNING_LIST = "demo:similarity:running"
# How long a job's state and a wish to cancel it are kept.
KEEP_SECONDS = 3600

_ALPHABET = string.ascii_uppercase + string.digits


def new_job_id() -> str:
    """`similarity-` and ten characters that nobody guesses or meets twice."""
    return "similarity-" + "".join(secrets.choice(_ALPHABET) for _ in range(10))


def channel(job_id: str) -> str:
    """The Redis channel on which this job's events are published."""
    return f"jobs:{QUEUE_NAME}:{job_id}"


def state_key(job_id: str) -> str:
    """The Redis key of the newest payload that was published of this job."""
    return f"demo:similarity:state:{job_id}"


def cancel_key(job_id: str) -> str:
    """The Redis key that is there once somebody wants this job cancelled."""
    return f"demo:similarity:cancel:{job_id}"


def payload(event: str, job_id: str, **fields: Any) -> bytes:
    """One event of one job, stamped with the time of day as `ts` in milliseconds."""
    document = {
        "event": event,
        "jobId": job_id,
        "queueName": QUEUE_NAME,
        **fields,
        "ts": round(time.time() * 1000),
    }
    return orjson.dumps(document)
