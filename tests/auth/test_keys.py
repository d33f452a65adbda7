"""A key verifies what its kind is for, and what is no good key is said to be so."""

from typing import Any

import jwt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.keys import MAX_KEYS, keys_of_set, public_key, secret_key
from tests.auth.issuing import (
    ALGORITHMS,
    SECRET,
    jwk,
    key_set,
    private_key,
    private_pem,
    public_pem,
    signed,
)

# --- public keys in files --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_public_key_is_bound_to_the_algorithms_of_its_kind(kind: str) -> None:
    key = public_key(public_pem(kind), ())

    assert list(key.algorithms) == ALGORITHMS[kind]
    assert jwt.decode(
        signed(kind),
        key.key,
        algorithms=list(key.algorithms),
        options={"verify_exp": False, "verify_iat": False},
    )


def test_settings_narrow_what_a_key_is_used_for() -> None:
    key = public_key(public_pem("RSA"), ("PS256", "ES256", "HS256"))

    assert key.algorithms == ("PS256",)


def test_key_that_fits_none_of_the_accepted_algorithms_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^fits ES256, none of which is in auth\.algorithms"):
        public_key(public_pem("P-256"), ("RS256",))


@pytest.mark.parametrize(
    ("pem", "advice"),
    [
        (private_pem("P-256"), "openssl pkey -pubout"),
        ("-----BEGIN CERTIFICATE-----\nMIIB\n", "openssl x509 -pubkey"),
        (public_pem("weak RSA"), "1024 bits, should have 2048"),
        (public_pem("secp256k1"), "should be RSA, EC on P-256"),
        (public_pem("X25519"), "should be RSA, EC on P-256"),
        (public_pem("DSA"), "should be RSA, EC on P-256"),
        ("", "should hold a public key as PEM"),
        (SECRET, "should hold a public key as PEM"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "should hold a public"),
    ],
)
def test_file_without_a_good_public_key_is_refused_with_advice(pem: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        public_key(pem, ())


# --- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "algorithms"),
    [
        (32, ("HS256",)),
        (47, ("HS256",)),
        (48, ("HS256", "HS384")),
        (64, ("HS256", "HS384", "HS512")),
    ],
)
def test_secret_is_bound_to_the_algorithms_it_is_long_enough_for(
    length: int, algorithms: tuple[str, ...]
) -> None:
    assert secret_key("s" * length, ()).algorithms == algorithms


def test_length_of_a_secret_is_counted_in_bytes() -> None:
    assert secret_key("é" * 16, ()).algorithms == ("HS256",)


@pytest.mark.parametrize("secret", ["", "short", "s" * 31])
def test_short_secret_is_refused_unseen(secret: str) -> None:
    with pytest.raises(ValueError, match=f"^has {len(secret)} bytes, should have 32 or more"):
        secret_key(secret, ())


def test_secret_that_is_too_short_for_the_accepted_algorithms_is_refused() -> None:
    with pytest.raises(ValueError, match="fits HS256, none of which"):
        secret_key("s" * 32, ("HS512", "RS256"))


@pytest.mark.parametrize(
    "public",
    [
        public_pem("RSA"),
        "\n" + public_pem("P-256"),
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl ann",
        orjson.dumps(jwk("RSA")).decode(),
    ],
)
def test_public_key_is_no_secret(public: str) -> None:
    with pytest.raises(ValueError, match="holds a key file's content"):
        secret_key(public, ())


@given(st.text(min_size=32, alphabet=st.characters(codec="utf-8")))
def test_any_secret_that_is_accepted_signs_and_verifies(secret: str) -> None:
    try:
        key = secret_key(secret, ())
    except ValueError:
        return

    token = jwt.encode({}, secret, algorithm="HS256")
    assert jwt.decode(token, key.key, algorithms=list(key.algorithms)) == {}


def test_secret_stays_out_of_the_text_form() -> None:
    assert SECRET not in repr(secret_key(SECRET, ()))


# --- key sets --------------------------------------------------------------------------------------


def test_keys_of_a_set_are_bound_each_to_its_own_kind() -> None:
    keys = keys_of_set(key_set(*(jwk(kind, kid=kind) for kind in ALGORITHMS)))

    assert {str(key.key_id): list(key.algorithms) for key in keys} == ALGORITHMS


def test_algorithm_of_a_key_in_a_set_narrows_its_use() -> None:
    (key,) = keys_of_set(key_set(jwk("RSA", alg="RS512")))

    assert key.algorithms == ("RS512",)


UNUSABLE: list[dict[str, Any]] = [
    jwk("RSA", use="enc"),
    jwk("RSA", key_ops=["encrypt"]),
    jwk("RSA", key_ops="verify"),
    jwk("RSA", alg="RSA-OAEP"),
    jwk("RSA", alg="none"),
    jwk("RSA", alg="HS256"),
    jwk("RSA", alg=["RS256"]),
    jwk("RSA", kid=None) | {"kid": 7},
    jwk("RSA", kid=None) | {"kid": None, "kty": "oct", "k": "c2VjcmV0"},
    {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "alg": "HS256"},
    jwt.algorithms.RSAAlgorithm.to_jwk(private_key("RSA"), as_dict=True),
    jwt.algorithms.ECAlgorithm.to_jwk(private_key("P-256"), as_dict=True),
    jwt.algorithms.RSAAlgorithm.to_jwk(private_key("weak RSA").public_key(), as_dict=True),
    jwk("P-256", crv="P-384"),
    jwk("P-256", crv="secp256k1"),
    jwk("P-256", x=""),
    jwk("Ed25519", crv="X25519"),
    jwk("RSA", n=5),
    jwk("RSA", e=None),
    {"kty": "RSA"},
    {"kty": ["RSA"]},
    {},
]


@pytest.mark.parametrize("unusable", UNUSABLE, ids=str)
def test_key_of_a_set_that_verifies_no_tokens_is_passed_over(unusable: dict[str, Any]) -> None:
    (key,) = keys_of_set(key_set(unusable, jwk("P-256", kid="good")))

    assert key.key_id == "good"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "is not JSON"),
        (b"<html>", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a key set"),
        (b'"keys"', "is not a key set"),
        (b'{"keys": {}}', "is not a key set"),
        (b'{"keys": "RSA"}', "is not a key set"),
        (orjson.dumps(jwk("RSA")), "is not a key set"),
        (b'{"keys": []}', "has no key that verifies"),
        (b'{"keys": [1, null]}', "has no key that verifies"),
        (key_set(jwk("RSA", use="enc")), "has no key that verifies"),
        (key_set(*([{}] * (MAX_KEYS + 1))), "has 101 keys, more than 100"),
    ],
)
def test_document_without_a_usable_key_is_refused(document: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        keys_of_set(document)


ODD = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats()
    | st.text()
    | st.lists(st.text())
)


@given(
    st.sampled_from([jwk(kind, kid="k") for kind in ALGORITHMS]),
    st.dictionaries(
        st.sampled_from(["kty", "crv", "n", "e", "x", "y", "d", "alg", "kid", "use", "key_ops"]),
        ODD | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed448", "AQAB"]),
        min_size=1,
    ),
)
def test_any_change_to_a_key_is_taken_or_passed_over(
    good: dict[str, Any], changes: dict[str, Any]
) -> None:
    document = orjson.dumps(
        {"keys": [good | changes, jwk("P-256", kid="other")]}, option=orjson.OPT_NON_STR_KEYS
    )

    keys = keys_of_set(document)

    assert "other" in [key.key_id for key in keys]
