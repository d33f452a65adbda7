"""The installed daemon with tokens: who is let in to what, new keys at SIGHUP, and no token in its log."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import jwt
import pytest
import redis
from websockets.exceptions import InvalidStatus

from tests.e2e.conftest import SOON_SECONDS, Answer, Client, toml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.demo.embedded import EmbeddedRedis
    from tests.e2e.conftest import Daemon, Settings, StartDaemon

pytestmark = pytest.mark.e2e

OLD_SECRET = "the secret of the first of both days"
NEW_SECRET = "the secret of the other of both days"


def settings(server: EmbeddedRedis, **auth: Any) -> Settings:
    return {
        "redis": {"url": server.url, "backoff_max_seconds": 0.1},
        "admin": {"token": "operators-only"},
        "auth": {"mode": "jwt", "jwt_secret": OLD_SECRET, "leeway_seconds": 0} | auth,
    }


def token(*jobs: str, secret: str = OLD_SECRET, seconds: float = 3600, **more: Any) -> str:
    claims = {"sub": "alice", "jobs": jobs, "exp": time.time() + seconds}
    return jwt.encode(claims | more, secret, algorithm="HS256")


def bearing(held: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {held}"}


async def request(
    url: str, headers: Mapping[str, str], body: dict[str, Any] | None = None
) -> Answer:
    """GET, or POST where there is a body; whatever the status."""

    def ask() -> Answer:
        data = None if body is None else json.dumps(body).encode()
        more = {"Content-Type": "application/json"}
        asked = urllib.request.Request(url, data, {**more, **headers})
        try:
            with urllib.request.urlopen(asked, timeout=SOON_SECONDS) as answer:
                return Answer(answer.status, answer.read().decode())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return Answer(refusal.code, refusal.read().decode())

    return await asyncio.to_thread(ask)


async def refusal_of(daemon: Daemon, held: str) -> int:
    with pytest.raises(InvalidStatus) as refusal:
        async with Client.at(daemon.ws_url, additional_headers=bearing(held)):
            pass
    return refusal.value.response.status_code


async def test_page_gives_its_token_as_a_subprotocol_and_watches_its_own_job(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(settings(shared_redis))

    async with Client.at(relay.ws_url, subprotocols=["bearer", token("mine-*")]) as client:
        mine = await client.subscribe("mine-1")
        await client.send("subscribe-to-job", {"jobId": "other-1"})
        refused = await client.told("error")
        with redis.Redis.from_url(shared_redis.url) as publisher:
            publisher.publish("jobs:q:other-1", '{"event":"job-completed"}')
            publisher.publish("jobs:q:mine-1", '{"event":"job-completed"}')
        (ended,) = await client.told_until_the_end()

    assert mine["known"] is False
    assert refused["data"]["code"] == "forbidden"
    assert ended["data"]["jobId"] == "mine-1"


async def test_token_that_expires_ends_the_connection_of_who_does_not_renew_it(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(settings(shared_redis))
    short = bearing(token("*", seconds=2))

    async with (
        Client.at(relay.ws_url, additional_headers=short) as renewing,
        Client.at(relay.ws_url, additional_headers=short) as silent,
    ):
        await renewing.send("authenticate", {"token": token("*")})
        renewed = await renewing.told("authenticated")
        code, _ = await silent.closed()
        still_there = await renewing.subscribe("job")

    assert renewed["data"]["expiresAt"] > time.time() * 1000
    assert code == 3000
    assert still_there["known"] is False


async def test_new_key_counts_from_sighup_on_and_open_connections_stay(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(settings(shared_redis))
    old, new = token("*"), token("*", secret=NEW_SECRET)

    async with Client.at(relay.ws_url, additional_headers=bearing(old)) as client:
        before = await refusal_of(relay, new)
        text = relay.config.read_text()
        relay.config.write_text(text.replace(OLD_SECRET, NEW_SECRET))
        relay.signal(signal.SIGHUP)
        line = await relay.logged("reloaded")
        after = await refusal_of(relay, old)
        async with Client.at(relay.ws_url, additional_headers=bearing(new)) as late:
            let_in = await late.subscribe("job")
        stays = await client.subscribe("job")

    assert (before, after) == (401, 401)
    assert line["need_restart"] == []
    assert let_in == stays


async def test_key_file_that_is_no_key_changes_nothing_at_sighup(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(settings(shared_redis))
    broken = relay.config.parent / "key.pem"
    broken.write_text("no key")
    text = relay.config.read_text()
    relay.config.write_text(
        text.replace(
            f'jwt_secret = "{OLD_SECRET}"', f"jwt_public_key_file = {json.dumps(str(broken))}"
        )
    )

    relay.signal(signal.SIGHUP)
    line = await relay.logged("reload_failed")

    assert "key.pem" in line["faults"][0]
    async with Client.at(relay.ws_url, additional_headers=bearing(token("*"))) as client:
        await client.subscribe("job")


async def test_other_mode_waits_for_a_restart(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(settings(shared_redis))
    text = relay.config.read_text()
    relay.config.write_text(text.replace('mode = "jwt"', 'mode = "none"'))

    relay.signal(signal.SIGHUP)
    line = await relay.logged("reloaded")

    assert line["need_restart"] == ["auth.mode"]
    assert (await request(f"{relay.public}/jobs/job", {})).status == 401


async def test_operator_revokes_whoever_must_not_watch_any_more(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(settings(shared_redis))
    held, url = token("*"), f"{relay.admin}/admin/revoke"

    async with Client.at(relay.ws_url, additional_headers=bearing(held)) as client:
        await client.subscribe("job")
        stranger = await request(url, {}, {"principal": "alice"})
        operator = await request(url, bearing("operators-only"), {"principal": "alice"})
        code, _ = await client.closed()

    assert (stranger.status, operator.json()) == (401, {"closed": 1})
    assert code == 3000
    assert await refusal_of(relay, held) == 401


async def test_no_token_is_ever_in_the_log(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(settings(shared_redis, allow_query_token=True) | {"log": {"level": "debug"}})
    good, bad = token("*"), token("*", secret=NEW_SECRET)

    async with Client.at(f"{relay.ws_url}?token={good}") as client:
        await client.subscribe("job")
        await client.send("authenticate", {"token": bad})
        await client.told("error")
        await client.send("authenticate", {"token": good})
        await client.told("authenticated")
    await refusal_of(relay, bad)
    for held in (good, bad):
        await request(f"{relay.public}/jobs/job?token={held}", {})
        await request(f"{relay.public}/jobs/job", bearing(held))
        await request(f"{relay.admin}/admin/connections", bearing(held))
    await relay.logged("session_closed")

    opened = (await relay.logged("session_opened"))["principal"]
    closed = relay.log_lines("session_closed")[0]["principal"]
    assert relay.stop() == 0
    assert (opened, closed) == ("alice", "alice")
    written = relay.log_text() + relay.error_text()
    for held in (good, bad):
        assert not any(part in written for part in held.split("."))
    assert OLD_SECRET not in written
    assert "operators-only" not in written


async def test_mode_proxy_needs_the_word_of_the_proxy(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    secret = "between the proxy and us"
    chosen = settings(shared_redis, mode="proxy", jwt_secret="", proxy_secret=secret)
    relay = daemon(toml(chosen))
    claims = "eyJzdWIiOiJhbGljZSIsImpvYnMiOlsibWluZSJdfQ"  # {"sub":"alice","jobs":["mine"]}
    headers = {"X-Relay-Claims": claims, "X-Relay-Proxy-Secret": secret}

    async with Client.at(relay.ws_url, additional_headers=headers) as client:
        mine = await client.subscribe("mine")
    other = await request(f"{relay.public}/jobs/other", headers)
    unknown = await request(f"{relay.public}/jobs/mine", headers)
    alone = await request(f"{relay.public}/jobs/mine", {"X-Relay-Claims": claims})

    assert mine["known"] is False
    assert (other.status, unknown.status, alone.status) == (403, 404, 401)
