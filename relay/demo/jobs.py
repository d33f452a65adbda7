"""What the demo's API and its worker agree on: where jobs wait, and what is published of them.

The payloads are the contract's flat form, on the default channel `jobs:{queueName}:{jobId}`.
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

_ALPHABET = string.ascii_uppercase + string.digits


def new_job_id() -> str:
    """`similarity-` and ten characters that nobody guesses or meets twice."""
    return "similarity-" + "".join(secrets.choice(_ALPHABET) for _ in range(10))


def channel(job_id: str) -> str:
    """The Redis channel on which this job's events are published."""
    return f"jobs:{QUEUE_NAME}:{job_id}"


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
