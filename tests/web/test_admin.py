"""Probes and metrics: live fails slowly, ready fails fast, and neither needs more than the listener."""

import json
import subprocess

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.demo.embedded import EmbeddedRedis
from tests.tools import require_tool
from tests.web.conftest import Json, Running, Serve, command

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


async def probe(relay: Running, path: str, base: str | None = None) -> tuple[int, Json]:
    async with relay.http.get(f"{base or relay.admin}{path}") as answer:
        assert answer.content_type == "application/json"
        assert answer.headers["Cache-Control"] == "no-store"
        return answer.status, json.loads(await answer.read())


async def probe_status(relay: Running, path: str) -> int:
    """What a client with a connection of its own is answered on the public port."""
    client = await relay.raw()
    await client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return (await client.answer()).status


async def metrics(relay: Running, accept: str | None = None) -> tuple[aiohttp.ClientResponse, str]:
    headers = {} if accept is None else {"Accept": accept}
    async with relay.http.get(f"{relay.admin}/metrics", headers=headers) as answer:
        return answer, await answer.text()


async def test_subscribed_relay_is_live_and_ready(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()

    assert await probe(relay, "/livez") == (200, {"status": "ok"})
    ready = (200, {"status": "ok", "redis": "connected", "draining": False})
    assert await probe(relay, "/readyz") == ready
    assert await probe(relay, "/healthz") == ready


async def test_relay_without_redis_is_live_and_not_ready_and_says_why(
    own_redis: EmbeddedRedis, serve: Serve
) -> None:
    own_redis.kill()
    relay = await serve({"redis.url": own_redis.url, "redis.backoff_max_seconds": 0.05})

    live, ready = await probe(relay, "/livez"), await probe(relay, "/readyz")
    own_redis.start()
    await relay.subscribed()

    assert live[0] == 200
    assert ready == (
        503,
        {
            "status": "unavailable",
            "redis": "disconnected",
            "draining": False,
            "reason": "not subscribed to Redis",
        },
    )
    assert (await probe(relay, "/readyz"))[0] == 200


async def test_draining_relay_is_live_and_not_ready(serve: Serve) -> None:
    relay = await serve({"server.drain_seconds": 0})
    await relay.subscribed()

    await relay.relay.drain()
    status, body = await probe(relay, "/readyz")

    assert (status, body["draining"], body["reason"]) == (503, True, "draining")
    assert (await probe(relay, "/healthz"))[0] == 503
    assert (await probe(relay, "/livez"))[0] == 200


@pytest.mark.parametrize(("public_health", "status"), [(True, 200), (False, 404)])
async def test_probes_are_public_only_where_they_are_meant_to_be(
    serve: Serve, public_health: bool, status: int
) -> None:
    relay = await serve({"admin.public_health": public_health})
    await relay.subscribed()

    assert (await probe(relay, "/livez", relay.public))[0] == status
    assert (await probe(relay, "/readyz", relay.public))[0] == status


async def test_full_relay_does_not_look_dead_to_a_public_probe(serve: Serve) -> None:
    relay = await serve({"admin.public_health": True, "limits.max_connections": 1})
    await relay.websocket()

    probes = [await probe(relay, path, relay.public) for path in ("/livez", "/readyz")]
    refused = await probe_status(relay, "/jobs/unknown")

    assert [status for status, _ in probes] == [200, 200]
    assert refused == 503


async def test_draining_relay_says_so_to_a_public_probe(serve: Serve) -> None:
    relay = await serve({"admin.public_health": True, "server.drain_seconds": 0})
    await relay.subscribed()

    await relay.relay.drain()

    assert (await probe(relay, "/livez", relay.public))[0] == 200
    assert (await probe(relay, "/readyz", relay.public))[1]["reason"] == "draining"


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
async def test_nothing_else_of_the_admin_listener_is_ever_public(serve: Serve, path: str) -> None:
    relay = await serve({"admin.public_health": True})

    assert (await probe(relay, path, relay.public))[0] == 404


async def test_admin_listener_serves_nothing_of_the_public_one(serve: Serve) -> None:
    relay = await serve()

    status, body = await probe(relay, "/jobs/unknown")

    assert (status, body["error"]["code"]) == (404, "not-found")
    assert body["error"]["message"] != "nothing is known of this job"


async def test_metrics_are_prometheus_text(serve: Serve) -> None:
    relay = await serve()

    answer, text = await metrics(relay)

    names = {family.name for family in text_string_to_metric_families(text)}
    assert answer.content_type == "text/plain"
    assert {"relay_build_info", "process_resident_memory_bytes", "python_gc_collections"} <= names


async def test_metrics_are_openmetrics_where_that_is_asked_for(serve: Serve) -> None:
    relay = await serve()

    answer, text = await metrics(relay, OPENMETRICS)

    assert answer.content_type == "application/openmetrics-text"
    assert text.endswith("# EOF\n")


@pytest.mark.tool
async def test_promtool_finds_no_fault_in_the_metrics(serve: Serve) -> None:
    promtool = require_tool("promtool", hint="apt-get install prometheus")
    relay = await serve()
    _, text = await metrics(relay)

    check = subprocess.run(
        [promtool, "check", "metrics"],
        input=text, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


async def test_event_is_counted_on_all_its_way(serve: Serve) -> None:
    relay = await serve()
    client = await relay.websocket()
    await client.send(command("subscribe-to-job", {"jobId": "job"}))
    await client.until_event("subscribed")

    await relay.publish("unwatched", progress=1)
    await relay.publish("job", progress=1, ts=1)
    await relay.publish("job", event="job-completed")
    await relay.publish("job", event="job-completed")
    await relay.redis.publish("jobs:q:job", b"junk")
    await relay.publish("job", event="job-strange", status="active")
    await client.until_event("job-strange")

    assert await relay.metric("relay_messages_received_total") == 6
    assert await relay.metric("relay_messages_unwatched_total") == 1
    assert await relay.metric("relay_messages_invalid_total", reason="not_json") == 1
    assert await relay.metric("relay_duplicates_total") == 1
    for event in ("job-progress", "job-completed", "other"):
        assert await relay.metric("relay_deliveries_total", event=event) == 1
    assert await relay.metric("relay_relay_seconds_count") == 3
    assert await relay.metric("relay_delivery_seconds_count") == 1
    assert await relay.metric("relay_client_messages_total", event="subscribe-to-job") == 1
    assert await relay.metric("relay_subscriptions", kind="job") == 1
    assert await relay.metric("relay_connections", transport="websocket") == 1
    assert await relay.metric("relay_connections_opened_total", transport="websocket") == 1
    assert await relay.metric("relay_history_jobs") == 2
    assert await relay.metric("relay_redis_up") == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost"}, 200),
        ({"Host": "localhost:9301"}, 200),
        ({"Host": "10.1.2.3:9301"}, 200),
        ({"Host": "[2001:db8::1]:9301"}, 200),
        ({"Host": "Relay.Internal:9301"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "10.1.2.3.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:9301", "Origin": "http://localhost:9301"}, 200),
        ({"Host": "localhost:9301", "Origin": "http://localhost:3001"}, 403),
        ({"Host": "localhost:9301", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost:9301", "Origin": "null"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/livez", "/metrics"])
async def test_pages_do_not_reach_the_admin_listener(
    serve: Serve, path: str, headers: dict[str, str], status: int
) -> None:
    relay = await serve({"admin.allowed_hosts": ["relay.internal"]})

    async with relay.http.get(f"{relay.admin}{path}", headers=headers) as answer:
        assert answer.status == status
