"""The keys that tokens are verified with, each bound to the algorithms of its own kind.

Invariant: what a token's header says never widens what a key is used for. A secret verifies HS… only, an RSA
key RS… and PS…, an elliptic curve the one ES… of its curve, Ed25519 and Ed448 EdDSA; `auth.algorithms` can
only narrow that (RFC 8725 §3.1). A secret must be as long as the hash, an RSA key have 2048 bits (RFC 7518 §3.2, §3.3).
Knows no file and no network: it is given text.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from relay.settings import hmac_algorithms

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192  # beyond, one verification takes milliseconds of the event loop
# Large providers publish some twenty. Each key is parsed on the event loop, in up to 0.1 ms.
MAX_KEYS: Final = 100

_RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVE_ALGORITHMS: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
# `kty` of RFC 7518 §6 and RFC 8037 §2. Not `oct`: a secret that is published is none.
_JWK_READERS: Final = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyingKey:
    """A key, what it may verify, and the `kid` that it is published under."""

    key: PublicKey | bytes = field(repr=False)
    algorithms: tuple[str, ...]
    key_id: str | None = None


def secret_key(secret: str, allowed: Collection[str]) -> VerifyingKey:
    """The key that a shared secret is.

    Args:
        allowed: the algorithms that the operator listed; empty for all that fit.

    Raises:
        ValueError: it is too short for them, or no secret at all; never shows it.
    """
    algorithms = _narrowed(hmac_algorithms(secret), allowed)
    return VerifyingKey(key=secret.encode(), algorithms=algorithms)


def public_key(pem: str, allowed: Collection[str]) -> VerifyingKey:
    """The key in a PEM file, `-----BEGIN PUBLIC KEY-----` or the older RSA form.

    Raises:
        ValueError: it holds something else, or a key that is too weak or does not fit `allowed`.
    """
    if "PRIVATE KEY-----" in pem:
        raise ValueError(
            "holds a private key, which the relay should not have; should hold the public one, as made"
            " by: openssl pkey -pubout -in PRIVATE.pem"
        )
    if "-----BEGIN CERTIFICATE-----" in pem:
        raise ValueError(
            "holds a certificate; should hold its public key, as made by:"
            " openssl x509 -pubkey -noout -in CERTIFICATE.pem"
        )
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("should hold a public key as PEM: -----BEGIN PUBLIC KEY-----") from None
    return _bound(key, allowed)


def keys_of_set(document: bytes) -> list[VerifyingKey]:
    """The keys of a JWK Set (RFC 7517 §5) that can verify tokens; any other key in it is passed over.

    Passed over are keys for encryption, secrets, private keys, what is of an unknown kind or too weak.

    Raises:
        ValueError: it is no key set, has more than `MAX_KEYS`, or none that could be used.
    """
    try:
        match orjson.loads(document):
            case {"keys": [*listed]}:
                pass
            case _:
                raise ValueError('is not a key set: {"keys": […]}')
    except orjson.JSONDecodeError:
        raise ValueError("is not JSON") from None
    if len(listed) > MAX_KEYS:
        raise ValueError(f"has {len(listed)} keys, more than {MAX_KEYS}")
    keys = [key for jwk in listed if isinstance(jwk, dict) and (key := _key_of_jwk(jwk))]
    if not keys:
        raise ValueError("has no key that verifies tokens (RSA, EC or Ed25519, not for encryption)")
    return keys


def _key_of_jwk(jwk: Mapping[str, Any]) -> VerifyingKey | None:
    key_id, algorithm, operations = jwk.get("kid"), jwk.get("alg"), jwk.get("key_ops", ["verify"])
    reader = _JWK_READERS.get(str(jwk.get("kty")))
    if (
        reader is None
        or jwk.get("use", "sig") != "sig"
        or not isinstance(operations, list)
        or "verify" not in operations
        or not isinstance(key_id, str | None)
    ):
        return None
    try:
        key = _bound(reader(dict(jwk)), ())
    except (InvalidKeyError, UnsupportedAlgorithm, ValueError, TypeError, KeyError):
        return None
    if algorithm is None:
        return replace(key, key_id=key_id)
    if algorithm not in key.algorithms:
        return None
    return replace(key, key_id=key_id, algorithms=(algorithm,))


def _bound(key: object, allowed: Collection[str]) -> VerifyingKey:
    """The key with the algorithms of its kind. Raises ValueError: too weak, or it signs no tokens."""
    fitting: tuple[str, ...]
    match key:
        case RSAPublicKey():
            if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
                raise ValueError(
                    f"holds an RSA key of {key.key_size} bits, should have {MIN_RSA_BITS} to"
                    f" {MAX_RSA_BITS}"
                )
            fitting = _RSA_ALGORITHMS
        case EllipticCurvePublicKey() if key.curve.name in _CURVE_ALGORITHMS:
            fitting = (_CURVE_ALGORITHMS[key.curve.name],)
        case Ed25519PublicKey() | Ed448PublicKey():
            fitting = ("EdDSA",)
        case _:
            raise ValueError(
                "holds a key that signs no tokens; should be RSA, EC on P-256, P-384 or P-521,"
                " Ed25519 or Ed448"
            )
    return VerifyingKey(key=key, algorithms=_narrowed(fitting, allowed))


def _narrowed(fitting: tuple[str, ...], allowed: Collection[str]) -> tuple[str, ...]:
    algorithms = tuple(name for name in fitting if not allowed or name in allowed)
    if not algorithms:
        raise ValueError(
            f"fits {', '.join(fitting)}, none of which is in auth.algorithms; one should be"
        )
    return algorithms
