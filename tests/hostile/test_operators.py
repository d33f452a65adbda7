"""Requests to the admin listener from those who are no operators: pages, neighbours, guessers.

Without a token the loopback listener is open to whoever is on this machine; a browser on it runs pages of
whoever is not.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.hostile.conftest import post, request
from tests.web.conftest import command

if TYPE_CHECKING:
    from tests.hostile.conftest import Target

DISCONNECT = {"principal": "somebody"}
PATHS = ["/livez", "/readyz", "/healthz", "/metrics", "/admin/connections"]
REBOUND = [
    "evil.example",
    "evil.example:9301",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "localhost:9301.evil.example",
    "evil.example@localhost@evil.example",
    "2130706433",
    "127.1",
    "",
]


@pytest.mark.parametrize("host", REBOUND)
@pytest.mark.parametrize("path", PATHS)
async def test_rebound_name_reaches_nothing_of_operators(
    target: Target, path: str, host: str
) -> None:
    """A page has its own name resolve to 127.0.0.1 and reads what is meant for operators."""
    answer = await target.ask(request(path, host=host), admin=True)

    assert answer.status in (400, 403)
    assert b"relay_" not in answer.body


@pytest.mark.parametrize(
    "origin",
    ["null", "https://evil.example", "http://localhost:3001", "http://127.0.0.1:1", "file://"],
)
async def test_page_of_another_origin_cannot_act_for_the_operator(
    target: Target, origin: str
) -> None:
    """A page in an operator's browser posts to the admin listener (CSRF)."""
    answers = [
        await target.ask(post(path, DISCONNECT, f"Origin: {origin}"), admin=True)
        for path in ("/admin/disconnect", "/admin/revoke")
    ]

    assert [answer.status for answer in answers] == [403, 403]


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "application/json-seq",
        "",
    ],
)
async def test_form_cannot_act_for_the_operator(target: Target, content_type: str) -> None:
    """A page sends a form, for which a browser asks nobody and old ones name no origin."""
    body = json.dumps(DISCONNECT).encode()
    data = request("/admin/disconnect", f"Content-Type: {content_type}", method="POST", body=body)

    assert (await target.ask(data, admin=True)).status == 415


async def test_second_origin_does_not_hide_the_first(target: Target) -> None:
    """A page of another site posts, and something on the way adds one more origin to its own."""
    origins = ["Origin: https://evil.example"] * 2

    answer = await target.ask(post("/admin/disconnect", {"principal": "x"}, *origins), admin=True)

    assert answer.status == 403


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_methods_act_for_nobody(target: Target, method: str) -> None:
    """A page tries an image's request, or a preflight, where a POST would be refused."""
    for path in ("/admin/disconnect", "/admin/revoke"):
        answer = await target.ask(request(path, method=method), admin=True)
        assert answer.status == 405, path
        assert "access-control-allow-origin" not in answer.headers, path


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For: 192.0.2.1",
        "Forwarded: for=192.0.2.1",
        "Via: 1.1 proxy",
        "x-forwarded-host: a",
    ],
)
async def test_proxy_before_the_admin_listener_opens_it_to_nobody(
    target: Target, header: str
) -> None:
    """The world comes by way of a proxy that an operator has put before the listener, with no token set."""
    answer = await target.ask(post("/admin/disconnect", DISCONNECT, header), admin=True)

    assert answer.status == 401


@pytest.mark.parametrize(
    "path", ["/metrics", "/admin/connections", "/admin/disconnect", "/healthz", "//metrics"]
)
async def test_nothing_of_operators_is_on_the_public_listener(target: Target, path: str) -> None:
    """A client looks for the operators' pages where everybody may look."""
    answers = [await target.ask(request(path)), await target.ask(post(path, DISCONNECT))]

    assert {answer.status for answer in answers} <= {404}


BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "deep": b"[" * 10_000,
    "two answers": b'{"principal":"a","connectionId":"b"}',
    "a pattern": b'{"principal":{"$ne":null}}',
    "null": b'{"principal":null}',
    "too long": json.dumps({"principal": "a" * 300}).encode(),
    "too large": json.dumps({"principal": "a" * 100_000}).encode(),
    "not UTF-8": b'{"principal":"\xff"}',
    "half a pair": b'{"principal":"\\ud800"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_odd_bodies_disconnect_nobody(target: Target, body: bytes) -> None:
    """An operator's script is fed by somebody else, who would like everybody to be meant."""
    witness = await target.websocket()

    data = request("/admin/disconnect", "Content-Type: application/json", method="POST", body=body)
    answer = await target.ask(data, admin=True)

    assert answer.status in (400, 413)
    await witness.send(command("ping", 1))
    assert (await witness.until_event("pong"))["data"] == 1
