"""Claims that a proxy has verified and passes on in a header, believed only of a proxy that proves itself.

Invariants: nothing in the header is looked at before its sender is proven to be the proxy; there is exactly one
such header, so that none that a client sent beside it can be meant. The secret is compared in constant time.
"""

import base64
import hmac
import re
from collections.abc import Sequence
from typing import Any, Final

import orjson

from relay.auth.tokens import MAX_TOKEN_BYTES, TokenError, numeric_date_ms
from relay.core.grants import Grants, grants_of

# base64url, its padding optional (RFC 4648 §5). Python's decoder would pass over other characters.
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+={0,2}")


def grants_of_headers(
    values: Sequence[str],
    secrets_given: Sequence[str],
    *,
    secret: str,
    on_unix_socket: bool,
    trusted: bool,
    now_ms: int,
) -> Grants:
    """What the proxy says that the client may do.

    Args:
        values: the claims' header, each time it is there.
        secrets_given: `X-Relay-Proxy-Secret`, each time it is there.
        secret: what the proxy knows; may be empty on a unix socket only.
        trusted: whether the request comes from a trusted proxy's address.
        now_ms: ms since the epoch.

    Raises:
        TokenError: it is not believed.
    """
    if not (trusted or on_unix_socket):
        raise TokenError("untrusted", "only a proxy in server.trusted_proxies is let in here")
    _check_secret(secrets_given, secret, on_unix_socket=on_unix_socket)
    if not values:
        raise TokenError("missing", "the proxy should send its header of claims")
    if len(values) > 1:
        raise TokenError("malformed", "the header of claims should be there once")
    claims = _claims_of(values[0])
    expires_at_ms = numeric_date_ms(claims, "exp")
    if expires_at_ms is not None and expires_at_ms <= now_ms:
        raise TokenError("expired", "the claims have expired")
    try:
        return grants_of(claims, expires_at_ms=expires_at_ms)
    except ValueError as error:
        raise TokenError("claims", str(error)) from None


def _check_secret(given: Sequence[str], secret: str, *, on_unix_socket: bool) -> None:
    if not secret and on_unix_socket:
        return
    if not (
        secret
        and len(given) == 1
        and hmac.compare_digest(given[0].encode(errors="replace"), secret.encode())
    ):
        raise TokenError(
            "proxy-secret",
            "the proxy should send X-Relay-Proxy-Secret once, as it was set",
        )


def _claims_of(value: str) -> dict[str, Any]:
    text = value.strip(" \t")
    if len(text) > MAX_TOKEN_BYTES or not _BASE64URL.fullmatch(text):
        raise TokenError(
            "malformed",
            f"the header of claims should be base64url, of at most {MAX_TOKEN_BYTES} characters",
        )
    text = text.rstrip("=")
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        claims = None
    if not isinstance(claims, dict):
        raise TokenError("malformed", "the header of claims should hold a JSON object")
    return claims
