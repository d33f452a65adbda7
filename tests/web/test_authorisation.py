"""What may be asked for over HTTP: documents, long polls and streams keep to what the token allows."""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from tests.web.conftest import Json, RawClient, Running, Serve, upgrade
from tests.web.test_sse import listen
from tests.web.tokens import JWT, bearing, token

EVERY_LOOP = True

MINE = bearing(token("mine-*", queues=("my-*",)))
Headers = Mapping[str, str]


async def get(relay: Running, path: str, headers: Headers = MINE) -> tuple[int, Json]:
    async with relay.http.get(f"{relay.public}{path}", headers=headers) as answer:
        return answer.status, await answer.json() if answer.status != 204 else {}


async def with_jobs(serve: Serve, **more: object) -> Running:
    """A relay that knows `mine-1` and `other-1`, the latter in two queues."""
    relay = await serve(JWT | more)
    await relay.metric_reaches(1, "relay_redis_up")
    await relay.publish("mine-1", "any", n=1)
    await relay.publish("other-1", "my-queue", n=2)
    await relay.publish("other-1", "elsewhere", n=3)
    await relay.metric_reaches(3, "relay_messages_received_total")
    return relay


EVERY_GET = [
    "/jobs/{}",
    "/jobs/{}?wait=60",
    "/jobs/{}/history",
    "/jobs/{}/events",
    "/jobs?ids={}",
    "/events?jobs={}",
]


@pytest.mark.parametrize("path", [*EVERY_GET, "/jobs?queueName={}", "/events?queues={}"])
async def test_without_a_token_nothing_is_answered(serve: Serve, path: str) -> None:
    relay = await serve(JWT | {"server.allowed_origins": ["https://app.example"]})
    headers = {"Origin": "https://app.example"}

    async with relay.http.get(relay.public + path.format("my-1"), headers=headers) as answer:
        body = await answer.json()

    assert (answer.status, body["error"]["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Cache-Control"] == "no-store"
    # Else a page could not read what is wrong.
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"


@pytest.mark.parametrize("path", EVERY_GET)
async def test_refusal_is_the_same_for_a_job_that_exists(serve: Serve, path: str) -> None:
    relay = await with_jobs(serve)

    known = await get(relay, path.format("other-1"))
    unknown = await get(relay, path.format("unknown"))

    assert known == unknown
    assert (known[0], known[1]["error"]["code"]) == (403, "forbidden")
    assert await relay.metric("relay_client_errors_total", code="forbidden") == 2


async def test_job_of_another_queue_is_not_known_by_a_right_of_a_queue(serve: Serve) -> None:
    relay = await with_jobs(serve)
    await relay.publish("only-1", "elsewhere", n=4)
    await relay.metric_reaches(4, "relay_messages_received_total")

    mine = await get(relay, "/jobs/other-1?queueName=my-queue")
    elsewhere = await get(relay, "/jobs/other-1?queueName=elsewhere")
    not_there = await get(relay, "/jobs/only-1?queueName=my-queue")
    history = await get(relay, "/jobs/other-1/history?queueName=my-queue")
    timed_out = await get(relay, "/jobs/only-1?queueName=my-queue&wait=0.1")

    assert (mine[0], mine[1]["queueName"]) == (200, "my-queue")
    assert elsewhere[0] == 403
    assert not_there[0] == 404
    assert [event["data"]["n"] for event in history[1]["events"]] == [2]
    assert timed_out[0] == 404


async def test_each_of_several_jobs_answers_for_itself(serve: Serve) -> None:
    relay = await with_jobs(serve)

    status, body = await get(relay, "/jobs?ids=mine-1,other-1,mine-unknown,unknown")

    forbidden = {"error": {"code": "forbidden"}}
    assert status == 200
    assert set(body["jobs"]) == {"mine-1", "other-1", "unknown"}
    assert (body["jobs"]["other-1"], body["jobs"]["unknown"]) == (forbidden, forbidden)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("ids=other-1,unknown", 403),
        ("ids=other-1,bad%0A", 403),
        ("ids=bad%0A", 200),
        ("ids=other-1,unknown&queueName=my-queue", 200),
        ("ids=other-1&queueName=elsewhere", 403),
        ("queueName=my-queue", 200),
        ("queueName=elsewhere", 403),
        ("queueName=unknown", 403),
        ("queueName=mine-1", 403),
    ],
)
async def test_several_are_refused_where_all_of_them_are(
    serve: Serve, query: str, status: int
) -> None:
    relay = await with_jobs(serve)

    assert (await get(relay, f"/jobs?{query}"))[0] == status


async def test_queue_shows_its_own_jobs_alone(serve: Serve) -> None:
    relay = await with_jobs(serve)

    _, body = await get(relay, "/jobs?queueName=my-queue")

    assert {job: document["queueName"] for job, document in body["jobs"].items()} == {
        "other-1": "my-queue"
    }


async def test_refusal_does_not_depend_on_history(serve: Serve) -> None:
    relay = await with_jobs(serve, **{"history.backend": "off"})

    assert (await get(relay, "/jobs?ids=other-1"))[0] == 403
    assert (await get(relay, "/jobs?ids=mine-1"))[0] == 404


# Streams


@pytest.mark.parametrize(
    "query", ["jobs=other-1", "jobs=other-1,unknown", "queues=elsewhere", "jobs=other-1&queues=x"]
)
async def test_stream_is_refused_before_it_begins_where_all_is(serve: Serve, query: str) -> None:
    relay = await with_jobs(serve)

    assert (await get(relay, f"/events?{query}"))[0] == 403
    assert await relay.metric("relay_connections_opened_total", transport="sse") == 0


async def test_in_a_stream_each_of_several_answers_for_itself(serve: Serve) -> None:
    relay = await with_jobs(serve)
    path = "/events?jobs=mine-1,other-1&queues=elsewhere,my-queue"

    async with listen(relay, path, MINE) as listener:
        jobs = (await listener.until("subscribed")).body["jobs"]
        refused = (await listener.until("relay-error")).body
        queue = (await listener.until("subscribed")).body
        snapshot = (await listener.until("job-progress")).body
        await relay.publish("other-1", "elsewhere", n=4)
        await relay.publish("other-1", "my-queue", n=5)
        told = (await listener.until("job-progress")).body

    assert jobs["mine-1"]["known"] is True
    assert jobs["other-1"] == {"error": "forbidden"}
    assert refused["code"] == "forbidden"
    assert "elsewhere" in refused["message"]
    assert queue["queueName"] == "my-queue"
    assert (snapshot["n"], told["n"]) == (1, 5)


async def test_stream_ends_with_its_token(serve: Serve) -> None:
    relay = await serve(JWT)
    short = bearing(token("*", seconds=1.5))

    async with listen(relay, "/jobs/job/events", short) as listener:
        farewell = await listener.until("relay-close")
        await listener.ended()

    assert farewell.body == {"code": 3000, "reason": "the token has expired"}


async def test_cookie_of_a_page_opens_a_stream(serve: Serve) -> None:
    relay = await serve(
        JWT | {"auth.cookie": "session", "server.allowed_origins": ["https://app.example"]}
    )
    headers = {"Cookie": f"session={token('job')}", "Origin": "https://app.example"}

    async with listen(relay, "/jobs/job/events", headers) as listener:
        await listener.subscribed()

    assert listener.response.headers["Access-Control-Allow-Credentials"] == "true"


# Long polls


async def held(relay: Running, tasks: asyncio.TaskGroup, headers: Headers) -> asyncio.Task[Any]:
    """A poll that waits for its job."""
    poll = tasks.create_task(get(relay, "/jobs/mine-2?wait=60", headers))
    await relay.metric_reaches(1, "relay_subscriptions", kind="job")
    return poll


async def test_long_poll_ends_with_its_token(serve: Serve) -> None:
    relay = await serve(JWT)
    async with asyncio.TaskGroup() as tasks:
        poll = await held(relay, tasks, bearing(token("*", seconds=1.5)))
        status, body = await poll

    assert (status, body["error"]["code"]) == (401, "unauthorized")
    assert await relay.metric("relay_subscriptions", kind="job") == 0


async def test_long_poll_of_an_allowed_job_is_answered(serve: Serve) -> None:
    relay = await serve(JWT)
    await relay.metric_reaches(1, "relay_redis_up")
    async with asyncio.TaskGroup() as tasks:
        poll = await held(relay, tasks, MINE)
        await relay.publish("mine-2", "any", n=1)
        status, _ = await poll

    assert status == 200


async def test_limit_of_an_address_counts_every_transport(serve: Serve) -> None:
    relay = await serve(JWT | {"limits.max_connections_per_address": 3})
    async with asyncio.TaskGroup() as tasks, listen(relay, "/events?queues=my-q", MINE):
        poll = await held(relay, tasks, MINE)
        websocket = await relay.raw()
        await websocket.upgrade(upgrade(**MINE))

        async with aiohttp.ClientSession() as http:
            url = f"{relay.public}/jobs/mine-1/events"
            async with http.get(url, headers=MINE) as refused:
                status = refused.status
        another: RawClient = await relay.raw()
        await another.send(upgrade(**MINE))
        upgraded = await another.answer()
        poll.cancel()

    assert (status, upgraded.status) == (429, 429)
