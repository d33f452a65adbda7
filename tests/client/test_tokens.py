"""The client in Chromium before the real daemon that asks for tokens: renewed, expired, refused, on every transport."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.client.conftest import complete, in_browser, measured, on, progress, subscribed
from tests.e2e.conftest import SOON_SECONDS, get
from tests.web.tokens import OTHER_SECRET, SECRET, token

if TYPE_CHECKING:
    from relay.demo.embedded import EmbeddedRedis
    from tests.client.conftest import Tab
    from tests.e2e.conftest import Daemon, StartDaemon

pytestmark = in_browser

EXPIRED_SECONDS = 2.5


class Issuer:
    """The app that gives tokens to its page: `tokens` one after the other, the last again and again.

    Attributes:
        asked: how often it was asked.
        open: while clear, it does not answer from the second token on.
    """

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens
        self.asked = 0
        self.open = asyncio.Event()
        self.open.set()

    async def issue(self) -> str:
        self.asked += 1
        if self.asked > 1:
            await self.open.wait()
        return self.tokens[min(self.asked, len(self.tokens)) - 1]


@pytest.fixture
def guarded(daemon: StartDaemon, own_redis: EmbeddedRedis) -> Daemon:
    auth = {"mode": "jwt", "jwt_secret": SECRET, "leeway_seconds": 0}
    return daemon(on(own_redis, auth=auth))


async def connect(tab: Tab, relay: Daemon, issuer: Issuer, *transports: str) -> None:
    """A client that asks `issuer`, and notes what it is refused in `refused`."""
    await tab.page.expose_function("issue", issuer.issue)
    await tab.run(
        """async ([modules, url, transports]) => {
          const { JobProgressClient } = await import(modules);
          window.seen = [];
          window.refused = [];
          window.states = [];
          window.client = new JobProgressClient({ url, token: () => issue(), transports });
          client.on('event', ({ event, data }) => seen.push({ event, ...data }));
          client.on('error', ({ code, jobId }) => refused.push([code, jobId]));
          client.on('state', ({ state, transport }) => states.push({ state, transport }));
        }""",
        [f"{relay.public}/client/client.js", relay.ws_url, list(transports) or ["websocket"]],
    )


async def test_modules_need_no_token(guarded: Daemon) -> None:
    answers = [await get(f"{guarded.public}/{path}") for path in ("client/client.js", "jobs/a")]

    assert [answer.status for answer in answers] == [200, 401]


async def test_token_is_offered_in_the_handshake(
    guarded: Daemon, own_redis: EmbeddedRedis, tab: Tab
) -> None:
    await tab.connect(guarded, token=token("mine-*"))
    await tab.live()
    await tab.run(
        "() => { window.refused = []; client.on('error', ({ code }) => refused.push(code)) }"
    )

    await tab.follow("mine-1", "other-1")
    await tab.until("refused.length === 1")
    progress(own_redis, "other-1", 1)
    progress(own_redis, "mine-1", 2)
    await tab.until("seen.length === 1")

    assert (await tab.run("refused"), await tab.seen()) == (["forbidden"], [("job-progress", 2)])
    opened = await guarded.logged("session_opened")
    assert opened["principal"] == "alice"
    assert await guarded.metric("relay_client_messages_total", event="authenticate") == 0


async def test_token_that_fits_no_header_is_the_first_message(guarded: Daemon, tab: Tab) -> None:
    await tab.connect(guarded, token="a/b==", transports=["websocket"])

    await tab.until("client.transport === 'websocket'")
    await measured(guarded, "relay_client_messages_total", 1, event="authenticate")

    assert await guarded.metric("relay_tokens_refused_total", reason="malformed") == 1


async def test_token_is_renewed_before_it_expires_on_the_same_connection(
    guarded: Daemon, own_redis: EmbeddedRedis, tab: Tab
) -> None:
    issuer = Issuer(token("*", seconds=7), token("*"))
    expires_at = time.time() + 7
    await connect(tab, guarded, issuer)
    await tab.live()

    await measured(guarded, "relay_client_messages_total", 2, event="authenticate")
    renewed_at = time.time()
    await tab.until(f"Date.now() > {1000 * expires_at + 500}")
    await tab.run("() => { client.subscribeToJob('a') }")
    await subscribed(guarded, 1)
    progress(own_redis, "a", 10)
    await tab.until("seen.length === 1")

    assert renewed_at < expires_at
    assert issuer.asked == 2
    assert len(guarded.log_lines("session_opened")) == 1
    assert await tab.states() == [("live", "websocket")]


async def test_expired_token_is_replaced_and_nothing_is_lost_or_told_twice(
    guarded: Daemon, own_redis: EmbeddedRedis, tab: Tab
) -> None:
    issuer = Issuer(token("*", seconds=EXPIRED_SECONDS), token("*"))
    issuer.open.clear()
    await connect(tab, guarded, issuer)
    await tab.follow("a")
    await subscribed(guarded, 1)
    progress(own_redis, "a", 1, 2, 3)
    await tab.until("seen.length === 3")
    closed = await guarded.logged("session_closed")
    await tab.until("client.state !== 'live'")

    progress(own_redis, "a", 4, 5, 6)
    issuer.open.set()
    await tab.live()
    progress(own_redis, "a", 7)
    complete(own_redis, "a", 42)
    await tab.until("seen.at(-1)?.event === 'job-completed'")

    assert closed["code"] == 3000
    expected = [("job-progress", percent) for percent in range(1, 8)]
    assert await tab.seen() == [*expected, ("job-completed", 42)]
    assert issuer.asked == 2


@pytest.mark.parametrize("transport", ["sse", "long-poll", "polling"])
async def test_every_transport_brings_its_token_and_replaces_one_that_expires(
    guarded: Daemon, own_redis: EmbeddedRedis, tab: Tab, transport: str
) -> None:
    issuer = Issuer(token("mine", seconds=EXPIRED_SECONDS), token("mine"))
    await connect(tab, guarded, issuer, transport)
    progress(own_redis, "mine", 1)
    await tab.follow("mine")
    await tab.until(f"client.transport === '{transport}' && seen.length === 1")

    async with asyncio.timeout(SOON_SECONDS):
        percent = 1.0
        while issuer.asked < 2:
            percent += (
                0.125  # in small steps: a hundred of one come sooner than the end of the token
            )
            progress(own_redis, "mine", percent)
            await tab.until(f"seen.at(-1).progress === {percent}")
    complete(own_redis, "mine", 42)
    await tab.until("seen.at(-1).event === 'job-completed'")

    told = [event for event, _ in await tab.seen()]
    percents = [value for event, value in await tab.seen() if event == "job-progress"]
    assert told.count("job-completed") == 1
    assert percents == sorted(set(percents))
    assert await tab.run("refused") == []


@pytest.mark.parametrize("transport", ["sse", "polling"])
async def test_job_that_a_token_does_not_allow_is_refused_and_the_others_go_on(
    guarded: Daemon, own_redis: EmbeddedRedis, tab: Tab, transport: str
) -> None:
    progress(own_redis, "mine", 1)
    progress(own_redis, "other", 1)
    await connect(tab, guarded, Issuer(token("mine")), transport)

    await tab.follow("mine", "other")

    await tab.until("seen.length === 1 && refused.length === 1")
    assert await tab.run("[seen[0].jobId, refused[0]]") == ["mine", ["forbidden", "other"]]


async def test_refused_token_that_is_a_string_ends_it_until_there_is_another(
    guarded: Daemon, own_redis: EmbeddedRedis, tab: Tab
) -> None:
    await tab.connect(guarded, token=token("*", secret=OTHER_SECRET))
    await tab.follow("a")
    await tab.until("client.state === 'closed'")
    refused: dict[str, Any] = await tab.run("client.error")

    await tab.run("held => client.authenticate(held)", token("*", seconds=EXPIRED_SECONDS))
    await tab.live()
    await tab.until("client.state === 'closed'")
    expired: dict[str, Any] = await tab.run("client.error")
    await tab.run("held => client.authenticate(held)", token("*"))
    await tab.live()
    progress(own_redis, "a", 10)
    await tab.until("seen.length === 1")

    assert (refused["code"], expired["code"]) == ("unauthorized", "unauthorized")
    assert await tab.run("client.error") is None


async def test_close_for_good_is_an_end_that_says_why(guarded: Daemon, tab: Tab) -> None:
    await tab.connect(guarded, token=token("*"))
    await tab.live()

    await asyncio.to_thread(disconnect, guarded, "alice")
    await tab.until("client.state === 'closed'")

    error = await tab.run("client.error")
    assert error["code"] == "closed"
    assert "operator" in error["message"]


def disconnect(relay: Daemon, principal: str) -> None:
    """What an operator does."""
    body = json.dumps({"principal": principal}).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{relay.admin}/admin/disconnect", body, headers)
    with urllib.request.urlopen(asked, timeout=SOON_SECONDS) as answer:
        assert json.load(answer) == {"closed": 1}
