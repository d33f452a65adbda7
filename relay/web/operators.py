"""What operators may do to the sessions of this relay: list them, disconnect them, revoke what they rest on.

For the admin listener alone, behind its token (see `routes.py`). Bodies are small JSON objects, declared as
such: no form of another site can send one (Fetch standard, CORS-safelisted content types).
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import orjson
import structlog
from aiohttp import web

from relay.auth.revocations import Revocations
from relay.core.closing import CloseReason
from relay.core.errors import CommandError, ErrorCode
from relay.web.gateway import Gateway, Guest
from relay.web.responses import error_response, plain_json

MAX_LISTED: Final = 1000
MAX_BODY_BYTES: Final = 16 * 1024
_BODY_SECONDS: Final = 10.0
# For how long a revocation is remembered at least: nobody tells how long unknown tokens live.
REMEMBERED_MS: Final = 24 * 3600 * 1000
_MAX_NAME_CHARACTERS: Final = 256

log = structlog.stdlib.get_logger()


class Operators:
    """The handlers. `clock_ms` tells Unix milliseconds."""

    def __init__(
        self, gateway: Gateway, revocations: Revocations, clock_ms: Callable[[], int]
    ) -> None:
        self._gateway = gateway
        self._revocations = revocations
        self._clock_ms = clock_ms

    async def connections(self, request: web.Request) -> web.StreamResponse:
        """`GET /admin/connections`: the newest sessions, at most `limit` (1,000); `search=` in id, address or
        principal."""
        search, limit = request.query.get("search", "").lower(), _limit(request)
        found = [
            guest
            for guest in reversed(self._gateway.guests())
            if any(search in text.lower() for text in _texts(guest))
        ]
        listed = [self._row(guest) for guest in found[:limit]]
        return plain_json({"total": len(found), "connections": listed})

    async def disconnect(self, request: web.Request) -> web.StreamResponse:
        """`POST /admin/disconnect` with `connectionId` or `principal`: close 1008."""
        body = await _body(request)
        if isinstance(body, web.Response):
            return body
        key, value = _one_of(body, "connectionId", "principal")
        which = _with_id(value) if key == "connectionId" else _with_principal(value)
        closed = await self._gateway.close_all(which, CloseReason.OPERATOR)
        log.info("operator_disconnected", by=key, value=value, closed=closed)
        return plain_json({"closed": closed})

    async def revoke(self, request: web.Request) -> web.StreamResponse:
        """`POST /admin/revoke` with `principal` or `jti`: close 3000, and refuse such tokens until `until`
        (Unix ms; by default the end of the longest-lived token known of, at least a day)."""
        body = await _body(request)
        if isinstance(body, web.Response):
            return body
        key, value = _one_of(body, "principal", "jti")
        which = _with_principal(value) if key == "principal" else _with_token(value)
        now_ms = self._clock_ms()
        until_ms = _until(body, now_ms)
        if until_ms is None:
            ends = [_expiry_ms(guest) for guest in self._gateway.guests() if which(guest)]
            until_ms = max([now_ms + REMEMBERED_MS, *ends])
        self._revocations.revoke(
            principal=value if key == "principal" else None,
            token_id=value if key == "jti" else None,
            until_ms=until_ms,
            now_ms=now_ms,
        )
        closed = await self._gateway.close_all(which, CloseReason.TOKEN_REVOKED)
        log.info("operator_revoked", by=key, value=value, until_ms=until_ms, closed=closed)
        return plain_json({"closed": closed})

    def _row(self, guest: Guest) -> dict[str, object]:
        session, grants = guest.session, guest.session.grants
        age_seconds = self._gateway.loop.time() - guest.opened_at
        return {
            "connectionId": session.connection_id,
            "transport": guest.transport_name,
            "remote": guest.remote,
            "principal": None if grants is None else grants.principal,
            "authenticated": grants is not None,
            "expiresAt": None if grants is None else grants.expires_at_ms,
            "subscriptions": session.subscription_count,
            "pendingBytes": session.outbox.pending_bytes,
            "openedAt": int((time.time() - age_seconds) * 1000),
        }


def _limit(request: web.Request) -> int:
    given = request.query.get("limit", str(MAX_LISTED))
    # Only ASCII digits: `int` takes more than a number in a URL should be.
    if not (
        given.isascii() and given.isdigit() and len(given) <= 4 and 0 < int(given) <= MAX_LISTED
    ):
        raise CommandError(ErrorCode.BAD_REQUEST, f"limit is a whole number from 1 to {MAX_LISTED}")
    return int(given)


def _texts(guest: Guest) -> tuple[str, str, str]:
    """What a search looks at."""
    grants = guest.session.grants
    principal = (grants.principal if grants is not None else None) or ""
    return guest.session.connection_id, guest.remote, principal


def _with_id(connection_id: str) -> Callable[[Guest], bool]:
    return lambda guest: guest.session.connection_id == connection_id


def _with_principal(principal: str) -> Callable[[Guest], bool]:
    def has(guest: Guest) -> bool:
        grants = guest.session.grants
        return grants is not None and grants.principal == principal

    return has


def _with_token(token_id: str) -> Callable[[Guest], bool]:
    def has(guest: Guest) -> bool:
        grants = guest.session.grants
        return grants is not None and grants.token_id == token_id

    return has


def _expiry_ms(guest: Guest) -> int:
    grants = guest.session.grants
    return (grants.expires_at_ms if grants is not None else None) or 0


async def _body(request: web.Request) -> dict[str, object] | web.Response:
    """The JSON object that was sent, or the answer to what is none."""
    if request.content_type != "application/json":
        return error_response(415, ErrorCode.BAD_REQUEST, "send Content-Type: application/json")
    if "Content-Encoding" in request.headers:
        return error_response(415, ErrorCode.BAD_REQUEST, "send the body without Content-Encoding")
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            document = orjson.loads(await request.read())
    except TimeoutError:
        return error_response(408, ErrorCode.BAD_REQUEST, "the body did not come in time")
    except orjson.JSONDecodeError:
        raise CommandError(ErrorCode.BAD_REQUEST, "the body is not JSON") from None
    if not isinstance(document, dict):
        raise CommandError(ErrorCode.BAD_REQUEST, "the body is not a JSON object")
    return document


def _one_of(body: dict[str, object], *keys: str) -> tuple[str, str]:
    """The key that is there, and its value. Raises CommandError."""
    given = [key for key in keys if key in body]
    value = body[given[0]] if len(given) == 1 else None
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME_CHARACTERS:
        raise CommandError(
            ErrorCode.BAD_REQUEST,
            f"send one of {' and '.join(keys)}, a string of 1 to {_MAX_NAME_CHARACTERS} characters",
        )
    return given[0], value


def _until(body: dict[str, object], now_ms: int) -> int | None:
    until_ms = body.get("until")
    if until_ms is None:
        return None
    if type(until_ms) is not int or until_ms <= now_ms:
        raise CommandError(
            ErrorCode.BAD_REQUEST, "until is a time to come, in milliseconds since 1970"
        )
    return until_ms
