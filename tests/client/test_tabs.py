"""Two tabs in Chromium that share one connection, and what happens when the one that has it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.client.conftest import complete, in_browser, measured, on, progress, subscribed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from relay.demo.embedded import EmbeddedRedis
    from tests.client.conftest import Tab
    from tests.e2e.conftest import Daemon, StartDaemon

pytestmark = in_browser


async def two(new_tab: Callable[[], Awaitable[Tab]], relay: Daemon) -> tuple[Tab, Tab]:
    """The tab that leads, and one that follows; one job is followed by both, one by each."""
    leader = await new_tab()
    await leader.connect(relay, shareTabs=True)
    await leader.live()
    follower = await new_tab()
    await follower.connect(relay, shareTabs=True)
    await follower.live()
    await leader.follow("both", "mine")
    await follower.follow("both", "yours")
    await subscribed(relay, 3)
    return leader, follower


async def test_two_tabs_have_one_connection_and_each_is_told_of_its_jobs(
    daemon: StartDaemon, own_redis: EmbeddedRedis, new_tab: Callable[[], Awaitable[Tab]]
) -> None:
    relay = daemon(on(own_redis))
    leader, follower = await two(new_tab, relay)

    progress(own_redis, "mine", 1)
    progress(own_redis, "yours", 2)
    progress(own_redis, "both", 3)
    complete(own_redis, "both")
    for tab in (leader, follower):
        await tab.until("seen.at(-1)?.event === 'job-completed'")

    assert await leader.run("seen.map(each => each.jobId)") == ["mine", "both", "both"]
    assert await follower.run("seen.map(each => each.jobId)") == ["yours", "both", "both"]
    assert await relay.metric("relay_connections", transport="websocket") == 1


async def test_other_tabs_go_on_where_the_one_that_was_closed_was(
    daemon: StartDaemon, own_redis: EmbeddedRedis, new_tab: Callable[[], Awaitable[Tab]]
) -> None:
    relay = daemon(on(own_redis))
    leader, follower = await two(new_tab, relay)
    third = await new_tab()
    await third.connect(relay, shareTabs=True)
    await third.follow("theirs")
    await subscribed(relay, 4)
    for job_id in ("yours", "theirs"):
        progress(own_redis, job_id, 1)
    for tab in (follower, third):
        await tab.until("seen.length === 1")

    await leader.page.close()
    for job_id in ("yours", "theirs"):
        progress(own_redis, job_id, 2)
        complete(own_redis, job_id)

    await subscribed(relay, 3)
    for tab in (follower, third):
        await tab.until("seen.length === 3")
        assert [percent for _, percent in await tab.seen()] == [1, 2, None]
    assert await relay.metric("relay_connections", transport="websocket") == 1


async def test_tab_that_hears_nothing_takes_the_lead(
    daemon: StartDaemon, own_redis: EmbeddedRedis, new_tab: Callable[[], Awaitable[Tab]]
) -> None:
    relay = daemon(on(own_redis))
    leader, follower = await two(new_tab, relay)
    opened = await relay.metric("relay_connections_opened_total", transport="websocket")

    # As a system that puts a page to sleep would have it.
    await leader.run("() => { BroadcastChannel.prototype.postMessage = () => {} }")
    await measured(relay, "relay_connections_opened_total", opened + 1, transport="websocket")
    await measured(relay, "relay_connections", 1, transport="websocket")
    complete(own_redis, "yours")

    await follower.until("seen.length === 1")


async def test_jobs_of_a_follower_that_ends_are_left(
    daemon: StartDaemon, own_redis: EmbeddedRedis, new_tab: Callable[[], Awaitable[Tab]]
) -> None:
    relay = daemon(on(own_redis))
    _, follower = await two(new_tab, relay)

    await follower.page.close()

    await subscribed(relay, 2)
