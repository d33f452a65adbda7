"""The installed daemon as its operator has it: started, asked, reloaded, drained; and what it logs."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
import redis
from websockets.exceptions import InvalidStatus

from relay.demo.embedded import EmbeddedRedis
from tests.e2e.conftest import ROOT, SOON_SECONDS, Client, get, relay_environ, toml

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Daemon, Settings, StartDaemon

pytestmark = pytest.mark.e2e

JOB = "similarity-ABC123"
CHANNEL = f"jobs:similarity-operations:{JOB}"


def on(redis: EmbeddedRedis, **sections: dict[str, Any]) -> Settings:
    """Settings for a relay on this server."""
    return {"redis": {"url": redis.url, "backoff_max_seconds": 0.1}, **sections}


def publish(server: EmbeddedRedis, *payloads: dict[str, Any] | bytes) -> None:
    with redis.Redis.from_url(server.url) as client:
        for payload in payloads:
            client.publish(CHANNEL, payload if isinstance(payload, bytes) else json.dumps(payload))


def run(config: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`relay serve` that is expected to end by itself."""
    command = [sys.executable, "-m", "relay", "serve", "--config", str(config), *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=relay_environ(environ),
        capture_output=True,
        text=True,
        timeout=SOON_SECONDS,
        check=False,
    )


# --- from Redis to a client ------------------------------------------------------------------------


async def test_events_of_a_job_reach_who_subscribed_to_it(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(shared_redis))

    async with Client.at(relay.ws_url) as client:
        greeting = await client.told("relay-status")
        stands = await client.subscribe(JOB)
        publish(
            shared_redis,
            {"event": "job-progress", "jobId": JOB, "progress": 45, "data": {"stage": "pairs"}},
            {"event": "job-completed", "jobId": JOB, "result": {"pairs": 3}, "processingTime": 7},
        )
        progress, completed = await client.told_until_the_end()

    assert greeting["data"]["redis"] == "connected"
    assert greeting["data"]["protocol"] == 1
    assert greeting["data"]["gap"] is False
    assert stands == {"known": False, "recovered": False, "replayed": 0}
    assert progress["data"] == {
        "jobId": JOB,
        "progress": 45,
        "status": "active",
        "queueName": "similarity-operations",
        "data": {"stage": "pairs"},
    }
    assert completed["data"]["result"] == {"pairs": 3}
    assert completed["data"]["processingTime"] == 7
    assert progress["id"] != completed["id"]


async def test_who_comes_late_is_told_how_the_job_ended(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(shared_redis))
    publish(shared_redis, {"progress": 45}, {"event": "job-failed", "error": "bad row 17"})

    async with Client.at(relay.ws_url) as client:
        stands = await client.subscribe(JOB)
        (failed,) = await client.told_until_the_end()

    assert stands["known"] is True
    assert failed["data"]["error"] == "bad row 17"


async def test_malformed_messages_are_counted_and_disturb_nothing(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(shared_redis))

    async with Client.at(relay.ws_url) as client:
        await client.subscribe(JOB)
        deep = b'{"data":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
        publish(shared_redis, b"{", b"[]", b'{"error":"\xff"}', deep, {"event": "job-failed"})
        told = await client.told_until_the_end()

    assert len(told) == 1
    for reason in ("not_json", "not_object", "not_utf8", "too_deep"):
        assert await relay.metric("relay_messages_invalid_total", reason=reason) == 1


# --- where it listens ------------------------------------------------------------------------------


async def test_ready_file_and_log_tell_where_it_listens_and_who_it_is(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(shared_redis))

    listening = await relay.logged("relay_listening")

    assert relay.ready == {"public": relay.public, "admin": relay.admin, "pid": relay.pid}
    assert (listening["public"], listening["admin"]) == (relay.public, relay.admin)
    assert relay.public.startswith("http://127.0.0.1:")
    assert (await get(f"{relay.public}/jobs/unknown")).status == 404
    assert (await get(f"{relay.admin}/livez")).status == 200
    assert (await get(f"{relay.public}/metrics")).status == 404


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_localhost_answers_on_both_loopback_addresses(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(shared_redis, server={"host": "localhost"}))

    async with (
        Client.at(relay.ws_url) as four,
        Client.at(relay.ws_url.replace("127.0.0.1", "[::1]")) as six,
    ):
        statuses = [await four.told("relay-status"), await six.told("relay-status")]

    assert [status["data"]["redis"] for status in statuses] == ["connected", "connected"]


async def test_unix_socket_serves_in_place_of_a_port(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    path = tmp_path / "relay.sock"
    relay = daemon(on(shared_redis, server={"unix_socket": str(path)}))

    async with Client.at("ws://localhost/job-progress", unix=True, path=str(path)) as client:
        await client.subscribe(JOB)
        publish(shared_redis, {"event": "job-failed"})
        told = await client.told_until_the_end()

    assert len(told) == 1
    assert relay.public == f"unix:{path}"


@pytest.mark.parametrize("setting", ["RELAY_SERVER__PORT", "RELAY_ADMIN__PORT"])
def test_port_that_is_taken_is_one_line_and_not_exit_code_0(
    shared_redis: EmbeddedRedis, tmp_path: Path, setting: str
) -> None:
    config, ready_file = tmp_path / "config.toml", tmp_path / "ready.json"
    config.write_text(toml(on(shared_redis)))
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])

        ended = run(config, "--ready-file", str(ready_file), **{setting: port})

    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert port in line
    assert "choose another port" in line
    assert not ready_file.exists()
    assert "relay_listening" not in ended.stdout


def test_wrong_settings_end_the_start_with_a_line_for_each_and_exit_code_2(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[server]\nprot = 1\n[redis]\nhealth_check_seconds = -1\n")

    ended = run(config, RELAY_LOG__LEVEL="loud")

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 3
    for what in ("server.prot", "redis.health_check_seconds", "RELAY_LOG__LEVEL"):
        assert what in ended.stderr


def test_missing_configuration_file_ends_the_start_with_exit_code_2(tmp_path: Path) -> None:
    ended = run(tmp_path / "nowhere.toml")

    assert ended.returncode == 2
    assert "nowhere.toml" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


# --- Redis is away at the start --------------------------------------------------------------------


async def test_it_starts_without_redis_says_so_and_is_ready_when_redis_comes(
    daemon: StartDaemon, own_redis: EmbeddedRedis
) -> None:
    own_redis.kill()
    relay = daemon(on(own_redis), subscribed=False)

    async with Client.at(relay.ws_url) as client:
        greeting = await client.told("relay-status")
        unready = await get(f"{relay.admin}/readyz")
        alive = await get(f"{relay.admin}/livez")
        own_redis.start()
        news = await client.told("relay-status")
        await client.subscribe(JOB)
        publish(own_redis, {"event": "job-failed"})
        told = await client.told_until_the_end()

    assert greeting["data"]["redis"] == "disconnected"
    assert (unready.status, alive.status) == (503, 200)
    assert "Redis" in unready.json()["reason"]
    assert news["data"]["redis"] == "connected"
    assert len(told) == 1
    assert await relay.is_ready()


# --- the end ---------------------------------------------------------------------------------------


async def test_drain_falls_from_readiness_first_and_tells_every_client_when_to_come_back(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    drain_seconds = 1.5
    relay = daemon(on(shared_redis, server={"drain_seconds": drain_seconds}))
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client.at(relay.ws_url)) for _ in range(6)]
        for client in clients:
            await client.subscribe(JOB)
        closing = [asyncio.create_task(closed_at(client)) for client in clients]

        relay.signal(signal.SIGTERM)
        await relay.logged("relay_draining")
        unready = await get(f"{relay.admin}/readyz")
        with pytest.raises(InvalidStatus) as refused:
            await stack.enter_async_context(Client.at(relay.ws_url))
        publish(shared_redis, {"event": "job-failed"})
        ends = await asyncio.gather(*closing)
        exit_code = await relay.exit_code()

    assert unready.status == 503
    assert unready.json()["draining"] is True
    assert refused.value.response.status_code == 503
    assert int(refused.value.response.headers["Retry-After"]) > 0
    assert {end for end, _ in ends} == {(1012, "the relay is restarting")}
    assert max(at for _, at in ends) - min(at for _, at in ends) > drain_seconds / 2
    for client in clients:
        last = client.statuses()[-1]
        assert last["draining"] is True
        assert 0 < last["retryAfterMs"] < 10 * 1000 * drain_seconds
    # Who is still there while others leave goes on being told of jobs.
    assert any(message["event"] == "job-failed" for client in clients for message in client.seen)
    assert exit_code == 0
    assert [line["reason"] for line in relay.log_lines("session_closed")] == ["restarting"] * 6
    assert relay.log_lines()[-1]["event"] == "relay_stopped"


async def closed_at(client: Client) -> tuple[tuple[int, str], float]:
    end = await client.closed()
    return end, time.monotonic()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_drain_without_clients_is_over_at_once(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, number: signal.Signals
) -> None:
    relay = daemon(on(shared_redis, server={"drain_seconds": 60}))
    asked_at = time.monotonic()

    relay.signal(number)
    exit_code = await relay.exit_code()

    assert exit_code == 0
    assert time.monotonic() - asked_at < 5
    assert relay.error_text() == ""
    assert relay.log_lines("relay_stopped")


async def test_second_signal_ends_at_once(daemon: StartDaemon, shared_redis: EmbeddedRedis) -> None:
    relay = daemon(on(shared_redis, server={"drain_seconds": 60}))
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(Client.at(relay.ws_url))

        relay.signal(signal.SIGTERM)
        await relay.logged("relay_draining")
        hurried_at = time.monotonic()
        relay.signal(signal.SIGTERM)
        exit_code = await relay.exit_code()

        assert time.monotonic() - hurried_at < 5
    assert exit_code == 0
    assert relay.error_text() == ""


async def test_drain_is_over_without_redis_too(
    daemon: StartDaemon, own_redis: EmbeddedRedis
) -> None:
    own_redis.kill()
    relay = daemon(on(own_redis), subscribed=False)

    relay.signal(signal.SIGTERM)

    assert await relay.exit_code() == 0


# --- SIGHUP ----------------------------------------------------------------------------------------


async def test_reload_takes_limits_and_log_level_over_and_names_what_needs_a_restart(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(shared_redis))
    changed = on(
        shared_redis,
        limits={"max_subscriptions": 1},
        log={"level": "debug", "format": "json"},
        heartbeat={"interval_seconds": 20},
    )

    async with Client.at(relay.ws_url) as client:
        relay.config.write_text(toml(changed))
        relay.signal(signal.SIGHUP)
        reloaded = await relay.logged("reloaded")
        await client.subscribe(JOB)
        await client.send("subscribe-to-job", {"jobId": "one-more"})
        refusal = await client.told("error")
        publish(shared_redis, {"event": "job-failed"})
        await client.told("job-failed")

    assert sorted(reloaded["need_restart"]) == ["heartbeat.interval_seconds", "log.format"]
    assert refusal["data"]["code"] == "too-many-subscriptions"
    assert (await relay.logged("job_subscribed"))["job_id"] == JOB
    assert (await relay.logged("event_routed"))["job_id"] == JOB


async def test_debug_lines_end_with_a_reload_to_info(
    daemon: StartDaemon, shared_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(shared_redis, log={"level": "debug"}))

    async with Client.at(relay.ws_url) as client:
        relay.config.write_text(toml(on(shared_redis)))
        relay.signal(signal.SIGHUP)
        await relay.logged("reloaded")
        await client.subscribe(JOB)
    await relay.logged("session_closed")

    assert relay.log_lines("job_subscribed") == []


@pytest.mark.parametrize("faulty", ["[limits]\nmax_errors = 0\n", "[limits", None])
async def test_reload_of_a_faulty_file_changes_nothing_and_says_why(
    daemon: StartDaemon, shared_redis: EmbeddedRedis, faulty: str | None
) -> None:
    relay = daemon(on(shared_redis, limits={"max_subscriptions": 1}))

    async with Client.at(relay.ws_url) as client:
        if faulty is None:
            relay.config.unlink()
        else:
            relay.config.write_text(faulty)
        relay.signal(signal.SIGHUP)
        failure = await relay.logged("reload_failed")
        await client.subscribe(JOB)
        await client.send("subscribe-to-job", {"jobId": "one-more"})
        refusal = await client.told("error")

    assert str(relay.config) in failure["faults"][0]
    assert failure["level"] == "error"
    assert refusal["data"]["code"] == "too-many-subscriptions"
    assert await relay.is_ready()


# --- the log ---------------------------------------------------------------------------------------

SECRET = "sesame"


async def test_log_tells_the_story_and_holds_no_payload_and_no_token(daemon: StartDaemon) -> None:
    with EmbeddedRedis(("--requirepass", SECRET)) as server:
        url = server.url.replace("redis://", f"redis://:{SECRET}@")
        settings: Settings = {
            "redis": {"url": url, "backoff_max_seconds": 0.1},
            "log": {"level": "debug"},
        }
        relay = daemon(settings)
        await tell_secrets(relay, url)
        server.kill()
        await relay.logged("redis_lost")
        server.start()
        await relay.logged("redis_subscribed", times=2)
    await relay.logged("redis_connect_failed")
    relay.stop()

    events = {line["event"] for line in relay.log_lines()}
    assert events >= {
        "relay_listening", "redis_subscribed", "redis_lost", "session_opened", "session_closed",
        "message_invalid", "relay_draining", "relay_stopped", "job_subscribed", "event_routed",
    }  # fmt: skip
    assert SECRET not in relay.log_text() + relay.error_text()
    (routed,) = relay.log_lines("event_routed")
    assert (routed["job_id"], routed["progress"]) == (JOB, 45)
    (closed,) = relay.log_lines("session_closed")
    assert closed["reason"] == "client_closed"
    assert closed["duration_seconds"] > 0


async def tell_secrets(relay: Daemon, redis_url: str) -> None:
    """Send secrets everywhere they could get into a log from."""
    headers = {"Authorization": f"Bearer {SECRET}", "Cookie": f"token={SECRET}"}
    async with Client.at(f"{relay.ws_url}?token={SECRET}", additional_headers=headers) as client:
        await client.send("authenticate", {"token": SECRET})
        await client.send(SECRET, {"jobId": SECRET})
        await client.told("error")
        await client.subscribe(JOB)
        with redis.Redis.from_url(redis_url) as publisher:
            publisher.publish(CHANNEL, json.dumps({"progress": 45, "data": {"key": SECRET}}))
            publisher.publish(CHANNEL, f"{{{SECRET}")
        await client.told("job-progress")
    await get(f"{relay.public}/jobs/unknown?token={SECRET}")
    await relay.logged("message_invalid")
    await relay.logged("session_closed")
