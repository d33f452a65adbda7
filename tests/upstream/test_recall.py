"""What Redis holds of a job becomes its history; where that may not be all, no recovery is promised."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from relay.core.event import COMPLETED, PROGRESS
from relay.core.history import History
from relay.core.index import Index
from relay.core.router import Router
from relay.core.stats import Stats
from relay.sources.celery import CelerySource, event_id
from relay.sources.channel import ChannelSource
from relay.sources.template import ChannelTemplate
from relay.upstream.recall import Recall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from relay.core.session import Session
    from relay.demo.embedded import EmbeddedRedis

PREFIX = "h:"
MAX_EVENTS = 5
SOON_SECONDS = 10.0

jobs = ChannelSource(ChannelTemplate.parse("jobs:{queueName}:{jobId}"))
tasks = CelerySource()


class Desk:
    """A recall with the history that it fills; `received` is what a barrier lets arrive."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        durable: bool = True,
        celery: Sequence[CelerySource] = (),
        keeps_unwatched: bool = False,
    ) -> None:
        index: Index[Session] = Index()
        self.stats = Stats()
        self.router = Router(
            sources={jobs.pattern.encode(): jobs, tasks.pattern.encode(): tasks},
            index=index,
            stats=self.stats,
            max_payload_bytes=1 << 20,
            on_invalid=lambda reason, channel, error=None: None,
            on_overflow=lambda session: None,
        )
        self.history = self.router.history = History(
            epoch="e",
            understand=self.router.understand,
            on_refused=self.router.refused,
            max_events=MAX_EVENTS,
            max_jobs=100,
            max_bytes=1 << 20,
            ttl_seconds=60,
            keeps_unwatched=keeps_unwatched,
        )
        self.barriers = 0
        self.recall = Recall(
            self.router,
            self.history,
            make_client=lambda: client,
            celery=celery,
            durable=jobs if durable else None,
            prefix=PREFIX,
            max_events=MAX_EVENTS,
            barrier=self._barrier,
            clock=lambda: (1.0, 1000),
        )

    async def _barrier(self) -> None:
        self.barriers += 1

    async def read(self, job_id: str) -> list[Any]:
        """What Redis holds under each key of the job."""
        return await self.recall.read([key for _, key in self.recall.keys_of(job_id)])

    async def catch_up(self, job_id: str = "job") -> None:
        """Read the job and merge what was found, as a lookup does."""
        self.router.hold([job_id])
        keys = self.recall.keys_of(job_id)
        values = await self.recall.read([key for _, key in keys])
        found = [
            (identity, value)
            for (identity, _), value in zip(keys, values, strict=True)
            if value is not None
        ]
        self.recall.merge(job_id, found)
        self.router.release([job_id])

    def fail(self, job_id: str = "job") -> None:
        """The job could not be read."""
        self.router.hold([job_id])
        self.recall.merge(job_id, None)
        self.router.release([job_id])

    def receive(self, event: str, stored_id: str, job_id: str = "job", **fields: Any) -> None:
        """A live message of the job, as the script publishes it."""
        payload = orjson.dumps({"eventId": stored_id, "event": event, **fields})
        channel = f"jobs:q:{job_id}".encode()
        batch = [(b"pmessage", jobs.pattern.encode(), channel, payload)]
        self.router.receive(batch, 1.0, 1000)

    def watch(self, job_id: str = "job") -> None:
        self.router._index.add(Nobody(), (None, job_id), self.router.seq)  # type: ignore[arg-type]

    def ids(self, job_id: str = "job") -> list[str]:
        return [event.id for event in self.history.events(job_id, None)]

    def later(self, since: str, job_id: str = "job") -> list[str] | None:
        events = self.history.after(job_id, None, since)
        return None if events is None else [event.id for event in events]


class Nobody:
    """Watches, and hears nothing."""

    def offer(self, burst: object) -> None: ...


@pytest.fixture
async def client(shared_redis: EmbeddedRedis) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(shared_redis.url, protocol=2) as client:
        await client.flushall()
        yield client


async def append(
    client: redis.asyncio.Redis, stored_id: str, event: str = PROGRESS, *,
    job_id: str = "job", queue: str = "q", **fields: Any,
) -> None:  # fmt: skip
    """An entry such as the script makes."""
    entry: dict[Any, Any] = {
        "event": event,
        "queueName": queue,
        "payload": orjson.dumps(fields),
        "key": "",
    }
    await client.xadd(f"{PREFIX}{job_id}", entry, id=stored_id)


# Reading


async def test_stream_of_an_unknown_job_is_read_whole_and_in_order(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)
    for number in (9, 10, 11):
        await append(client, f"1-{number}", progress=number)
    await append(client, "2-0", COMPLETED, result={"n": 1})

    await desk.catch_up()

    events = desk.history.events("job", "q")
    assert [event.id for event in events] == ["1-9", "1-10", "1-11", "2-0"]
    assert [event.at_ms for event in events] == [1, 1, 1, 2]
    assert orjson.loads(events[-1].data)["result"] == {"n": 1}
    assert desk.later("1-9") == ["1-10", "1-11", "2-0"]


async def test_only_what_came_after_the_newest_event_known_is_taken(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)
    for number in (1, 2):
        await append(client, f"{number}-0", progress=number)
    await desk.catch_up()
    await append(client, "3-0", COMPLETED)

    value = (await desk.read("job"))[0]
    await desk.catch_up()

    assert sorted(entry for entry, _ in value) == [b"2-0", b"3-0"]
    assert desk.ids() == ["1-0", "2-0", "3-0"]
    assert desk.later("1-0") == ["2-0", "3-0"]


async def test_newest_are_read_where_more_came_than_may_be_held(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)
    await append(client, "1-0")
    await desk.catch_up()
    for number in range(2, 20):
        await append(client, f"{number}-0", progress=number)
    await append(client, "20-0", COMPLETED)

    desk.recall.watch_for_gaps()
    await desk.catch_up()

    assert desk.ids() == ["16-0", "17-0", "18-0", "19-0", "20-0"]
    assert desk.later("1-0") is None
    assert desk.recall.gaps() == {"job"}


async def test_barrier_is_passed_after_the_read(client: redis.asyncio.Redis) -> None:
    desk = Desk(client)

    assert await desk.read("job") == [None]

    assert desk.barriers == 1


async def test_stream_and_tasks_key_are_both_read(client: redis.asyncio.Redis) -> None:
    desk = Desk(client, celery=[tasks])
    await client.set(tasks.key("task"), b'{"status":"SUCCESS","result":1,"task_id":"task"}')
    await append(client, "1-0", COMPLETED, job_id="job")

    await desk.catch_up("task")
    await desk.catch_up("job")

    assert [event.name for event in desk.history.events("task", None)] == [COMPLETED]
    assert desk.ids("job") == ["1-0"]


async def test_key_of_another_type_spoils_no_other(client: redis.asyncio.Redis) -> None:
    desk = Desk(client, celery=[tasks])
    await client.set(f"{PREFIX}job", b"no stream")
    await client.set(tasks.key("job"), b"a state")

    assert await desk.read("job") == [None, b"a state"]


async def test_refusal_of_every_key_is_raised(client: redis.asyncio.Redis) -> None:
    desk = Desk(client)
    await client.set(f"{PREFIX}job", b"no stream")

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await desk.read("job")


async def test_rights_to_get_and_xrevrange_are_right_enough(
    client: redis.asyncio.Redis, shared_redis: EmbeddedRedis
) -> None:
    await append(client, "1-0")
    await client.set(tasks.key("job"), b"a state")
    await client.acl_setuser(
        "reader",
        enabled=True,
        passwords=["+pw"],
        keys=["celery-task-meta-*", f"{PREFIX}*"],
        commands=["+get", "+xrevrange"],
    )
    url = shared_redis.url.replace("//", "//reader:pw@")

    async with redis.asyncio.Redis.from_url(url, protocol=2) as reader:
        desk = Desk(reader, celery=[tasks])
        stream, value = await desk.read("job")
        with pytest.raises(NoPermissionError):
            await desk.recall.read([b"elsewhere"])
    await client.acl_deluser("reader")

    assert [entry for entry, _ in stream] == [b"1-0"]
    assert value == b"a state"


async def test_entry_that_is_no_event_costs_no_other(client: redis.asyncio.Redis) -> None:
    desk = Desk(client)
    await client.xadd(f"{PREFIX}job", {"by": "somebody else"}, id="1-0")
    await client.xadd(f"{PREFIX}job", {"payload": b"\xff", "queueName": b"\xff"}, id="2-0")
    await append(client, "3-0", COMPLETED)

    await desk.catch_up()

    assert desk.ids() == ["3-0"]


async def test_queues_with_one_job_id_are_told_apart(client: redis.asyncio.Redis) -> None:
    desk = Desk(client)
    await append(client, "1-0", COMPLETED, queue="q1")
    await append(client, "2-0", PROGRESS, queue="q2", progress=10)

    await desk.catch_up()

    assert [event.id for event in desk.history.snapshot("job", "q1")] == ["1-0"]
    assert [event.id for event in desk.history.snapshot("job", "q2")] == ["2-0"]


# What was held back


async def test_what_came_live_and_was_read_too_is_told_once_and_in_its_place(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)
    for number in (1, 2, 3):
        await append(client, f"{number}-0", progress=number)
    desk.router.hold(["job"])
    for number in (2, 3, 4):
        desk.receive(PROGRESS, f"{number}-0", progress=number)

    await desk.catch_up()
    desk.router.release(["job"])

    assert desk.ids() == ["1-0", "2-0", "3-0", "4-0"]


async def test_announcement_of_another_attempt_that_came_twice_repeats_nothing(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)
    desk.router.hold(["job"])
    statuses = {"1-0": "active", "2-0": "retrying", "3-0": "active"}
    for stored_id, status in statuses.items():
        await append(client, stored_id, progress=1, status=status)
        desk.receive(PROGRESS, stored_id, progress=1, status=status)

    await desk.catch_up()
    desk.router.release(["job"])

    assert desk.ids() == ["1-0", "2-0", "3-0"]


async def test_end_that_is_held_back_is_not_crowded_out_by_a_long_past(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)
    for number in range(1, 20):
        await append(client, f"{number}-0", progress=number)
    desk.router.hold(["job"])
    desk.receive(COMPLETED, "20-0")

    await desk.catch_up()
    desk.router.release(["job"])

    assert desk.ids()[-1] == "20-0"


# Gaps


async def test_known_event_that_is_gone_from_the_stream_is_a_gap(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)
    await append(client, "1-0")
    await desk.catch_up()
    await client.delete(f"{PREFIX}job")
    await append(client, "5-0", COMPLETED)

    desk.recall.watch_for_gaps()
    await desk.catch_up()

    assert desk.ids() == ["1-0", "5-0"]
    assert (desk.later("1-0"), desk.later("5-0")) == (None, [])
    assert desk.recall.gaps() == {"job"}


async def test_event_that_was_published_without_the_script_is_a_gap(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)
    desk.watch()
    desk.receive(PROGRESS, "by-hand", progress=1)

    desk.recall.watch_for_gaps()
    await desk.catch_up()

    assert desk.recall.gaps() == {"job"}
    assert desk.later("by-hand") is None


async def test_job_of_which_nothing_is_known_anywhere_has_no_gap(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)

    desk.recall.watch_for_gaps()
    await desk.catch_up()

    assert desk.recall.gaps() == set()


@pytest.mark.parametrize("known", [True, False])
async def test_job_that_could_not_be_read_has_a_gap(
    client: redis.asyncio.Redis, *, known: bool
) -> None:
    desk = Desk(client)
    if known:
        await append(client, "1-0")
        await desk.catch_up()

    desk.recall.watch_for_gaps()
    desk.fail()

    assert desk.recall.gaps() == {"job"}
    assert desk.later("1-0") is None


async def test_gap_is_remembered_until_it_is_told(client: redis.asyncio.Redis) -> None:
    desk = Desk(client)
    desk.recall.watch_for_gaps()
    desk.fail()

    desk.recall.watch_for_gaps()

    assert desk.recall.gaps() == {"job"}
    assert desk.recall.gaps() == set()


@pytest.mark.parametrize(("state", "is_missed"), [("SUCCESS", False), ("FAILURE", True)])
async def test_task_has_a_gap_where_its_state_is_another(
    client: redis.asyncio.Redis, state: str, *, is_missed: bool
) -> None:
    desk = Desk(client, celery=[tasks])
    first = b'{"status":"SUCCESS","result":1,"task_id":"task"}'
    await client.set(tasks.key("task"), first)
    await desk.catch_up("task")
    await client.set(tasks.key("task"), first.replace(b"SUCCESS", state.encode()))

    desk.recall.watch_for_gaps()
    await desk.catch_up("task")

    assert desk.ids("task")[0] == event_id(first)
    assert desk.recall.gaps() == ({"task"} if is_missed else set())


# Whether Redis must be asked


async def test_job_is_asked_for_until_it_was_read_and_again_after_a_reconnect(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)
    await append(client, "1-0")
    before = desk.recall.needs_lookup("job", None)
    await desk.catch_up()
    after = desk.recall.needs_lookup("job", None)
    desk.history.mark_stale(desk.router.seq)
    reconnected = desk.recall.needs_lookup("job", None), desk.later("1-0")
    await desk.catch_up()
    caught_up = desk.recall.needs_lookup("job", None), desk.later("1-0")

    assert (before, after) == (True, False)
    assert reconnected == (True, None)
    assert caught_up == (False, [])


async def test_job_is_asked_for_again_once_nobody_watched_it(client: redis.asyncio.Redis) -> None:
    desk = Desk(client)
    await append(client, "1-0")
    await desk.catch_up()

    desk.receive(PROGRESS, "2-0")
    await append(client, "2-0")
    skipped = desk.recall.needs_lookup("job", None), desk.later("1-0")
    await desk.catch_up()

    assert skipped == (True, None)
    assert desk.later("1-0") == ["2-0"]


async def test_event_behind_one_that_was_skipped_is_not_recovered_to(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)
    await append(client, "1-0")
    await desk.catch_up()
    desk.receive(PROGRESS, "2-0")
    desk.watch()
    desk.receive(PROGRESS, "3-0")

    assert desk.ids() == ["1-0", "3-0"]
    assert desk.later("1-0") is None


async def test_without_durable_history_and_tasks_redis_is_never_asked(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client, durable=False, keeps_unwatched=True)

    assert not desk.recall.knows_anything
    assert not desk.recall.needs_lookup("job", None)
    assert desk.recall.keys_of("job") == []


# Queues


async def test_jobs_of_queues_are_those_noted_since(client: redis.asyncio.Redis) -> None:
    desk = Desk(client)
    await client.zadd(f"{PREFIX}queue:q1", {b"old": 1, b"new": 10, b"\xff": 11})
    await client.zadd(f"{PREFIX}queue:q2", {"old": 1})

    noted = await desk.recall.jobs_of_queues(["q1", "q2", "q3"], 10)

    assert noted == {"q1": ({"new", "\ufffd"}, True), "q2": (set(), True), "q3": (set(), False)}


async def test_more_jobs_than_are_read_are_not_all(
    client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.upstream.recall.MAX_QUEUE_JOBS", 2)
    desk = Desk(client)
    await client.zadd(f"{PREFIX}queue:q", {"a": 1, "b": 2, "c": 3})

    (jobs_noted, whole) = (await desk.recall.jobs_of_queues(["q"], 0))["q"]

    assert len(jobs_noted) == 2
    assert not whole


async def test_new_link_is_read_beside_and_no_longer_what_the_old_one_led_to(
    client: redis.asyncio.Redis, own_redis: EmbeddedRedis
) -> None:
    desk = Desk(client)
    async with redis.asyncio.Redis.from_url(own_redis.url, protocol=2) as successor:
        await append(client, "1-0")
        await append(successor, "1-0")
        await append(successor, "2-0")
        await desk.catch_up()
        before = desk.ids()

        desk.recall._make_client = lambda: successor
        desk.recall.renew()
        await desk.catch_up()
        await desk.recall.aclose()

    assert before == ["1-0"]
    assert desk.ids() == ["1-0", "2-0"]


class Swallowing:
    """A client that makes a lost connection of a cancellation, as redis-py does in its handshake."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def zrevrangebyscore(self, *_: Any, **__: Any) -> Any:
        self.asked.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise RedisConnectionError("lost") from None


async def test_cancellation_that_the_client_swallows_ends_the_read(
    client: redis.asyncio.Redis,
) -> None:
    desk = Desk(client)
    desk.recall._client = swallowing = Swallowing()  # type: ignore[assignment]

    async def read_for_ever() -> None:
        while True:
            with suppress(RedisConnectionError):
                await desk.recall.newest_of_queue("q", 0, 10)

    reading = asyncio.create_task(read_for_ever())
    await swallowing.asked.wait()
    reading.cancel()
    done, _ = await asyncio.wait({reading}, timeout=SOON_SECONDS)

    assert done == {reading}
    assert reading.cancelled()
