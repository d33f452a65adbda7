"""What the GETs of jobs have in common: parameters, and whether there is room for a request that stays.

Faults in parameters raise `CommandError`, which is answered with 400.
"""

import math
from collections.abc import Callable
from typing import Final

from aiohttp import web

from relay.core.errors import CommandError, ErrorCode
from relay.core.event import is_name
from relay.web.gateway import Gateway
from relay.web.origin import OriginPolicy
from relay.web.responses import error_response

MAX_WAIT_SECONDS: Final = 60


def job_id_of(request: web.Request) -> str:
    """The job that the path names."""
    job_id = request.match_info["jobId"]
    if not is_name(job_id):
        raise CommandError(
            ErrorCode.INVALID_JOB_ID, "a jobId has 1 to 256 characters, none of them a control"
        )
    return job_id


def queue_of(request: web.Request) -> str | None:
    """The queue that the query names, None where it names none."""
    queue = request.query.get("queueName")
    if queue is not None and not is_name(queue):
        raise CommandError(
            ErrorCode.INVALID_QUEUE_NAME,
            "a queueName has 1 to 256 characters, none of them a control",
        )
    return queue


def list_parameter(request: web.Request, name: str) -> list[str]:
    """A list in the query: repeated, or given once and split at commas; each member once, in order."""
    values = request.query.getall(name, [])
    if len(values) == 1:
        values = values[0].split(",")
    return list(dict.fromkeys(value for value in values if value))


def wait_seconds_of(request: web.Request) -> float | None:
    """How long the answer may be held; None where the request is no long poll."""
    given = request.query.get("wait")
    if given is None:
        return 0.0 if "since" in request.query else None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise CommandError(
            ErrorCode.BAD_REQUEST, f"wait is a number of seconds from 0 to {MAX_WAIT_SECONDS}"
        )
    return seconds


class Reception:
    """Whether a request may stay, and from where it comes. `policy` is the one in force."""

    def __init__(self, gateway: Gateway, policy: Callable[[], OriginPolicy]) -> None:
        self._gateway = gateway
        self._policy = policy

    def address_of(self, request: web.Request) -> str:
        """The client's real address."""
        forwarded = request.headers.getall("X-Forwarded-For", [])
        return self._policy().client_address(request.remote or "", forwarded)

    def refuse(self, request: web.Request) -> web.Response | None:
        """The answer where the relay drains or is full; None where the request may stay."""
        refusal = self._gateway.judge_request(self.address_of(request))
        if refusal is None:
            return None
        response = error_response(refusal.status, refusal.code, refusal.message)
        response.headers.update(refusal.headers)
        return response
