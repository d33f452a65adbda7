"""What the machine refuses the relay, it survives and says."""

from __future__ import annotations

import os
import resource
import socket
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import Client, get

if TYPE_CHECKING:
    from relay.demo.embedded import EmbeddedRedis
    from tests.e2e.conftest import StartDaemon

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="prlimit and /proc are Linux's"),
]

SPARE = 5  # descriptors left to the relay


async def test_relay_out_of_descriptors_says_so_and_serves_again_when_there_are_some(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon({"redis": {"url": shared_redis.url}})
    address = urlsplit(relay.public)
    in_use = len(os.listdir(f"/proc/{relay.pid}/fd"))
    hard = resource.prlimit(relay.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (in_use + SPARE, hard))

    crowd = [socket.create_connection((address.hostname, address.port)) for _ in range(4 * SPARE)]
    exhausted = await relay.logged("descriptors_exhausted")
    for one in crowd:
        one.close()
    await relay.logged("descriptors_available")

    assert "LimitNOFILE" in exhausted["advice"]
    assert (await get(f"{relay.admin}/livez")).status == 200
    async with Client.at(relay.ws_url) as client:
        assert (await client.subscribe("job"))["recovered"] is False
