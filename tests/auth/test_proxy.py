"""A proxy's claims are believed when it proves itself, and nobody else's."""

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.proxy import grants_of_headers
from relay.auth.tokens import MAX_TOKEN_BYTES, TokenError
from relay.core.grants import Grants

SECRET = "between us"
NOW_MS = 1_800_000_000_000


def header(claims: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(claims)).decode()


def told(
    *values: str,
    secrets: list[str] | None = None,
    secret: str = SECRET,
    on_unix_socket: bool = False,
    trusted: bool = True,
) -> Grants:
    return grants_of_headers(
        values,
        [SECRET] if secrets is None else secrets,
        secret=secret,
        on_unix_socket=on_unix_socket,
        trusted=trusted,
        now_ms=NOW_MS,
    )


def refusal(*values: str, **how: Any) -> TokenError:
    with pytest.raises(TokenError) as caught:
        told(*values, **how)
    return caught.value


GOOD = header({"sub": "ann", "jobs": ["a-*"], "queues": ["q"]})


def test_claims_of_a_proven_proxy_become_grants() -> None:
    grants = told(GOOD)

    assert grants.principal == "ann"
    assert grants.expires_at_ms is None
    assert grants.may_watch_job("a-1", None)
    assert not grants.may_watch_job("b-1", None)
    assert grants.may_watch_queue("q")


def test_absent_claims_allow_nothing() -> None:
    grants = told(header({"sub": "ann"}))

    assert not grants.may_watch_job("a", "q")


@pytest.mark.parametrize("claims", [{"sub": "a"}, {"sub": "ab"}, {"sub": "abc"}, {"sub": "é>?"}])
def test_padding_is_optional(claims: dict[str, str]) -> None:
    padded = header(claims)

    assert told(padded.rstrip("=")).principal == told(padded).principal == claims["sub"]


# --- who is believed -------------------------------------------------------------------------------


def test_sender_that_is_no_trusted_proxy_is_not_believed_even_with_the_secret() -> None:
    assert refusal(GOOD, trusted=False).reason == "untrusted"


@pytest.mark.parametrize(
    "given", [[], [""], ["wrong"], [SECRET + " "], ["BETWEEN US"], [SECRET, SECRET], ["ü\udcff"]]
)
def test_proxy_without_the_secret_once_is_not_believed(given: list[str]) -> None:
    assert refusal(GOOD, secrets=given).reason == "proxy-secret"


@pytest.mark.parametrize("given", [[], [""]])
def test_no_secret_that_was_set_is_no_way_in_but_on_a_unix_socket(given: list[str]) -> None:
    assert refusal(GOOD, secrets=given, secret="").reason == "proxy-secret"
    assert (
        told(GOOD, secrets=given, secret="", on_unix_socket=True, trusted=False).principal == "ann"
    )


def test_secret_that_was_set_is_asked_for_on_a_unix_socket_too() -> None:
    assert refusal(GOOD, secrets=[], on_unix_socket=True).reason == "proxy-secret"
    assert told(GOOD, on_unix_socket=True, trusted=False).principal == "ann"


def test_header_is_not_looked_at_before_its_sender_is_proven() -> None:
    assert refusal("!", trusted=False).reason == "untrusted"
    assert refusal("!", secrets=[]).reason == "proxy-secret"


# --- what is believed ------------------------------------------------------------------------------


def test_missing_header_is_refused() -> None:
    assert refusal().reason == "missing"


def test_second_header_is_refused_even_if_it_says_the_same() -> None:
    assert refusal(GOOD, GOOD).reason == "malformed"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "=",
        "a",
        f"{GOOD}, {GOOD}",
        f"{GOOD[:8]} {GOOD[8:]}",
        f"{GOOD}===",
        f"{GOOD}\n",
        base64.b64encode(b'{"sub":"\xff\xfe~~~???"}').decode(),
        orjson.dumps({"sub": "ann"}).decode(),
        header(["ann"]),
        header("ann"),
        header(None),
        base64.urlsafe_b64encode(b'{"exp":NaN}').decode(),
        base64.urlsafe_b64encode(b"[" * 4000).decode(),
        header({"sub": "x" * MAX_TOKEN_BYTES}),
        "é",
    ],
)
def test_what_is_no_base64url_of_an_object_is_malformed(value: str) -> None:
    assert refusal(value).reason == "malformed"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": 7},
        {"sub": None},
        {"jobs": "*"},
        {"queues": {"q": True}},
        {"exp": "1800000600"},
        {"exp": None},
        {"exp": True},
        {"exp": 1e300},
        {"exp": -1},
    ],
)
def test_claims_of_a_wrong_form_are_refused_and_not_read_as_everything(
    claims: dict[str, object],
) -> None:
    assert refusal(header(claims)).reason == "claims"


def test_end_of_the_claims_is_kept() -> None:
    assert told(header({"exp": NOW_MS / 1000 + 0.5})).expires_at_ms == NOW_MS + 500


@pytest.mark.parametrize("exp", [NOW_MS // 1000, NOW_MS // 1000 - 1, 0])
def test_claims_that_have_expired_are_refused(exp: int) -> None:
    assert refusal(header({"exp": exp})).reason == "expired"


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_anything_at_all_is_grants_or_a_refusal(value: str) -> None:
    try:
        grants = told(value)
    except TokenError:
        return

    assert isinstance(grants, Grants)


def test_refusal_does_not_show_what_was_sent() -> None:
    error = refusal(header({"sub": "ann", "jobs": "secret-*"}))

    assert "secret" not in str(error)
    assert "ann" not in str(error)
