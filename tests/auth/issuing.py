"""An issuer of tokens with real keys of every kind, and what it publishes of them.

RSA keys take long to make, so there is one of each kind for a whole run.
"""

import base64
import hmac
from collections.abc import Callable
from functools import cache
from typing import Any

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import get_default_algorithms
from pydantic import SecretStr

from relay.settings import AuthConfig

SECRET = "a secret of sixty-four bytes or more, which is enough for HS512 too"
NOW_MS = 1_800_000_000_000
NOW = NOW_MS // 1000

# Kind of key -> the algorithms that it is good for.
ALGORITHMS = {
    "RSA": ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
    "P-256": ["ES256"],
    "P-384": ["ES384"],
    "P-521": ["ES512"],
    "Ed25519": ["EdDSA"],
    "Ed448": ["EdDSA"],
}
_MAKERS: dict[str, Callable[[], Any]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "RSA-2": lambda: rsa.generate_private_key(65537, 2048),
    "weak RSA": lambda: rsa.generate_private_key(65537, 1024),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-256-2": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "X25519": x25519.X25519PrivateKey.generate,
    "DSA": lambda: dsa.generate_private_key(2048),
}


@cache
def private_key(kind: str) -> Any:
    """The private key of that kind, the same for the whole run."""
    return _MAKERS[kind]()


def public_pem(kind: str) -> str:
    """The public key as a PEM file has it."""
    key = private_key(kind).public_key()
    pem: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def private_pem(kind: str) -> str:
    """The private key as a PEM file has it."""
    pem: bytes = private_key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem.decode()


def jwk(kind: str, kid: str | None = None, **fields: Any) -> dict[str, Any]:
    """The public key as a key set has it."""
    algorithm = get_default_algorithms()[ALGORITHMS[kind.removesuffix("-2")][0]]
    told: dict[str, Any] = algorithm.to_jwk(private_key(kind).public_key(), as_dict=True)
    told.pop("key_ops", None)
    return told | ({} if kid is None else {"kid": kid}) | fields


def key_set(*keys: dict[str, Any]) -> bytes:
    """What is served where a key set is."""
    return orjson.dumps({"keys": keys})


def claims(**changed: Any) -> dict[str, Any]:
    """What a good token says; a value of None leaves the claim out."""
    told = {"sub": "ann", "exp": NOW + 600, "iat": NOW, "jobs": ["*"]} | changed
    return {claim: value for claim, value in told.items() if value is not None}


def signed(
    kind: str, algorithm: str | None = None, *, kid: str | None = None, **changed: Any
) -> str:
    """A token signed with that key, by its first algorithm if none is named."""
    algorithm = algorithm or ALGORITHMS[kind.removesuffix("-2")][0]
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**changed), private_key(kind), algorithm=algorithm, headers=headers)


def shared(
    algorithm: str = "HS256", *, headers: dict[str, Any] | None = None, **changed: Any
) -> str:
    """A token signed with SECRET."""
    return jwt.encode(claims(**changed), SECRET, algorithm=algorithm, headers=headers)


def raw_token(header: object, payload: object, signature: bytes = b"") -> str:
    """A token of three parts as they are given, objects as JSON."""
    parts = (
        part if isinstance(part, bytes) else orjson.dumps(part)
        for part in (header, payload, signature)
    )
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def hmac_signed(header: object, payload: object, secret: str = SECRET) -> str:
    """A token that is signed by hand, as a library would refuse to."""
    head, _, _ = raw_token(header, payload).rpartition(".")
    digest = hmac.digest(secret.encode(), head.encode(), "sha256")
    return f"{head}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def auth_config(**settings: Any) -> AuthConfig:
    """Mode "jwt" with SECRET, unless another key is among the settings."""
    if not {"jwt_public_key_file", "jwks_url", "jwt_secret"} & settings.keys():
        settings["jwt_secret"] = SecretStr(SECRET)
    return AuthConfig(mode="jwt", **settings)
