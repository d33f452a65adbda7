"""The worker as a process of its own, seen through Redis alone."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
import redis

from relay.demo import jobs
from relay.demo.embedded import EmbeddedRedis
from relay.demo.similarity import Request, example_wallets
from relay.demo.worker import Worker

WALLETS = example_wallets(30, seed="worker")
# A minute of work.
LONG_ONE = Request(wallets=example_wallets(400, seed="long"))


@pytest.fixture
def connection(shared_redis: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(shared_redis.url) as connection:
        connection.flushall()
        yield connection


@contextmanager
def worker(url: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "relay.demo.worker", "--redis", url]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def watch(connection: redis.Redis) -> Iterator[Callable[[], dict[str, Any]]]:
    """Gives the function that waits for the next event of any job."""
    with connection.pubsub() as watching:  # type: ignore[no-untyped-call]
        watching.psubscribe("jobs:*")
        assert watching.get_message(timeout=5) is not None

        def next_event() -> dict[str, Any]:
            message = watching.get_message(timeout=20)
            assert message is not None, "no event came"
            document: dict[str, Any] = orjson.loads(message["data"])
            assert message["channel"].decode() == jobs.channel(document["jobId"])
            return document

        yield next_event


def until_the_end(next_event: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    events = [next_event()]
    while events[-1]["event"] == "job-progress":
        events.append(next_event())
    return events


def push(connection: redis.Redis, job_id: str, request: Any) -> None:
    connection.rpush(jobs.WAITING_LIST, orjson.dumps({"jobId": job_id, "request": request}))


def test_job_is_followed_from_its_start_to_its_result(
    shared_redis: EmbeddedRedis, connection: redis.Redis
) -> None:
    with watch(connection) as next_event, worker(shared_redis.url):
        push(connection, "similarity-1", Request(wallets=WALLETS).as_json())
        events = until_the_end(next_event)

    assert {event["jobId"] for event in events} == {"similarity-1"}
    assert {event["queueName"] for event in events} == {"similarity-operations"}
    first, *middle, last = events
    assert (first["progress"], first["status"]) == (0, "active")
    progress = [event["progress"] for event in events]
    assert progress == sorted(progress)
    assert {event["data"]["stage"] for event in middle} == {"wallets", "pairs"}
    assert middle[-1]["data"]["pairsTotal"] == 435
    assert last["event"] == "job-completed"
    assert last["result"]["pairs"] == 435
    assert last["processingTime"] > 0


def test_job_with_an_invalid_address_fails_with_that_address_and_the_next_one_runs(
    shared_redis: EmbeddedRedis, connection: redis.Redis
) -> None:
    bad, good = Request(wallets=(*WALLETS, "0OIl")), Request(wallets=WALLETS[:2])

    with watch(connection) as next_event, worker(shared_redis.url):
        push(connection, "similarity-bad", bad.as_json())
        push(connection, "similarity-good", good.as_json())
        failed = until_the_end(next_event)[-1]
        completed = until_the_end(next_event)[-1]

    assert (failed["event"], failed["jobId"]) == ("job-failed", "similarity-bad")
    assert (failed["status"], failed["error"]) == ("failed", "invalid-addresses")
    assert "0OIl" in failed["failedReason"]
    assert (completed["event"], completed["jobId"]) == ("job-completed", "similarity-good")


@pytest.mark.parametrize(
    ("document", "job_id", "error"),
    [
        (b'{"jobId": "j", "request": {"walletAddresses": []}}', "j", "bad-request"),
        (b'{"jobId": "j"}', "j", "internal"),
        (b"not JSON", "unreadable", "internal"),
    ],
)
def test_job_that_cannot_be_run_fails_in_words(
    connection: redis.Redis, document: bytes, job_id: str, error: str
) -> None:
    with watch(connection) as next_event:
        Worker(connection).run_job(document)
        last = until_the_end(next_event)[-1]

    assert (last["event"], last["jobId"], last["error"]) == ("job-failed", job_id, error)


def test_job_of_a_killed_worker_is_failed_by_the_next_one(
    shared_redis: EmbeddedRedis, connection: redis.Redis
) -> None:
    push(connection, "similarity-long", LONG_ONE.as_json())
    with watch(connection) as next_event:
        with worker(shared_redis.url) as first:
            assert next_event()["event"] == "job-progress"
            first.kill()
            first.wait()
        with worker(shared_redis.url):
            last = until_the_end(next_event)[-1]

    assert (last["event"], last["error"]) == ("job-failed", "worker-lost")


def test_job_that_is_to_be_cancelled_ends_so_and_the_next_one_runs(
    shared_redis: EmbeddedRedis, connection: redis.Redis
) -> None:
    push(connection, "similarity-long", LONG_ONE.as_json())
    push(connection, "similarity-next", Request(wallets=WALLETS[:2]).as_json())

    with watch(connection) as next_event, worker(shared_redis.url):
        assert next_event()["status"] == "active"
        connection.set(jobs.cancel_key("similarity-long"), b"1")
        cancelled = until_the_end(next_event)[-1]
        completed = until_the_end(next_event)[-1]

    assert (cancelled["event"], cancelled["jobId"]) == ("job-failed", "similarity-long")
    assert (cancelled["status"], cancelled["error"]) == ("cancelled", "cancelled")
    assert (completed["event"], completed["jobId"]) == ("job-completed", "similarity-next")


def test_newest_state_of_a_job_is_kept_for_who_was_not_listening(connection: redis.Redis) -> None:
    document = orjson.dumps({"jobId": "j", "request": Request(wallets=WALLETS[:2]).as_json()})

    with watch(connection) as next_event:
        Worker(connection).run_job(document)
        last = until_the_end(next_event)[-1]

    kept = connection.get(jobs.state_key("j"))
    assert isinstance(kept, bytes)
    assert orjson.loads(kept) == last
    assert connection.ttl(jobs.state_key("j")) == jobs.KEEP_SECONDS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_working_worker_at_once(
    shared_redis: EmbeddedRedis, connection: redis.Redis, number: signal.Signals
) -> None:
    push(connection, "similarity-long", LONG_ONE.as_json())

    with watch(connection) as next_event, worker(shared_redis.url) as process:
        next_event()
        process.send_signal(number)
        exit_code = process.wait(timeout=2)

    assert exit_code == -number


def test_worker_that_has_lost_redis_ends_and_says_so(own_redis: EmbeddedRedis) -> None:
    url = own_redis.url
    own_redis.stop()

    with worker(url) as process:
        _, said = process.communicate(timeout=30)

    assert process.returncode == 1
    assert b"lost Redis" in said
    assert b"Traceback" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_worker_dies_with_a_parent_that_is_killed(
    shared_redis: EmbeddedRedis, connection: redis.Redis
) -> None:
    script = (
        "import subprocess, sys\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'relay.demo.worker', '--redis', sys.argv[1]])\n"
        "print(worker.pid, flush=True)\n"
        "worker.wait()\n"
    )
    push(connection, "similarity-long", LONG_ONE.as_json())
    with (
        watch(connection) as next_event,
        subprocess.Popen(
            [sys.executable, "-c", script, shared_redis.url], stdout=subprocess.PIPE
        ) as parent,
    ):
        assert parent.stdout is not None
        process = os.pidfd_open(int(parent.stdout.readline()))
        next_event()

        parent.kill()
        gone, _, _ = select.select([process], [], [], 5)

    assert gone == [process]
    os.close(process)
