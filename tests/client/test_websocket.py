"""The client in Chromium over its WebSocket: what it tells, and how it comes back."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from tests.client.conftest import complete, in_browser, on, progress, subscribed
from tests.proxy import Proxy

if TYPE_CHECKING:
    from relay.demo.embedded import EmbeddedRedis
    from tests.client.conftest import Tab
    from tests.e2e.conftest import Daemon, StartDaemon

pytestmark = in_browser


def port_of(relay: Daemon) -> int:
    return int(relay.public.rpartition(":")[2])


def same_port(relay: Daemon) -> dict[str, str]:
    """The setting by which another relay takes the place of that one."""
    return {"RELAY_SERVER__PORT": str(port_of(relay))}


def through(proxy: Proxy) -> str:
    return f"ws://127.0.0.1:{proxy.port}/job-progress"


async def test_job_is_followed_from_where_it_stands_to_its_end(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis))
    progress(shared_redis, "a", 10, 20)
    await tab.connect(relay)
    await tab.follow("a")
    await tab.until("seen.length === 1")

    progress(shared_redis, "a", 30)
    complete(shared_redis, "a", {"n": 1})

    await tab.until("seen.length === 3")
    assert await tab.seen() == [
        ("job-progress", 20), ("job-progress", 30), ("job-completed", {"n": 1}),
    ]  # fmt: skip
    assert await tab.states() == [("connecting", "none"), ("live", "websocket")]


async def test_hundred_events_through_ten_disconnects_are_seen_complete_in_order_and_once(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis))
    async with Proxy(port_of(relay)) as proxy:
        await tab.connect(relay, url=through(proxy))
        await tab.follow("long")
        await tab.live()

        for cut in range(10):
            first = 10 * cut
            progress(shared_redis, "long", *range(first, first + 4))
            await tab.until(f"seen.length === {first + 4}")
            proxy.reset()
            progress(shared_redis, "long", *range(first + 4, first + 10))
            await tab.until(f"seen.length === {first + 10}")
        complete(shared_redis, "long")
        await tab.until("seen.at(-1)?.event === 'job-completed'")

    expected = [("job-progress", percent) for percent in range(100)]
    assert await tab.seen() == [*expected, ("job-completed", None)]
    assert proxy.accepted > 10


async def test_subscriptions_of_one_moment_go_in_one_message(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis))
    await tab.connect(relay)
    await tab.live()

    await tab.follow(*(f"gathered-{n}" for n in range(50)))
    await subscribed(relay, 50)

    assert await relay.metric("relay_client_messages_total", event="subscribe-to-jobs") == 1


async def test_whoever_comes_later_is_told_at_once_what_others_have_been_told(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis))
    await tab.connect(relay)
    await tab.follow("shared")
    progress(shared_redis, "shared", 30)
    await tab.until("seen.length === 1")

    later = await tab.run(
        "new Promise(onProgress => client.subscribeToJob('shared', { onProgress }))"
    )

    assert later["progress"] == 30
    assert len(await tab.seen()) == 1


async def test_job_that_nobody_listens_to_any_more_is_left(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis))
    await tab.connect(relay)
    await tab.live()
    await tab.run("() => { window.stops = [1, 2].map(() => client.subscribeToJob('left')) }")
    await tab.until("seen.length === 0")
    progress(shared_redis, "left", 1)
    await tab.until("seen.length === 1")

    await tab.run("stops[0]()")
    progress(shared_redis, "left", 2)
    await tab.until("seen.length === 2")
    await tab.run("stops[1]()")
    await subscribed(relay, 0)


async def test_queue_is_followed_with_what_is_known_of_its_jobs(
    daemon: StartDaemon, own_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(own_redis))
    progress(own_redis, "first", 10)
    async with Proxy(port_of(relay)) as proxy:
        await tab.connect(relay, url=through(proxy))
        await tab.run("() => void client.subscribeToQueue('q', { snapshot: true })")
        await tab.until("seen.length === 1")
        progress(own_redis, "second", 20)
        await tab.until("seen.length === 2")

        proxy.refuse()
        complete(own_redis, "first")
        await proxy.accept()

        await tab.until("seen.length === 3")
    assert await tab.run("seen.map(each => each.jobId + ' ' + each.event)") == [
        "first job-progress", "second job-progress", "first job-completed",
    ]  # fmt: skip


async def test_refused_job_is_told_to_who_asked_and_to_nobody_else(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis))
    await tab.connect(relay)
    await tab.live()

    error = await tab.run("new Promise(onError => client.subscribeToJob('a\\tb', { onError }))")
    await tab.follow("good")
    progress(shared_redis, "good", 5)
    await tab.until("seen.length === 1")

    assert (error["code"], error["jobId"]) == ("invalid-job-id", "a\tb")
    assert await tab.run("client.state") == "live"


async def test_dead_link_is_noticed_when_the_page_wakes_up(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis))
    async with Proxy(port_of(relay)) as proxy:
        await tab.connect(relay, url=through(proxy))
        await tab.follow("slept")
        progress(shared_redis, "slept", 1)
        await tab.until("seen.length === 1")
        # What sleep leaves behind: the connection looks open, and nothing comes through.
        proxy.swallowing = True
        progress(shared_redis, "slept", 2)

        await tab.run("() => void dispatchEvent(new PageTransitionEvent('pageshow'))")
        woken_at = time.monotonic()
        await tab.until("client.state !== 'live'")
        noticed_seconds = time.monotonic() - woken_at
        proxy.swallowing = False

        await tab.live()
        await tab.until("seen.length === 2")
    assert noticed_seconds < 5
    assert [percent for _, percent in await tab.seen()] == [1, 2]


async def test_page_that_was_offline_is_live_again_soon_after_it_is_online(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis))
    async with Proxy(port_of(relay)) as proxy:
        await tab.connect(relay, url=through(proxy))
        await tab.follow("train")
        progress(shared_redis, "train", 1)
        await tab.until("seen.length === 1")

        await tab.page.context.set_offline(True)
        proxy.refuse()
        progress(shared_redis, "train", 2)
        complete(shared_redis, "train")
        await tab.until("client.state === 'offline'")
        await proxy.accept()
        await tab.page.context.set_offline(False)
        online_at = time.monotonic()
        await tab.live()
        back_seconds = time.monotonic() - online_at
        await tab.until("seen.length === 3")

    assert [percent for _, percent in await tab.seen()] == [1, 2, None]
    assert back_seconds < 2
    print(f"live again {back_seconds:.2f} s after online")  # noqa: T201


async def test_relay_that_restarts_is_met_again_when_it_said(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis, server={"drain_seconds": 1}))
    await tab.connect(relay)
    await tab.follow("restart")
    await tab.live()

    relay.signal(signal.SIGTERM)
    assert await relay.exit_code() == 0
    daemon(on(shared_redis), environ=same_port(relay))
    await tab.live()
    progress(shared_redis, "restart", 1)

    await tab.until("seen.length === 1")


async def test_shared_client_is_one_connection_and_ends_with_its_last_user(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis))
    await tab.run(
        """async ([modules, url]) => {
          const { JobProgressClient } = await import(modules);
          window.users = [1, 2].map(() => JobProgressClient.shared({ url }));
        }""",
        [f"{relay.public}/client/client.js", relay.ws_url],
    )
    await tab.until("users[0] === users[1] && users[0].state === 'live'")

    await tab.run("users[0].release()")
    await tab.run("new Promise(resolve => setTimeout(resolve, 1200))")
    assert await tab.run("users[0].state") == "live"
    await tab.run("users[1].release()")

    await tab.until("users[0].state === 'closed'")
    assert await relay.metric("relay_connections_opened_total", transport="websocket") == 1


async def test_debug_tells_the_console_and_without_it_nothing_is_told(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(shared_redis))
    lines: list[str] = []
    tab.page.on("console", lambda message: lines.append(message.text))
    await tab.connect(relay)
    await tab.follow("quiet")
    progress(shared_redis, "quiet", 1)
    await tab.until("seen.length === 1")
    assert lines == []

    await tab.run("client.close()")
    await tab.connect(relay, debug=True)
    await tab.follow("told")
    progress(shared_redis, "told", 45)
    await tab.until("seen.length === 1")

    assert "Subscribed to job: told" in lines
    assert any(line.startswith("Job progress received: {") for line in lines)
