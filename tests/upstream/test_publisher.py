"""What publishers send, where it goes, and what happens when Redis does not take it."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from relay.core.event import is_name
from relay.demo.embedded import EmbeddedRedis
from relay.sources.channel import ChannelSource
from relay.upstream.publisher import (
    DEFAULT_CHANNEL,
    Publisher,
    SyncPublisher,
    compose,
    error_fields,
    flat_payload,
    parse_template,
)

TEMPLATE = parse_template(DEFAULT_CHANNEL)
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40).filter(
    is_name
)


@pytest.fixture
async def subscriber(shared_redis: EmbeddedRedis) -> AsyncIterator[PubSub]:
    """Gets whatever is published under `jobs:`."""
    async with redis.asyncio.Redis.from_url(shared_redis.url) as client, client.pubsub() as pubsub:
        await pubsub.psubscribe("jobs:*")
        await pubsub.get_message(timeout=5)
        yield pubsub


async def received(subscriber: PubSub) -> tuple[str, dict[str, Any]]:
    message = await subscriber.get_message(timeout=5)
    assert message is not None
    return message["channel"].decode(), json.loads(message["data"])


def test_a_payload_says_who_and_what_and_leaves_out_what_is_not_known() -> None:
    assert flat_payload("job-progress", "a", {"progress": 45}, None, None, None, 7) == {
        "event": "job-progress", "jobId": "a", "progress": 45, "ts": 7
    }  # fmt: skip


def test_a_payload_carries_queue_status_and_data() -> None:
    payload = flat_payload("job-progress", "a", {}, "q", "queued", {"stage": "x"}, 7)

    assert payload == {
        "event": "job-progress", "jobId": "a", "queueName": "q",
        "status": "queued", "data": {"stage": "x"}, "ts": 7,
    }  # fmt: skip


def test_a_text_as_error_is_passed_on() -> None:
    assert error_fields("disk full") == {"error": "disk full"}


def test_an_exception_as_error_tells_its_type_and_its_text() -> None:
    assert error_fields(ValueError("no such wallet")) == {
        "error": "ValueError", "failedReason": "no such wallet"
    }  # fmt: skip


def test_an_exception_without_text_gives_no_reason() -> None:
    assert error_fields(TimeoutError()) == {"error": "TimeoutError"}


def test_an_integer_job_becomes_its_digits() -> None:
    assert compose(TEMPLATE, {"jobId": 12, "queueName": "q"}).channel == "jobs:q:12"


@pytest.mark.parametrize(
    "payload",
    [
        {"jobId": "a", "queueName": "q"},
        {"job_id": "a", "queue_name": "q"},
        {"id": "a", "queue": "q"},
    ],
)
def test_every_spelling_of_the_names_leads_to_the_channel(payload: dict[str, Any]) -> None:
    assert compose(TEMPLATE, payload).channel == "jobs:q:a"


def test_a_short_event_name_is_written_out_in_the_channel() -> None:
    template = parse_template("e.{event}.{jobId}")

    assert compose(template, {"jobId": "a", "event": "failed"}).channel == "e.job-failed.a"


@pytest.mark.parametrize(
    ("payload", "advice"),
    [
        ({"queueName": "q"}, "jobId"),
        ({"event": "job-progress", "data": {"jobId": "a", "queueName": "q"}}, "jobId"),
        ({"jobId": "", "queueName": "q"}, "1 to 256"),
        ({"jobId": "a\nb", "queueName": "q"}, "1 to 256"),
        ({"jobId": "a" * 257, "queueName": "q"}, "1 to 256"),
        ({"jobId": "\ud800", "queueName": "q"}, "1 to 256"),
        ({"jobId": True, "queueName": "q"}, "cannot name a job"),
        ({"jobId": "a", "queueName": 5.5}, "cannot name a queue"),
        ({"jobId": "a", "queueName": "q", "data": {1, 2}}, "no JSON"),
    ],
)
def test_what_the_relay_could_not_place_is_refused_with_advice(
    payload: dict[str, Any], advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        compose(TEMPLATE, payload)


def test_a_job_whose_publisher_names_no_queue_is_in_the_default_one() -> None:
    assert compose(TEMPLATE, {"jobId": "a"}).channel == "jobs:default:a"


def test_a_template_with_the_event_asks_for_it() -> None:
    with pytest.raises(ValueError, match="job-progress"):
        compose(parse_template("e.{event}.{jobId}"), {"jobId": "a", "status": "done"})


def test_a_queue_that_the_relay_would_split_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="would be read as"):
        compose(TEMPLATE, {"jobId": "job", "queueName": "two:parts"})


def test_a_template_that_is_none_is_named_in_the_fault() -> None:
    with pytest.raises(ValueError, match=r"channel template 'jobs:\{job\}'"):
        parse_template("jobs:{job}")


@given(job=NAMES, queue=NAMES.filter(lambda name: ":" not in name))
def test_the_relay_reads_back_what_was_composed(job: str, queue: str) -> None:
    source = ChannelSource(TEMPLATE)
    payload = flat_payload("job-progress", job, {"progress": 45}, queue, None, None, 7)
    message = compose(TEMPLATE, payload)

    identity = source.identify(message.channel.encode())
    assert identity is not None
    draft = source.parse(identity, message.payload)

    assert (draft.job_id, draft.queue, draft.fields["progress"]) == (job, queue, 45)


async def test_events_arrive_on_the_jobs_channel_and_receivers_are_counted(
    shared_redis: EmbeddedRedis, subscriber: PubSub
) -> None:
    async with Publisher(shared_redis.url) as publisher:
        counts = [
            await publisher.progress("a", 45, queue="q"),
            await publisher.completed("a", None, queue="q"),
            await publisher.failed("b:1", "broken", queue="q", status="cancelled"),
        ]

    arrived = [await received(subscriber) for _ in counts]
    assert counts == [1, 1, 1]
    assert [(channel, payload["event"]) for channel, payload in arrived] == [
        ("jobs:q:a", "job-progress"),
        ("jobs:q:a", "job-completed"),
        ("jobs:q:b:1", "job-failed"),
    ]
    assert (arrived[0][1]["progress"], arrived[1][1]["result"]) == (45, None)
    assert (arrived[2][1]["error"], arrived[2][1]["status"]) == ("broken", "cancelled")
    assert abs(arrived[0][1]["ts"] - time.time() * 1000) < 60_000


async def test_a_payload_is_sent_as_it_is(shared_redis: EmbeddedRedis, subscriber: PubSub) -> None:
    payload = {"jobId": "a", "queueName": "q", "event": "job-stalled", "own": [1]}

    async with Publisher(shared_redis.url) as publisher:
        await publisher.publish(payload)

    assert await received(subscriber) == ("jobs:q:a", payload)


async def test_concurrent_calls_arrive_in_their_order(
    shared_redis: EmbeddedRedis, subscriber: PubSub
) -> None:
    async with Publisher(shared_redis.url) as publisher:
        await asyncio.gather(*(publisher.progress("a", n, queue="q") for n in range(100)))

    assert [(await received(subscriber))[1]["progress"] for _ in range(100)] == list(range(100))


async def test_the_sync_publisher_says_the_same(
    shared_redis: EmbeddedRedis, subscriber: PubSub
) -> None:
    with SyncPublisher(shared_redis.url) as publisher:
        publisher.progress("a", 45, queue="q", data={"stage": "x"})
        publisher.completed("a", [1], queue="q")
        publisher.failed("a", ValueError("why"), queue="q")

    arrived = [(await received(subscriber))[1] for _ in range(3)]
    assert [payload["event"] for payload in arrived] == [
        "job-progress", "job-completed", "job-failed"
    ]  # fmt: skip
    assert (arrived[0]["data"], arrived[1]["result"]) == ({"stage": "x"}, [1])


async def test_threads_may_share_a_sync_publisher(
    shared_redis: EmbeddedRedis, subscriber: PubSub
) -> None:
    with SyncPublisher(shared_redis.url) as publisher:
        threads = [
            threading.Thread(target=publisher.progress, args=(f"job-{n}", n), kwargs={"queue": "q"})
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    arrived = {(await received(subscriber))[0] for _ in threads}
    assert arrived == {f"jobs:q:job-{n}" for n in range(8)}


async def test_a_server_that_was_restarted_costs_no_message(own_redis: EmbeddedRedis) -> None:
    async with Publisher(own_redis.url) as publisher:
        await publisher.progress("a", 1, queue="q")
        own_redis.restart()

        assert await publisher.progress("a", 2, queue="q") == 0


def test_a_restart_costs_the_sync_publisher_no_message_either(own_redis: EmbeddedRedis) -> None:
    with SyncPublisher(own_redis.url) as publisher:
        publisher.progress("a", 1, queue="q")
        own_redis.restart()

        assert publisher.progress("a", 2, queue="q") == 0


async def test_a_frozen_server_is_asked_once_and_given_up(own_redis: EmbeddedRedis) -> None:
    async with Publisher(own_redis.url, timeout_seconds=1) as publisher:
        await publisher.progress("a", 1, queue="q")
        own_redis.freeze()
        started_at = time.monotonic()

        with pytest.raises(RedisError):
            await publisher.progress("a", 2, queue="q")

    assert time.monotonic() - started_at < 1.9


def test_a_frozen_server_does_not_hold_the_sync_publisher_either(own_redis: EmbeddedRedis) -> None:
    with SyncPublisher(own_redis.url, timeout_seconds=0.3) as publisher:
        publisher.progress("a", 1, queue="q")
        own_redis.freeze()
        started_at = time.monotonic()

        with pytest.raises(RedisError):
            publisher.progress("a", 2, queue="q")

    assert time.monotonic() - started_at < 2


async def test_a_server_that_is_away_is_told_to_the_caller(own_redis: EmbeddedRedis) -> None:
    own_redis.kill()

    async with Publisher(own_redis.url) as publisher:
        with pytest.raises(RedisError):
            await publisher.progress("a", 2, queue="q")


async def test_a_password_beside_the_url_is_used() -> None:
    with EmbeddedRedis(("--requirepass", "secret")) as server:
        async with Publisher(server.url, password="secret") as publisher:
            assert await publisher.progress("a", 1, queue="q") == 0


async def test_a_unix_socket_serves_as_well(shared_redis: EmbeddedRedis) -> None:
    async with Publisher(f"unix://{shared_redis.unix_path}") as publisher:
        assert await publisher.progress("a", 1, queue="q") == 0


def test_importing_the_package_loads_no_redis_client() -> None:
    script = (
        "import sys, relay\n"
        "assert not {'redis', 'asyncio', 'aiohttp'} & sys.modules.keys()\n"
        "assert relay.Publisher and relay.SyncPublisher\n"
        "assert 'redis' in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", script], check=True)
