"""Where a token is looked for, and that two which differ are never chosen between."""

import pytest

from relay.auth.tokens import TokenError
from relay.web.credentials import Carriers, token_of
from relay.web.request import Head

EVERY = Carriers(cookie="session", allow_query_token=True)


def head(*headers: tuple[str, str], query: str = "") -> Head:
    return Head("GET", "/job-progress", query, 1, headers)


@pytest.mark.parametrize(
    ("headers", "query", "token"),
    [
        ([], "", None),
        ([("authorization", "Bearer t")], "", "t"),
        ([("authorization", "bearer   t ")], "", "t"),
        ([("authorization", "Basic dXNlcjpwYXNz")], "", None),
        ([("authorization", "Basic x"), ("authorization", "Bearer t")], "", "t"),
        ([("sec-websocket-protocol", "bearer, t")], "", "t"),
        ([("sec-websocket-protocol", "bearer"), ("sec-websocket-protocol", "t")], "", "t"),
        ([("sec-websocket-protocol", "bearer, t, chat")], "", "t"),
        ([("sec-websocket-protocol", "chat, bearer")], "", None),
        ([("cookie", "a=b; session=t; c=d")], "", "t"),
        ([("cookie", "a=b"), ("cookie", 'session="t"')], "", "t"),
        ([("cookie", "xsession=t; Session=t")], "", None),
        ([("cookie", "session=")], "", None),
        ([], "token=t", "t"),
        ([], "a=b&token=t%2Et", "t.t"),
        ([], "tokens=t", None),
        ([("authorization", "Bearer t"), ("cookie", "session=t")], "token=t", "t"),
    ],
)
def test_token_is_found_where_it_may_be(
    headers: list[tuple[str, str]], query: str, token: str | None
) -> None:
    assert token_of(head(*headers, query=query), EVERY) == token


@pytest.mark.parametrize(
    ("headers", "query"), [([("cookie", "session=t; =t")], ""), ([], "token=t")]
)
def test_carrier_that_is_not_open_is_not_looked_at(
    headers: list[tuple[str, str]], query: str
) -> None:
    assert token_of(head(*headers, query=query), Carriers()) is None


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([("authorization", "Bearer a"), ("authorization", "Bearer b")], ""),
        ([("authorization", "Bearer a"), ("sec-websocket-protocol", "bearer, b")], ""),
        ([("authorization", "Bearer a"), ("cookie", "session=b")], ""),
        ([("cookie", "session=a; session=b")], ""),
        ([("cookie", "session=a")], "token=b"),
        ([], "token=a&token=b"),
    ],
)
def test_tokens_that_differ_are_refused(headers: list[tuple[str, str]], query: str) -> None:
    with pytest.raises(TokenError) as refusal:
        token_of(head(*headers, query=query), EVERY)

    assert refusal.value.reason == "ambiguous"


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([("authorization", "Bearer ")], ""),
        ([("authorization", "Bearer")], ""),
        ([("sec-websocket-protocol", "bearer")], ""),
        ([], "token="),
    ],
)
def test_carrier_without_a_token_is_malformed(headers: list[tuple[str, str]], query: str) -> None:
    with pytest.raises(TokenError) as refusal:
        token_of(head(*headers, query=query), EVERY)

    assert refusal.value.reason == "malformed"
