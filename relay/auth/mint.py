"""Development tokens, signed with the secret that the relay verifies with.

For a developer at the keyboard: in production whoever knows the users signs, and the relay only verifies.
"""

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jwt

from relay.auth.keys import secret_key
from relay.auth.tokens import MAX_TOKEN_BYTES
from relay.core.grants import grants_of
from relay.settings import ConfigError

if TYPE_CHECKING:
    from relay.settings import AuthConfig


def mint(
    auth: "AuthConfig",
    *,
    jobs: Sequence[str],
    queues: Sequence[str],
    subject: str,
    ttl_seconds: int,
    now: float,
) -> str:
    """A token that a relay with these settings accepts.

    Args:
        jobs, queues: globs of what its holder may watch.
        subject: whom it names.
        now: seconds since the epoch.

    Raises:
        ConfigError: there is no secret to sign with, or not one to be used.
        ValueError: such a token would not be accepted; the message says why.
    """
    secret = auth.jwt_secret.get_secret_value()
    if not secret:
        raise ConfigError([_advice(auth)])
    try:
        key = secret_key(secret, auth.algorithms)
    except ValueError as error:
        raise ConfigError([f"auth.jwt_secret: {error}"]) from None
    claims: dict[str, Any] = {
        "sub": subject,
        "jti": secrets.token_hex(8),
        "iat": int(now),
        "exp": int(now) + ttl_seconds,
        auth.jobs_claim: list(jobs),
        auth.queues_claim: list(queues),
    }
    claims |= {"aud": auth.audience} if auth.audience else {}
    claims |= {"iss": auth.issuer} if auth.issuer else {}
    grants_of(claims, jobs_claim=auth.jobs_claim, queues_claim=auth.queues_claim)
    token = jwt.encode(claims, secret, algorithm=key.algorithms[0])
    if len(token) > MAX_TOKEN_BYTES:
        raise ValueError(f"the token would have more than {MAX_TOKEN_BYTES} bytes; use fewer globs")
    return token


def _advice(auth: "AuthConfig") -> str:
    if auth.jwt_public_key_file or auth.jwks_url:
        where = "jwt_public_key_file" if auth.jwt_public_key_file else "jwks_url"
        return (
            f"auth.jwt_secret: is not set; auth.{where} can only verify, so ask its issuer for a token, or"
            " set jwt_secret instead for development"
        )
    return (
        "auth.jwt_secret: is not set, so there is nothing to sign with; should be random text, and"
        f' auth.mode "jwt", for example: jwt_secret = "{secrets.token_urlsafe(36)}"'
    )
