"""Tokens: a JWT becomes grants, or is refused for one of a fixed list of reasons.

Invariants: a signature is only tried with an algorithm that the key's own kind allows, whatever the token says;
of a token's header only `alg` and `kid` are used, to choose among the keys that there are; keys or URLs in it
(`jwk`, `jku`, `x5c`, `x5u`) are not looked at, and with `crit` it is refused. No error and no log line holds a token
or a claim's value. PyJWT does signatures, `aud` and `iss`; times are judged here, by the relay's clock. RFC 7519, RFC 8725.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

import jwt

from relay.auth.jwks import KeySet
from relay.auth.keys import VerifyingKey, public_key, secret_key
from relay.core.grants import Grants, grants_of
from relay.settings import ConfigError

if TYPE_CHECKING:
    from relay.auth.revocations import Revocations
    from relay.settings import AuthConfig

# What every proxy and client lets through in a header. A larger one would be parsed before anything
# about it is proven.
MAX_TOKEN_BYTES: Final = 8192
# The end of the year 9999: beyond, JavaScript's and Python's dates do not go.
_MAX_SECONDS: Final = 253_402_300_799


# Why somebody is not believed: for metrics and logs. "keys-unavailable" is no fault of the token and
# passes; the last four are of those who carry claims or tokens to us.
TokenFault: TypeAlias = Literal[
    "malformed", "algorithm", "signature", "unknown-key", "keys-unavailable", "expired", "not-yet-valid",
    "audience", "issuer", "claims", "revoked", "missing", "ambiguous", "untrusted", "proxy-secret",
]  # fmt: skip


class TokenError(Exception):
    """Somebody is not believed, for `reason`.

    The message says what would be right; neither holds a token or a claim's value.
    """

    def __init__(self, reason: TokenFault, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class Authenticator(Protocol):
    """What judges tokens."""

    def verify(self, token: str) -> Grants | Awaitable[Grants]:
        """What the token allows. Never blocks; an awaitable only where keys must be fetched first.

        Raises:
            TokenError: it is not believed; the awaitable raises it too.
        """
        ...

    async def run(self) -> None:
        """Keep the keys up to date, until cancelled."""
        ...


def numeric_date_ms(claims: Mapping[str, Any], claim: str) -> int | None:
    """A time in a claim, in ms since the epoch (RFC 7519 §2); None where the claim is absent.

    Raises:
        TokenError: it is no finite number, or one beyond the year 9999.
    """
    if claim not in claims:
        return None
    value = claims[claim]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= _MAX_SECONDS  # nor is NaN
    ):
        raise TokenError(
            "claims", f'claim "{claim}": should be a number of seconds since the epoch'
        )
    return int(value * 1000)


def make_authenticator(
    auth: "AuthConfig", *, clock_ms: Callable[[], int], revocations: "Revocations"
) -> "JwtAuthenticator":
    """What judges tokens in mode "jwt". Call it inside a running event loop.

    Args:
        clock_ms: gives the time in ms since the epoch.

    Raises:
        ConfigError: the key cannot be read, or is not good for what it is meant for.
    """
    return JwtAuthenticator(auth, clock_ms=clock_ms, revocations=revocations)


def check_keys(auth: "AuthConfig") -> None:
    """Raises ConfigError where `make_authenticator` would."""
    _static_key(auth)


class JwtAuthenticator:
    """Judges tokens with the key that the settings name: a secret, a file, or a set fetched from a URL."""

    def __init__(
        self, auth: "AuthConfig", *, clock_ms: Callable[[], int], revocations: "Revocations"
    ) -> None:
        self._static_key = _static_key(auth)
        self._auth = auth
        self._clock_ms = clock_ms
        self._revocations = revocations
        self.key_set = KeySet(auth.jwks_url)

    async def run(self) -> None:
        """Keep the key set up to date, until cancelled."""
        await self.key_set.run()

    def reload(self, auth: "AuthConfig") -> None:
        """Take over the settings; read the key file, or fetch the key set, anew.

        Raises:
            ConfigError: as at the start; everything stays as it was.
        """
        self._static_key = _static_key(auth)
        self._auth = auth
        self.key_set.point_to(auth.jwks_url)

    def verify(self, token: str) -> Grants | Awaitable[Grants]:
        """What the token allows, until `exp`.

        A token that is past it is believed for the leeway, and is good until that is over: were it good until
        `exp`, a connection that lives on it would be closed at once.

        Raises:
            TokenError: it is not believed; the awaitable raises it too.
        """
        header = _header_of(token)
        key = self._key_for(header)
        if key is not None:
            return self._verified(token, key)
        fetched = self.key_set.refetch()
        if fetched is None:
            raise self._lack_of_key()
        return self._verify_after(fetched, token, header)

    async def _verify_after(
        self, fetched: Awaitable[None], token: str, header: Mapping[str, Any]
    ) -> Grants:
        await fetched
        key = self._key_for(header)
        if key is None:
            raise self._lack_of_key()
        return self._verified(token, key)

    def _lack_of_key(self) -> TokenError:
        if self.key_set.is_current:
            return TokenError("unknown-key", "the token is signed with an unknown key")
        return TokenError("keys-unavailable", "the keys cannot be had now; try again")

    def _key_for(self, header: Mapping[str, Any]) -> VerifyingKey | None:
        """The key to try, None where none has that `kid`. Raises TokenError: no key is for its `alg`."""
        algorithm, key_id = header.get("alg"), header.get("kid")
        if self._static_key is not None:
            candidates = [self._static_key]
        else:
            candidates = self.key_set.find(key_id)
            if not candidates:
                return None
        allowed = self._auth.algorithms
        fitting = [
            key
            for key in candidates
            if algorithm in key.algorithms and (not allowed or algorithm in allowed)
        ]
        if not fitting:
            raise TokenError("algorithm", "the token's algorithm is not accepted")
        if key_id is None and len(fitting) > 1:
            raise TokenError("unknown-key", 'the token should name its key with "kid"')
        return fitting[0]

    def _verified(self, token: str, key: VerifyingKey) -> Grants:
        auth, now_ms = self._auth, self._clock_ms()
        claims = _proven_claims(token, key, auth)
        leeway_ms = int(auth.leeway_seconds * 1000)
        expires_at_ms = numeric_date_ms(claims, "exp")
        if expires_at_ms is None:
            raise TokenError("claims", 'claim "exp": should be there')
        if expires_at_ms <= now_ms:
            expires_at_ms += leeway_ms
        if expires_at_ms <= now_ms:
            raise TokenError("expired", "the token has expired")
        for claim in ("nbf", "iat"):
            begins_at_ms = numeric_date_ms(claims, claim)
            if begins_at_ms is not None and begins_at_ms > now_ms + leeway_ms:
                raise TokenError("not-yet-valid", f'the token is not valid yet ("{claim}")')
        try:
            grants = grants_of(
                claims,
                jobs_claim=auth.jobs_claim,
                queues_claim=auth.queues_claim,
                expires_at_ms=expires_at_ms,
            )
        except ValueError as error:
            raise TokenError("claims", str(error)) from None
        if self._revocations.is_revoked(grants, now_ms):
            raise TokenError("revoked", "the token was revoked")
        return grants


def _static_key(auth: "AuthConfig") -> VerifyingKey | None:
    """The key of a secret or a file; None with a key set. Raises ConfigError."""
    secret = auth.jwt_secret.get_secret_value()
    path = auth.jwt_public_key_file
    if secret:
        try:
            return secret_key(secret, auth.algorithms)
        except ValueError as error:
            raise ConfigError([f"auth.jwt_secret: {error}"]) from None
    if not path:
        return None
    try:
        return public_key(Path(path).read_text("utf-8", errors="replace"), auth.algorithms)
    except OSError as error:
        raise ConfigError(
            [f"auth.jwt_public_key_file: cannot read {path} ({error.strerror})"]
        ) from None
    except ValueError as error:
        raise ConfigError([f"auth.jwt_public_key_file: {path} {error}"]) from None


def _header_of(token: str) -> dict[str, Any]:
    """The header, of which nothing is proven yet. Raises TokenError."""
    if len(token) > MAX_TOKEN_BYTES or not token.isascii():
        raise TokenError(
            "malformed", f"a token should have at most {MAX_TOKEN_BYTES} bytes of ASCII"
        )
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError:
        raise TokenError("malformed", "this is not a signed token (JWT)") from None
    # Nothing that a token may call critical is understood here (RFC 7515 §4.1.11).
    if "crit" in header:
        raise TokenError("malformed", 'a token with "crit" is not accepted')
    return header


def _proven_claims(token: str, key: VerifyingKey, auth: "AuthConfig") -> dict[str, Any]:
    """The claims, once the signature is proven, and that they are meant for us. Raises TokenError."""
    try:
        return jwt.decode(
            token,
            key.key,
            algorithms=list(key.algorithms),
            audience=auth.audience or None,
            issuer=auth.issuer or None,
            options={
                "enforce_minimum_key_length": True,
                "verify_aud": bool(auth.audience),
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_sub": False,
                "verify_jti": False,
            },
        )
    except jwt.InvalidSignatureError:
        raise TokenError("signature", "the token's signature is wrong") from None
    except jwt.InvalidAudienceError:
        raise TokenError("audience", 'claim "aud": is not for this relay') from None
    except jwt.InvalidIssuerError:
        raise TokenError("issuer", 'claim "iss": is not who should issue it') from None
    except jwt.MissingRequiredClaimError as error:
        raise TokenError("claims", f'claim "{error.claim}": should be there') from None
    except jwt.DecodeError:
        raise TokenError("malformed", "the token's claims are no JSON object") from None
    except jwt.PyJWTError:
        raise TokenError("signature", "the token cannot be verified") from None
