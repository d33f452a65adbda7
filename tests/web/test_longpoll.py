"""Long polls: held until there is something newer, watching meanwhile, and never longer than asked."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest

from relay import Publisher
from relay.demo.embedded import EmbeddedRedis
from tests.web.conftest import NO_PROXY, SOON_SECONDS, Json, Running, Serve

EVERY_LOOP = True


async def get(relay: Running, path: str, headers: Mapping[str, str] | None = None) -> Any:
    """Status and body of the answer."""
    async with (
        asyncio.timeout(SOON_SECONDS),
        relay.http.get(f"{relay.public}{path}", headers=headers) as answer,
    ):
        return answer.status, json.loads(body) if (body := await answer.read()) else None


async def held(relay: Running, tasks: asyncio.TaskGroup, path: str) -> asyncio.Task[Any]:
    """A poll that waits for its job."""
    before = await relay.metric("relay_subscriptions", kind="job")
    poll = tasks.create_task(get(relay, path))
    await relay.metric_reaches(before + 1, "relay_subscriptions", kind="job")
    return poll


async def with_job(
    serve: Serve, settings: Mapping[str, object] | None = None
) -> tuple[Running, Json]:
    """A relay that knows a job, and the job's document."""
    relay = await serve(settings)
    await relay.subscribed()
    await relay.publish(progress=10)
    return relay, await relay.known("job", progress=10)


async def test_what_is_known_is_told_at_once(serve: Serve) -> None:
    relay, document = await with_job(serve)

    assert await get(relay, "/jobs/job?wait=60") == (200, document)


async def test_unknown_job_is_waited_for(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    async with asyncio.TaskGroup() as tasks:
        poll = await held(relay, tasks, "/jobs/job?wait=60")
        await relay.publish(progress=5)
        status, document = await poll

    assert (status, document["progress"]) == (200, 5)
    assert await relay.metric("relay_messages_unwatched_total") == 0
    assert await relay.metric("relay_subscriptions", kind="job") == 0


async def test_client_that_has_the_newest_is_answered_with_the_next(serve: Serve) -> None:
    relay, document = await with_job(serve)
    async with asyncio.TaskGroup() as tasks:
        poll = await held(relay, tasks, f"/jobs/job?wait=60&since={document['id']}")
        await relay.publish("other", progress=1)
        await relay.publish(event="job-completed", result="done")
        status, newer = await poll

    assert (status, newer["status"], newer["result"]) == (200, "completed", "done")


@pytest.mark.parametrize("wait", ["", "wait=60&"])
async def test_client_that_has_something_older_is_answered_at_once(serve: Serve, wait: str) -> None:
    relay, document = await with_job(serve)

    assert await get(relay, f"/jobs/job?{wait}since=older") == (200, document)


@pytest.mark.parametrize("wait", ["", "wait=0&", "wait=0.05&"])
async def test_time_is_over_with_nothing_newer(serve: Serve, wait: str) -> None:
    relay, document = await with_job(serve)

    assert await get(relay, f"/jobs/job?{wait}since={document['id']}") == (204, None)
    assert await relay.metric("relay_subscriptions", kind="job") == 0


async def test_time_is_over_and_the_job_still_unknown(serve: Serve) -> None:
    relay = await serve()

    status, body = await get(relay, "/jobs/job?wait=0.05")

    assert (status, body["error"]["code"]) == (404, "not-found")


@pytest.mark.parametrize("wait", ["60.1", "-1", "nan", "inf", "soon", ""])
async def test_wait_is_a_number_of_seconds_within_a_minute(serve: Serve, wait: str) -> None:
    relay = await serve()

    status, body = await get(relay, f"/jobs/job?wait={wait}")

    assert (status, body["error"]["code"]) == (400, "bad-request")


async def test_queue_name_narrows_what_is_waited_for(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    async with asyncio.TaskGroup() as tasks:
        poll = await held(relay, tasks, "/jobs/job?wait=60&queueName=q1")
        await relay.publish("job", "q2", progress=2)
        await relay.publish("job", "q1", progress=1)
        _, document = await poll

    assert (document["queueName"], document["progress"]) == ("q1", 1)


async def test_task_that_ended_unheard_is_read_from_redis(serve: Serve) -> None:
    relay = await serve({"source.tasks.kind": "celery"})
    await relay.subscribed()
    key = "celery-task-meta-unheard"
    await relay.redis.set(key, json.dumps({"status": "SUCCESS", "result": 7, "task_id": "unheard"}))

    status, document = await get(relay, "/jobs/unheard?wait=60")
    await relay.redis.delete(key)

    assert (status, document["status"], document["result"]) == (200, "completed", 7)


async def test_job_that_ended_before_the_relay_started_is_seen_to_end(
    serve: Serve, shared_redis: EmbeddedRedis
) -> None:
    job_id = f"ended-{uuid4()}"
    async with Publisher(shared_redis.url, history=True) as publisher:
        await publisher.completed(job_id, "done", queue="q")
    relay = await serve({"history.backend": "redis"})
    await relay.subscribed()

    status, document = await get(relay, f"/jobs/{job_id}?wait=60&since=older")

    assert (status, document["status"], document["result"]) == (200, "completed", "done")


async def test_without_history_only_what_comes_is_told(serve: Serve) -> None:
    relay = await serve({"history.backend": "off"})
    await relay.subscribed()
    async with asyncio.TaskGroup() as tasks:
        first = await held(relay, tasks, "/jobs/job?wait=60")
        await relay.publish(progress=1)
        assert (await first)[1]["progress"] == 1
        second = await held(relay, tasks, "/jobs/job?wait=60")
        await relay.publish(progress=2)
        _, document = await second
    over = await get(relay, "/jobs/job?wait=0.05")

    assert document["progress"] == 2
    assert over[0] == 404


async def test_one_event_answers_all_who_wait_for_it(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    async with asyncio.TaskGroup() as tasks:
        polls = [await held(relay, tasks, "/jobs/job?wait=60") for _ in range(5)]
        await relay.publish(progress=5)
        answers = [await poll for poll in polls]

    assert [document["progress"] for _, document in answers] == [5] * 5


async def test_client_that_has_gone_is_waited_for_no_more(serve: Serve) -> None:
    relay = await serve()
    client = await relay.raw()
    await client.send(b"GET /jobs/job?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await relay.metric_reaches(1, "relay_subscriptions", kind="job")

    client.socket.close()

    await relay.metric_reaches(0, "relay_subscriptions", kind="job")


async def test_draining_relay_answers_who_waits_and_says_when_to_ask_again(serve: Serve) -> None:
    relay = await serve({"server.drain_seconds": 0.1})
    client = await relay.raw()
    await client.send(b"GET /jobs/job?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await relay.metric_reaches(1, "relay_subscriptions", kind="job")

    await relay.relay.drain()
    answer = await client.answer()

    assert (answer.status, answer.error["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_polls_count_for_their_address_while_they_wait(serve: Serve) -> None:
    relay = await serve(NO_PROXY | {"limits.max_connections_per_address": 1})
    client = await relay.raw()
    await client.send(b"GET /jobs/job?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await relay.metric_reaches(1, "relay_subscriptions", kind="job")

    other = await relay.raw()
    await other.send(b"GET /jobs/job?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    refused = await other.answer()
    client.socket.close()
    await relay.metric_reaches(0, "relay_subscriptions", kind="job")
    other = await relay.raw()
    await other.send(b"GET /jobs/job?wait=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    granted = await other.answer()

    assert (refused.status, granted.status) == (429, 404)


async def test_held_answer_bears_the_document_s_etag(serve: Serve) -> None:
    relay, _ = await with_job(serve)
    async with relay.http.get(f"{relay.public}/jobs/job") as answer:
        etag = answer.headers["ETag"]

    assert await get(relay, "/jobs/job?wait=60", {"If-None-Match": etag}) == (304, None)
