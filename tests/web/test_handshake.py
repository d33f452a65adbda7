"""What is granted and what is refused before an upgrade (RFC 6455 §4.2.1)."""

import json
from typing import Any

import pytest

from relay.core.errors import ErrorCode
from relay.web.handshake import RETRY_AFTER_SECONDS, Accept, Load, Refusal, decide, is_upgrade
from relay.web.origin import OriginPolicy
from relay.web.request import Head, parse_head
from tests.web.conftest import ACCEPT, KEY, PATH, upgrade

PEER = "203.0.113.9"


def head_of(data: bytes) -> Head:
    found = parse_head(data.removesuffix(b"\r\n\r\n"))
    assert found is not None
    return found


def decided(data: bytes, **changed: Any) -> Accept | Refusal:
    load: dict[str, Any] = {
        "draining": False,
        "connections": 0,
        "max_connections": 10,
        "of_address": 0,
        "max_of_address": 0,
    }
    policy = OriginPolicy(
        allowed_origins=("https://app.example",),
        allowed_hosts=(),
        trusted_proxies=(),
        loopback=True,
    )
    return decide(head_of(data), PEER, policy, Load(**(load | changed)))


def refused(data: bytes, **changed: Any) -> Refusal:
    refusal = decided(data, **changed)
    assert isinstance(refusal, Refusal)
    return refusal


def lines_of(answer: bytes) -> list[str]:
    return answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")


@pytest.mark.parametrize(
    ("data", "is_one"),
    [
        (upgrade(), True),
        (upgrade(PATH + "?token=x"), True),
        (upgrade(Upgrade="WebSocket"), True),
        (upgrade(Upgrade="h2c, websocket"), True),
        (upgrade("/elsewhere"), False),
        (upgrade(PATH + "/"), False),
        (upgrade(without="Upgrade"), False),
        (upgrade(Upgrade="h2c"), False),
        (upgrade(Upgrade="websocket2"), False),
        (upgrade().replace(b"GET", b"POST", 1), False),
        (upgrade().replace(b"GET", b"HEAD", 1), False),
    ],
)
def test_upgrade_is_a_get_on_our_path_that_asks_for_a_websocket(data: bytes, is_one: bool) -> None:
    assert is_upgrade(head_of(data), PATH) == is_one


def test_granted_upgrade_proves_that_the_key_was_read() -> None:
    accepted = decided(upgrade(Origin="https://app.example"))

    assert isinstance(accepted, Accept)
    assert accepted.response.endswith(b"\r\n\r\n")
    assert lines_of(accepted.response) == [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {ACCEPT}",
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"Connection": "keep-alive, UPGRADE"},
        {"Content-Length": "0"},
        {"Sec-WebSocket-Extensions": "permessage-deflate"},
        {"Sec-WebSocket-Protocol": "chat"},
    ],
)
def test_what_else_a_client_may_send_is_no_fault(more: dict[str, str]) -> None:
    accepted = decided(upgrade(**more))

    assert isinstance(accepted, Accept)
    assert b"Sec-WebSocket-Extensions" not in accepted.response
    assert b"Sec-WebSocket-Protocol" not in accepted.response


@pytest.mark.parametrize("offered", ["bearer, abc.def", "bearer,abc.def", "bearer"])
def test_subprotocol_pair_with_a_token_is_answered_with_bearer_alone(offered: str) -> None:
    accepted = decided(upgrade(Sec_WebSocket_Protocol=offered))

    assert isinstance(accepted, Accept)
    assert lines_of(accepted.response)[-1] == "Sec-WebSocket-Protocol: bearer"


@pytest.mark.parametrize("offered", ["abc, bearer", "Bearer, abc", "bearers, abc"])
def test_no_other_subprotocol_is_selected(offered: str) -> None:
    accepted = decided(upgrade(Sec_WebSocket_Protocol=offered))

    assert isinstance(accepted, Accept)
    assert b"Sec-WebSocket-Protocol" not in accepted.response


@pytest.mark.parametrize(
    "data",
    [
        upgrade(without="Sec-WebSocket-Version"),
        upgrade(Sec_WebSocket_Version="8"),
        upgrade(Sec_WebSocket_Version="13, 8"),
        upgrade().replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Version: 13\r\n\r\n"),
    ],
)
def test_other_version_is_told_which_one_is_spoken(data: bytes) -> None:
    refusal = refused(data)

    assert (refusal.label, refusal.status) == ("version", 426)
    assert "Sec-WebSocket-Version: 13" in lines_of(refusal.response)
    assert "Upgrade: websocket" in lines_of(refusal.response)


@pytest.mark.parametrize(
    "data",
    [
        upgrade(without="Sec-WebSocket-Key"),
        upgrade(Sec_WebSocket_Key=""),
        upgrade(Sec_WebSocket_Key="not base64!"),
        upgrade(Sec_WebSocket_Key="dG9vIHNob3J0"),
        upgrade(Sec_WebSocket_Key=KEY[:-2]),
        upgrade().replace(b"\r\n\r\n", f"\r\nSec-WebSocket-Key: {KEY}\r\n\r\n".encode()),
        upgrade(without="Connection"),
        upgrade(Connection="keep-alive"),
        upgrade(without="Host"),
        upgrade().replace(b"\r\n\r\n", b"\r\nHost: localhost\r\n\r\n"),
        upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"),
        upgrade(Content_Length="1"),
        upgrade(Content_Length="0, 0"),
        upgrade(Content_Length="1").replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\n"),
        upgrade(Transfer_Encoding="chunked"),
        upgrade(Origin="https://app.example").replace(
            b"\r\n\r\n", b"\r\nOrigin: https://app.example\r\n\r\n"
        ),
    ],
)
def test_malformed_handshake_is_a_bad_request(data: bytes) -> None:
    refusal = refused(data)

    assert (refusal.label, refusal.status, refusal.code) == (
        "malformed",
        400,
        ErrorCode.BAD_REQUEST,
    )


@pytest.mark.parametrize(
    ("data", "what", "value"),
    [
        (upgrade(Origin="https://evil.example"), "origin", "https://evil.example"),
        (upgrade(Origin="null"), "origin", "null"),
        (upgrade(host="evil.example"), "host", "evil.example"),
    ],
)
def test_foreign_origin_or_host_is_forbidden_and_told_which_setting_allows_it(
    data: bytes, what: str, value: str
) -> None:
    refusal = refused(data)

    assert (refusal.label, refusal.status, refusal.code) == (what, 403, ErrorCode.FORBIDDEN)
    assert f"server.allowed_{what}s" in refusal.message
    assert refusal.refused is not None
    assert refusal.refused.value == value


@pytest.mark.parametrize(
    ("load", "label"),
    [
        ({"draining": True}, "draining"),
        ({"connections": 10}, "max_connections"),
        ({"connections": 11}, "max_connections"),
    ],
)
def test_relay_that_cannot_take_more_says_when_to_come_back(
    load: dict[str, Any], label: str
) -> None:
    refusal = refused(upgrade(), **load)

    assert (refusal.label, refusal.status, refusal.code) == (label, 503, ErrorCode.UNAVAILABLE)
    assert f"Retry-After: {RETRY_AFTER_SECONDS}" in lines_of(refusal.response)


@pytest.mark.parametrize(
    ("load", "status"),
    [
        ({"connections": 9}, None),
        ({"of_address": 10_000}, None),  # 0: no limit
        ({"of_address": 2, "max_of_address": 3}, None),
        ({"of_address": 3, "max_of_address": 3}, 429),
    ],
)
def test_limit_of_an_address_holds_where_there_is_one(
    load: dict[str, Any], status: int | None
) -> None:
    decision = decided(upgrade(), **load)

    assert (decision.status if isinstance(decision, Refusal) else None) == status


def test_foreign_origin_does_not_learn_how_full_the_relay_is() -> None:
    assert refused(upgrade(Origin="https://evil.example"), draining=True).status == 403


def test_refusal_is_a_whole_json_answer_that_ends_the_connection() -> None:
    answer = refused(upgrade(), draining=True).response

    head, _, body = answer.partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    error = json.loads(body)["error"]
    assert first == "HTTP/1.1 503 Service Unavailable"
    assert "Content-Type: application/json" in headers
    assert f"Content-Length: {len(body)}" in headers
    assert "Connection: close" in headers
    assert error == {"code": "unavailable", "message": "the relay is restarting"}
