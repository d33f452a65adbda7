"""The client in Chromium where a WebSocket can't be had: what it does instead, how soon, and how it comes back."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import redis
from aiohttp import web

from tests.client.conftest import complete, in_browser, on, progress, publish, subscribed
from tests.client.gate import Gate
from tests.client.test_websocket import port_of, same_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from relay.demo.embedded import EmbeddedRedis
    from tests.client.conftest import Tab
    from tests.e2e.conftest import StartDaemon

pytestmark = in_browser

SOON_BACK_SECONDS = 5


class AppApi:
    """The API of the application whose jobs they are: it knows the states from its own database."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.query["ids"])
        ids = request.query["ids"].split(",")
        found = {job_id: self.states[job_id] for job_id in ids if job_id in self.states}
        return web.json_response(found, headers={"Access-Control-Allow-Origin": "*"})


@pytest_asyncio.fixture(loop_scope="session")
async def app_api() -> AsyncIterator[AppApi]:
    api = AppApi()
    app = web.Application()
    app.router.add_get("/states", api.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}/states?ids={{ids}}"
    yield api
    await runner.cleanup()


def behind(gate: Gate) -> str:
    return f"ws://127.0.0.1:{gate.port}/job-progress"


@pytest.mark.parametrize(
    ("closed", "transport"),
    [
        ({"websocket"}, "sse"),
        ({"websocket", "sse"}, "long-poll"),
        ({"websocket", "sse", "long-poll"}, "polling"),
    ],
)
async def test_what_is_open_is_used_and_left_for_the_websocket_when_that_is_open_again(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab, closed: set[str], transport: str
) -> None:
    relay = daemon(on(shared_redis))
    job = f"by-{transport}"
    progress(shared_redis, job, 1)
    async with Gate(port_of(relay), closed) as gate:
        await tab.connect(relay, url=behind(gate))
        await tab.follow(job)
        await tab.until(f"client.transport === '{transport}'")
        await tab.until("seen.length === 1")
        progress(shared_redis, job, 2)
        await tab.until("seen.length === 2")

        gate.closed = set()
        opened_at = time.monotonic()
        await tab.live()
        took_seconds = time.monotonic() - opened_at
        progress(shared_redis, job, 3)
        complete(shared_redis, job)
        await tab.until("seen.length === 4")
        states = [state for state, _ in groupby(await tab.states())]

    assert [percent for _, percent in await tab.seen()] == [1, 2, 3, None]
    assert states == [("connecting", "none"), ("degraded", transport), ("live", "websocket")]
    assert took_seconds < SOON_BACK_SECONDS
    print(f"{transport}: back on the websocket after {took_seconds:.1f} s")  # noqa: T201


async def test_app_is_polled_soon_after_the_relay_died_and_no_more_once_it_is_back(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab, app_api: AppApi
) -> None:
    relay = daemon(on(shared_redis))
    await tab.connect(relay, pollUrl=app_api.url)
    await tab.follow("kept", "ended")
    await tab.live()
    progress(shared_redis, "ended", 40)
    await tab.until("seen.length === 1")
    app_api.states = {
        "kept": {"status": "active", "progress": 7},
        "ended": {"id": "a row", "status": "completed", "result": 42},
    }

    relay.signal(signal.SIGKILL)
    died_at = time.monotonic()
    await tab.until("client.transport === 'polling'")
    polled_seconds = time.monotonic() - died_at
    await tab.until("seen.length === 3")
    daemon(on(shared_redis), environ=same_port(relay))
    started_at = time.monotonic()
    await tab.live()
    back_seconds = time.monotonic() - started_at
    asked = len(app_api.asked)
    progress(shared_redis, "kept", 50)
    complete(shared_redis, "kept")
    complete(shared_redis, "ended", 42)
    await tab.until("seen.length === 5")
    await asyncio.sleep(4)  # longer than the pause between two polls

    seen = await tab.seen()
    assert sorted(seen[1:3]) == [("job-completed", 42), ("job-progress", 7)]
    assert seen[3:] == [("job-progress", 50), ("job-completed", None)]
    assert polled_seconds < SOON_BACK_SECONDS
    assert back_seconds < SOON_BACK_SECONDS
    assert len(app_api.asked) == asked
    print(f"polling after {polled_seconds:.1f} s, back after {back_seconds:.1f} s")  # noqa: T201


async def test_page_whose_jobs_have_ended_is_not_offline_while_its_api_would_answer(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab, app_api: AppApi
) -> None:
    relay = daemon(on(shared_redis))
    await tab.connect(relay, pollUrl=app_api.url)
    await tab.follow("last")
    await tab.live()
    app_api.states = {"last": {"status": "completed", "result": 42}}

    relay.signal(signal.SIGKILL)
    await tab.until("seen.length === 1")
    before = len(await tab.states())
    await asyncio.sleep(8)  # two more polls would have come

    assert len(app_api.asked) == 1
    assert ("offline", "none") not in (await tab.states())[before:]
    assert await tab.run("client.transport") == "polling"


@pytest.mark.parametrize("has_api", [True, False], ids=["with an API", "without one"])
async def test_redis_that_is_frozen_is_shown_and_only_an_api_of_the_app_is_asked(
    daemon: StartDaemon, own_redis: EmbeddedRedis, tab: Tab, app_api: AppApi, has_api: bool
) -> None:
    relay = daemon(on(own_redis))
    async with Gate(port_of(relay), set()) as gate:
        options = {"pollUrl": app_api.url} if has_api else {}
        await tab.connect(relay, url=behind(gate), **options)
        await tab.follow("a")
        await tab.live()
        progress(own_redis, "a", 10)
        await tab.until("seen.length === 1")

        own_redis.freeze()
        app_api.states = {"a": {"status": "active", "progress": 60}}
        await tab.until("client.redis === 'disconnected' && !client.isConnected")
        frozen = (await tab.states())[-1]
        if has_api:
            await tab.until("seen.length === 2")
        own_redis.resume()
        await tab.live()
        complete(own_redis, "a")
        await tab.until("seen.at(-1).event === 'job-completed'")

    transport = "polling" if has_api else "websocket"
    assert frozen == ("degraded", transport)
    assert [percent for _, percent in await tab.seen()] == [10, *([60] if has_api else []), None]
    assert gate.told == ["websocket"]


async def test_end_that_the_api_told_first_is_not_told_again_by_the_relay(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab, app_api: AppApi
) -> None:
    relay = daemon(on(shared_redis))
    async with Gate(port_of(relay), {"websocket", "sse", "long-poll"}) as gate:
        app_api.states = {"early": {"status": "failed", "error": "disk full"}}
        await tab.connect(relay, url=behind(gate), pollUrl=app_api.url)
        await tab.follow("early")
        await tab.until("seen.length === 1")

        progress(shared_redis, "early", 80)
        publish(shared_redis, "early", event="job-failed", error="disk full")
        gate.closed = set()
        await tab.live()
        await tab.follow("other")
        progress(shared_redis, "other", 1)
        await tab.until("seen.length === 2")

    assert await tab.run("seen.map(each => each.jobId + ' ' + each.event)") == [
        "early job-failed", "other job-progress",
    ]  # fmt: skip


async def test_jobs_beyond_what_a_connection_may_have_are_polled_until_there_is_room(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis, limits={"max_subscriptions": 3}))
    ids = [f"many-{n}" for n in range(6)]
    await tab.connect(relay)
    await tab.live()
    await tab.run("ids => { window.batch = client.batch(ids) }", ids)
    async with Gate(port_of(relay), set()):
        for job_id in ids[3:]:
            complete(shared_redis, job_id)
        await tab.until("batch.completed === 3")
        for job_id in ids[:3]:
            complete(shared_redis, job_id)
        await tab.run("() => batch.done")

    assert await tab.run("[batch.total, batch.completed, batch.failed, batch.progress]") == [
        6, 6, 0, 100,
    ]  # fmt: skip
    assert await tab.run("client.transport") == "websocket"


async def test_thousands_of_jobs_make_few_messages_and_all_end(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis, limits={"max_subscriptions": 5000}))
    ids = [f"{n:04d}-{'x' * 200}" for n in range(3000)]
    await tab.connect(relay)
    await tab.live()

    await tab.run("ids => { window.batch = client.batch(ids) }", ids)
    await subscribed(relay, len(ids))
    with redis.Redis.from_url(shared_redis.url) as publisher, publisher.pipeline() as pipe:
        for job_id in ids:
            pipe.publish(f"jobs:q:{job_id}", json.dumps({"event": "job-completed"}))
        pipe.execute()

    await tab.run("() => batch.done")
    assert await tab.run("[batch.completed, batch.failed]") == [3000, 0]
    assert await relay.metric("relay_client_errors_total", code="rate-limited") == 0
