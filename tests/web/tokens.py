"""Tokens and claims as an issuer or a proxy would make them, and settings under which they are believed."""

import base64
import json
import time
from collections.abc import Sequence
from typing import Any

import jwt

SECRET = "a secret of the tests that is long enough"
OTHER_SECRET = "another secret of the tests, just as long"
PROXY_SECRET = "what the proxy knows"

JWT = {"auth.mode": "jwt", "auth.jwt_secret": SECRET, "auth.leeway_seconds": 0}
PROXY = {"auth.mode": "proxy", "auth.proxy_secret": PROXY_SECRET}


def token(
    *jobs: str,
    queues: Sequence[str] = (),
    sub: str = "alice",
    seconds: float = 3600,
    secret: str = SECRET,
    headers: dict[str, Any] | None = None,
    **more: Any,
) -> str:
    """A token that is good for `seconds`."""
    claims = {"sub": sub, "jobs": jobs, "queues": list(queues), "exp": time.time() + seconds}
    return jwt.encode(claims | more, secret, algorithm="HS256", headers=headers)


def bearing(held: str) -> dict[str, str]:
    """The header that carries it."""
    return {"Authorization": f"Bearer {held}"}


def proxied(
    *jobs: str, queues: Sequence[str] = (), sub: str = "alice", seconds: float | None = None
) -> dict[str, str]:
    """The headers of a proxy that has authenticated its client."""
    claims: dict[str, Any] = {"sub": sub, "jobs": jobs, "queues": list(queues)}
    if seconds is not None:
        claims["exp"] = time.time() + seconds
    encoded = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return {"X-Relay-Claims": encoded, "X-Relay-Proxy-Secret": PROXY_SECRET}
