"""Headers of a proxy from somebody who is none: nobody here is in `trusted_proxies`."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.hostile.conftest import request
from tests.web.conftest import upgrade

if TYPE_CHECKING:
    from tests.hostile.conftest import Target

OF_ADDRESS = 4
SETTINGS = {
    "server": {"trusted_proxies": ["192.0.2.1/32"], "allowed_origins": ["https://app.example.org"]},
    "limits": {"max_connections_per_address": OF_ADDRESS},
}


async def test_claimed_addresses_do_not_evade_the_limit_on_one(target: Target) -> None:
    """A client claims another address with each connection."""
    clients = []
    statuses = []

    for place in range(OF_ADDRESS + 2):  # and the bystander is one
        clients.append(await target.raw())
        headers = {"X_Forwarded_For": f"198.51.100.{place}", "Forwarded": f"for=203.0.113.{place}"}
        await clients[-1].send(upgrade(**headers))
        statuses.append((await clients[-1].answer()).status)

    assert statuses == [101] * (OF_ADDRESS - 1) + [429] * 3
    for client in clients:
        client.reset()


async def test_silent_connections_have_the_share_of_their_address(target: Target) -> None:
    """One client opens connections and says nothing on any, or begins a request and does not end it."""
    for start in (b"", b"GET / HTTP/1.1\r\n"):
        clients = [await target.raw() for _ in range(OF_ADDRESS * 3)]
        for client in clients:
            with suppress(ConnectionError):
                await client.send(start)

        await asyncio.gather(*(client.ended() for client in clients[:-OF_ADDRESS]))
        for client in clients:
            client.reset()


@pytest.mark.parametrize(
    "headers",
    [
        ("X-Forwarded-Host: evil.example",),
        ("X-Forwarded-Host: evil.example", "X-Forwarded-Proto: http"),
        ("Forwarded: host=evil.example",),
        ("X-Forwarded-Host: localhost", "X-Forwarded-Host: evil.example"),
        ("X-Original-Host: evil.example", "X-Host: evil.example"),
    ],
)
async def test_claimed_host_makes_no_origin_the_same(
    target: Target, headers: tuple[str, ...]
) -> None:
    """A page that can add headers claims that its own host is the one that was asked for."""
    answer = await target.ask(request("/jobs/x", "Origin: http://evil.example", *headers))

    assert answer.status == 403


async def test_claims_of_a_proxy_are_nothing_where_nobody_asked_for_them(target: Target) -> None:
    """A client sends a proxy's claims to a relay in another mode."""
    header = base64.urlsafe_b64encode(json.dumps({"sub": "admin"}).encode()).decode()

    answer = await target.ask(request("/jobs/x", f"X-Relay-Claims: {header}"))

    assert answer.status == 404
