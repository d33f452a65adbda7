"""Requests that take their time: a connection must not be held for longer than the operator allows."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.hostile.conftest import request
from tests.web.conftest import SOON_SECONDS, upgrade

if TYPE_CHECKING:
    from tests.hostile.conftest import Target
    from tests.web.conftest import RawClient

TIMEOUT_SECONDS = 1.0
SETTINGS = {"limits": {"handshake_timeout_seconds": TIMEOUT_SECONDS}}
MANY = 200
LISTENERS = pytest.mark.parametrize("admin", [False, True], ids=["public", "admin"])


async def drip(client: RawClient, data: bytes) -> None:
    """Send a byte every now and then, until nobody takes them any more."""
    with suppress(ConnectionError):
        for place in range(len(data)):
            await client.send(data[place : place + 1])
            await asyncio.sleep(TIMEOUT_SECONDS / 20)


@LISTENERS
async def test_head_that_comes_byte_by_byte_is_ended_in_time(target: Target, admin: bool) -> None:
    """A client sends its request so slowly that it never ends, but is never silent either (slowloris)."""
    client = await target.raw(admin=admin)
    began_at = time.monotonic()

    dripping = asyncio.create_task(drip(client, upgrade(X_Slow="a" * 2000)))

    assert (await client.answer()).status == 408
    assert TIMEOUT_SECONDS * 0.9 < time.monotonic() - began_at < SOON_SECONDS / 2
    dripping.cancel()


@LISTENERS
async def test_connections_that_say_nothing_are_ended_in_time(target: Target, admin: bool) -> None:
    """A client opens many connections and says nothing on any of them."""
    clients = [await target.raw(admin=admin) for _ in range(MANY)]

    await asyncio.gather(*(client.ended() for client in clients))


@LISTENERS
async def test_head_without_an_end_is_ended_in_time(target: Target, admin: bool) -> None:
    """A client sends header after header, and never the empty line."""
    client = await target.raw(admin=admin)

    await client.send(request()[:-2])

    assert (await client.answer()).status == 408


@LISTENERS
async def test_second_request_has_no_more_time_than_the_first(target: Target, admin: bool) -> None:
    """A client sends one good request, and drips the next on the same connection."""
    client = await target.raw(admin=admin)
    await client.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await client.answer()

    dripping = asyncio.create_task(drip(client, request("/livez", "X-Slow: " + "a" * 2000)))

    assert (await client.answer()).status == 408
    dripping.cancel()


async def test_head_in_two_halves_is_not_held_against_its_sender(target: Target) -> None:
    """No attack: a client whose request came in two packets must not be taken for one."""
    client = await target.raw()
    await client.send(upgrade()[:40])
    await asyncio.sleep(0)

    await client.send(upgrade()[40:])

    assert (await client.answer()).status == 101


async def test_bodies_that_never_end_are_not_waited_for(target: Target) -> None:
    """Clients announce a body and do not send it: to operators' requests, and to some that want none."""
    body_of_operator = request(
        "/admin/disconnect", "Content-Type: application/json", "Content-Length: 9", method="POST"
    )
    body_of_nothing = request("/jobs/x", "Content-Length: 9")
    endless_chunks = request("/jobs/x", "Transfer-Encoding: chunked") + b"5\r\nhe"
    operator = await target.raw(admin=True)
    others = [await target.raw(), await target.raw()]

    await operator.send(body_of_operator)
    await others[0].send(body_of_nothing)
    await others[1].send(endless_chunks)

    assert [(await client.answer()).status for client in others] == [404, 404]
    await asyncio.gather(*(client.ended() for client in others))
    assert (await operator.answer()).status == 408


async def test_peer_that_does_not_answer_a_close_frame_is_cut_off(target: Target) -> None:
    """A client breaks the rules, is told goodbye, and keeps its end open."""
    client = await target.websocket()

    await client.send(b"\xff\xff")

    assert await client.close_code() == 1002
    await client.ended()
