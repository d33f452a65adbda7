"""Floods of connections, from many addresses and from one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.hostile.conftest import request
from tests.web.conftest import SOON_SECONDS, RawClient, upgrade

if TYPE_CHECKING:
    from tests.hostile.conftest import Target

MAX_CONNECTIONS = 30
OF_ADDRESS = 5
SETTINGS = {
    "limits": {"max_connections": MAX_CONNECTIONS, "max_connections_per_address": OF_ADDRESS}
}


def upgrade_from(address: str) -> bytes:
    """A handshake as the local proxy passes it on."""
    return upgrade(X_Forwarded_For=address)


async def room_is_made(target: Target) -> None:
    """Wait until nobody but the bystander is connected."""
    async with asyncio.timeout(SOON_SECONDS):
        while await target.daemon.metric("relay_connections", transport="websocket") > 1:
            pass


async def test_connections_beyond_the_limit_are_refused_and_told_when_to_return(
    target: Target,
) -> None:
    """A crowd, each from an address of its own, opens more connections than there is room for."""
    await room_is_made(target)
    clients = []
    answers = []

    for place in range(MAX_CONNECTIONS * 2):
        clients.append(await target.raw())
        await clients[-1].send(upgrade_from(f"192.0.2.{place}"))
        answers.append(await clients[-1].answer())

    refused = [answer for answer in answers if answer.status != 101]
    assert len(answers) - len(refused) == MAX_CONNECTIONS - 1
    assert {(answer.status, "retry-after" in answer.headers) for answer in refused} == {(503, True)}
    assert await target.daemon.is_ready()
    for client in clients:
        client.reset()


async def test_crowd_at_the_door_is_no_larger_than_the_crowd_inside(target: Target) -> None:
    """A client opens connections by the hundred and says nothing on them, so that none counts as one."""
    await room_is_made(target)
    silent = [await target.raw() for _ in range(MAX_CONNECTIONS * 5)]

    turned_away = [client.ended() for client in silent[:-MAX_CONNECTIONS]]
    answer = await target.ask(upgrade_from("198.51.100.3"))

    await asyncio.gather(*turned_away)
    assert answer.status == 101
    for client in silent:
        client.reset()


async def test_one_address_has_no_more_than_its_share(target: Target) -> None:
    """One client opens connection after connection, to leave none to others."""
    await room_is_made(target)
    clients = [await target.raw() for _ in range(OF_ADDRESS + 3)]

    for client in clients:
        await client.send(upgrade_from("198.51.100.1"))
    statuses = [(await client.answer()).status for client in clients]
    other = await target.ask(upgrade_from("198.51.100.2"))

    assert statuses == [101] * OF_ADDRESS + [429] * 3
    assert other.status == 101
    for client in clients:
        client.reset()


async def test_idle_connections_of_one_address_leave_room_to_others(target: Target) -> None:
    """One client keeps as many HTTP connections as there may be, each after a request, to leave none to others."""
    await room_is_made(target)
    clients = []
    for _ in range(MAX_CONNECTIONS * 2):
        clients.append(await target.raw())
        await clients[-1].send(
            b"GET /jobs/x HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n"
        )
        assert (await clients[-1].answer()).status == 404

    others = [await target.ask(upgrade_from(address)) for address in ("198.51.100.1", "192.0.2.1")]

    assert [other.status for other in others] == [101, 101]
    await asyncio.gather(*(client.ended() for client in clients[:-OF_ADDRESS]))
    for client in clients:
        client.reset()


async def test_network_of_one_ipv6_client_is_one_address(target: Target) -> None:
    """One client takes another of its many addresses for each connection."""
    await room_is_made(target)
    clients = [await target.raw() for _ in range(OF_ADDRESS + 3)]

    for place, client in enumerate(clients):
        await client.send(upgrade_from(f"2001:db8:1:2:{place:x}:{place:x}::1"))
    statuses = [(await client.answer()).status for client in clients]
    other = await target.ask(upgrade_from("2001:db8:1:3::1"))

    assert statuses == [101] * OF_ADDRESS + [429] * 3
    assert other.status == 101
    for client in clients:
        client.reset()


async def test_streams_and_long_polls_count_for_their_address(target: Target) -> None:
    """One client uses what is not a WebSocket to get more connections than its share."""
    await room_is_made(target)
    forwarded = "X-Forwarded-For: 203.0.113.7"
    clients = [await target.raw() for _ in range(OF_ADDRESS)]
    for place, client in enumerate(clients):
        path = "/jobs/x/events" if place % 2 else "/jobs/x?wait=30"
        await client.send(request(path, forwarded))
    streams = [client for place, client in enumerate(clients) if place % 2]
    for stream in streams:
        assert (await stream.answer()).status == 200

    answers = [
        await target.ask(upgrade_from("203.0.113.7")),
        await target.ask(request("/jobs/x/events", forwarded)),
        await target.ask(request("/jobs/x?wait=30", forwarded)),
    ]

    assert [answer.status for answer in answers] == [429] * 3
    for client in clients:
        client.reset()


async def test_connections_that_are_reset_at_once_leave_nothing(target: Target) -> None:
    """A client opens connections and resets them at every stage of their life."""
    await room_is_made(target)
    stages = [b"", b"GET", upgrade(), request("/jobs/x/events"), request("/jobs/x?wait=30")]

    for number in range(500):
        client = await RawClient.connect(target.daemon.public)
        await client.send(stages[number % len(stages)])
        client.reset()

    await room_is_made(target)
    async with asyncio.timeout(SOON_SECONDS):
        while (await target.ask(upgrade())).status != 101:
            pass
