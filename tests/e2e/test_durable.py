"""With durable history a watcher learns how its job ended, whatever went away meanwhile, or is told of a gap."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import redis

from relay import SyncPublisher
from tests.e2e.conftest import Client, Daemon, get

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from relay.demo.embedded import EmbeddedRedis
    from tests.e2e.conftest import Message, Settings, StartDaemon

pytestmark = pytest.mark.e2e

JOB = "job-1"
QUEUE = "q"
PREFIX = "relay:history:"


def on(server: EmbeddedRedis, *, backend: str = "redis", **history: int) -> Settings:
    return {
        "redis": {
            "url": server.url,
            "health_check_seconds": 0.6,
            "connect_timeout_seconds": 0.5,
            "backoff_max_seconds": 0.1,
        },
        "history": {"backend": backend, **history},
    }


class Work:
    """A job's own side: it tells of itself by the script, and remembers the ids that it was given."""

    def __init__(self, publisher: SyncPublisher) -> None:
        self._publisher = publisher
        self.ids: list[str | None] = []

    def progress(self, *percents: int, job: str = JOB) -> None:
        for percent in percents:
            told = self._publisher.progress(job, percent, queue=QUEUE)
            self.ids.append(told.event_id)

    def complete(self, job: str = JOB) -> None:
        self.ids.append(self._publisher.completed(job, {"n": 1}, queue=QUEUE).event_id)


@pytest.fixture
def work(own_redis: EmbeddedRedis) -> Iterator[Work]:
    with SyncPublisher(own_redis.url, history=True) as publisher:
        yield Work(publisher)


def publish_without_the_script(server: EmbeddedRedis, percent: int) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.publish(f"jobs:{QUEUE}:{JOB}", json.dumps({"progress": percent}))


@asynccontextmanager
async def outage(server: EmbeddedRedis, *witnesses: Client) -> AsyncIterator[None]:
    """The relay's link is cut and stays so within, while publishers go on."""
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-psubscribe")
        admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        for witness in witnesses:
            await until_told(witness, "disconnected")
        yield
        admin.execute_command("ACL", "SETUSER", "default", "+psubscribe")


@asynccontextmanager
async def freeze(server: EmbeddedRedis, *witnesses: Client) -> AsyncIterator[None]:
    """The server stands still until the end; what is sent to it meanwhile waits."""
    server.freeze()
    for witness in witnesses:
        await until_told(witness, "disconnected")
    yield
    server.resume()


async def until_told(client: Client, redis_is: str) -> bool:
    """Wait for a `relay-status` that says so of Redis; whether it tells of a gap."""
    while True:
        status = (await client.told("relay-status"))["data"]
        if status["redis"] == redis_is:
            gap: bool = status["gap"]
            return gap


def forget_which_jobs_the_queue_has(server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.delete(f"{PREFIX}queue:{QUEUE}")


def ids(messages: list[Message]) -> list[str]:
    return [message["id"] for message in messages]


def job_events_of(client: Client) -> list[str]:
    """The ids of all job events that the client was ever sent."""
    return [message["id"] for message in client.seen if "id" in message]


async def document(relay: Daemon, job: str = JOB) -> dict[str, object]:
    answer = await get(f"{relay.public}/jobs/{job}")
    assert answer.status == 200, answer
    told: dict[str, object] = answer.json()
    return told


async def gaps(relay: Daemon) -> float:
    return await relay.metric("relay_gaps_total")


# A job that ended unseen


@pytest.mark.parametrize("relay_first", [False, True], ids=["relay-starts-late", "unwatched"])
async def test_job_that_ended_before_anybody_watched_is_seen_to_end(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work, *, relay_first: bool
) -> None:
    relay = daemon(on(own_redis)) if relay_first else None
    for job in (JOB, "job-2"):
        work.progress(50, job=job)
        work.complete(job)
    relay = relay or daemon(on(own_redis))

    async with Client.at(relay.ws_url) as client:
        stands = await client.subscribe(JOB)
        (end,) = await client.told_until_the_end()
    polled = await document(relay, "job-2")

    assert stands == {"known": True, "recovered": False, "replayed": 0}
    assert (end["event"], end["id"], end["data"]["result"]) == (
        "job-completed", work.ids[1], {"n": 1}
    )  # fmt: skip
    assert (polled["status"], polled["id"]) == ("completed", work.ids[3])


@pytest.mark.parametrize("fault", [outage, freeze], ids=["cut", "frozen"])
async def test_job_that_ends_while_the_relay_reconnects_is_seen_to_end(
    daemon: StartDaemon,
    own_redis: EmbeddedRedis,
    work: Work,
    fault: Callable[..., AbstractAsyncContextManager[None]],
) -> None:
    relay = daemon(on(own_redis))
    async with Client.at(relay.ws_url) as client:
        await client.subscribe(JOB)
        work.progress(10)
        await client.told("job-progress")

        async with fault(own_redis, client):
            ending = asyncio.create_task(asyncio.to_thread(work.complete))
            if fault is outage:
                await ending
        await ending
        await client.told("job-completed")
        gap = client.statuses()[-1]["gap"] or await until_told(client, "connected")
        polled = await document(relay)

    assert job_events_of(client) == work.ids
    assert not gap
    assert await gaps(relay) == 0
    assert (polled["status"], polled["id"]) == ("completed", work.ids[-1])


async def test_job_that_ends_while_a_relay_first_connects_is_seen_to_end(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    async with AsyncExitStack() as clients:
        async with outage(own_redis):
            relay = daemon(on(own_redis), subscribed=False)
            client, onlooker = [
                await clients.enter_async_context(Client.at(relay.ws_url)) for _ in range(2)
            ]
            stands = await client.subscribe(JOB)
            await onlooker.send("subscribe-to-queue", {"queueName": QUEUE})
            await onlooker.told("subscribed")
            work.complete()
        told_gaps = []
        for each in (client, onlooker):
            await each.told("job-completed")
            told_gaps.append(each.statuses()[-1]["gap"] or await until_told(each, "connected"))

    assert stands == {"known": False, "recovered": False, "replayed": 0}
    assert told_gaps == [False, False]
    assert await gaps(relay) == 0


async def test_job_of_which_nothing_was_known_before_the_outage_is_seen_to_end(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    relay = daemon(on(own_redis))
    async with Client.at(relay.ws_url) as client:
        assert not (await client.subscribe(JOB))["known"]

        async with outage(own_redis, client):
            work.progress(50)
            work.complete()
        await client.told_until_the_end()

    assert job_events_of(client) == work.ids


async def test_subscription_made_while_redis_is_away_gets_what_is_found_after(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    relay = daemon(on(own_redis))
    work.complete()
    async with Client.at(relay.ws_url) as client:
        async with outage(own_redis, client):
            stands = await client.subscribe(JOB, since="1-1")
        (end,) = await client.told_until_the_end()

    assert stands == {"known": False, "recovered": False, "replayed": 0}
    assert end["id"] == work.ids[0]


async def test_end_that_redis_was_too_slow_to_tell_in_time_is_told_when_it_can(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    settings = on(own_redis)
    settings["redis"]["health_check_seconds"] = 60.0  # the link outlives the standstill
    relay = daemon(settings)
    work.progress(10)
    work.complete()
    async with Client.at(relay.ws_url) as client:
        own_redis.freeze()
        stands = await client.subscribe(JOB, since=work.ids[0])
        own_redis.resume()
        (*_, end) = await client.told_until_the_end()

    assert stands == {"known": False, "recovered": False, "replayed": 0}
    assert end["id"] == work.ids[-1]
    assert job_events_of(client) == work.ids


# Recovery


async def test_since_recovers_the_same_ids_from_another_relay_and_from_one_that_was_killed(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    settings = on(own_redis)
    first, second = daemon(settings), daemon(settings)
    async with Client.at(first.ws_url) as client:
        await client.subscribe(JOB)
        work.progress(10, 20, 30)
        for _ in range(3):
            await client.told("job-progress")
    work.complete()
    recovered = {"known": True, "recovered": True, "replayed": 3}

    async with Client.at(second.ws_url) as client:
        assert await client.subscribe(JOB, since=work.ids[0]) == recovered
        from_second = await client.told_until_the_end()
    first.signal(signal.SIGKILL)
    await first.exit_code()
    restarted = daemon(settings)
    async with Client.at(restarted.ws_url) as client:
        assert await client.subscribe(JOB, since=work.ids[0]) == recovered
        from_restarted = await client.told_until_the_end()
        newest = await client.subscribe(JOB, since=work.ids[-1])

    assert ids(from_second) == ids(from_restarted) == work.ids[1:]
    assert newest == {"known": True, "recovered": True, "replayed": 0}


async def test_since_is_not_answered_as_recovered_across_what_nobody_watched(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    relay = daemon(on(own_redis))
    async with Client.at(relay.ws_url) as leaver:
        await leaver.subscribe(JOB)
        work.progress(10)
        await leaver.told("job-progress")
        await leaver.send("unsubscribe-from-job", {"jobId": JOB})
        await leaver.told("unsubscribed")
    work.progress(20)
    async with Client.at(relay.ws_url) as onlooker, Client.at(relay.ws_url) as comer:
        await onlooker.send("subscribe-to-queue", {"queueName": QUEUE})
        await onlooker.told("subscribed")
        work.progress(30)
        await onlooker.told("job-progress")

        stands = await comer.subscribe(JOB, since=work.ids[0])
        snapshot = await comer.told("job-progress")

    assert stands == {"known": True, "recovered": False, "replayed": 0}
    assert snapshot["id"] == work.ids[2]


# Order


async def test_events_of_an_outage_come_in_order_and_once_before_newer_ones(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    relay = daemon(on(own_redis))
    async with Client.at(relay.ws_url) as client:
        await client.subscribe(JOB)
        work.progress(1, 2)

        async with outage(own_redis, client):
            work.progress(*range(3, 20))
            rest = asyncio.create_task(asyncio.to_thread(work.progress, *range(20, 90)))
        await rest
        work.complete()
        await client.told_until_the_end()
        gap = client.statuses()[-1]["gap"]

    assert job_events_of(client) == work.ids
    assert not gap
    assert await gaps(relay) == 0


# Gaps


async def test_redis_restarted_empty_is_a_gap_and_nothing_is_recovered_across_it(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    relay = daemon(on(own_redis))
    async with Client.at(relay.ws_url) as client, Client.at(relay.ws_url) as newcomer:
        await client.subscribe(JOB)
        work.progress(10, 20)
        for _ in range(2):
            await client.told("job-progress")

        own_redis.restart()
        await until_told(client, "disconnected")
        gap = await until_told(client, "connected")
        work.progress(30)
        await client.told("job-progress")
        across = await newcomer.subscribe(JOB, since=work.ids[0])
        snapshot = await newcomer.told("job-progress")
        behind = await newcomer.subscribe(JOB, since=work.ids[2])

    assert gap
    assert await gaps(relay) == 1
    assert job_events_of(client) == work.ids
    assert across == {"known": True, "recovered": False, "replayed": 0}
    assert snapshot["id"] == work.ids[2]
    assert behind == {"known": True, "recovered": True, "replayed": 0}


async def test_job_that_is_published_without_the_script_has_a_gap(
    daemon: StartDaemon, own_redis: EmbeddedRedis
) -> None:
    relay = daemon(on(own_redis))
    async with Client.at(relay.ws_url) as client, Client.at(relay.ws_url) as bystander:
        await client.subscribe(JOB)
        await bystander.subscribe("another")
        publish_without_the_script(own_redis, 10)
        known = await client.told("job-progress")

        async with outage(own_redis, client, bystander):
            publish_without_the_script(own_redis, 20)
        gap = await until_told(client, "connected")
        bystanders_gap = await until_told(bystander, "connected")
        across = await bystander.subscribe(JOB, since=known["id"])

    assert gap
    assert not bystanders_gap
    assert await gaps(relay) == 1
    assert across == {"known": True, "recovered": False, "replayed": 0}


async def test_end_behind_more_than_is_read_is_seen_and_what_lies_between_is_a_gap(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    relay = daemon(on(own_redis, max_events=5))
    async with Client.at(relay.ws_url) as client, Client.at(relay.ws_url) as onlooker:
        await onlooker.send("subscribe-to-queue", {"queueName": QUEUE})
        await client.subscribe(JOB)
        work.progress(1)
        for each in (client, onlooker):
            await each.told("job-progress")

        async with outage(own_redis, client, onlooker):
            work.progress(*range(2, 20))
            work.complete()
        await client.told_until_the_end()
        gap = await until_told(client, "connected")
        onlookers_gap = await until_told(onlooker, "connected")
        across = await client.subscribe(JOB, since=work.ids[0])

    told = job_events_of(client)
    assert told == [work.ids[0], *work.ids[-len(told) + 1 :]]
    assert (gap, onlookers_gap) == (True, True)
    assert await gaps(relay) == 1
    assert not across["recovered"]


# Queues


async def test_queues_watcher_is_told_what_the_queues_jobs_did_in_an_outage(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    relay = daemon(on(own_redis))
    async with Client.at(relay.ws_url) as client:
        await client.send("subscribe-to-queue", {"queueName": QUEUE})
        work.progress(10)
        await client.told("job-progress")

        async with outage(own_redis, client):
            work.complete()
            work.complete("new-in-the-outage")
        for _ in range(2):
            await client.told_until_the_end()
        gap = await until_told(client, "connected")

    assert sorted(job_events_of(client)) == sorted(filter(None, work.ids))
    assert not gap
    assert await gaps(relay) == 0


async def test_queues_watcher_is_told_of_a_gap_where_nobody_notes_the_queues_jobs(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    relay = daemon(on(own_redis))
    async with Client.at(relay.ws_url) as onlooker, Client.at(relay.ws_url) as client:
        await onlooker.send("subscribe-to-queue", {"queueName": QUEUE})
        await client.subscribe(JOB)
        work.progress(10)
        for each in (onlooker, client):
            await each.told("job-progress")

        async with outage(own_redis, onlooker, client):
            work.complete()
            forget_which_jobs_the_queue_has(own_redis)
        onlookers_gap = await until_told(onlooker, "connected")
        gap = await until_told(client, "connected")

    assert onlookers_gap
    assert not gap
    assert await gaps(relay) == 1


# Without durable history


async def test_with_memory_history_every_reconnect_is_a_gap(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    relay = daemon(on(own_redis, backend="memory"))
    async with Client.at(relay.ws_url) as client:
        await client.subscribe(JOB)
        told_gaps = []
        for percent in (10, 20):
            work.progress(percent)
            await client.told("job-progress")
            async with outage(own_redis, client):
                pass
            told_gaps.append(await until_told(client, "connected"))
        work.progress(30)
        await client.told("job-progress")
        across = await client.subscribe(JOB, since=work.ids[1])

    assert told_gaps == [True, True]
    assert await gaps(relay) == 2
    assert across == {"known": True, "recovered": False, "replayed": 0}


# A queue whose jobs nobody watched


async def test_snapshot_of_a_queue_shows_ends_that_only_redis_remembers(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    for job in (JOB, "job-2"):
        work.progress(50, job=job)
        work.complete(job)
    relay = daemon(on(own_redis))

    async with Client.at(relay.ws_url) as client:
        await client.send("subscribe-to-queue", {"queueName": QUEUE, "snapshot": True})
        await client.told("subscribed")
        ends = [await client.told("job-completed") for _ in range(2)]
        work.progress(10, job="job-3")
        live = await client.told("job-progress")
    listed = (await get(f"{relay.public}/jobs?queueName={QUEUE}")).json()["jobs"]

    assert sorted(ids(ends)) == [work.ids[1], work.ids[3]]
    assert live["id"] == work.ids[4]
    assert {job: one["status"] for job, one in listed.items()} == {
        JOB: "completed", "job-2": "completed", "job-3": "active"
    }  # fmt: skip


async def test_watcher_of_a_queue_is_not_told_a_jobs_past_when_another_subscribes_to_it(
    daemon: StartDaemon, own_redis: EmbeddedRedis, work: Work
) -> None:
    work.progress(10, 20)
    relay = daemon(on(own_redis))

    async with Client.at(relay.ws_url) as of_queue, Client.at(relay.ws_url) as of_job:
        await of_queue.send("subscribe-to-queue", {"queueName": QUEUE})
        await of_queue.told("subscribed")
        await of_job.subscribe(JOB)
        work.progress(30)
        first = await of_queue.told("job-progress")

    assert first["id"] == work.ids[2]
