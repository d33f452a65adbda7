"""Who asks is answered once and in time; a job is held while it is read, and let go whatever happens."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
from redis.exceptions import BusyLoadingError, ClusterDownError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from relay.sources.celery import CelerySource
from relay.upstream import lookup
from relay.upstream.lookup import Lookups

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from relay.core.event import Identity
    from relay.demo.embedded import EmbeddedRedis

# Far above what the tests take on a busy machine, far below what a human waits for.
SOON_SECONDS = 10.0

tasks = CelerySource()
other_tasks = CelerySource("other")


class Store:
    """Stands in for Redis: answers when it is told to, and knows what it was asked."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.reads: list[list[bytes]] = []
        self.faults: list[Exception] = []
        self.open = asyncio.Event()
        self.asked = asyncio.Event()
        self.open.set()

    async def read(self, keys: list[bytes]) -> list[bytes | None]:
        self.reads.append(keys)
        self.asked.set()
        await self.open.wait()
        if self.faults:
            raise self.faults.pop(0)
        return [self.values.get(key) for key in keys]

    def hold(self, *job_ids: str) -> None:
        for job_id in job_ids:
            self.values[tasks.key(job_id)] = b"state of " + job_id.encode()


class Desk:
    """Lookups with everything around them, as far as the tests look at it."""

    def __init__(self, read: lookup.Read, timeout_seconds: float) -> None:
        self.sources = [tasks]
        self.found: list[tuple[str | None, bytes]] = []
        self.held: Counter[str] = Counter()
        self.story: list[str] = []
        self.refreshed = Answer()
        self.connected = True
        self.watched: set[str] = set()
        self.now = 0.0
        self.lookups = Lookups(
            read=read,
            keys_of=self._keys_of,
            on_read=self._on_read,
            hold=self._hold,
            release=self._release,
            is_watched=lambda job_id: job_id in self.watched,
            is_connected=lambda: self.connected,
            clock=lambda: self.now,
            timeout_seconds=timeout_seconds,
        )

    def _keys_of(self, job_id: str) -> list[tuple[Identity, bytes]]:
        keys = [source.key(job_id) for source in self.sources]
        identities = [source.identify(key) for source, key in zip(self.sources, keys, strict=True)]
        return [(i, key) for i, key in zip(identities, keys, strict=True) if i is not None]

    def _on_read(self, job_id: str, found: list[tuple[Identity, bytes]] | None) -> None:
        assert self.held[job_id] == 1
        self.story.append(f"read {job_id}" if found is not None else f"failed {job_id}")
        for identity, value in found or ():
            assert identity.job_id == job_id
            self.found.append((job_id, value))

    def _hold(self, job_ids: list[str]) -> None:
        self.held.update(job_ids)
        self.story += [f"hold {job_id}" for job_id in job_ids]

    def _release(self, job_ids: list[str]) -> None:
        self.held.subtract(job_ids)
        self.story += [f"release {job_id}" for job_id in job_ids]

    def ask(self, *job_ids: str) -> Answer:
        answer = Answer()
        self.lookups.request(job_ids, answer.done)
        return answer

    async def answered(self, *job_ids: str) -> None:
        await self.ask(*job_ids).given()


class Answer:
    """How often, and when, a request was answered."""

    def __init__(self) -> None:
        self.times = 0
        self._event = asyncio.Event()

    def done(self) -> None:
        self.times += 1
        self._event.set()

    async def given(self) -> None:
        async with asyncio.timeout(SOON_SECONDS):
            await self._event.wait()


@asynccontextmanager
async def running(
    read: lookup.Read, *, timeout_seconds: float = SOON_SECONDS
) -> AsyncIterator[Desk]:
    desk = Desk(read, timeout_seconds)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(desk.lookups.run())
        yield desk
        assert not task.done()
        task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while not condition():  # noqa: ASYNC110  what is waited for is inside, and sets no event
            await asyncio.sleep(0)


async def read_keys(client: redis.asyncio.Redis, keys: list[bytes]) -> list[bytes | None]:
    values: Any = await client.mget(keys)
    return list(values)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def client(own_redis: EmbeddedRedis) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(own_redis.url, protocol=2) as client:
        yield client


# --- reading ---------------------------------------------------------------------------------------


async def test_every_source_of_tasks_is_read(store: Store) -> None:
    store.values = {tasks.key("a"): b"1", other_tasks.key("a"): b"2"}

    async with running(store.read) as desk:
        desk.sources = [tasks, other_tasks]
        await desk.answered("a")

    assert desk.found == [("a", b"1"), ("a", b"2")]
    assert store.reads == [[tasks.key("a"), other_tasks.key("a")]]


async def test_without_a_source_of_tasks_the_answer_is_given_at_once(store: Store) -> None:
    async with running(store.read) as desk:
        desk.sources = []

        assert desk.ask("a").times == 1


async def test_a_read_is_of_64_keys_at_most(store: Store) -> None:
    ids = [f"job-{n}" for n in range(150)]
    store.hold(*ids)

    async with running(store.read) as desk:
        await desk.answered(*ids)

    assert [len(keys) for keys in store.reads] == [64, 64, 22]
    assert [job_id for job_id, _ in desk.found] == ids


# --- one read for many -----------------------------------------------------------------------------


async def test_many_requests_for_one_job_cost_one_read(store: Store) -> None:
    store.hold("a")
    store.open.clear()

    async with running(store.read) as desk:
        early = [desk.ask("a", "a") for _ in range(50)]
        await store.asked.wait()
        late = [desk.ask("a") for _ in range(50)]
        store.open.set()
        for answer in early + late:
            await answer.given()

    assert store.reads == [[tasks.key("a")]]
    assert desk.found == [("a", b"state of a")]
    assert {answer.times for answer in early + late} == {1}


async def test_request_is_answered_when_the_last_of_its_jobs_is_read(store: Store) -> None:
    ids = [f"job-{n}" for n in range(65)]
    store.hold(*ids)

    async with running(store.read) as desk:
        answer = Answer()
        found: list[int] = []

        def done() -> None:
            found.append(len(desk.found))
            answer.done()

        desk.lookups.request(ids, done)
        await answer.given()

    assert found == [65]


# --- not found -------------------------------------------------------------------------------------


async def test_what_was_not_found_is_not_read_again_for_a_second(store: Store) -> None:
    async with running(store.read) as desk:
        await desk.answered("a")
        desk.now = 0.99
        again = desk.ask("a")
        assert again.times == 1
        store.hold("a")
        desk.now = 1.0
        await desk.answered("a")

    assert len(store.reads) == 2
    assert desk.found == [("a", b"state of a")]


async def test_jobs_remembered_as_not_found_are_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "MAX_NEGATIVE", 2)

    async with running(store.read) as desk:
        await desk.answered("a", "b", "c")
        assert [desk.ask(job_id).times for job_id in "abc"] == [0, 1, 1]
        assert len(desk.lookups._negative) == 2


# --- Redis slow, away, refusing --------------------------------------------------------------------


async def test_frozen_redis_is_not_waited_for_and_spoils_no_later_answer(
    client: redis.asyncio.Redis, own_redis: EmbeddedRedis
) -> None:
    await client.mset({tasks.key(job_id): job_id.encode() for job_id in "abc"})

    async with running(partial(read_keys, client), timeout_seconds=0.2) as desk:
        await desk.answered("a")
        own_redis.freeze()
        frozen = desk.ask("b")
        await frozen.given()
        own_redis.resume()
        await desk.answered("c")
        await until(lambda: len(desk.found) == 3)

    assert sorted(desk.found) == [("a", b"a"), ("b", b"b"), ("c", b"c")]
    assert frozen.times == 1


async def test_answer_is_given_in_two_seconds_by_default() -> None:
    store = Store()
    store.open.clear()
    loop = asyncio.get_running_loop()

    async with running(store.read, timeout_seconds=lookup.TIMEOUT_SECONDS) as desk:
        asked_at = loop.time()
        await desk.answered("a")
        waited_seconds = loop.time() - asked_at

    assert lookup.TIMEOUT_SECONDS == 2.0
    assert 1.9 < waited_seconds < 2.5


async def test_request_behind_many_slow_reads_is_answered_in_time(store: Store) -> None:
    store.open.clear()
    loop = asyncio.get_running_loop()

    async with running(store.read, timeout_seconds=0.1) as desk:
        asked_at = loop.time()
        before = desk.ask(*(f"job-{n}" for n in range(20 * lookup.MAX_IN_FLIGHT)))
        behind = desk.ask("behind")
        await before.given()
        await behind.given()
        waited_seconds = loop.time() - asked_at

    assert (before.times, behind.times) == (1, 1)
    assert waited_seconds < 1.0


async def test_without_redis_the_answer_is_given_at_once(store: Store) -> None:
    async with running(store.read) as desk:
        desk.connected = False

        assert desk.ask("a").times == 1

    assert store.reads == []


async def test_redis_that_goes_and_comes_back_ends_nothing(
    client: redis.asyncio.Redis, own_redis: EmbeddedRedis
) -> None:
    async with running(partial(read_keys, client)) as desk:
        await desk.answered("a")
        own_redis.kill()
        await desk.answered("b")
        own_redis.start()
        await client.set(tasks.key("c"), b"c")
        await desk.answered("c")

    assert desk.found == [("c", b"c")]


@pytest.mark.parametrize(
    "fault",
    [
        RedisConnectionError("gone"),
        NoPermissionError("no permissions"),
        BusyLoadingError("loading"),
        TimeoutError(),
        OSError("unreachable"),
    ],
    ids=lambda fault: type(fault).__name__,
)
async def test_fault_of_redis_answers_and_is_logged_but_not_remembered(
    store: Store, fault: Exception
) -> None:
    store.hold("a")
    store.faults = [fault]

    with capture_logs() as lines:
        async with running(store.read) as desk:
            await desk.answered("a")
            assert desk.found == []
            await desk.answered("a")

    assert desk.found == [("a", b"state of a")]
    assert [(line["event"], line["log_level"]) for line in lines] == [("lookup_failed", "warning")]


async def test_log_of_faults_is_limited(store: Store) -> None:
    store.faults = [RedisConnectionError("gone") for _ in range(5)]

    with capture_logs() as lines:
        async with running(store.read) as desk:
            for _ in range(4):
                await desk.answered("a")
            desk.now = lookup.LOG_INTERVAL_SECONDS
            await desk.answered("a")

    assert [line["suppressed"] for line in lines] == [0, 3]


async def test_jobs_asked_for_beyond_the_bound_are_answered_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "MAX_WAITING_JOBS", 2)
    store.open.clear()

    async with running(store.read) as desk:
        in_flight = desk.ask("a")
        await store.asked.wait()
        waiting = desk.ask("b", "c")
        assert desk.ask("d").times == 1
        assert desk.ask("a", "c").times == 0
        store.open.set()
        await in_flight.given()
        await waiting.given()


# --- holding ---------------------------------------------------------------------------------------


async def test_job_is_held_from_when_it_is_asked_for_until_it_was_read(store: Store) -> None:
    store.open.clear()

    async with running(store.read) as desk:
        answer = desk.ask("a")
        await store.asked.wait()
        desk.ask("a")
        desk.lookups.refresh(["a", "b"], desk.refreshed.done)
        while_read = dict(desk.held)
        store.open.set()
        await answer.given()
        await desk.refreshed.given()

    assert while_read == {"a": 1, "b": 1}
    assert not +desk.held


async def test_what_was_read_is_merged_and_answered_before_the_job_is_let_go(store: Store) -> None:
    store.hold("a")

    async with running(store.read) as desk:
        desk.lookups.request(["a"], lambda: desk.story.append("answered"))
        await until(lambda: len(desk.story) == 4)

    assert desk.story == ["hold a", "read a", "answered", "release a"]


@pytest.mark.parametrize("fault", [None, BusyLoadingError("loading")], ids=["slow", "failing"])
async def test_job_that_was_answered_unread_is_held_and_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    monkeypatch.setattr(lookup, "RETRY_SECONDS", 0.01)
    store.hold("a")
    if fault is None:
        store.open.clear()
    else:
        store.faults = [fault]

    async with running(store.read, timeout_seconds=0.05) as desk:
        await desk.answered("a")
        answered_after = list(desk.story)
        store.open.set()
        await until(lambda: len(desk.story) == 3)

    assert answered_after == ["hold a"]
    assert desk.story == ["hold a", "read a", "release a"]


async def test_job_that_cannot_be_read_is_let_go_in_the_end(store: Store) -> None:
    store.faults = [BusyLoadingError("loading")]
    store.open.clear()

    async with running(store.read) as desk:
        answer = desk.ask("a")
        await store.asked.wait()
        desk.now = lookup.REFRESH_SECONDS
        store.open.set()
        await answer.given()

    assert desk.story == ["hold a", "failed a", "release a"]


# --- refreshing ------------------------------------------------------------------------------------


async def test_refresh_reads_everything_again_in_rounds(store: Store) -> None:
    ids = [f"job-{n}" for n in range(130)]
    store.hold(*ids)

    async with running(store.read) as desk:
        desk.lookups.refresh(ids, desk.refreshed.done)
        await until(lambda: len(desk.found) == 130)

    assert [len(keys) for keys in store.reads] == [64, 64, 2]


async def test_refresh_forgets_what_was_not_found(store: Store) -> None:
    async with running(store.read) as desk:
        await desk.answered("a")
        store.hold("a")
        desk.lookups.refresh([], desk.refreshed.done)
        await desk.answered("a")

    assert desk.found == [("a", b"state of a")]


async def test_whoever_waits_comes_before_a_refresh_and_is_not_read_twice(store: Store) -> None:
    ids = [f"job-{n}" for n in range(150)]
    store.open.clear()

    async with running(store.read) as desk:
        desk.lookups.refresh(ids, desk.refreshed.done)
        await store.asked.wait()
        answers = [desk.ask("new"), desk.ask("job-149"), desk.ask("job-0")]
        store.open.set()
        for answer in answers:
            await answer.given()
        await until(lambda: not desk.lookups._jobs)

    assert store.reads[1][:2] == [tasks.key("new"), tasks.key("job-149")]
    assert [len(keys) for keys in store.reads] == [64, 64, 23]


async def test_refresh_reads_again_what_was_in_flight_before_it(store: Store) -> None:
    store.open.clear()

    async with running(store.read) as desk:
        answer = desk.ask("a")
        await store.asked.wait()
        desk.lookups.refresh(["a"], desk.refreshed.done)
        store.open.set()
        await answer.given()
        await until(lambda: not desk.lookups._jobs)

    assert len(store.reads) == 2


async def test_refresh_is_tried_again_while_redis_loads_its_data(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "RETRY_SECONDS", 0.01)
    store.hold("a")
    store.faults = [BusyLoadingError("loading"), BusyLoadingError("loading")]

    async with running(store.read) as desk:
        desk.lookups.refresh(["a"], desk.refreshed.done)
        await until(lambda: desk.found == [("a", b"state of a")])

    assert len(store.reads) == 3


@pytest.mark.parametrize(
    ("fault", "connected"),
    [(NoPermissionError("no permissions"), True), (RedisConnectionError("gone"), False)],
)
async def test_refresh_is_given_up_where_trying_again_is_of_no_use(
    store: Store, fault: Exception, *, connected: bool
) -> None:
    store.faults = [fault]

    async with running(store.read) as desk:
        desk.connected = connected
        desk.lookups.refresh(["a"], desk.refreshed.done)
        await until(lambda: bool(store.reads) and not desk.lookups._jobs)

    assert len(store.reads) == 1


async def test_refresh_is_given_up_when_it_has_held_the_jobs_back_for_long(store: Store) -> None:
    store.faults = [BusyLoadingError("loading")]
    store.open.clear()

    async with running(store.read) as desk:
        desk.lookups.refresh(["a"], desk.refreshed.done)
        await store.asked.wait()
        desk.now = lookup.REFRESH_SECONDS
        store.open.set()
        await desk.refreshed.given()

    assert desk.story == ["hold a", "failed a", "release a"]


async def test_refresh_is_over_when_the_last_of_its_jobs_was_merged(store: Store) -> None:
    ids = [f"job-{n}" for n in range(65)]
    store.hold(*ids)
    merged: list[int] = []

    async with running(store.read) as desk:
        desk.lookups.refresh(ids, lambda: merged.append(len(desk.found)))
        await until(lambda: bool(merged))

    assert merged == [65]
    assert not +desk.held


async def test_refresh_of_nothing_is_over_at_once(store: Store) -> None:
    async with running(store.read) as desk:
        desk.lookups.refresh([], desk.refreshed.done)

        assert desk.refreshed.times == 1


async def test_later_refresh_takes_the_place_of_an_earlier_one(store: Store) -> None:
    first = Answer()
    store.open.clear()

    async with running(store.read) as desk:
        desk.lookups.refresh(["a"], first.done)
        desk.lookups.refresh(["b"], desk.refreshed.done)
        store.open.set()
        await desk.refreshed.given()
        await until(lambda: not desk.lookups._jobs)

    assert first.times == 0
    assert sorted(job_id for job_id in desk.held) == ["a", "b"]


async def test_failing_refresh_does_not_hold_up_a_request(store: Store) -> None:
    store.hold("a", "b")
    store.faults = [BusyLoadingError("loading")]

    async with running(store.read) as desk:
        desk.lookups.refresh(["a"], desk.refreshed.done)
        await until(lambda: bool(store.reads) and not desk.lookups._wake.is_set())
        async with asyncio.timeout(lookup.RETRY_SECONDS / 2):
            await desk.answered("b")

    assert ("b", b"state of b") in desk.found


# --- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "cancel"])
async def test_at_the_end_everybody_is_answered_once(store: Store, end: str) -> None:
    store.hold("a")
    store.open.clear()
    desk = Desk(store.read, SOON_SECONDS)
    task = asyncio.ensure_future(desk.lookups.run())
    answers = [desk.ask("a")]
    await store.asked.wait()
    answers.append(desk.ask("a", "b"))

    ends: dict[str, Callable[[], object]] = {"close": desk.lookups.close, "cancel": task.cancel}
    ends[end]()
    for answer in answers:
        await answer.given()
    store.open.set()
    await asyncio.wait([task], timeout=SOON_SECONDS)

    assert task.cancelled() or task.exception() is None
    assert desk.found == []
    assert not +desk.held
    assert [answer.times for answer in [*answers, desk.ask("c")]] == [1, 1, 1]


async def test_asking_from_within_an_answer_is_safe(store: Store) -> None:
    store.hold("a", "b", "c")
    then = Answer()

    async with running(store.read) as desk:
        desk.lookups.request(["a", "b"], lambda: desk.lookups.request(["b", "c"], then.done))
        await then.given()

    assert ("c", b"state of c") in desk.found


# --- one node of many is away ----------------------------------------------------------------------


async def test_job_whose_node_is_away_is_read_again_and_the_others_are_not(store: Store) -> None:
    store.hold("a", "b")
    away: dict[bytes, list[Exception]] = {tasks.key("b"): [ClusterDownError("CLUSTERDOWN")]}

    async def read(keys: list[bytes]) -> list[Any]:
        values = await store.read(keys)
        return [
            away[key].pop() if away.get(key) else value
            for key, value in zip(keys, values, strict=True)
        ]

    async with running(read) as desk:
        desk.lookups.refresh(["a", "b"], desk.refreshed.done)
        await desk.refreshed.given()

    assert store.reads == [[tasks.key("a"), tasks.key("b")], [tasks.key("b")]]
    assert desk.found == [("a", b"state of a"), ("b", b"state of b")]
    assert not +desk.held


async def test_watched_job_that_was_given_up_is_read_once_redis_answers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "LATER_SECONDS", 0.0)
    store.hold("a", "b")
    store.faults = [RedisConnectionError("away")]

    async with running(store.read) as desk:
        desk.watched = {"a"}
        desk.now = lookup.REFRESH_SECONDS  # time is over with the first attempt
        monkeypatch.setattr(lookup, "REFRESH_SECONDS", 0.0)
        desk.lookups.refresh(["a", "b"], desk.refreshed.done)
        await desk.refreshed.given()
        given_up = [line for line in desk.story if line.startswith("failed")]
        await until(lambda: bool(desk.found))

    assert given_up == ["failed a", "failed b"]
    assert desk.found == [("a", b"state of a")]
    assert not +desk.held
