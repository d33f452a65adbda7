"""The demo's routes, on a real Redis."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson
import pytest
import redis.asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient

from relay.demo import api, jobs
from relay.demo.embedded import EmbeddedRedis
from relay.demo.similarity import example_wallets

Client = TestClient[web.Request, web.Application]
MakeClient = Callable[[web.Application], Awaitable[Client]]

WALLETS = list(example_wallets(3, seed="api"))


@pytest.fixture
async def connection(shared_redis: EmbeddedRedis) -> AsyncIterator[redis.asyncio.Redis]:
    async with aclosing(api.connect(shared_redis.url)) as connection:
        await connection.flushall()
        yield connection


@pytest.fixture
async def client(connection: redis.asyncio.Redis, aiohttp_client: MakeClient) -> Client:
    return await aiohttp_client(_application(connection))


def _application(connection: redis.asyncio.Redis) -> web.Application:
    application = web.Application()
    application.add_routes(api.routes(connection))
    return application


async def _submit(client: Client) -> str:
    response = await client.post(api.SUBMIT_PATH, json={"walletAddresses": WALLETS})
    job_id: str = (await response.json())["jobId"]
    return job_id


async def test_submitted_analysis_is_told_of_and_waits_for_the_worker(
    client: Client, connection: redis.asyncio.Redis
) -> None:
    async with connection.pubsub() as watching:
        await watching.psubscribe("jobs:*")
        assert await watching.get_message(timeout=5) is not None

        response = await client.post(
            api.SUBMIT_PATH, json={"walletAddresses": WALLETS, "vectorType": "behavior"}
        )
        answer = await response.json()
        told = await watching.get_message(timeout=5)

    assert response.status == 202
    assert re.fullmatch(r"similarity-[A-Z0-9]{10}", answer["jobId"])
    assert answer["queueName"] == "similarity-operations"
    assert told is not None
    assert told["channel"].decode() == f"jobs:similarity-operations:{answer['jobId']}"
    payload = orjson.loads(told["data"])
    assert payload.pop("ts") > 1_600_000_000_000
    assert payload == {
        "event": "job-queued",
        "jobId": answer["jobId"],
        "queueName": "similarity-operations",
        "progress": 0,
        "status": "waiting",
    }
    waiting = await connection.lrange(jobs.WAITING_LIST, 0, -1)
    assert [orjson.loads(document) for document in waiting] == [
        {
            "jobId": answer["jobId"],
            "request": {
                "walletAddresses": WALLETS,
                "vectorType": "behavior",
                "failureThreshold": 0.0,
                "timeoutMinutes": 10.0,
            },
        }
    ]


@pytest.mark.parametrize(
    ("body", "content_type", "named"),
    [
        (b"{", "application/json", "not JSON"),
        (b"", "application/json", "not JSON"),
        (b"[]", "application/json", "JSON object"),
        (b'{"walletAddresses": ["a"]}', "application/json", "2 to 500"),
        (b'{"walletAddresses": ["' + b"a" * 200_000, "application/json", "larger than"),
    ],
)
async def test_bad_request_is_told_what_would_be_right(
    client: Client, connection: redis.asyncio.Redis, body: bytes, content_type: str, named: str
) -> None:
    response = await client.post(api.SUBMIT_PATH, data=body, headers={"Content-Type": content_type})
    answer = await response.json()

    assert response.status == 400
    assert answer["error"]["code"] == "bad-request"
    assert named in answer["error"]["message"]
    assert await connection.llen(jobs.WAITING_LIST) == 0


@pytest.mark.parametrize("loss", [EmbeddedRedis.kill, EmbeddedRedis.freeze])
async def test_redis_away_is_answered_503(
    own_redis: EmbeddedRedis, aiohttp_client: MakeClient, loss: Callable[[EmbeddedRedis], None]
) -> None:
    async with aclosing(api.connect(own_redis.url)) as connection:
        await connection.ping()
        client = await aiohttp_client(_application(connection))
        loss(own_redis)

        response = await client.post(api.SUBMIT_PATH, json={"walletAddresses": WALLETS})
        answer = await response.json()

    assert response.status == 503
    assert response.headers["Retry-After"] == "1"
    assert answer["error"]["code"] == "unavailable"


async def test_state_of_jobs_can_be_asked_for_until_they_are_unknown(client: Client) -> None:
    job_id = await _submit(client)

    answer = await (await client.get(api.STATES_PATH, params={"ids": f"{job_id},other"})).json()

    assert set(answer["jobs"]) == {job_id}
    assert answer["jobs"][job_id]["status"] == "waiting"
    assert answer["jobs"][job_id]["progress"] == 0


@pytest.mark.parametrize("ids", ["", ",", ",".join(["a"] * 101)])
async def test_state_of_no_job_or_of_too_many_is_refused(client: Client, ids: str) -> None:
    response = await client.get(api.STATES_PATH, params={"ids": ids})

    assert response.status == 400
    assert "1 to 100" in (await response.json())["error"]["message"]


async def test_job_that_waits_is_cancelled_at_once_and_no_other(
    client: Client, connection: redis.asyncio.Redis
) -> None:
    first, second = await _submit(client), await _submit(client)
    async with connection.pubsub() as watching:
        await watching.psubscribe("jobs:*")
        assert await watching.get_message(timeout=5) is not None

        response = await client.post(api.CANCEL_PATH.format(jobId=first))
        told = await watching.get_message(timeout=5)
    again = await client.post(api.CANCEL_PATH.format(jobId=first))

    assert response.status == 202
    assert told is not None
    payload = orjson.loads(told["data"])
    assert (payload["event"], payload["jobId"]) == ("job-failed", first)
    assert payload["status"] == "cancelled"
    assert again.status == 409
    waiting: list[Any] = await connection.lrange(jobs.WAITING_LIST, 0, -1)
    assert [orjson.loads(document)["jobId"] for document in waiting] == [second]


async def test_job_at_work_is_marked_to_be_cancelled(
    client: Client, connection: redis.asyncio.Redis
) -> None:
    job_id = await _submit(client)
    await connection.lpop(jobs.WAITING_LIST)

    response = await client.post(api.CANCEL_PATH.format(jobId=job_id))

    assert response.status == 202
    assert await connection.exists(jobs.cancel_key(job_id))


async def test_unknown_job_cannot_be_cancelled(client: Client) -> None:
    response = await client.post(api.CANCEL_PATH.format(jobId="nobody"))

    assert response.status == 404


async def test_example_can_be_submitted_as_it_is(client: Client) -> None:
    example: Any = await (await client.get(api.EXAMPLE_PATH)).json()

    response = await client.post(api.SUBMIT_PATH, json=example)

    assert response.status == 202
    assert len(example["walletAddresses"]) == 200


async def test_page_and_all_it_loads_come_from_here_under_a_strict_policy(client: Client) -> None:
    page = await client.get("/")
    text = await page.text()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', text)
    answers = [await client.get(path) for path in loaded]

    assert page.headers["Content-Security-Policy"].startswith(
        "default-src 'self'; connect-src 'self'"
    )
    assert page.content_type == "text/html"
    assert [answer.status for answer in answers] == [200] * len(loaded)
    assert {answer.content_type for answer in answers} == {
        "text/css", "text/javascript", "image/svg+xml",
    }  # fmt: skip
    # What the policy would refuse.
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
