"""A token is believed when everything about it is right, and for nothing that it says about itself."""

from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from relay.auth.revocations import Revocations
from relay.auth.tokens import (
    MAX_TOKEN_BYTES,
    JwtAuthenticator,
    TokenError,
    check_keys,
    make_authenticator,
)
from relay.core.grants import Grants
from relay.settings import AuthConfig, ConfigError
from tests.auth.issuing import (
    ALGORITHMS,
    NOW,
    NOW_MS,
    SECRET,
    auth_config,
    claims,
    hmac_signed,
    private_key,
    private_pem,
    public_pem,
    raw_token,
    shared,
    signed,
)


class Clock:
    """A time that stands until it is moved."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def authenticator(
    auth: AuthConfig | None = None,
    *,
    clock: Clock | None = None,
    revocations: Revocations | None = None,
) -> JwtAuthenticator:
    return make_authenticator(
        auth or auth_config(),
        clock_ms=clock or Clock(),
        revocations=revocations or Revocations(),
    )


def verified(token: str, **settings: Any) -> Grants:
    """What the token grants; every key is at hand, so nothing has to be waited for."""
    grants = authenticator(auth_config(**settings)).verify(token)
    assert isinstance(grants, Grants)
    return grants


def refusal(token: str, **settings: Any) -> str:
    with pytest.raises(TokenError) as caught:
        verified(token, **settings)
    return caught.value.reason


def key_file(folder: Path, kind: str) -> str:
    path = folder / f"{kind}.pem"
    path.write_text(public_pem(kind))
    return str(path)


# --- what is believed ------------------------------------------------------------------------------


async def test_good_token_becomes_grants() -> None:
    grants = verified(shared(jti="t1", jobs=["a-*"], queues=["q"]))

    assert (grants.principal, grants.token_id) == ("ann", "t1")
    assert grants.may_watch_job("a-1", None)
    assert not grants.may_watch_job("b-1", None)
    assert grants.may_watch_queue("q")


async def test_token_without_claims_on_jobs_allows_nothing() -> None:
    grants = verified(shared(jobs=None))

    assert not grants.may_watch_job("a", "q")
    assert not grants.may_watch_queue("q")


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_secret_verifies_what_it_is_long_enough_for(algorithm: str) -> None:
    assert verified(shared(algorithm)).principal == "ann"


@pytest.mark.parametrize(
    ("kind", "algorithm"), [(kind, each) for kind, all_ in ALGORITHMS.items() for each in all_]
)
async def test_public_key_verifies_every_algorithm_of_its_kind(
    kind: str, algorithm: str, tmp_path: Path
) -> None:
    grants = verified(signed(kind, algorithm), jwt_public_key_file=key_file(tmp_path, kind))

    assert grants.principal == "ann"


async def test_claims_of_other_names_are_read() -> None:
    grants = verified(shared(watch=["x"]), jobs_claim="watch")

    assert grants.may_watch_job("x", None)
    assert not grants.may_watch_job("y", None)


async def test_key_id_is_not_looked_at_where_there_is_one_key() -> None:
    assert verified(shared(headers={"kid": "whatever"})).principal == "ann"


# --- when ------------------------------------------------------------------------------------------


async def test_token_is_good_until_its_end_and_believed_for_the_leeway() -> None:
    clock = Clock()
    judge = authenticator(auth_config(leeway_seconds=30), clock=clock)
    token = shared(exp=NOW + 1)

    in_time = judge.verify(token)
    assert isinstance(in_time, Grants)
    assert in_time.expires_at_ms == NOW_MS + 1000

    clock.now_ms += 30_999
    grants = judge.verify(token)
    clock.now_ms += 1
    with pytest.raises(TokenError) as caught:
        judge.verify(token)

    assert isinstance(grants, Grants)
    assert grants.expires_at_ms == clock.now_ms
    assert caught.value.reason == "expired"


@pytest.mark.parametrize("claim", ["nbf", "iat"])
async def test_token_from_the_future_is_refused_beyond_the_leeway(claim: str) -> None:
    begins_soon: dict[str, Any] = {claim: NOW + 30}
    begins_later: dict[str, Any] = {claim: NOW + 31}

    assert verified(shared(**begins_soon), leeway_seconds=30).principal == "ann"
    assert refusal(shared(**begins_later), leeway_seconds=30) == "not-yet-valid"


async def test_token_without_an_end_is_refused() -> None:
    assert refusal(shared(exp=None)) == "claims"


BAD_TIMES = [
    b'"1800000600"', b"null", b"true", b"[]", b"{}", b"NaN", b"Infinity", b"1e400", b"1e300", b"-1",
    b"253402300800", b"9" * 400, b"9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", BAD_TIMES)
async def test_time_that_is_no_usable_number_is_refused(claim: str, value: bytes) -> None:
    others = orjson.dumps(claims(**{claim: None}))[:-1]
    payload = others + b',"%s":%s}' % (claim.encode(), value)

    assert refusal(hmac_signed({"alg": "HS256"}, payload)) in {"claims", "malformed"}


async def test_fractions_of_a_second_count() -> None:
    assert verified(shared(exp=NOW + 0.25), leeway_seconds=0).expires_at_ms == NOW_MS + 250


# --- for whom and from whom ------------------------------------------------------------------------


@pytest.mark.parametrize("aud", ["relay", ["other", "relay"]])
async def test_token_for_this_audience_is_believed(aud: object) -> None:
    assert verified(shared(aud=aud), audience="relay").principal == "ann"


@pytest.mark.parametrize("aud", ["other", "relay-2", "RELAY", [], ["other"], [7], 7, {"relay": 1}])
async def test_token_for_another_audience_is_refused(aud: object) -> None:
    assert refusal(shared(aud=aud), audience="relay") in {"audience", "claims"}


async def test_token_for_nobody_is_refused_where_an_audience_is_asked_for() -> None:
    assert refusal(shared(), audience="relay") == "claims"


@pytest.mark.parametrize("iss", ["https://id.example/", "x", 7, ["https://id.example"]])
async def test_token_of_another_issuer_is_refused(iss: object) -> None:
    token = hmac_signed({"alg": "HS256"}, claims(iss=iss))

    assert refusal(token, issuer="https://id.example") == "issuer"


async def test_token_of_no_issuer_is_refused_where_one_is_asked_for() -> None:
    assert refusal(shared(), issuer="https://id.example") == "claims"


async def test_audience_and_issuer_are_not_looked_at_unless_asked_for() -> None:
    assert verified(shared(aud=["x", "y"], iss="z")).principal == "ann"


# --- confusion -------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None])
async def test_token_that_says_it_needs_no_signature_is_refused(alg: str | None) -> None:
    assert refusal(raw_token({"alg": alg, "typ": "JWT"}, claims())) == "algorithm"


async def test_token_without_an_algorithm_is_refused() -> None:
    assert refusal(hmac_signed({"typ": "JWT"}, claims())) == "algorithm"


@pytest.mark.parametrize("alg", [7, True, ["HS256"], {"HS256": 1}, "hs256", "HS256 ", "HS1024"])
async def test_algorithm_is_compared_as_it_stands(alg: object) -> None:
    assert refusal(hmac_signed({"alg": alg}, claims())) == "algorithm"


@pytest.mark.parametrize("kind", ["RSA", "P-256", "Ed25519"])
async def test_public_key_is_never_used_as_a_secret(kind: str, tmp_path: Path) -> None:
    forged = hmac_signed({"alg": "HS256"}, claims(), secret=public_pem(kind))

    assert refusal(forged, jwt_public_key_file=key_file(tmp_path, kind)) == "algorithm"


async def test_secret_is_never_used_for_other_algorithms() -> None:
    assert refusal(signed("RSA")) == "algorithm"


@pytest.mark.parametrize(
    ("kind", "others"),
    [("RSA", "P-256"), ("P-256", "P-384"), ("P-384", "Ed25519"), ("Ed25519", "RSA")],
)
async def test_key_of_one_kind_is_not_tried_on_signatures_of_another(
    kind: str, others: str, tmp_path: Path
) -> None:
    assert refusal(signed(others), jwt_public_key_file=key_file(tmp_path, kind)) == "algorithm"


async def test_algorithm_that_is_not_accepted_is_refused_though_the_key_fits(
    tmp_path: Path,
) -> None:
    path = key_file(tmp_path, "RSA")

    assert refusal(signed("RSA"), jwt_public_key_file=path, algorithms=("PS256",)) == "algorithm"


@pytest.mark.parametrize("kind", ["RSA-2", "P-256-2"])
async def test_other_key_of_the_same_kind_is_no_proof(kind: str, tmp_path: Path) -> None:
    path = key_file(tmp_path, kind.removesuffix("-2"))

    assert refusal(signed(kind), jwt_public_key_file=path) == "signature"


async def test_other_secret_is_no_proof() -> None:
    assert refusal(hmac_signed({"alg": "HS256"}, claims(), secret=SECRET + "!")) == "signature"


@pytest.mark.parametrize("part", [0, 1, 2])
async def test_token_that_was_changed_is_refused(part: int) -> None:
    parts = shared().split(".")
    other = hmac_signed({"alg": "HS256", "x": 1}, claims(sub="eve"), secret=SECRET).split(".")

    parts[part] = other[part]

    assert refusal(".".join(parts)) == "signature"


async def test_token_without_its_signature_is_refused() -> None:
    head, _, _ = shared().rpartition(".")

    assert refusal(f"{head}.") == "signature"


async def test_keys_that_a_token_brings_along_are_not_looked_at(tmp_path: Path) -> None:
    own = jwt.algorithms.RSAAlgorithm.to_jwk(private_key("RSA-2").public_key(), as_dict=True)
    brought = {
        "jwk": own,
        "jku": "http://127.0.0.1:1/keys",
        "x5u": "http://127.0.0.1:1/cert",
        "x5c": ["MIIB"],
        "kid": "RSA-2",
    }
    forged = jwt.encode(claims(), private_key("RSA-2"), algorithm="RS256", headers=brought)

    assert refusal(forged, jwt_public_key_file=key_file(tmp_path, "RSA")) == "signature"


@pytest.mark.parametrize(
    "kid", ["../../../../dev/null", "/dev/null", "' OR 1=1 --", "x" * 4000, "\x00", "http://evil/"]
)
async def test_key_id_is_only_compared(kid: str) -> None:
    forged = hmac_signed({"alg": "HS256", "kid": kid}, claims(), secret="")

    assert refusal(forged) == "signature"


@pytest.mark.parametrize("kid", [7, None, True, ["a"], {"a": 1}])
async def test_key_id_that_is_no_text_is_refused(kid: object) -> None:
    assert refusal(hmac_signed({"alg": "HS256", "kid": kid}, claims())) == "malformed"


@pytest.mark.parametrize("crit", [["b64"], ["exp"], [], "b64", None, 7])
async def test_token_with_critical_extensions_is_refused(crit: object) -> None:
    token = hmac_signed({"alg": "HS256", "crit": crit, "b64": True}, claims())

    assert refusal(token) == "malformed"


async def test_detached_payload_is_refused() -> None:
    assert refusal(hmac_signed({"alg": "HS256", "b64": False}, claims())) == "malformed"


# --- forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    [
        "", ".", "..", "...", "a.b.c", "null", "Bearer x.y.z", "é.é.é", "\ud800", "\x00" * 10,
        raw_token(b"", b""), raw_token([], {}), raw_token("HS256", {}), raw_token(b"\xff", {}),
        raw_token(b"[" * 5000, {}), raw_token(b'{"alg":', {}),
    ],
)  # fmt: skip
async def test_what_is_no_token_is_malformed(token: str) -> None:
    assert refusal(token) == "malformed"


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b'"x"', b"\xff", b"[" * 5000, b"{"])
async def test_signed_payload_that_is_no_object_is_malformed(payload: bytes) -> None:
    assert refusal(hmac_signed({"alg": "HS256"}, payload)) == "malformed"


async def test_token_of_the_largest_size_is_judged_and_a_larger_one_is_not() -> None:
    token = shared(pad="x" * 5800)
    fitting = shared(pad="x" * (5800 + (MAX_TOKEN_BYTES - len(token)) * 3 // 4))

    assert MAX_TOKEN_BYTES - 4 < len(fitting) <= MAX_TOKEN_BYTES
    assert verified(fitting).principal == "ann"
    assert refusal("x" * (MAX_TOKEN_BYTES + 1)) == "malformed"
    assert refusal(shared(pad="x" * 7000)) == "malformed"


@pytest.mark.parametrize(
    "changed",
    [{"jobs": "*"}, {"jobs": None, "queues": "*"}, {"jobs": {"*": True}}, {"sub": ""}, {"jti": ""}],
)
async def test_claims_of_a_wrong_form_are_refused_and_not_read_as_everything(
    changed: dict[str, Any],
) -> None:
    assert refusal(shared(**changed)) == "claims"


JUDGED = st.dictionaries(
    st.sampled_from(["alg", "kid", "crit", "b64", "typ", "jku", "exp", "sub", "aud"]),
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=20),
)


@given(
    st.text()
    | st.builds(raw_token, JUDGED | st.binary(), JUDGED | st.binary(), st.binary())
    | st.builds(hmac_signed, JUDGED | st.just({"alg": "HS256"}), JUDGED | st.binary())
)
async def test_anything_at_all_is_grants_or_a_refusal(token: str) -> None:
    try:
        grants = verified(token, audience="relay")
    except TokenError:
        return

    assert isinstance(grants, Grants)


async def test_refusal_holds_neither_token_nor_values() -> None:
    token = shared(sub="ann-the-secret", jobs="job-the-secret")

    with pytest.raises(TokenError) as caught:
        verified(token)

    shown = f"{caught.value!r} {caught.value} {caught.value.__cause__}"
    assert "the-secret" not in shown
    assert token.split(".")[1] not in shown


# --- revocation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("revoked", [{"principal": "ann"}, {"token_id": "t1"}])
async def test_revoked_token_is_refused_until_the_revocation_ends(revoked: dict[str, str]) -> None:
    clock, revocations = Clock(), Revocations()
    judge = authenticator(clock=clock, revocations=revocations)
    revocations.revoke(**revoked, until_ms=NOW_MS + 1000, now_ms=NOW_MS)

    with pytest.raises(TokenError) as caught:
        judge.verify(shared(jti="t1"))
    clock.now_ms += 1000

    assert caught.value.reason == "revoked"
    assert isinstance(judge.verify(shared(jti="t1")), Grants)


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot read"),
        (b"\xff", "should hold a public key as PEM"),
        (b"nothing", "should hold a public key as PEM"),
        (private_pem("P-256").encode(), "holds a private key"),
    ],
)
async def test_key_file_that_is_none_ends_the_start(
    content: bytes | None, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    auth = auth_config(jwt_public_key_file=str(path))

    for build in (check_keys, authenticator):
        with pytest.raises(ConfigError, match=r"^auth\.jwt_public_key_file: ") as caught:
            build(auth)
        assert fault in str(caught.value)
        assert str(path) in str(caught.value)


async def test_public_key_in_the_place_of_the_secret_ends_the_start() -> None:
    with pytest.raises(ConfigError, match=r"^auth\.jwt_secret: holds a key file's content"):
        authenticator(auth_config(jwt_secret=SecretStr(public_pem("RSA"))))


async def test_reload_takes_over_another_secret() -> None:
    judge = authenticator(auth_config())

    judge.reload(auth_config(jwt_secret=SecretStr("another secret of thirty-two bytes")))

    with pytest.raises(TokenError) as caught:
        judge.verify(shared())
    assert caught.value.reason == "signature"


async def test_reload_reads_the_key_file_again(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text(public_pem("RSA"))
    auth = auth_config(jwt_public_key_file=str(path))
    judge = authenticator(auth)

    path.write_text(public_pem("RSA-2"))
    judge.reload(auth)

    assert isinstance(judge.verify(signed("RSA-2")), Grants)
    with pytest.raises(TokenError):
        judge.verify(signed("RSA"))


async def test_reload_takes_over_what_is_asked_of_a_token() -> None:
    judge = authenticator(auth_config())

    judge.reload(auth_config(audience="relay"))

    with pytest.raises(TokenError):
        judge.verify(shared())
    assert isinstance(judge.verify(shared(aud="relay")), Grants)


async def test_faulty_reload_changes_nothing(tmp_path: Path) -> None:
    judge = authenticator(auth_config())

    with pytest.raises(ConfigError):
        judge.reload(auth_config(jwt_public_key_file=str(tmp_path / "missing"), audience="x"))

    assert isinstance(judge.verify(shared()), Grants)
