"""The relay's parts together where only their order in time matters: Redis comes and goes while it catches up."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import redis.asyncio

from relay import Publisher
from relay.app import Relay
from relay.config import parse
from tests.e2e.conftest import Client, toml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

    from relay.demo.embedded import EmbeddedRedis
    from tests.e2e.conftest import Settings

SOON_SECONDS = 10.0
JOB = "job-1"


def durable(server: EmbeddedRedis) -> Settings:
    return {
        "server": {"host": "127.0.0.1", "port": 0},
        "admin": {"port": 0},
        "redis": {"url": server.url, "backoff_max_seconds": 0.05},
        "history": {"backend": "redis"},
    }


def _no_file(path: str) -> str:
    raise AssertionError(f"no setting names a file, yet {path} is read")


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Relay, str]]:
    """A relay that is subscribed, and its WebSocket address."""
    relay = Relay(parse(toml(settings), {}, read_file=_no_file))
    addresses = await relay.start()
    task = asyncio.ensure_future(relay.run())
    try:
        await until(lambda: relay._stats.redis_up)
        yield relay, addresses.public.replace("http", "ws") + "/job-progress"
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])
        await relay.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while not condition():  # noqa: ASYNC110  what is waited for is inside, and sets no event
            await asyncio.sleep(0.001)


async def lose_the_link(relay: Relay, server: EmbeddedRedis) -> None:
    """Cut it, and wait until it is there again."""
    before = relay._stats.redis_reconnects
    async with redis.asyncio.Redis.from_url(server.url, protocol=2) as admin:
        await admin.client_kill_filter(_type="pubsub")
    await until(lambda: relay._stats.redis_reconnects > before)


class Gate:
    """Stands before the notes of the queues' jobs: the first who asks waits, and is then told nothing."""

    def __init__(self, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        self.asked_since_ms: list[int] = []
        self._read = relay._recall.jobs_of_queues
        monkeypatch.setattr(relay._recall, "jobs_of_queues", self._jobs_of_queues)

    async def _jobs_of_queues(self, queues: Any, since_ms: int) -> Any:
        self.asked_since_ms.append(since_ms)
        if len(self.asked_since_ms) == 1:
            await self.open.wait()
            return {}
        return await self._read(queues, since_ms)


async def test_link_that_is_lost_while_catching_up_leaves_no_job_held_back(
    own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        running(durable(own_redis)) as (relay, url),
        Publisher(own_redis.url, history=True) as publisher,
        Client.at(url) as client,
    ):
        await client.subscribe(JOB)
        gate = Gate(relay, monkeypatch)

        for _ in range(3):
            await lose_the_link(relay, own_redis)
        gate.open.set()
        await until(lambda: not relay._history.holding)
        await publisher.completed(JOB, None)

        assert await client.told_until_the_end()


async def test_link_that_is_lost_while_catching_up_is_caught_up_with_as_a_whole(
    own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        running(durable(own_redis)) as (relay, url),
        Publisher(own_redis.url, history=True) as publisher,
        Client.at(url) as client,
    ):
        await client.told("relay-status")
        await client.send("subscribe-to-queue", {"queueName": "default"})
        await client.told("subscribed")
        await publisher.progress(JOB, 10)
        await client.told("job-progress")
        gate = Gate(relay, monkeypatch)

        for _ in range(2):
            await lose_the_link(relay, own_redis)
        gate.open.set()
        while (await client.told("relay-status"))["data"]["redis"] != "connected":
            pass
        first, second = gate.asked_since_ms

    # What the first attempt did not read, the second must.
    assert first == second
    assert [status["gap"] for status in client.statuses()] == [False] * 4
    assert relay._stats.gaps == 0
