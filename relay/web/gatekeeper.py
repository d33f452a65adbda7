"""Who a request comes from: what it carries becomes grants, or the refusal to answer with.

In mode `none` everybody has every right; in mode `jwt` a token says what its holder may watch (RFC 6750); in
mode `proxy` the headers of a trusted proxy do. Verifying a token rarely has to wait, for a key that must be
fetched first, so it is done at once where it can be. No token, nor anything of it, goes into a log or an answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from relay.auth.proxy import grants_of_headers
from relay.auth.revocations import Revocations
from relay.auth.tokens import Authenticator, TokenError
from relay.core.errors import ErrorCode
from relay.core.grants import EVERYTHING, Grants
from relay.core.rights import Proof
from relay.core.stats import Stats
from relay.web.credentials import Carriers, token_of
from relay.web.handshake import INVALID_TOKEN, RETRY_AFTER_SECONDS, Refusal
from relay.web.origin import OriginPolicy
from relay.web.request import Head

SECRET_HEADER: Final = "x-relay-proxy-secret"

Outcome = Grants | Refusal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What of the settings decides about requests; taken over as a whole when they are reloaded."""

    mode: Literal["none", "jwt", "proxy"]
    carriers: Carriers
    proxy_header: str
    proxy_secret: str


class Gatekeeper:
    """See the module's promise.

    Args:
        authenticator: verifies tokens; there in mode `jwt`.
        clock_ms: the time, Unix milliseconds.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        authenticator: Authenticator | None,
        revocations: Revocations,
        stats: Stats,
        clock_ms: Callable[[], int],
    ) -> None:
        self.rules = rules
        self._authenticator = authenticator
        self._revocations = revocations
        self._stats = stats
        self._clock_ms = clock_ms
        self._waiting: set[asyncio.Task[Any]] = set()

    def judge(
        self, head: Head, peer: str, policy: OriginPolicy, *, websocket: bool
    ) -> Outcome | Coroutine[Any, Any, Outcome]:
        """What the sender of `head` may watch, or why it is refused.

        None stands for a WebSocket that has yet to authenticate. A coroutine where a key must be fetched
        first: it ends with the outcome.
        """
        if self.rules.mode == "none":
            return EVERYTHING
        try:
            if self.rules.mode == "proxy":
                return self._told_by_proxy(head, peer, policy)
            token = token_of(head, self.rules.carriers)
            if token is None:
                if websocket:
                    return None
                raise TokenError("missing", "a token is needed: send Authorization: Bearer")
            found = self._verify(token)
        except TokenError as error:
            return self._refuse(error)
        return found if isinstance(found, Grants) else self._settle(found)

    async def admit(
        self, head: Head, peer: str, policy: OriginPolicy, *, websocket: bool = False
    ) -> Outcome:
        """As `judge`, for those who can wait."""
        outcome = self.judge(head, peer, policy, websocket=websocket)
        return await outcome if isinstance(outcome, Coroutine) else outcome

    def later(self, outcome: Coroutine[Any, Any, Outcome], then: Callable[[Outcome], None]) -> None:
        """Call `then` with the outcome that `judge` could not tell at once."""

        async def wait() -> None:
            then(await outcome)

        task = asyncio.get_running_loop().create_task(wait())
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    def prove(self, proof: Proof, done: Callable[[], None]) -> None:
        """Verify the token of a session's `authenticate`, then call `done`; at once where that can be."""
        try:
            found: Grants | Awaitable[Grants] = self._verify(proof.token)
        except TokenError as error:
            _fill(proof, self._refuse(error))
            done()
            return
        if isinstance(found, Grants):
            _fill(proof, found)
            done()
        else:
            self.later(self._settle(found), partial(_fill_and_tell, proof, done))

    def close(self) -> None:
        """Wait for no key any more."""
        for task in self._waiting:
            task.cancel()

    def _verify(self, token: str) -> Grants | Awaitable[Grants]:
        assert self._authenticator is not None
        return self._authenticator.verify(token)

    async def _settle(self, found: Awaitable[Grants]) -> Outcome:
        try:
            return await found
        except TokenError as error:
            return self._refuse(error)

    def _told_by_proxy(self, head: Head, peer: str, policy: OriginPolicy) -> Grants:
        now_ms = self._clock_ms()
        grants = grants_of_headers(
            head.all(self.rules.proxy_header.lower()),
            head.all(SECRET_HEADER),
            secret=self.rules.proxy_secret,
            on_unix_socket=policy.unix,
            trusted=policy.trusts(peer),
            now_ms=now_ms,
        )
        if self._revocations.is_revoked(grants, now_ms):
            raise TokenError("revoked", "the claims were revoked")
        return grants

    def _refuse(self, error: TokenError) -> Refusal:
        reason = error.reason
        self._stats.tokens_refused[reason] += 1
        if reason == "keys-unavailable":
            headers = (("Retry-After", str(RETRY_AFTER_SECONDS)),)
            return Refusal("token", 503, ErrorCode.UNAVAILABLE, str(error), headers, detail=reason)
        # Who sent no token at all is told no more than the scheme.
        challenge = "Bearer" if reason == "missing" else INVALID_TOKEN
        headers = (("WWW-Authenticate", challenge),)
        return Refusal("token", 401, ErrorCode.UNAUTHORIZED, str(error), headers, detail=reason)


def _fill(proof: Proof, outcome: Outcome) -> None:
    if isinstance(outcome, Refusal):
        proof.refused, proof.advice = outcome.code, outcome.message
    else:
        proof.grants = outcome


def _fill_and_tell(proof: Proof, done: Callable[[], None], outcome: Outcome) -> None:
    _fill(proof, outcome)
    done()
