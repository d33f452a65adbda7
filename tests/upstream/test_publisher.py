"""What publishers send, what they keep in durable history, and what happens when Redis is away."""

import asyncio
import inspect
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
import redis
import redis.asyncio
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError, ResponseError

from relay.demo.embedded import EmbeddedRedis
from relay.upstream.durable import DurableHistory
from relay.upstream.publisher import Publisher, Receipt, SyncPublisher

PUBLISHING = Path(__file__).parents[2] / "docs" / "publishing.md"

Entry: TypeAlias = tuple[str, dict[str, str]]


@pytest.fixture
async def subscriber(shared_redis: EmbeddedRedis) -> AsyncIterator[PubSub]:
    """Gets whatever is published under `jobs:`."""
    async with redis.asyncio.Redis.from_url(shared_redis.url) as client, client.pubsub() as pubsub:
        await pubsub.psubscribe("jobs:*")
        await pubsub.get_message(timeout=5)
        yield pubsub


@pytest.fixture
def client(shared_redis: EmbeddedRedis) -> Iterator[redis.Redis]:
    """Sees what lies in Redis."""
    with redis.Redis.from_url(shared_redis.url, protocol=2, decode_responses=True) as client:
        yield client


@pytest.fixture
def job() -> str:
    """A job that no other test has told of."""
    return f"job-{uuid4().hex}"


def stored(client: redis.Redis, job: str, prefix: str = "relay:history:") -> list[Entry]:
    entries: list[Entry] = client.xrange(f"{prefix}{job}")  # type: ignore[assignment]
    return entries


async def received(subscriber: PubSub) -> tuple[str, dict[str, Any]]:
    message = await subscriber.get_message(timeout=5)
    assert message is not None
    return message["channel"].decode(), json.loads(message["data"])


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
    assert counts == [Receipt(receivers=1)] * 3
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

        assert await publisher.progress("a", 2, queue="q") == Receipt(receivers=0)


def test_a_restart_costs_the_sync_publisher_no_message_either(own_redis: EmbeddedRedis) -> None:
    with SyncPublisher(own_redis.url) as publisher:
        publisher.progress("a", 1, queue="q")
        own_redis.restart()

        assert publisher.progress("a", 2, queue="q") == Receipt(receivers=0)


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
            assert await publisher.progress("a", 1, queue="q") == Receipt(receivers=0)


async def test_a_unix_socket_serves_as_well(shared_redis: EmbeddedRedis) -> None:
    async with Publisher(f"unix://{shared_redis.unix_path}") as publisher:
        assert await publisher.progress("a", 1, queue="q") == Receipt(receivers=0)


# --- durable history ------------------------------------------------------------


async def test_an_event_is_stored_and_published_under_one_id(
    shared_redis: EmbeddedRedis, subscriber: PubSub, client: redis.Redis, job: str
) -> None:
    async with Publisher(shared_redis.url, history=True) as publisher:
        receipt = await publisher.progress(job, 45, queue="q", key="k")

    ((event_id, fields),) = stored(client, job)
    channel, payload = await received(subscriber)
    assert receipt == Receipt(event_id=event_id)
    assert (channel, payload.pop("eventId")) == (f"jobs:q:{job}", event_id)
    assert json.loads(fields.pop("payload")) == payload
    assert fields == {"event": "job-progress", "queueName": "q", "key": "k"}
    assert (payload["jobId"], payload["progress"]) == (job, 45)


def test_the_sync_publisher_stores_the_same(
    shared_redis: EmbeddedRedis, client: redis.Redis, job: str
) -> None:
    with SyncPublisher(shared_redis.url, history=True) as publisher:
        receipts = [
            publisher.progress(job, 45, key="1"),
            publisher.completed(job, {"n": 1}, key="2"),
            publisher.failed(job, "why", key="3"),
            publisher.publish({"jobId": job, "status": "queued"}, key="4"),
        ]

    entries = stored(client, job)
    assert [receipt.event_id for receipt in receipts] == [event_id for event_id, _ in entries]
    assert [(fields["event"], fields["queueName"], fields["key"]) for _, fields in entries] == [
        ("job-progress", "default", "1"),
        ("job-completed", "default", "2"),
        ("job-failed", "default", "3"),
        ("", "default", "4"),
    ]


def test_a_history_of_ones_own_decides_where_how_much_and_how_long(
    shared_redis: EmbeddedRedis, client: redis.Redis, job: str
) -> None:
    history = DurableHistory(prefix="own:", max_events=3, ttl_seconds=50)

    with SyncPublisher(shared_redis.url, history=history) as publisher:
        receipts = [publisher.progress(job, n, queue=job) for n in range(5)]

    assert [event_id for event_id, _ in stored(client, job, "own:")] == [
        receipt.event_id for receipt in receipts[2:]
    ]
    assert 0 < client.ttl(f"own:{job}") <= 50
    assert 0 < client.ttl(f"own:queue:{job}") <= 50


def test_a_queues_jobs_are_noted_by_the_time_of_their_last_event(
    shared_redis: EmbeddedRedis, client: redis.Redis, job: str
) -> None:
    started_at_ms = time.time() * 1000 - 1

    with SyncPublisher(shared_redis.url, history=True) as publisher:
        publisher.progress("a", 1, queue=job)
        publisher.progress("b", 1, queue=job)
        publisher.progress("a", 2, queue=job)

    noted = f"relay:history:queue:{job}"
    a_ms, b_ms = client.zscore(noted, "a"), client.zscore(noted, "b")
    assert client.zcard(noted) == 2
    assert a_ms is not None
    assert b_ms is not None
    assert a_ms >= b_ms >= started_at_ms


def test_a_queue_has_no_more_than_its_newest_ten_thousand_jobs(
    shared_redis: EmbeddedRedis, client: redis.Redis, job: str
) -> None:
    noted = f"relay:history:queue:{job}"
    client.zadd(noted, {f"old-{n}": n for n in range(10_000)})

    with SyncPublisher(shared_redis.url, history=True) as publisher:
        publisher.progress(job, 1, queue=job)

    assert client.zcard(noted) == 10_000
    assert client.zrange(noted, 0, 0) == ["old-1"]
    assert client.zrange(noted, -1, -1) == [job]


def test_a_job_of_no_queue_is_noted_nowhere(
    shared_redis: EmbeddedRedis, client: redis.Redis, job: str
) -> None:
    history = DurableHistory(prefix=f"{job}:")

    with SyncPublisher(shared_redis.url, channel="own.{jobId}", history=history) as publisher:
        publisher.progress("a", 1)

    assert list(client.scan_iter(f"{job}:*")) == [f"{job}:a"]


def test_an_event_goes_out_though_its_queue_cannot_be_noted(
    shared_redis: EmbeddedRedis, client: redis.Redis, job: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.set(f"relay:history:queue:{job}", "no sorted set")

    with SyncPublisher(shared_redis.url, history=True) as publisher:
        publisher.progress(job, 1, queue=job)
        publisher.progress(job, 2, queue=job)

    assert len(stored(client, job)) == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "allow ZADD" in caplog.text


async def test_a_retry_with_the_same_key_is_told_once(
    shared_redis: EmbeddedRedis, subscriber: PubSub, client: redis.Redis, job: str
) -> None:
    async with Publisher(shared_redis.url, history=True) as publisher:
        first = await publisher.completed(job, 1, queue="q", key="end")
        await publisher.progress(job, 1, queue="q", status="active", key="again")
        retry = await publisher.completed(job, 1, queue="q", key="end")

    assert retry == first
    assert len(stored(client, job)) == 2
    assert [(await received(subscriber))[1]["event"] for _ in range(2)] == [
        "job-completed", "job-progress"
    ]  # fmt: skip
    assert await subscriber.get_message(timeout=0) is None


async def test_without_a_key_a_repetition_is_told_again(
    shared_redis: EmbeddedRedis, client: redis.Redis, job: str
) -> None:
    async with Publisher(shared_redis.url, history=True) as publisher:
        await publisher.completed(job, 1)
        await publisher.completed(job, 1)

    assert len(stored(client, job)) == 2


async def test_of_many_publishers_with_one_key_one_is_told(
    shared_redis: EmbeddedRedis, client: redis.Redis, job: str
) -> None:
    publishers = [Publisher(shared_redis.url, history=True) for _ in range(20)]

    receipts = await asyncio.gather(*(each.completed(job, 1, key="end") for each in publishers))
    await asyncio.gather(*(each.aclose() for each in publishers))

    ((event_id, _),) = stored(client, job)
    assert set(receipts) == {Receipt(event_id=event_id)}


async def test_concurrent_calls_are_stored_in_their_order(
    shared_redis: EmbeddedRedis, client: redis.Redis, job: str
) -> None:
    async with Publisher(shared_redis.url, history=True) as publisher:
        await asyncio.gather(*(publisher.progress(job, n, key=str(n)) for n in range(50)))

    assert [fields["key"] for _, fields in stored(client, job)] == [str(n) for n in range(50)]


async def test_the_streams_id_takes_the_place_of_one_in_the_payload(
    shared_redis: EmbeddedRedis, subscriber: PubSub, job: str
) -> None:
    async with Publisher(shared_redis.url, history=True) as publisher:
        receipt = await publisher.publish({"jobId": job, "eventId": "mine"})

    assert (await received(subscriber))[1]["eventId"] == receipt.event_id


async def test_without_history_an_event_id_in_the_payload_is_sent(
    shared_redis: EmbeddedRedis, subscriber: PubSub, job: str
) -> None:
    async with Publisher(shared_redis.url) as publisher:
        await publisher.publish({"jobId": job, "eventId": "mine"})

    assert (await received(subscriber))[1]["eventId"] == "mine"


async def test_a_server_that_has_forgotten_the_script_is_given_it_again(
    shared_redis: EmbeddedRedis, client: redis.Redis, job: str
) -> None:
    async with Publisher(shared_redis.url, history=True) as publisher:
        await publisher.progress(job, 1)
        client.script_flush()
        await publisher.progress(job, 2)
        await publisher.progress(job, 3)

    told = [json.loads(fields["payload"])["progress"] for _, fields in stored(client, job)]
    assert told == [1, 2, 3]


async def test_a_restart_costs_no_event_and_no_script(own_redis: EmbeddedRedis) -> None:
    async with Publisher(own_redis.url, history=True) as publisher:
        await publisher.progress("a", 1, key="1")
        own_redis.restart()

        receipt = await publisher.progress("a", 2, key="2")

    with redis.Redis.from_url(own_redis.url, decode_responses=True) as client:
        assert [event_id for event_id, _ in stored(client, "a")] == [receipt.event_id]


def test_a_restart_costs_the_sync_publisher_no_event_either(own_redis: EmbeddedRedis) -> None:
    with SyncPublisher(own_redis.url, history=True) as publisher:
        publisher.progress("a", 1)
        own_redis.restart()

        assert publisher.progress("a", 2).event_id is not None


async def test_what_a_frozen_server_had_taken_is_not_told_again_on_a_retry(
    own_redis: EmbeddedRedis,
) -> None:
    async with Publisher(own_redis.url, history=True, timeout_seconds=0.5) as publisher:
        await publisher.progress("a", 1, key="start")
        own_redis.freeze()
        with pytest.raises(RedisError):
            await publisher.completed("a", 1, key="end")
        own_redis.resume()

        receipt = await publisher.completed("a", 1, key="end")

    with redis.Redis.from_url(own_redis.url, protocol=2, decode_responses=True) as client:
        (_, (event_id, fields)) = stored(client, "a")
    assert (event_id, fields["key"]) == (receipt.event_id, "end")


async def test_a_cancelled_call_leaves_the_next_one_its_own_answer(
    own_redis: EmbeddedRedis,
) -> None:
    async with Publisher(own_redis.url, history=True) as publisher:
        await publisher.progress("a", 1, key="1")
        own_redis.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await publisher.progress("a", 2, key="2")
        own_redis.resume()

        receipt = await publisher.progress("a", 3, key="3")

    with redis.Redis.from_url(own_redis.url, protocol=2, decode_responses=True) as client:
        ids = {fields["key"]: event_id for event_id, fields in stored(client, "a")}
    assert ids["3"] == receipt.event_id


def test_a_frozen_server_is_asked_once_with_history_too(own_redis: EmbeddedRedis) -> None:
    with SyncPublisher(own_redis.url, history=True, timeout_seconds=1) as publisher:
        publisher.progress("a", 1)
        own_redis.freeze()
        started_at = time.monotonic()

        with pytest.raises(RedisError):
            publisher.progress("a", 2)

    assert time.monotonic() - started_at < 1.9


def test_a_refusal_reaches_the_caller(shared_redis: EmbeddedRedis, client: redis.Redis) -> None:
    client.acl_setuser(
        "narrow",
        enabled=True,
        reset=True,
        reset_channels=True,
        passwords=["+p"],
        keys=["*"],
        categories=["+@all"],
    )

    with (
        SyncPublisher(shared_redis.url, history=True, username="narrow", password="p") as publisher,
        pytest.raises(ResponseError, match="script"),
    ):
        publisher.progress("refused", 1)

    assert stored(client, "refused") == []


def test_the_documented_rights_suffice(
    shared_redis: EmbeddedRedis,
    client: redis.Redis,
    job: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    documented = re.search(r"ACL SETUSER worker(?:\\\n|.)+", PUBLISHING.read_text())
    assert documented is not None
    command = documented[0].replace("\\\n", " ").replace("'", "").split()
    client.execute_command(*command)  # type: ignore[no-untyped-call]

    with SyncPublisher(
        shared_redis.url, history=True, username="worker", password="secret"
    ) as publisher:
        publisher.completed(job, 1, key="end")

    assert len(stored(client, job)) == 1
    assert caplog.records == []


async def test_a_key_without_history_is_refused_with_advice(shared_redis: EmbeddedRedis) -> None:
    async with Publisher(shared_redis.url) as publisher:
        with pytest.raises(ValueError, match="history=True"):
            await publisher.progress("a", 1, key="k")
    with (
        SyncPublisher(shared_redis.url) as sync_publisher,
        pytest.raises(ValueError, match="history=True"),
    ):
        sync_publisher.publish({"jobId": "a"}, key="k")


def test_both_publishers_take_the_same_arguments() -> None:
    methods = ["__init__", "progress", "completed", "failed", "publish", "compose", "send"]

    assert [inspect.signature(getattr(Publisher, name)) for name in methods] == [
        inspect.signature(getattr(SyncPublisher, name)) for name in methods
    ]


# --- the package ------------------------------------------------------------


def test_importing_the_package_loads_no_redis_client() -> None:
    script = (
        "import sys, relay\n"
        "assert not {'redis', 'asyncio', 'aiohttp'} & sys.modules.keys()\n"
        "assert relay.Publisher and relay.SyncPublisher\n"
        "assert 'redis' in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", script], check=True)
