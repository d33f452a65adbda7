"""What the GETs of jobs have in common: parameters, who asks, and whether there is room for a request that stays.

Faults in parameters raise `CommandError`, which is answered with 400 (403 for what may not be watched), refusals
of the request itself `RequestRefused`.
"""

import math
from collections.abc import Callable
from typing import Final, NoReturn

from aiohttp import web

from relay.core.errors import CommandError, ErrorCode
from relay.core.event import is_name
from relay.core.grants import Grants
from relay.core.rights import FORBIDDEN
from relay.web.gatekeeper import Gatekeeper
from relay.web.gateway import Gateway
from relay.web.handshake import Refusal
from relay.web.origin import OriginPolicy
from relay.web.request import head_of

MAX_WAIT_SECONDS: Final = 60


class RequestRefused(Exception):
    """The request is not let in: who asks, from where, or that there is no room. Told and counted already."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.label)
        self.refusal = refusal


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
    """Who asks, whether the request may stay, and from where it comes. `policy` is the one in force."""

    def __init__(
        self, gateway: Gateway, gatekeeper: Gatekeeper, policy: Callable[[], OriginPolicy]
    ) -> None:
        self._gateway = gateway
        self._gatekeeper = gatekeeper
        self._policy = policy

    def address_of(self, request: web.Request) -> str:
        """The client's real address."""
        forwarded = request.headers.getall("X-Forwarded-For", [])
        return self._policy().client_address(request.remote or "", forwarded)

    async def admit(self, request: web.Request) -> Grants:
        """What the client may watch. To be asked before anything is looked up for it.

        Raises:
            RequestRefused: it does not say who it is, or is not believed.
        """
        peer = request.remote or ""
        outcome = await self._gatekeeper.admit(head_of(request), peer, self._policy())
        if isinstance(outcome, Refusal):
            self._turn_away(request, outcome)
        assert outcome is not None
        return outcome

    def make_room(self, request: web.Request) -> None:
        """Raises RequestRefused where the relay drains or is full."""
        refusal = self._gateway.judge_request(self.address_of(request))
        if refusal is not None:
            self._turn_away(request, refusal)

    def forbid(self) -> NoReturn:
        """Raises CommandError: the client may not watch what it asks for, whether that exists or not."""
        self._gateway.hub.stats.client_errors[ErrorCode.FORBIDDEN.value] += 1
        raise CommandError(ErrorCode.FORBIDDEN, FORBIDDEN)

    def _turn_away(self, request: web.Request, refusal: Refusal) -> NoReturn:
        self._gateway.rejected(refusal, self.address_of(request), "request_rejected")
        raise RequestRefused(refusal)
