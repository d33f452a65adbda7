"""Pages of other sites in the browser of a user who may reach the relay (RFC 6455 §10.2, cross-site hijacking)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.hostile.conftest import request
from tests.web.conftest import upgrade

if TYPE_CHECKING:
    from tests.hostile.conftest import Target

SETTINGS = {
    "server": {
        "allowed_origins": [
            "https://app.example.org",
            "http://dev.example.org:8080",
            "https://xn--bcher-kva.example",
        ],
    },
}
REFUSED = [
    "null",
    "",
    "https://",
    "//app.example.org",
    "app.example.org",
    "https://evil.example",
    "https://app.example.org.evil.example",
    "https://evil-app.example.org",
    "https://evilapp.example.org",
    "https://app-example.org",
    "https://example.org",
    "https://sub.app.example.org",
    "https://app.example.org.",
    "https://app.example.org:8443",
    "https://app.example.org:80",
    "https://app.example.org:4430",
    "https://app.example.org:99999",
    "https://app.example.org:x",
    "http://app.example.org",
    "wss://app.example.org",
    "file://app.example.org",
    "chrome-extension://app.example.org",
    "https://app.example.org@evil.example",
    "https://app.example.org:443@evil.example",
    "https://user@app.example.org",
    "https://evil.example/https://app.example.org",
    "https://evil.example?https://app.example.org",
    "https://evil.example#https://app.example.org",
    "https://app.example.org/",
    "https://app.example.org/path",
    "https://app.example.org\\.evil.example",
    "https://app.example.org%2eevil.example",
    "https://app.example.org%00.evil.example",
    "https://app.example.org,https://evil.example",
    "https://app.example.org, https://evil.example",
    "https://app.example.org https://evil.example",
    "https://evil.example https://app.example.org",
    "http://dev.example.org",
    "http://dev.example.org:80800",
    "https://dev.example.org:8080",
    "https://bücher.example".encode().decode("latin-1"),
    "https://аpp.example.org".encode().decode("latin-1"),  # its first letter is Cyrillic
    "https://xn--pp-6kc.example.org",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://localhost@evil.example",
    "http://evil.example:80",
    # A list of origins replaces the courtesy to other ports of this machine.
    "http://localhost:9999",
    "http://[::1]:9999",
]
ALLOWED = [
    "https://app.example.org",
    "https://app.example.org:443",
    "HTTPS://APP.EXAMPLE.ORG",
    "http://dev.example.org:8080",
    "https://xn--bcher-kva.example",
    "http://localhost",  # the host that was asked for: the same origin
]
WAYS = pytest.mark.parametrize(
    "path", ["websocket", "/jobs/x", "/jobs/x/events", "/events?queues=q", "/jobs?queueName=q"]
)


def asked(path: str, *headers: str) -> bytes:
    """A request for `path`, or a handshake, with more headers."""
    data = upgrade() if path == "websocket" else request(path)
    lines = "".join(f"\r\n{header}" for header in headers)
    return data.replace(b"\r\n\r\n", f"{lines}\r\n\r\n".encode("latin-1"))


@WAYS
@pytest.mark.parametrize("origin", REFUSED)
async def test_foreign_origin_is_refused(target: Target, path: str, origin: str) -> None:
    """A page of an origin that looks much like an allowed one has its visitor's browser connect."""
    answer = await target.ask(asked(path, f"Origin: {origin}"))

    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


@WAYS
@pytest.mark.parametrize("origin", ALLOWED)
async def test_allowed_origin_is_let_in(target: Target, path: str, origin: str) -> None:
    """No attack: were every origin refused, the tests above would prove nothing."""
    answer = await target.ask(asked(path, f"Origin: {origin}"))

    assert answer.status in (101, 200, 404)


@WAYS
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("https://app.example.org", "https://evil.example"),
        ("https://evil.example", "https://app.example.org"),
        ("https://evil.example", "https://evil.example"),
        ("https://app.example.org", "https://app.example.org"),
        ("", ""),
    ],
)
async def test_several_origins_are_none_that_is_allowed(
    target: Target, path: str, first: str, second: str
) -> None:
    """Something on the way adds an origin; a request with two must not count as one without."""
    answer = await target.ask(asked(path, f"Origin: {first}", f"Origin: {second}"))

    assert answer.status in (400, 403)
    assert "access-control-allow-origin" not in answer.headers


async def test_preflight_of_a_foreign_page_allows_nothing(target: Target) -> None:
    """A page of another site asks whether it may send headers of its own."""
    answer = await target.ask(
        request(
            "/jobs/x",
            "Origin: https://evil.example",
            "Access-Control-Request-Method: GET",
            "Access-Control-Request-Headers: authorization",
            method="OPTIONS",
        )
    )

    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control-")]


REBOUND = [
    "evil.example",
    "evil.example:3001",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "localhost:3001.evil.example",
    "evil.example@localhost@evil.example",
    "localhost#.evil.example",
    "0.0.0.0",
    "[::]",
    "10.0.0.1",
    "2130706433",
    "0x7f000001",
    "127.1",
    "",
]


@WAYS
@pytest.mark.parametrize("host", REBOUND)
async def test_rebound_name_is_refused_on_the_public_listener(
    target: Target, path: str, host: str
) -> None:
    """A page has its own name resolve to 127.0.0.1 (DNS rebinding), so that the browser takes us for its site."""
    data = asked(path, f"Origin: http://{host}").replace(b"localhost", host.encode())

    assert (await target.ask(data)).status in (400, 403)


@pytest.mark.parametrize("claimed", ["localhost", "127.0.0.1", "app.example.org"])
async def test_rebound_page_cannot_speak_as_a_proxy(target: Target, claimed: str) -> None:
    """A rebound page, which reaches us from loopback as a proxy does, claims the host that it should have."""
    port = target.daemon.public.rpartition(":")[2]
    host = f"evil.example:{port}"

    answer = await target.ask(
        request("/jobs/x", f"X-Forwarded-Host: {claimed}", f"Origin: http://{host}", host=host)
    )

    assert answer.status == 403
