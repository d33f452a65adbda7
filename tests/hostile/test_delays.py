"""Floods that are cheap to send and dear to read: the others must not wait for them. With the settings as they come."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from statistics import median
from typing import TYPE_CHECKING

import pytest

from tests.hostile.conftest import request
from tests.web.conftest import CONTINUATION, PING, PONG, TEXT, command, frame, upgrade

if TYPE_CHECKING:
    from tests.hostile.conftest import Target
    from tests.web.conftest import RawClient

SETTINGS: dict[str, dict[str, object]] = {}
ROUNDS = 30
# Far above what an answer takes on a busy machine; tiny frames that are all read delay it by seconds.
DELAY_SECONDS = 0.5
FLOODS = {
    "pings": (upgrade(), frame(PING)),
    "pongs": (upgrade(), frame(PONG)),
    "empty fragments": (upgrade() + frame(TEXT, final=False), frame(CONTINUATION, final=False)),
    "messages": (upgrade(), command("ping", 1)),
    "frames after a close": (upgrade() + frame(TEXT, b"{}", masked=False), frame(PING)),
    "bytes on a stream": (request("/jobs/x/events"), b"GET / HTTP/1.1\r\n\r\n"),
    "requests": (b"", b"GET /jobs/x HTTP/1.1\r\nHost: localhost\r\n\r\n"),
}


async def pass_over(client: RawClient) -> None:
    """Read what comes, and keep none of it: that would take this test longer and longer."""
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        data = b"not yet"
        while data:
            data = await loop.sock_recv(client.socket, 65_536)
            await asyncio.sleep(0)


async def flood(target: Target, first: bytes, again: bytes) -> None:
    """Send this for ever, on one connection after the other, and read what comes."""
    while True:
        client = await target.raw()
        reading = asyncio.create_task(pass_over(client))
        try:
            with suppress(ConnectionError):
                await client.send(first)
                while not reading.done():
                    await client.send(again * 20_000)
                    await asyncio.sleep(
                        0
                    )  # a relay that takes all would leave the neighbour no turn here
        finally:
            reading.cancel()
            await asyncio.wait({reading})
            client.socket.close()


@pytest.mark.parametrize("flooders", [1, 4])
@pytest.mark.parametrize(("first", "again"), FLOODS.values(), ids=FLOODS)
async def test_flood_delays_nobody_else(
    target: Target, first: bytes, again: bytes, flooders: int
) -> None:
    """Clients send as fast as they can what costs the relay more than it costs them."""
    neighbour = await target.friend()
    flooding = [asyncio.create_task(flood(target, first, again)) for _ in range(flooders)]
    delays = []

    for number in range(ROUNDS):
        await asyncio.sleep(0.05)  # the pace of a client that chats, not a wait
        asked_at = time.monotonic()
        await neighbour.send("ping", number)
        await neighbour.told("pong", "error")
        delays.append(time.monotonic() - asked_at)

    for task in flooding:
        task.cancel()
    await asyncio.wait(flooding)
    # The median: one round may fall together with whatever else the machine does.
    assert median(delays) < DELAY_SECONDS
