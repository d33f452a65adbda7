"""Redis is killed, frozen, restarted and cut off mid-stream; clients and operators are told the truth."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
import redis

from relay.demo.embedded import EmbeddedRedis
from tests.e2e.conftest import Client, Daemon, get
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Message, Settings, StartDaemon

pytestmark = pytest.mark.e2e

HEALTH_CHECK_SECONDS = 0.6
# "disconnected" is said within a second of its being known.
NOTICED_SECONDS = 2 * HEALTH_CHECK_SECONDS + 1.0
JOB = "job-1"


def on(url: str) -> Settings:
    return {
        "redis": {
            "url": url,
            "health_check_seconds": HEALTH_CHECK_SECONDS,
            "connect_timeout_seconds": 0.5,
            "backoff_max_seconds": 0.1,
        }
    }


def publish(server: EmbeddedRedis, *progress: int) -> None:
    with redis.Redis.from_url(server.url) as client:
        for percent in progress:
            client.publish(f"jobs:q:{JOB}", json.dumps({"progress": percent}))


async def told_progress(client: Client, count: int) -> list[Message]:
    return [await client.told("job-progress") for _ in range(count)]


def percents(messages: list[Message]) -> list[int]:
    return [message["data"]["progress"] for message in messages]


async def told_status(client: Client) -> tuple[str, bool]:
    """The next `relay-status`: what it says of Redis, and of a gap."""
    status = (await client.told("relay-status"))["data"]
    return status["redis"], status["gap"]


async def redis_metrics(relay: Daemon) -> tuple[float, float, float]:
    """Up, reconnects, gaps."""
    return (
        await relay.metric("relay_redis_up"),
        await relay.metric("relay_redis_reconnects_total"),
        await relay.metric("relay_gaps_total"),
    )


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (EmbeddedRedis.kill, EmbeddedRedis.start),
        (EmbeddedRedis.freeze, EmbeddedRedis.resume),
    ],
    ids=["killed", "frozen"],
)
async def test_redis_that_goes_mid_stream_is_told_and_events_flow_again_when_it_is_back(
    daemon: StartDaemon,
    own_redis: EmbeddedRedis,
    begin: Callable[[EmbeddedRedis], None],
    end: Callable[[EmbeddedRedis], None],
) -> None:
    relay = daemon(on(own_redis.url))
    async with Client.at(relay.ws_url) as client:
        before = await told_status(client)
        await client.subscribe(JOB)
        publish(own_redis, 10, 20)
        told = await told_progress(client, 2)
        healthy = await redis_metrics(relay)

        begin(own_redis)
        begun_at = time.monotonic()
        gone = await told_status(client)
        noticed_after = time.monotonic() - begun_at
        unready = await get(f"{relay.admin}/readyz")
        broken = await redis_metrics(relay)
        async with Client.at(relay.ws_url) as newcomer:
            greeting = await told_status(newcomer)
            stands = await newcomer.subscribe(JOB)
            (snapshot,) = await told_progress(newcomer, 1)

        end(own_redis)
        back = await told_status(client)
        publish(own_redis, 30, 40)
        told += await told_progress(client, 2)
        async with Client.at(relay.ws_url) as newcomer:
            greeting_after = await told_status(newcomer)
            across_the_gap = await newcomer.subscribe(JOB, since=told[0]["id"])
        after = await redis_metrics(relay)

    assert (before, gone, back) == (
        ("connected", False), ("disconnected", False), ("connected", True)
    )  # fmt: skip
    assert noticed_after <= NOTICED_SECONDS
    assert percents(told) == [10, 20, 30, 40]
    assert len({message["id"] for message in told}) == 4
    assert unready.status == 503
    assert (healthy, broken, after) == ((1, 0, 0), (0, 0, 0), (1, 1, 1))
    # What is known is served while Redis is away.
    assert greeting == ("disconnected", False)
    assert stands["known"] is True
    assert percents([snapshot]) == [20]
    # Who was not there has missed nothing; who asks for what followed is not promised it.
    assert greeting_after == ("connected", False)
    assert across_the_gap == {"known": True, "recovered": False, "replayed": 0}


async def test_restart_of_redis_is_one_gap_and_closes_nobody(
    daemon: StartDaemon, own_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(own_redis.url))
    async with Client.at(relay.ws_url) as first, Client.at(relay.ws_url) as second:
        for client in (first, second):
            await client.subscribe(JOB)

        own_redis.restart()
        for client in (first, second):
            assert await told_status(client) == ("disconnected", False)
            assert await told_status(client) == ("connected", True)
        publish(own_redis, 50)

        for client in (first, second):
            assert percents(await told_progress(client, 1)) == [50]
    assert await redis_metrics(relay) == (1, 1, 1)
    assert (await get(f"{relay.admin}/readyz")).status == 200


async def test_every_outage_is_a_gap_of_its_own(
    daemon: StartDaemon, own_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(own_redis.url))
    async with Client.at(relay.ws_url) as client:
        await client.subscribe(JOB)
        for percent in (10, 20, 30):
            with redis.Redis.from_url(own_redis.url) as admin:
                admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            assert await told_status(client) == ("disconnected", False)
            assert await told_status(client) == ("connected", True)
            publish(own_redis, percent)
            assert percents(await told_progress(client, 1)) == [percent]

    assert await redis_metrics(relay) == (1, 3, 3)


async def test_half_open_link_to_redis_is_told_and_made_again(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    async with Proxy(shared_redis.port) as proxy:
        relay = daemon(on(proxy.url), subscribed=False)
        await relay.logged("redis_subscribed")
        async with Client.at(relay.ws_url) as client:
            await client.told("relay-status")
            await client.subscribe(JOB)

            proxy.swallowing = True
            publish(shared_redis, 10)
            swallowed_at = time.monotonic()
            gone = await told_status(client)
            noticed_after = time.monotonic() - swallowed_at
            proxy.swallowing = False
            back = await told_status(client)
            publish(shared_redis, 20)
            told = await told_progress(client, 1)

    assert (gone, back) == (("disconnected", False), ("connected", True))
    assert noticed_after <= NOTICED_SECONDS
    assert percents(told) == [20]


async def test_log_tells_of_an_outage_once_and_of_its_end(
    daemon: StartDaemon, own_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(own_redis.url))

    own_redis.kill()
    lost = await relay.logged("redis_lost")
    failed = await relay.logged("redis_connect_failed", times=2)
    own_redis.start()
    await relay.logged("redis_subscribed", times=2)

    assert lost["level"] == "warning"
    assert failed["retry_in_seconds"] <= 0.1
    assert str(own_redis.port) in failed["error"]
    assert len(relay.log_lines("redis_lost")) == 1
