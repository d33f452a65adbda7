"""The dashboard in a real Chromium, against the real daemon: what an operator sees, and does."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.client.conftest import browser, in_browser, on, progress, publish
from tests.client.packages import require_package
from tests.e2e.conftest import Client, daemon, launcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page

    from relay.demo.embedded import EmbeddedRedis
    from tests.e2e.conftest import Daemon, Launcher, StartDaemon

__all__ = ["browser", "daemon", "launcher"]  # fixtures
pytestmark = in_browser

TOKEN = "only-operators-know"
# What Chromium writes of a request that fails, whatever the page does about it.
_NETWORK_NOISE = ("Failed to load resource", "net::ERR_")
AT_LEAST_FIVE_A_SECOND = re.compile(r"^([5-9]|[1-9][\d,]+)(\.\d)?K?/s$")

expect.set_options(timeout=8000)


@pytest_asyncio.fixture(loop_scope="session")
async def look(browser: Browser) -> AsyncIterator[Callable[..., Awaitable[Page]]]:
    """Opens a dashboard in a browser profile of its own; at the end no page may have complained."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        is_noise = any(text in message.text for text in _NETWORK_NOISE)
        if message.type in ("error", "warning") and not is_noise:
            errors.append(message.text)

    async def open_page(relay: Daemon, fragment: str = "", **options: Any) -> Page:
        context = await browser.new_context(**options)
        contexts.append(context)
        page = await context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"{relay.admin}/{fragment}")
        return page

    yield open_page
    for context in contexts:
        await context.close()
    assert errors == []


@asynccontextmanager
async def watcher(relay: Daemon, *job_ids: str) -> AsyncIterator[Client]:
    """A client that watches these jobs."""
    async with Client.at(relay.ws_url) as client:
        for job_id in job_ids:
            await client.subscribe(job_id)
        yield client


async def live(page: Page) -> None:
    await expect(page.locator("#state")).to_have_text("Live")


# What is seen


async def test_figures_and_plots_move_when_events_flow(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = daemon(on(own_redis))
    async with watcher(relay, "a", "b"):
        page = await look(relay)
        await live(page)
        await expect(page.locator("#received")).to_have_text("0/s")
        flat = await page.get_attribute("#throughput-plot .s2", "d")

        async def traffic() -> None:
            while True:
                await asyncio.to_thread(progress, own_redis, "a", *range(20))

        busy = asyncio.create_task(traffic())
        await expect(page.locator("#deliveries")).to_have_text(AT_LEAST_FIVE_A_SECOND)
        await expect(page.locator("#relay-p50")).to_contain_text("s")
        busy.cancel()

    await expect(page.locator("#websocket")).to_have_text("0")
    await expect(page.locator("#job-subscriptions")).to_have_text("0")
    await expect(page.locator("#history-jobs")).to_contain_text("1 of 100")
    assert await page.get_attribute("#throughput-plot .s2", "d") != flat
    summary = await page.get_attribute("#throughput-plot svg", "aria-label")
    assert summary is not None
    assert re.search(r"deliveries now .*/s, at most \d", summary)


async def test_most_watched_jobs_lead_to_their_events(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = daemon(on(own_redis))
    strange = "a&queue=<b>#/ü"
    publish(own_redis, strange, progress=30)
    async with watcher(relay, strange), watcher(relay, strange, "b"):
        page = await look(relay)

        rows = page.locator("#busiest-jobs tr")
        await expect(rows).to_have_text([f"{strange}any2", "bany1"])
        await rows.first.get_by_role("link").click()

        await expect(page.locator("#job-said")).to_contain_text(f"{strange} in q: 1 event")


async def test_redis_that_goes_away_is_told_and_so_is_its_return(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = daemon(on(own_redis))
    page = await look(relay)
    await live(page)

    own_redis.kill()
    await expect(page.locator("#state")).to_have_text("Redis is away")
    await expect(page.locator("#redis")).to_have_text("away")
    own_redis.start()

    await live(page)
    await expect(page.locator("#reconnects")).to_have_text("1")


async def test_relay_that_is_killed_is_said_to_be_gone_and_found_again(
    launcher: Launcher, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = launcher.serve(on(own_redis))
    page = await look(relay)
    await live(page)

    relay.signal(signal.SIGKILL)
    await expect(page.get_by_role("alert")).to_contain_text(
        "The relay does not answer. What you see"
    )
    await expect(page.locator("#state")).to_have_text("No answer")
    await expect(page.locator("#panels")).to_be_visible()
    launcher.serve(on(own_redis), environ={"RELAY_ADMIN__PORT": relay.admin.rpartition(":")[2]})

    await live(page)
    await expect(page.locator("#gone")).to_be_hidden()


async def test_frozen_relay_is_said_to_be_gone_and_found_again(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = daemon(on(own_redis))
    page = await look(relay)
    await live(page)

    relay.signal(signal.SIGSTOP)
    await expect(page.locator("#state")).to_have_text("No answer")
    relay.signal(signal.SIGCONT)

    await live(page)


async def test_page_that_comes_back_shows_what_was_plotted_before(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = daemon(on(own_redis))
    page = await look(relay)
    await live(page)
    line = page.locator("#connections-plot .s1")
    await expect(line).to_have_attribute("d", re.compile(r"(L.*){4}"))

    await page.reload()
    await live(page)

    drawn = await line.get_attribute("d")
    assert drawn is not None
    assert drawn.count("L") >= 4


async def test_pointer_on_a_plot_tells_what_was_then(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = daemon(on(own_redis))
    async with watcher(relay, "a"):
        page = await look(relay)
        await expect(page.locator("#websocket")).to_have_text("1")

        await page.hover("#connections-plot")

        caption = page.locator("#connections-plot .caption")
        await expect(caption).to_have_text(
            re.compile(r"^\d\d:\d\d:\d\d · WebSocket \d · SSE 0 · long poll 0$")
        )


# Connections


async def test_connection_is_searched_and_closed_after_a_question(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = daemon(on(own_redis))
    async with watcher(relay, "a") as kept, watcher(relay, "b") as closed:
        page = await look(relay)
        await expect(page.locator("#list-count")).to_have_text("2")
        connection_id = closed.statuses()[0]["connectionId"]

        await page.get_by_role("searchbox", name="Search connections").fill(connection_id)
        await expect(page.locator("#list-count")).to_have_text("1 found")
        button = page.get_by_role("button", name=f"Close connection {connection_id}")
        await button.click()
        dialog = page.get_by_role("dialog", name="Close this connection?")
        await expect(dialog).to_contain_text(f"{connection_id} from 127.0.0.1")
        await dialog.get_by_role("button", name="Keep it").click()
        await expect(button).to_be_focused()
        await button.press("Enter")
        await dialog.get_by_role("button", name="Close it").click()

        assert (await closed.closed())[0] == 1008
        await expect(page.locator("#list-said")).to_have_text(f"{connection_id} is closed.")
        await expect(page.locator("#list-count")).to_have_text("0 found")
        await kept.send("ping", 1)
        await kept.told("pong")


async def test_row_that_stays_keeps_the_focus_while_the_list_is_brought_up_to_date(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = daemon(on(own_redis))
    async with watcher(relay, "a"):
        page = await look(relay)
        button = page.locator("#rows button").last
        await button.focus()
        async with watcher(relay, "b"):
            await expect(page.locator("#list-count")).to_have_text("2")

            await expect(button).to_be_focused()


# A job


async def test_history_of_a_job_is_shown_and_replayed_step_by_step(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = daemon(on(own_redis))
    publish(own_redis, "a", progress=10, data={"stage": "loading"})
    publish(own_redis, "a", progress=60, data={"stage": "<b>comparing</b>"})
    publish(own_redis, "a", event="job-failed", error="disk full")
    page = await look(relay)

    await page.get_by_role("searchbox", name="Job id").fill("a")
    await page.get_by_role("button", name="Show").click()

    events = page.locator("#events button")
    await expect(events).to_have_count(3)
    await expect(events.nth(1)).to_contain_text("60 % · <b>comparing</b>")
    await expect(events.nth(2)).to_have_attribute("aria-current", "step")
    await expect(page.locator("#data")).to_contain_text('"error": "disk full"')
    await page.get_by_role("button", name="Play").click()
    for text in ("10 % · loading", "60 % · <b>comparing</b>", "disk full"):
        await expect(page.locator("#bar-text")).to_contain_text(text)
    await expect(page.get_by_role("button", name="Play")).to_be_visible()
    await page.get_by_role("button", name="One event back").click()
    bar = page.get_by_role("progressbar", name="Progress at this event")
    await expect(bar).to_have_attribute("aria-valuenow", "60")
    await page.get_by_role("slider", name="Event").press("ArrowLeft")
    await expect(page.locator("#where")).to_contain_text("1 of 3")


async def test_job_of_which_nothing_is_known_is_said_to_be_unknown(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = daemon(on(own_redis))
    page = await look(relay, "#job=nobody&queue=q")

    await expect(page.locator("#job-said")).to_have_text("nobody: nothing is known of this job.")
    await expect(page.locator("#timeline")).to_be_hidden()


# Who may look


async def test_token_is_asked_for_and_kept_for_the_tab(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    relay = daemon(on(own_redis, admin={"token": TOKEN}))
    publish(own_redis, "a", progress=10)
    page = await look(relay, "#job=a")
    field = page.get_by_label("Admin token")
    await expect(field).to_be_focused()

    await field.fill("a guess")
    await field.press("Enter")
    await expect(page.locator("#token-fault")).to_contain_text("no spaces")
    await field.fill("guess")
    await field.press("Enter")
    await expect(page.locator("#token-fault")).to_contain_text("refused this token")
    await field.fill(TOKEN)
    await field.press("Enter")

    await live(page)
    await expect(page.locator("#job-said")).to_contain_text("a in q: 1 event")
    await page.reload()
    await live(page)
    assert TOKEN not in page.url
    stranger = await look(relay)
    await expect(stranger.get_by_label("Admin token")).to_be_visible()
    assert TOKEN not in relay.log_text()


# How it is to use


async def populated(page: Page, relay: Daemon) -> None:
    """Everything that may be shown is."""
    await live(page)
    await expect(page.locator("#rows tr")).to_have_count(2)
    await expect(page.locator("#events button")).to_have_count(12)


@pytest.fixture
def full(daemon: StartDaemon, own_redis: EmbeddedRedis) -> Daemon:
    """A relay that knows a job with a long name and much to say."""
    relay = daemon(on(own_redis))
    for step in range(11):
        publish(own_redis, "long" * 30, progress=step * 9, data={"stage": "word" * 40})
    publish(own_redis, "long" * 30, event="job-completed", result={"text": "w" * 300})
    return relay


@pytest.mark.parametrize("width", [390, 800, 1280])
async def test_nothing_is_wider_than_the_page(
    full: Daemon, look: Callable[..., Awaitable[Page]], width: int
) -> None:
    async with watcher(full, "long" * 30), watcher(full, "long" * 30):
        page = await look(full, f"#job={'long' * 30}", viewport={"width": width, "height": 844})
        await populated(page, full)

        wide = await page.evaluate(
            "() => [document.documentElement.scrollWidth, innerWidth, document.body.scrollWidth]"
        )

    assert max(wide) == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
async def test_axe_finds_no_violation(
    full: Daemon, look: Callable[..., Awaitable[Page]], scheme: str, width: int
) -> None:
    axe = (require_package("axe-core") / "axe.min.js").read_text()
    async with watcher(full, "long" * 30), watcher(full, "long" * 30):
        page = await look(
            full,
            f"#job={'long' * 30}",
            color_scheme=scheme,
            viewport={"width": width, "height": 844},
            reduced_motion="reduce",
        )
        await populated(page, full)
        await page.evaluate(axe)

        shown = await violations(page)
        await page.locator("#rows button").first.click()
        asked = await violations(page)

    assert (shown, asked) == ([], [])


async def test_axe_finds_no_violation_where_the_token_is_asked_for(
    daemon: StartDaemon, own_redis: EmbeddedRedis, look: Callable[..., Awaitable[Page]]
) -> None:
    axe = (require_package("axe-core") / "axe.min.js").read_text()
    page = await look(daemon(on(own_redis, admin={"token": TOKEN})))
    await expect(page.get_by_label("Admin token")).to_be_visible()
    await page.evaluate(axe)

    assert await violations(page) == []


async def violations(page: Page) -> list[str]:
    found = await page.evaluate("() => axe.run()")
    return [
        f"{each['id']}: {json.dumps(node['target'])} {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


async def test_it_is_dark_where_the_system_is(
    full: Daemon, look: Callable[..., Awaitable[Page]]
) -> None:
    background = "() => getComputedStyle(document.body).backgroundColor"
    light, dark = await look(full, color_scheme="light"), await look(full, color_scheme="dark")

    assert await light.evaluate(background) == "rgb(243, 244, 246)"
    assert await dark.evaluate(background) == "rgb(15, 17, 21)"


async def test_all_of_it_is_reached_by_keyboard(
    full: Daemon, look: Callable[..., Awaitable[Page]]
) -> None:
    async with watcher(full, "long" * 30), watcher(full, "b"):
        page = await look(full, f"#job={'long' * 30}")
        await populated(page, full)
        await page.evaluate("() => document.activeElement.blur()")
        reached = set()

        for _ in range(40):
            await page.keyboard.press("Tab")
            reached.add(await page.evaluate("() => document.activeElement.id"))

    assert {"search", "job-id", "job-queue", "back", "play", "place", "data"} <= reached


# How it ends


async def test_open_dashboard_does_not_hold_up_the_end(
    daemon: StartDaemon, own_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(own_redis, server={"drain_seconds": 0}))

    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{relay.admin}/admin/events") as stream,
    ):
        await stream.content.readuntil(b"event: snapshot")
        relay.signal(signal.SIGTERM)
        assert await relay.exit_code() == 0

    began, ended = (
        datetime.fromisoformat(relay.log_lines(event)[0]["ts"])
        for event in ("relay_draining", "relay_stopped")
    )
    assert (ended - began).total_seconds() < 1.5
