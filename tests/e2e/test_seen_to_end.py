"""However a watcher asks, and whenever the job ended, it learns how."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.e2e.conftest import SOON_SECONDS, Client, Daemon, get
from tests.e2e.test_durable import JOB, Work, on, outage, work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from relay.demo.embedded import EmbeddedRedis
    from tests.e2e.conftest import StartDaemon

    Watch = Callable[[Daemon], Awaitable[dict[str, Any]]]

__all__ = ["work"]  # a fixture
pytestmark = pytest.mark.e2e


async def by_websocket(relay: Daemon) -> dict[str, Any]:
    async with Client.at(relay.ws_url) as client:
        await client.subscribe(JOB)
        end = (await client.told_until_the_end())[-1]
        return {"id": end["id"], "result": end["data"]["result"]}


async def by_event_stream(relay: Daemon) -> dict[str, Any]:
    url = f"{relay.public}/jobs/{JOB}/events"
    async with aiohttp.ClientSession() as http, http.get(url) as stream:
        fields: dict[str, str] = {}
        async for line in stream.content:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
                continue
            if fields.get("event") == "job-completed":
                return {"id": fields["id"], "result": json.loads(fields["data"])["result"]}
            fields = {}
    raise AssertionError("the stream ended before the job")


async def by_long_poll(relay: Daemon) -> dict[str, Any]:
    since: dict[str, str] = {}
    async with aiohttp.ClientSession() as http:
        while True:
            query = {"wait": "20", **since}
            async with http.get(f"{relay.public}/jobs/{JOB}", params=query) as answer:
                document = await answer.json()
            if document["status"] == "completed":
                return {"id": document["id"], "result": document["result"]}
            since = {"since": document["id"]}


async def by_get(relay: Daemon) -> dict[str, Any]:
    while True:
        document = (await get(f"{relay.public}/jobs/{JOB}")).json()
        if document.get("status") == "completed":
            return {"id": document["id"], "result": document["result"]}
        await asyncio.sleep(0.02)


async def is_watched(relay: Daemon) -> None:
    while not await relay.metric("relay_subscriptions", kind="job"):  # noqa: ASYNC110  another process
        await asyncio.sleep(0.02)


every_transport = pytest.mark.parametrize(
    "watch", [by_websocket, by_event_stream, by_long_poll, by_get]
)


@every_transport
async def test_end_before_the_relay_started_is_seen(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work, watch: Watch
) -> None:
    work.progress(50)
    work.complete()
    relay = daemon(on(own_redis))

    end = await asyncio.wait_for(watch(relay), SOON_SECONDS)

    assert end == {"id": work.ids[-1], "result": {"n": 1}}


@every_transport
async def test_end_before_the_subscription_is_seen(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work, watch: Watch
) -> None:
    relay = daemon(on(own_redis))
    work.progress(50)
    work.complete()

    end = await asyncio.wait_for(watch(relay), SOON_SECONDS)

    assert end == {"id": work.ids[-1], "result": {"n": 1}}


@every_transport
async def test_end_during_a_reconnect_is_seen(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work, watch: Watch
) -> None:
    relay = daemon(on(own_redis))
    async with Client.at(relay.ws_url) as witness:
        work.progress(50)
        watching = asyncio.ensure_future(watch(relay))
        if watch is not by_get:  # which leaves no trace between two questions
            await asyncio.wait_for(is_watched(relay), SOON_SECONDS)

        async with outage(own_redis, witness):
            work.complete()
        end = await asyncio.wait_for(watching, SOON_SECONDS)

    assert end == {"id": work.ids[-1], "result": {"n": 1}}
