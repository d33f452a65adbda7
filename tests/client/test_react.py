"""The hooks and components in npm's React and Chromium, in StrictMode, against the real daemon."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import pytest
import pytest_asyncio
from aiohttp import web

from tests.client.conftest import complete, in_browser, measured, on, progress, publish, subscribed
from tests.client.gate import Gate
from tests.client.packages import esbuild, make_project, node, require_package, run
from tests.client.test_websocket import port_of, same_port
from tests.e2e.conftest import SOON_SECONDS
from tests.web.tokens import SECRET, token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from relay.demo.embedded import EmbeddedRedis
    from tests.client.conftest import Json, Tab
    from tests.e2e.conftest import StartDaemon

pytestmark = in_browser

POLLING = "Live updates are not available, using polling"
# What a careful site allows: no inline style, and scripts from itself alone.
POLICY = "default-src 'none'; script-src 'self'; connect-src *; img-src data:"
LEAST_CONTRAST = 4.5


class Page:
    """A tab that shows components of ours."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab

    async def show(self, url: str, *components: tuple[str, Json], **relay: object) -> None:
        """Render these inside a provider for that relay; again with others, where there were some."""
        options: Json = {"url": url, **relay}
        await self.tab.run("shown => show(...shown)", [options, *components])

    async def says(self, text: str) -> None:
        """Wait until that is on the page."""
        found = self.tab.page.get_by_text(text, exact=True).first
        await found.wait_for(timeout=1000 * SOON_SECONDS)

    async def told(self, times: int) -> list[list[Any]]:
        """What callbacks were told, once there is that much of it."""
        await self.tab.until(f"told.length >= {times}")
        told: list[list[Any]] = await self.tab.run("told")
        return told


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our page as one script, `page.js`, with React's development build, which alone checks what StrictMode does."""
    sources = ("react_page.mjs", "react_widgets.mjs", "react_server.mjs")
    folder = make_project(tmp_path_factory.mktemp("project"), *sources)
    options = ["--bundle", '--define:process.env.NODE_ENV="development"']
    run(esbuild(), "react_page.mjs", *options, "--outfile=page.js", cwd=folder)
    return folder


@pytest_asyncio.fixture(loop_scope="session")
async def page(tab: Tab, project: Path) -> Page:
    await tab.page.add_script_tag(path=project / "page.js")
    return Page(tab)


def board(name: str = "board", **props: object) -> tuple[str, Json]:
    return "Board", {"name": name, **props}


def bar(job: str) -> tuple[str, Json]:
    return "JobProgress", {"jobId": job}


async def test_components_of_a_page_share_a_connection_and_are_told_each_event_once(
    daemon: StartDaemon, own_redis: EmbeddedRedis, page: Page
) -> None:
    relay = daemon(on(own_redis))
    progress(own_redis, "a", 10)
    await page.show(relay.ws_url, board("x", jobs=["a"]), board("y", jobs=["a"]))
    await page.told(2)
    await subscribed(relay, 1)

    progress(own_redis, "a", 20)
    complete(own_redis, "a", 7)

    told = await page.told(6)
    assert sorted(told) == sorted(
        [name, event, "a", value]
        for name in ("x 1", "y 1")
        for event, value in (("job-progress", 10), ("job-progress", 20), ("job-completed", 7))
    )
    assert len(relay.log_lines("session_opened")) == 1
    assert await page.tab.run("hooks.x.jobs.a") == {
        "status": "completed", "progress": 100, "result": 7, "error": None, "etaSeconds": None,
    }  # fmt: skip


async def test_job_that_several_subscriptions_bring_is_told_once(
    daemon: StartDaemon, own_redis: EmbeddedRedis, page: Page
) -> None:
    relay = daemon(on(own_redis))
    progress(own_redis, "a", 10)
    await page.show(relay.ws_url, board(jobs=["a"], queue="q"))
    await measured(relay, "relay_subscriptions", 1, kind="queue")

    progress(own_redis, "a", 20)
    progress(own_redis, "b", 30)

    await page.tab.until("hooks.board.jobs.b")
    assert [each[2:] for each in await page.told(3)] == [["a", 10], ["a", 20], ["b", 30]]


async def test_jobs_are_those_that_are_followed(
    daemon: StartDaemon, own_redis: EmbeddedRedis, page: Page
) -> None:
    relay = daemon(on(own_redis))
    progress(own_redis, "b", 30)
    await page.show(relay.ws_url, board(jobs=["a"], queue="q"))
    await page.tab.until("hooks.board.jobs.b?.progress === 30")
    assert await page.tab.run("hooks.board.jobs.a.status") == "unknown"

    await page.show(relay.ws_url, board(jobs=["a"]))
    await page.tab.until("!hooks.board.jobs.b")
    await page.tab.run("hooks.board.unsubscribeFromJob('a')")
    await page.tab.until("!hooks.board.jobs.a")
    await page.tab.run("() => void hooks.board.subscribeToJob('c')")
    await page.tab.run("hooks.board.cleanup()")

    await page.tab.until("Object.keys(hooks.board.jobs).length === 0")
    await subscribed(relay, 0)


async def test_callbacks_may_change_and_nothing_else_does(
    daemon: StartDaemon, own_redis: EmbeddedRedis, page: Page
) -> None:
    relay = daemon(on(own_redis))
    await page.show(relay.ws_url, board(jobs=["a"]))
    progress(own_redis, "a", 10)
    await page.told(1)
    await page.tab.run("() => { window.before = { ...hooks.board } }")

    await page.show(relay.ws_url, board(jobs=["a"], version=2))
    progress(own_redis, "a", 20)

    assert [each[0] for each in await page.told(2)] == ["board 1", "board 2"]
    same = "['subscribeToJob', 'unsubscribeFromJob', 'subscribeToQueue', 'cleanup']"
    assert await page.tab.run(f"{same}.every(name => before[name] === hooks.board[name])")
    assert await relay.metric("relay_client_messages_total", event="subscribe-to-jobs") == 1


async def test_whoever_leaves_the_page_leaves_the_relay(
    daemon: StartDaemon, own_redis: EmbeddedRedis, page: Page
) -> None:
    relay = daemon(on(own_redis))
    await page.show(relay.ws_url, board("stays", jobs=["a"]), board("goes", jobs=["a", "b"]))
    await page.tab.run("() => void hooks.goes.subscribeToJob('c')")
    await subscribed(relay, 3)

    await page.show(relay.ws_url, board("stays", jobs=["a"]))
    await subscribed(relay, 1)
    progress(own_redis, "a", 10)
    assert [each[0] for each in await page.told(1)] == ["stays 1"]

    await page.tab.run("unmount()")
    await relay.logged("session_closed")


async def test_unmount_while_connecting_ends_the_attempt(page: Page) -> None:
    ends: list[bytes] = []
    accepted, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        ends.append(await reader.read())  # until the other side has ended it
        writer.close()
        ended.set()

    async with (
        await asyncio.start_server(silent, "127.0.0.1", 0) as server,
        asyncio.timeout(SOON_SECONDS),
    ):
        port = server.sockets[0].getsockname()[1]
        await page.show(f"ws://127.0.0.1:{port}/job-progress", board(jobs=["a"]))
        await accepted.wait()

        await page.tab.run("unmount()")
        await ended.wait()

    assert len(ends) == 1


async def test_job_can_be_subscribed_to_before_the_relay_is_there(
    daemon: StartDaemon, own_redis: EmbeddedRedis, page: Page
) -> None:
    relay = daemon(on(own_redis))
    await page.show(relay.ws_url, board())
    await page.tab.until("hooks.board.isConnected")
    relay.signal(signal.SIGKILL)
    await page.tab.until("!hooks.board.isConnected")

    await page.tab.run("() => void hooks.board.subscribeToJob('a')")
    daemon(on(own_redis), environ=same_port(relay))
    await page.tab.until("hooks.board.isConnected")
    progress(own_redis, "a", 10)

    assert await page.told(1) == [["board 1", "job-progress", "a", 10]]
    changes = await page.tab.run("connections.map(([isConnected]) => isConnected)")
    assert (changes[0], False in changes, changes[-1]) == (True, True, True)


async def test_status_says_polling_while_that_is_all_there_is(
    daemon: StartDaemon, own_redis: EmbeddedRedis, page: Page
) -> None:
    relay = daemon(on(own_redis))
    progress(own_redis, "a", 10)
    async with Gate(port_of(relay), {"websocket", "sse", "long-poll"}) as gate:
        await page.show(f"ws://127.0.0.1:{gate.port}/job-progress", board(jobs=["a"]))
        await page.tab.until("hooks.board.transport === 'polling'")
        await page.says(POLLING)
        await page.told(1)

        gate.closed = set()
        await page.says("Live updates")
        complete(own_redis, "a", 7)
        await page.says("Live updates")

        assert await page.told(2) == [
            ["board 1", "job-progress", "a", 10],
            ["board 1", "job-completed", "a", 7],
        ]


async def test_one_job_is_followed_by_its_id(
    daemon: StartDaemon, own_redis: EmbeddedRedis, page: Page
) -> None:
    relay = daemon(on(own_redis))
    publish(own_redis, "b", event="job-failed", error="Trouble", failedReason="disk full")
    publish(own_redis, "c", event="job-failed", status="cancelled")
    await page.show(relay.ws_url, ("One", {"job": "a"}))
    await page.says('["unknown",0,null,null]')
    await subscribed(relay, 1)
    publish(own_redis, "a", event="job-queued")
    await page.says('["queued",0,null,null]')
    publish(own_redis, "a", progress=40, status="computing")
    await page.says('["computing",40,null,null]')
    complete(own_redis, "a", {"n": 1})
    await page.says('["completed",100,{"n":1},null]')
    publish(own_redis, "a", event="job-archived")
    publish(own_redis, "a", progress=5, status="retrying")
    await page.says('["retrying",5,null,null]')

    await page.show(relay.ws_url, ("One", {"job": "b"}))
    await page.says('["failed",0,null,"disk full"]')
    await page.show(relay.ws_url, ("One", {"job": "c"}))
    await page.says('["cancelled",0,null,"cancelled"]')
    await page.show(relay.ws_url, ("One", {}))
    await page.says('["unknown",0,null,null]')
    await subscribed(relay, 0)


async def test_bar_tells_how_far_a_job_is_and_when_it_will_be_done(
    daemon: StartDaemon, own_redis: EmbeddedRedis, page: Page
) -> None:
    relay = daemon(on(own_redis))
    await page.show(relay.ws_url, bar("a"))
    shown = page.tab.page.get_by_role("progressbar", name="Progress of job a")
    await page.says("Waiting")
    await subscribed(relay, 1)

    progress(own_redis, "a", 1)
    await page.says("1 %")
    progress(own_redis, "a", 40)
    await page.tab.until(
        "/^40 %, \\d+ s left$/.test(document.querySelector('progress').ariaValueText)"
    )
    assert await shown.get_attribute("value") == "40"
    complete(own_redis, "a")
    await page.says("Completed")
    assert await shown.get_attribute("value") == "100"

    publish(own_redis, "b", event="job-failed", error="disk full")
    await page.show(relay.ws_url, bar("b"))
    await page.says("Failed: disk full")


async def test_debug_writes_what_happens_to_the_console(
    daemon: StartDaemon, own_redis: EmbeddedRedis, page: Page
) -> None:
    lines: list[str] = []
    page.tab.page.on("console", lambda line: lines.append(line.text))
    relay = daemon(on(own_redis))
    # The one that was there first does not ask for it.
    await page.show(relay.ws_url, board("quiet"))
    await page.tab.until("hooks.quiet.isConnected")

    await page.show(relay.ws_url, board("quiet"), board("loud", jobs=["a"], debug=True))
    await subscribed(relay, 1)
    progress(own_redis, "a", 10)
    await page.told(1)

    assert "Subscribed to job: a" in lines
    assert any(line.startswith("Job progress received: {") for line in lines)


async def test_function_that_is_new_at_each_render_keeps_the_connection_and_the_newest_is_asked(
    daemon: StartDaemon, own_redis: EmbeddedRedis, page: Page
) -> None:
    auth = {"mode": "jwt", "jwt_secret": SECRET}
    relay = daemon(on(own_redis, auth=auth))
    await page.tab.run("() => { window.asked = [] }")

    for version in (1, 2, 3):
        await page.tab.run(
            """([url, version, tokens]) => show(
              { url, token: () => tokens[asked.push(version) - 1] },
              ['Board', { jobs: ['a'], version }],
            )""",
            [relay.ws_url, version, [token("*", seconds=7), token("*")]],
        )
        await page.tab.until("hooks.board.isConnected")
    await page.tab.until("asked.length === 2")
    await measured(relay, "relay_client_messages_total", 2, event="authenticate")

    assert await page.tab.run("asked") == [1, 3]
    assert len(relay.log_lines("session_opened")) == 1


@asynccontextmanager
async def careful_site(html: str, script: str) -> AsyncIterator[str]:
    """The address of a page with `page.js` that forbids what it does not need."""

    async def answer(request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": POLICY}
        if request.path == "/page.js":
            return web.Response(text=script, content_type="text/javascript", headers=headers)
        return web.Response(text=html, content_type="text/html", headers=headers)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def test_server_rendered_page_comes_alive_under_a_strict_policy(
    daemon: StartDaemon, own_redis: EmbeddedRedis, tab: Tab, project: Path
) -> None:
    relay = daemon(on(own_redis))
    rendered = run(node(), "react_server.mjs", cwd=project).decode().strip()
    html = (
        '<!doctype html><html lang="en"><title>a page</title><link rel="icon" href="data:,">'
        f'<div id="rendered" data-url="{relay.ws_url}">{rendered}</div><script src="page.js"></script>'
    )
    async with careful_site(html, (project / "page.js").read_text()) as address:
        await tab.page.goto(address)
        await tab.page.locator("#live [data-kind=connected]").wait_for()
        await subscribed(relay, 1)

        progress(own_redis, "similarity-1", 40)

        await tab.page.get_by_text("40 %").wait_for()


@pytest.mark.parametrize(("scheme", "paper"), [("light", "#ffffff"), ("dark", "#1e1e1e")])
async def test_everybody_can_tell_how_the_connection_is(
    daemon: StartDaemon,
    own_redis: EmbeddedRedis,
    page: Page,
    scheme: Literal["light", "dark"],
    paper: str,
) -> None:
    axe = require_package("axe-core") / "axe.min.js"
    relay = daemon(on(own_redis))
    await page.tab.page.emulate_media(color_scheme=scheme)
    await page.tab.page.add_style_tag(
        content=f":root {{ color-scheme: light dark; background: {paper} }}"
    )
    await page.tab.page.add_script_tag(path=axe)
    await page.show(relay.ws_url, ("Widgets", {}))
    await page.tab.page.locator("#live [data-kind=connected]").wait_for()

    report = await page.tab.run("axe.run()")
    lines = await page.tab.run(
        "[...document.querySelectorAll('path')].map(path => getComputedStyle(path).stroke)"
    )

    assert [(each["id"], len(each["nodes"])) for each in report["violations"]] == []
    assert len(set(lines)) == 3
    assert min(contrast(line, paper) for line in lines) >= LEAST_CONTRAST
    for text in ("Live updates", POLLING, "Live updates failed: the relay can't be reached"):
        # As an icon, with a word, and in full.
        assert await page.tab.page.get_by_role("img", name=text, exact=True).count() == 2
        assert await page.tab.page.get_by_text(text, exact=True).count() >= 1


def contrast(ink: str, paper: str) -> float:
    """The ratio of WCAG 2.1 between `rgb(…)` and `#…`."""
    inks = [int(part) for part in re.findall(r"\d+", ink)]
    papers = list(bytes.fromhex(paper[1:]))
    lighter, darker = sorted((luminance(inks), luminance(papers)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(rgb: list[int]) -> float:
    parts = [part / 255 for part in rgb]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(factor * part for factor, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
