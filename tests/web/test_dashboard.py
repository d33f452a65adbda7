"""What the dashboard's page is made of and told: shapes over real sockets, who gets them, and what they cost."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from relay import __version__
from relay.demo.embedded import EmbeddedRedis
from relay.web import dashboard
from relay.web.overview import Overview
from tests.web.conftest import SOON_SECONDS, TEXT, Json, Running, Serve, command, frame
from tests.web.test_operators import ADMIN_TOKEN, JSON, OPERATOR
from tests.web.test_sse import Listener, listen
from tests.web.tokens import JWT, bearing, token

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FILES = sorted(path.name for path in dashboard.FOLDER.iterdir())
COUNTED = {
    "received", "unwatched", "invalid", "events", "deliveries", "deliveredBytes", "conflated",
    "opened", "closed",
}  # fmt: skip


async def ask(
    relay: Running, path: str, headers: Mapping[str, str] = JSON
) -> tuple[int, Json, Mapping[str, str]]:
    async with relay.http.get(f"{relay.admin}{path}", headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers


@asynccontextmanager
async def looking(relay: Running) -> AsyncIterator[Listener]:
    """One who looks on, before the first word."""
    async with (
        asyncio.timeout(SOON_SECONDS),
        relay.http.get(f"{relay.admin}/admin/events", headers=JSON) as response,
    ):
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield Listener(response)


async def snapshot_where(looker: Listener, part: str, **fields: object) -> Json:
    """The next snapshot of which a part holds these."""
    while True:
        body = (await looker.until("snapshot")).body
        if fields.items() <= (body[part] or {}).items():
            return body


# The page


async def test_page_is_there_and_may_run_no_code_but_its_own(serve: Serve) -> None:
    relay = await serve()

    async with relay.http.get(f"{relay.admin}/", headers=BROWSER) as answer:
        page = await answer.text()

    assert (answer.status, answer.content_type) == (200, "text/html")
    policy = answer.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "style=" not in page
    assert page.count("<script") == page.count('<script type="module" src="dashboard/')


async def test_page_that_a_browser_holds_keeps_its_right_to_run_its_code(serve: Serve) -> None:
    relay = await serve()
    async with relay.http.get(f"{relay.admin}/", headers=BROWSER) as first:
        known = BROWSER | {"If-None-Match": first.headers["ETag"]}

    async with relay.http.get(f"{relay.admin}/", headers=known) as answer:
        assert answer.status == 304
        assert "Content-Security-Policy" not in answer.headers


@pytest.mark.parametrize("name", FILES)
async def test_what_the_page_consists_of_needs_no_token_and_no_other_site(
    serve: Serve, name: str
) -> None:
    relay = await serve({"admin.token": ADMIN_TOKEN})

    async with relay.http.get(f"{relay.admin}/dashboard/{name}") as answer:
        text = await answer.text()

    assert answer.status == 200
    assert text == (dashboard.FOLDER / name).read_text()
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "https://" not in text


@pytest.mark.parametrize("path", ["/dashboard/", "/dashboard/x.js", "/dashboard/..%2Fadmin.py"])
async def test_what_is_no_part_of_the_page_is_not_there(serve: Serve, path: str) -> None:
    relay = await serve()

    async with relay.http.get(f"{relay.admin}{path}") as answer:
        assert answer.status == 404


@pytest.mark.parametrize("path", ["/", "/dashboard/dashboard.js", "/admin/events"])
async def test_nothing_of_it_is_on_the_public_listener(serve: Serve, path: str) -> None:
    relay = await serve({"admin.public_health": True})

    async with relay.http.get(f"{relay.public}{path}") as answer:
        assert answer.status == 404


async def test_browser_without_the_token_is_refused_with_the_page_that_asks_for_it(
    serve: Serve,
) -> None:
    relay = await serve({"admin.token": ADMIN_TOKEN})

    async with relay.http.get(f"{relay.admin}/", headers=BROWSER) as refused:
        page = await refused.text()
    async with relay.http.get(f"{relay.admin}/", headers=BROWSER | OPERATOR) as let_in:
        assert (let_in.status, await let_in.text()) == (200, page)

    assert (refused.status, refused.content_type) == (401, "text/html")
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert "token-form" in page


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", BROWSER | {"Authorization": "Bearer guess"}),
        ("/admin/events", BROWSER),
        ("/admin/history?jobId=job", BROWSER),
        ("/admin/connections", BROWSER),
    ],
)
async def test_nothing_else_is_told_without_the_token(
    serve: Serve, path: str, headers: dict[str, str]
) -> None:
    relay = await serve({"admin.token": ADMIN_TOKEN})
    await relay.publish("job", progress=1)

    status, body, _ = await ask(relay, path, headers)

    assert status == 401
    assert body.keys() == {"error"}


async def test_where_no_token_can_help_the_page_does_not_ask_for_one(serve: Serve) -> None:
    relay = await serve()

    status, body, _ = await ask(relay, "/", BROWSER | {"X-Forwarded-For": "203.0.113.9"})

    assert status == 401
    assert "admin.token" in body["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/dashboard/dashboard.js", "/admin/events"])
@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example:9301"}, {"Origin": "https://evil.example"}]
)
async def test_pages_of_others_reach_none_of_it(
    serve: Serve, path: str, headers: dict[str, str]
) -> None:
    relay = await serve()

    assert (await ask(relay, path, headers))[0] == 403


# Snapshots


async def test_snapshot_tells_how_the_relay_stands(serve: Serve) -> None:
    relay = await serve({"history.max_jobs": 70, "history.max_bytes": 4096 * 64})
    await relay.subscribed()
    client = await relay.websocket()
    await client.send(command("subscribe-to-job", {"jobId": "job"}))
    await client.until_event("subscribed")
    await relay.publish("job", progress=1)
    await client.until_event("job-progress")

    async with listen(relay, "/events?queues=q&jobs=job&queueName=q") as stream:
        await stream.subscribed()
        async with looking(relay) as looker:
            past, told = await looker.until("past"), await looker.until("snapshot")

    body = told.body
    assert json.loads(past["data"]) == []
    assert 0 < body["relay"]["startedAt"] <= body["at"]
    assert body["relay"].pop("loopLagSeconds") >= 0
    assert body["relay"] == {
        "version": __version__, "startedAt": body["relay"]["startedAt"], "draining": False,
    }  # fmt: skip
    assert body["redis"] == {"connected": True, "reconnects": 0, "gaps": 0}
    assert body["connections"] == {
        "total": 2, "max": 20000, "websocket": 1, "sse": 1, "longpoll": 0,
    }  # fmt: skip
    assert body["subscriptions"] == {"job": 2, "queue": 1}
    assert (body["rates"], body["latency"]) == (None, None)
    assert body["slow"] == {
        "now": 0, "closed": 0, "conflated": 0, "pendingBytes": 0, "slowest": [],
    }  # fmt: skip
    assert body["history"].pop("bytes") > 0
    assert body["history"] == {
        "backend": "memory", "jobs": 1, "maxJobs": 70, "maxBytes": 4096 * 64,
    }  # fmt: skip
    assert body["busiest"] == {
        "jobs": [
            {"jobId": "job", "queueName": None, "watchers": 1},
            {"jobId": "job", "queueName": "q", "watchers": 1},
        ],
        "queues": [{"queueName": "q", "watchers": 1}],
    }


async def test_rates_and_latency_are_those_of_the_last_second(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    client = await relay.websocket()
    await client.send(command("subscribe-to-job", {"jobId": "job"}))
    await client.until_event("subscribed")

    async with looking(relay) as looker:
        await looker.until("snapshot")
        await relay.publish("job", progress=1, ts=1)
        await relay.publish("other", progress=1)
        busy, calm = [(await looker.until("snapshot")).body for _ in range(2)]

    assert busy["rates"].keys() == COUNTED
    assert 1.5 < busy["rates"]["received"] <= 2
    assert 0.75 < busy["rates"]["unwatched"] <= 1
    assert 0.75 < busy["rates"]["deliveries"] <= 1
    assert busy["rates"]["deliveredBytes"] > 40
    assert 0 < busy["latency"]["relay"]["p50"] <= busy["latency"]["relay"]["p99"] < 1
    # Sent in 1970: beyond the last bound.
    assert busy["latency"]["delivery"] == {"p50": 10.0, "p99": 10.0}
    assert set(calm["rates"].values()) == {0}
    assert calm["latency"] == {"relay": None, "delivery": None}


async def test_redis_that_goes_and_returns_is_told(serve: Serve, own_redis: EmbeddedRedis) -> None:
    relay = await serve({"redis.url": own_redis.url, "redis.backoff_max_seconds": 0.05})
    await relay.subscribed()

    async with looking(relay) as looker:
        own_redis.kill()
        await snapshot_where(looker, "redis", connected=False)
        own_redis.start()
        back = await snapshot_where(looker, "redis", connected=True)

    assert back["redis"] == {"connected": True, "reconnects": 1, "gaps": 1}


async def test_slow_consumer_is_named_with_what_waits_for_it(serve: Serve) -> None:
    narrow = {"backpressure.high_water_bytes": 4096, "backpressure.unsent_bytes": 4096}
    relay = await serve(narrow)
    client = await relay.websocket(receive_buffer_bytes=2048)
    await client.send(command("subscribe-to-queue", {"queueName": "q"}))
    await client.until_event("subscribed")
    padding = "x" * 60_000

    async with looking(relay) as looker:
        for progress in range(100):
            await relay.publish("job", progress=progress, data=padding)
        slow = (await snapshot_where(looker, "slow", now=1))["slow"]
        (row,) = (await ask(relay, "/admin/connections?limit=1"))[1]["connections"]

    (slowest,) = slow["slowest"]
    assert slowest["connectionId"] == row["connectionId"]
    assert slowest["remote"] == "127.0.0.1"
    assert slowest["pendingBytes"] == slow["pendingBytes"] > 60_000
    assert slow["conflated"] > 0


# Those who look on


async def test_all_who_look_on_are_told_the_same_look(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Json] = []
    look = Overview.look

    def counted(overview: Overview) -> Json:
        looks.append(look(overview))
        return looks[-1]

    monkeypatch.setattr(Overview, "look", counted)
    relay = await serve()

    async with looking(relay) as one, looking(relay) as other:
        first = [(await one.until("snapshot")).body["at"] for _ in range(3)]
        second = [(await other.until("snapshot")).body["at"] for _ in range(3)]

    assert len(set(first) & set(second)) >= 2
    assert len(looks) <= 5
    assert first[2] - first[1] >= 1000


async def test_nobody_looks_where_nobody_looks_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = Overview.look

    def counted(overview: Overview) -> Json:
        nonlocal looks
        looks += 1
        return look(overview)

    monkeypatch.setattr(Overview, "look", counted)
    monkeypatch.setattr(dashboard, "LOOK_SECONDS", 0.01)
    relay = await serve()
    await relay.subscribed()
    before = looks

    is_first = False
    async with asyncio.timeout(SOON_SECONDS):
        # The relay hears of a looker's end a moment later; only a look after a break has no rates.
        async with looking(relay) as looker:
            await looker.until("snapshot")
        while not is_first:
            await asyncio.sleep(0.1)  # ten looks: with the next looker at once it would never hear
            async with looking(relay) as looker:
                is_first = (await looker.until("snapshot")).body["rates"] is None

    assert before == 0


async def test_newcomer_is_told_what_others_saw(serve: Serve) -> None:
    relay = await serve()

    async with looking(relay) as first:
        seen = [(await first.until("snapshot")).body for _ in range(2)]
        async with looking(relay) as second:
            past = json.loads((await second.until("past"))["data"])
            newest = (await second.until("snapshot")).body

    plotted = ("at", "connections", "rates", "latency", "slow")
    assert past == [{name: body[name] for name in plotted} for body in seen]
    assert newest["at"] >= seen[-1]["at"]


async def test_more_than_so_many_may_not_look_on_at_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "MAX_LOOKERS", 1)
    relay = await serve()

    async with looking(relay) as looker:
        await looker.until("snapshot")
        status, body, headers = await ask(relay, "/admin/events")

    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert "close one" in body["error"]["message"]
    assert int(headers["Retry-After"]) > 0
    async with asyncio.timeout(SOON_SECONDS):
        # Whoever has left makes room.
        while status != 200:
            async with relay.http.get(f"{relay.admin}/admin/events") as answer:
                status = answer.status


# A job's history


async def test_history_of_a_job_has_the_time_of_each_event(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    await relay.publish("job", progress=10, data={"stage": "one"})
    await relay.publish("job", queue="r", event="job-completed", result=7)
    await relay.known("job", status="completed")

    status, body, headers = await ask(relay, "/admin/history?jobId=job")
    narrowed = (await ask(relay, "/admin/history?jobId=job&queueName=r"))[1]
    async with relay.http.get(f"{relay.public}/jobs/job/history") as answer:
        public = (await answer.json())["events"]

    assert (status, body["jobId"]) == (200, "job")
    times = [event.pop("at") for event in body["events"]]
    assert 1e12 < times[0] <= times[1]
    assert [event.pop("queueName") for event in body["events"]] == ["q", "r"]
    assert body["events"] == public
    assert [event["event"] for event in narrowed["events"]] == ["job-completed"]
    assert headers["Cache-Control"] == "no-store"


async def test_operator_needs_no_claims_to_see_a_job(serve: Serve) -> None:
    relay = await serve(JWT)
    client = await relay.raw()
    relay.closing.callback(client.socket.close)
    async with listen(relay, "/jobs/job/events", bearing(token("*"))) as stream:
        await stream.subscribed()
        await relay.publish("job", progress=10)
        await stream.until("job-progress")

    async with relay.http.get(f"{relay.public}/jobs/job/history") as refused:
        assert refused.status == 401
    assert (await ask(relay, "/admin/history?jobId=job"))[0] == 200


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("jobId=nobody", 404, "not-found"),
        ("", 400, "invalid-job-id"),
        ("jobId=", 400, "invalid-job-id"),
        ("jobId=%00", 400, "invalid-job-id"),
        ("jobId=a&queueName=%00", 400, "invalid-queue-name"),
    ],
)
async def test_history_that_cannot_be_told_says_why(
    serve: Serve, query: str, status: int, code: str
) -> None:
    relay = await serve()

    answer = await ask(relay, f"/admin/history?{query}")

    assert (answer[0], answer[1]["error"]["code"]) == (status, code)


# The list


async def test_list_is_as_long_as_asked_for_and_the_total_tells_the_rest(serve: Serve) -> None:
    relay = await serve()
    clients = [await relay.websocket() for _ in range(3)]
    await clients[2].send(frame(TEXT, b'{"event":"ping"}'))

    status, body, _ = await ask(relay, "/admin/connections?limit=2")

    assert (status, body["total"], len(body["connections"])) == (200, 3, 2)


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "1.5", "²"])
async def test_limit_that_is_none_is_refused(serve: Serve, limit: str) -> None:
    relay = await serve()

    assert (await ask(relay, f"/admin/connections?limit={limit}"))[0] == 400
