"""A real Chromium with a page of ours in it, and the client in that page against the real daemon.

Invariants: the page is of another origin than the relay, so every import and request goes through CORS; what a page
writes to its console as an error, or throws, fails its test unless the test says that it will.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import redis
from aiohttp import web
from playwright.async_api import Error, async_playwright

from tests.e2e.conftest import SOON_SECONDS, daemon, launcher
from tests.tools import require_tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page

    from relay.demo.embedded import EmbeddedRedis
    from tests.e2e.conftest import Daemon, Settings

__all__ = ["daemon", "launcher"]  # fixtures
# One browser for all tests, so they run in the loop that it was started in.
in_browser = [pytest.mark.e2e, pytest.mark.tool, pytest.mark.asyncio(loop_scope="session")]
QUEUE = "q"

Json = dict[str, Any]

# Chromium writes these of requests that fail, whatever the page does about it.
_NETWORK_NOISE = ("Failed to load resource", "WebSocket connection to", "net::ERR_")

_MAKE_CLIENT = """async ([modules, options]) => {
  const { JobProgressClient } = await import(modules);
  window.seen = [];
  window.states = [];
  window.client = new JobProgressClient(options);
  const note = () => states.push({
    state: client.state, transport: client.transport, isConnected: client.isConnected,
    redis: client.redis, error: client.error, at: performance.now(),
  });
  client.on('event', ({ event, id, data }) => seen.push({ event, id, ...data, at: performance.now() }));
  client.on('state', note);
  note();
}"""


def on(server: EmbeddedRedis, /, **sections: Json) -> Settings:
    """Settings for a relay on that server, quick to notice and to come back."""
    settings: Settings = {
        "redis": {
            "url": server.url,
            "health_check_seconds": 0.6,
            "connect_timeout_seconds": 0.5,
            "backoff_max_seconds": 0.1,
        }
    }
    return settings | sections


def publish(server: EmbeddedRedis, job_id: str, **payload: object) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.publish(f"jobs:{QUEUE}:{job_id}", json.dumps(payload))


def progress(server: EmbeddedRedis, job_id: str, *percents: float) -> None:
    with redis.Redis.from_url(server.url) as client:
        for percent in percents:
            client.publish(f"jobs:{QUEUE}:{job_id}", json.dumps({"progress": percent}))


def complete(server: EmbeddedRedis, job_id: str, result: object = None) -> None:
    publish(server, job_id, event="job-completed", result=result)


async def measured(relay: Daemon, name: str, value: float, **labels: str) -> None:
    """Wait until a metric has that value."""
    async with asyncio.timeout(SOON_SECONDS):
        while await relay.metric(name, **labels) != value:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.02)


async def subscribed(relay: Daemon, jobs: int) -> None:
    """Wait until the relay has that many subscriptions to jobs."""
    await measured(relay, "relay_subscriptions", jobs, kind="job")


class Tab:
    """One page with, after `connect`, a client in `window.client`, its events in `seen`, its states in `states`."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _on_console(self, message: ConsoleMessage) -> None:
        is_noise = any(text in message.text for text in _NETWORK_NOISE)
        if message.type in ("error", "warning") and not is_noise:
            self.errors.append(message.text)

    async def connect(self, relay: Daemon, **options: object) -> None:
        """Make a client of that relay; its modules come from there, whatever `url` says."""
        options.setdefault("url", relay.ws_url)
        modules = f"{relay.public}/client/client.js"
        await self.page.evaluate(_MAKE_CLIENT, [modules, options])

    async def run(self, script: str, argument: object = None) -> Any:
        """What a function, or an expression, in the page comes to."""
        return await self.page.evaluate(script, argument)

    async def until(self, condition: str, *, seconds: float = SOON_SECONDS) -> None:
        """Wait for what a page comes to; a failure tells how it stands."""
        try:
            await self.page.wait_for_function(condition, timeout=seconds * 1000, polling=20)
        except Error as error:
            standing = await self.run("JSON.stringify([window.states, window.seen])")
            raise AssertionError(f"not within {seconds:g} s: {condition}\n{standing}") from error

    async def live(self) -> None:
        await self.until("client.state === 'live'")

    async def follow(self, *job_ids: str) -> None:
        """Subscribe, and wait until the relay has answered."""
        await self.run("ids => { for (const id of ids) client.subscribeToJob(id) }", list(job_ids))
        await self.run("() => new Promise(resolve => setTimeout(resolve, 30))")

    async def seen(self) -> list[tuple[str, Any]]:
        """Event and progress (or result) of all that was told."""
        seen: list[Json] = await self.run("seen")
        return [(each["event"], each.get("result", each.get("progress"))) for each in seen]

    async def states(self) -> list[tuple[str, str]]:
        """State and transport, as they were told one after the other."""
        states: list[Json] = await self.run("states")
        return [(each["state"], each["transport"]) for each in states]


@pytest_asyncio.fixture(loop_scope="session")
async def site() -> AsyncIterator[str]:
    """The address of an empty page, on an origin of its own."""

    async def page(_: web.Request) -> web.Response:
        # An icon, lest the browser ask for one.
        html = '<!doctype html><html lang="en"><title>a page</title><link rel="icon" href="data:,">'
        return web.Response(text=html, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    runner = web.AppRunner(app)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    path = require_tool("chromium", hint="apt-get install chromium")
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = await playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    context = await browser.new_context()
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def new_tab(
    context: BrowserContext, site: str
) -> AsyncIterator[Callable[[], Awaitable[Tab]]]:
    """Opens tabs of one browser profile; at the end none of them may have complained."""
    tabs: list[Tab] = []

    async def new() -> Tab:
        tab = Tab(await context.new_page())
        tabs.append(tab)
        await tab.page.goto(site)
        return tab

    yield new
    assert [error for tab in tabs for error in tab.errors] == []


@pytest_asyncio.fixture(loop_scope="session")
async def tab(new_tab: Callable[[], Awaitable[Tab]]) -> Tab:
    return await new_tab()
