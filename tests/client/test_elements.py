"""`<relay-status>` and `<job-progress>` in Chromium: what is shown, and what a screen reader is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.client.conftest import complete, in_browser, on, progress, publish

if TYPE_CHECKING:
    from relay.demo.embedded import EmbeddedRedis
    from tests.client.conftest import Tab
    from tests.e2e.conftest import Daemon, StartDaemon

pytestmark = in_browser


async def show(tab: Tab, relay: Daemon, html: str) -> None:
    """Put that into the page; `URL` stands for the relay's address."""
    await tab.run(
        """async ([module, html]) => {
          await import(module);
          document.body.innerHTML = html;
          window.ends = [];
          document.body.addEventListener('job-completed', ({ detail }) => ends.push(detail.result));
          window.part = (name, part) => document.querySelector(name).shadowRoot.querySelector(part);
        }""",
        [f"{relay.public}/client/elements.js", html.replace("URL", relay.ws_url)],
    )


async def test_bar_follows_its_job_to_the_end(
    daemon: StartDaemon, own_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(own_redis))
    progress(own_redis, "a", 40)

    await show(tab, relay, '<job-progress url="URL" job-id="a"></job-progress>')

    bar = tab.page.get_by_role("progressbar", name="Progress of job a")
    await tab.until("part('job-progress', '.text').textContent === '40 %'")
    assert await bar.get_attribute("aria-valuenow") == "40"
    complete(own_redis, "a", 7)
    await tab.until("ends.length === 1")
    assert await bar.get_attribute("aria-valuetext") == "Completed"
    assert await tab.run("ends") == [7]


async def test_elements_look_the_same_under_a_policy_that_allows_no_inline_style(
    daemon: StartDaemon, own_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(own_redis))
    progress(own_redis, "a", 40)
    await tab.run(
        """() => {
          window.refused = [];
          document.addEventListener('securitypolicyviolation', (event) => refused.push(event.violatedDirective));
          const policy = document.createElement('meta');
          policy.httpEquiv = 'Content-Security-Policy';
          policy.content = "style-src 'none'";
          document.head.append(policy);
        }"""
    )

    await show(tab, relay, '<job-progress url="URL" job-id="a"></job-progress>')

    await tab.until("part('job-progress', '.text').textContent === '40 %'")
    await tab.until(
        "part('job-progress', '.bar').clientWidth > 0.35 * part('job-progress', '.track').clientWidth"
    )
    assert await tab.run("getComputedStyle(part('job-progress', '.bar')).backgroundColor") == (
        "rgb(37, 99, 235)"
    )
    assert await tab.run("refused") == []


async def test_bar_of_another_job_begins_anew(
    daemon: StartDaemon, own_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(own_redis))
    progress(own_redis, "a", 40)
    publish(own_redis, "b", event="job-failed", error="disk full")
    await show(tab, relay, '<job-progress url="URL" job-id="a"></job-progress>')
    await tab.until("part('job-progress', '.text').textContent === '40 %'")

    await tab.run("document.querySelector('job-progress').setAttribute('job-id', 'b')")

    await tab.until("part('job-progress', '.text').textContent === 'Failed: disk full'")


async def test_status_says_live_and_then_that_redis_is_away(
    daemon: StartDaemon, own_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(own_redis))
    await show(tab, relay, '<relay-status url="URL"></relay-status>')
    await tab.until("part('relay-status', '.text').textContent === 'Live'")

    own_redis.kill()

    await tab.until("part('relay-status', '.text').textContent === 'Live updates are delayed'")
    status = tab.page.get_by_role("status")
    assert await status.get_attribute("data-kind") == "disconnected"


async def test_elements_that_leave_the_page_leave_the_relay(
    daemon: StartDaemon, own_redis: EmbeddedRedis, tab: Tab
) -> None:
    relay = daemon(on(own_redis))
    both = (
        '<relay-status url="URL"></relay-status><job-progress url="URL" job-id="a"></job-progress>'
    )
    await show(tab, relay, both)
    await tab.until("part('relay-status', '.text').textContent === 'Live'")
    assert await relay.metric("relay_connections", transport="websocket") == 1

    await tab.run("document.body.replaceChildren()")

    await relay.logged("session_closed")
