"""What is owed from history arrives whole, in order and once, as the transport has room for it."""

import math
from collections import Counter
from typing import TypeAlias

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from relay.core.backfill import Backfill
from relay.core.event import COMPLETED, FAILED, PROGRESS, JobEvent
from relay.core.index import topics_of
from relay.core.outbox import Outbox, Verdict
from relay.core.rights import Proof
from tests.fakes import Client, Message, Relay, burst, decode, draft, event

ROOM_BYTES = 2000


class Owing:
    """A backfill between a history of one queue's jobs and an outbox."""

    def __init__(self, max_outbox_bytes: int = 1 << 20) -> None:
        self.relay = Relay()
        self.outbox = Outbox(max_outbox_bytes, self.relay.stats)
        self.backfill = Backfill(self.relay.history, self.outbox, self.relay.stats)

    def admit(
        self, name: str = PROGRESS, job_id: str = "job", queue: str | None = None, padding: int = 0
    ) -> JobEvent:
        relay = self.relay
        relay.router.next_seq()
        each = draft(name, job_id, queue, padding="x" * padding, status="active")
        told = relay.history.admit(each, relay.seq, float(relay.seq), 1000 * relay.seq)
        assert told is not None
        return told

    def refill(self) -> list[str]:
        """What one refill brings: event ids."""
        assert self.backfill.refill(ROOM_BYTES) is Verdict.PASSED
        return self.take()

    def take(self) -> list[str]:
        ids = []
        while self.outbox.pending_bytes:
            ids += [message["id"] for message in decode(self.outbox.take(1 << 20))]
        return ids


@pytest.fixture
def owing() -> Owing:
    return Owing()


def test_a_snapshot_is_one_event(owing: Owing) -> None:
    owing.admit()
    owing.admit()

    owing.backfill.owe((None, "job"), position=2, snapshot=True)

    assert owing.refill() == ["e-2"]
    assert not owing.backfill
    assert owing.relay.stats.deliveries == {PROGRESS: 1}


def test_a_job_that_history_forgot_is_owed_no_more(owing: Owing) -> None:
    owing.backfill.owe((None, "job"), position=2, snapshot=True)

    assert owing.refill() == []
    assert not owing.backfill


def test_snapshots_are_given_as_room_allows(owing: Owing) -> None:
    for job_id in ("a", "b", "c"):
        owing.admit(job_id=job_id, padding=1500)
        owing.backfill.owe((None, job_id), position=3, snapshot=True)

    assert owing.refill() == ["e-1", "e-2"]
    assert owing.refill() == ["e-3"]


def test_a_long_replay_is_given_in_pieces_and_goes_on_with_what_came_meanwhile(
    owing: Owing,
) -> None:
    for _ in range(4):
        owing.admit(padding=1100)
    owing.backfill.owe((None, "job"), position=1, snapshot=False)

    first = owing.refill()
    live = owing.admit()

    assert first == ["e-2", "e-3"]
    assert owing.backfill.absorb(burst(live)) is Verdict.HELD
    assert owing.refill() == ["e-4", "e-5"]
    assert not owing.backfill


def test_a_replay_is_not_conflated_while_the_transport_takes_all(owing: Owing) -> None:
    for _ in range(5):
        owing.admit(padding=900)
    owing.backfill.owe((None, "job"), position=0, snapshot=False)

    assert owing.refill() + owing.refill() + owing.refill() == [f"e-{n}" for n in range(1, 6)]


def test_what_the_transport_held_up_is_conflated(owing: Owing) -> None:
    for name in (PROGRESS, "job-stalled", PROGRESS, COMPLETED, PROGRESS, PROGRESS):
        owing.admit(name, padding=1100)
    owing.backfill.owe((None, "job"), position=0, snapshot=False)
    first = owing.refill()

    owing.outbox.becomes(congested=True)
    assert owing.refill() == []
    owing.outbox.becomes(congested=False)

    assert first == ["e-1", "e-2"]
    assert owing.refill() + owing.refill() == ["e-4", "e-6"]


def test_what_is_owed_from_now_on_is_not_conflated_for_a_congestion_before(owing: Owing) -> None:
    owing.outbox.becomes(congested=True)
    owing.outbox.becomes(congested=False)
    owing.admit()
    owing.admit()

    owing.backfill.owe((None, "job"), position=0, snapshot=False)

    assert owing.refill() == ["e-1", "e-2"]


def test_a_replay_asked_for_during_a_congestion_is_conflated(owing: Owing) -> None:
    owing.admit()
    owing.admit()
    owing.outbox.becomes(congested=True)
    owing.backfill.owe((None, "job"), position=0, snapshot=False)
    owing.outbox.becomes(congested=False)

    assert owing.refill() == ["e-2"]


def test_an_end_does_not_wait(owing: Owing) -> None:
    owing.admit()
    owing.backfill.owe((None, "job"), position=0, snapshot=False)

    verdict = owing.backfill.absorb(burst(owing.admit(COMPLETED)))

    assert verdict is Verdict.HELD
    assert owing.take() == ["e-1", "e-2"]
    assert not owing.backfill


def test_a_live_event_of_a_congested_session_does_not_wait_in_history(owing: Owing) -> None:
    owing.admit()
    owing.backfill.owe((None, "job"), position=0, snapshot=False)
    owing.outbox.becomes(congested=True)

    owing.backfill.absorb(burst(owing.admit("job-stalled")))

    assert owing.take() == ["e-1", "e-2"]


def test_what_came_after_the_subscription_is_given_beside_the_snapshot(owing: Owing) -> None:
    owing.admit()
    owing.backfill.owe((None, "job"), position=1, snapshot=True)
    owing.backfill.absorb(burst(owing.admit("job-stalled")))
    owing.backfill.absorb(burst(owing.admit()))

    assert owing.refill() == ["e-2", "e-3"]


def test_an_end_and_a_new_run_in_one_batch_are_both_given(owing: Owing) -> None:
    owing.backfill.owe((None, "job"), position=0, snapshot=True)

    owing.backfill.absorb(burst(owing.admit(COMPLETED), owing.admit(PROGRESS)))

    assert owing.take() == ["e-1", "e-2"]


def test_what_comes_after_a_debt_was_paid_is_told_like_any_other_event(owing: Owing) -> None:
    owing.backfill.owe((None, "job"), position=0, snapshot=True)
    end, other = owing.admit(COMPLETED, queue="q1"), owing.admit(queue="q2")
    owing.backfill.absorb(burst(end))

    same_batch = owing.backfill.absorb(burst(other))
    later = owing.backfill.absorb(burst(owing.admit(queue="q2")))

    assert (same_batch, later) == (Verdict.HELD, None)
    assert owing.take() == ["e-1", "e-2"]


def test_how_a_job_ended_is_given_before_what_came_since(owing: Owing) -> None:
    owing.admit(FAILED)
    # Not a new run: without a running status the end stands.
    owing.relay.router.next_seq()
    owing.relay.history.admit(draft("job-note"), 2, 2.0, 2000)
    owing.backfill.owe((None, "job"), position=1, snapshot=True)

    assert owing.refill() == ["e-1", "e-2"]


def test_other_jobs_are_not_absorbed(owing: Owing) -> None:
    owing.admit(queue="q1")
    owing.backfill.owe(("q1", "job"), position=0, snapshot=False)

    assert owing.backfill.absorb(burst(event(job_id="other"))) is None
    assert owing.backfill.absorb(burst(event(queue="q2"))) is None
    assert owing.backfill.absorb(burst(event(queue="q1"))) is Verdict.HELD


def test_a_debt_is_not_shortened_by_a_later_one(owing: Owing) -> None:
    for _ in range(3):
        owing.admit()
    owing.backfill.owe((None, "job"), position=0, snapshot=False)

    owing.backfill.owe((None, "job"), position=3, snapshot=True)

    assert owing.refill() == ["e-1", "e-2", "e-3"]


def test_no_event_is_owed_twice_by_a_job_and_the_job_within_its_queue(owing: Owing) -> None:
    owing.backfill.owe(("q", "job"), position=0, snapshot=True)
    owing.backfill.owe((None, "job"), position=0, snapshot=True)
    owing.backfill.owe(("q", "job"), position=0, snapshot=True)

    owing.backfill.absorb(burst(owing.admit(queue="q")))

    assert owing.refill() == ["e-1"]


def test_cancel_forgets_and_is_idempotent(owing: Owing) -> None:
    owing.admit()
    owing.backfill.owe((None, "job"), position=1, snapshot=True)

    owing.backfill.cancel((None, "job"))
    owing.backfill.cancel((None, "job"))

    assert owing.refill() == []


def test_an_outbox_that_cannot_take_the_end_overflows() -> None:
    owing = Owing(max_outbox_bytes=1000)
    owing.outbox.becomes(congested=True)
    owing.outbox.reply(b"\x81\x02{}")
    owing.backfill.owe((None, "job"), position=0, snapshot=False)

    verdict = owing.backfill.absorb(burst(owing.admit(COMPLETED, padding=2000)))

    assert verdict is Verdict.OVERFLOW


# Any interleaving

Job: TypeAlias = tuple[str, str]  # queue, job id

jobs = st.sampled_from(["j1", "j2"])
queues = st.sampled_from(["q1", "q2"])
names = st.lists(
    st.sampled_from([PROGRESS, PROGRESS, "job-note", COMPLETED]), min_size=1, max_size=3
)


class OneClient(RuleBasedStateMachine):
    """One client and whatever may happen to it; what it was sent is compared with what was told.

    `wanted` holds the numbers, by name, of what was told of each job while a subscription matched it or
    waited for Redis. Each progress says that the job runs, so jobs end again and again. The `ref` of a
    request tells where its answer stands.
    """

    @initialize()
    def begin(self) -> None:
        # So little room that a flush of one round leaves much behind.
        self.relay = Relay(high_water_bytes=300)
        self.client = Client(self.relay)
        self.wanted: dict[Job, list[tuple[str, int]]] = {}
        self.number = 0
        self.ended: set[Job] = set()  # whose newest event is an end
        self.waiting: tuple[str | None, str] | None = None  # what a subscribe that waits asks for
        self.asked: Counter[int] = Counter()  # how often each event may be sent as a snapshot
        self.left: dict[int, set[Job]] = {}  # by ref: what is not watched any more
        self.ref = 0

    # What may happen

    @rule(queue=queues, job_id=jobs, batch=names)
    def publish(self, queue: str, job_id: str, batch: list[str]) -> None:
        job = (queue, job_id)
        status = {PROGRESS: {"status": "active"}}
        drafts, told = [], []
        for name in batch:
            self.number += 1
            drafts.append(draft(name, job_id, queue, n=self.number, **status.get(name, {})))
            if name != COMPLETED or job not in self.ended:
                told.append((name, self.number))
            (self.ended.add if name == COMPLETED else self.ended.discard)(job)
        self.relay.publish_batch(drafts)
        if self.is_watched(job) or self.waiting in ((None, job_id), job):
            self.wanted.setdefault(job, []).extend(told)

    @rule(queue=st.none() | queues, job_id=jobs, back=st.integers(min_value=0, max_value=6))
    def subscribe(self, queue: str | None, job_id: str, back: int) -> None:
        held = self.relay.history.events(job_id, queue)
        since = held[-back].id if 0 < back <= len(held) else None
        self.ask("subscribe-to-job", {"jobId": job_id, "queueName": queue, "since": since})

    @rule(queue=queues, snapshot=st.booleans())
    def subscribe_to_queue(self, queue: str, snapshot: bool) -> None:
        self.ask("subscribe-to-queue", {"queueName": queue, "snapshot": snapshot})

    @rule(queue=st.none() | queues, job_id=jobs)
    def unsubscribe(self, queue: str | None, job_id: str) -> None:
        self.ask("unsubscribe-from-job", {"jobId": job_id, "queueName": queue})

    @rule(queue=queues)
    def unsubscribe_from_queue(self, queue: str) -> None:
        self.ask("unsubscribe-from-queue", {"queueName": queue})

    @rule(needed=st.booleans())
    def need_lookups(self, needed: bool) -> None:
        self.relay.looked_up = {"j1"} if needed else set()

    @rule()
    def resolve(self) -> None:
        if self.client.lookup is not None:
            self.client.lookup = self.waiting = None
            self.count_snapshots()
            self.client.resolve()

    @rule(congested=st.booleans())
    def congest(self, congested: bool) -> None:
        self.client.outbox.becomes(congested=congested)

    @rule(rounds=st.integers(min_value=1, max_value=2))
    def flush(self, rounds: int) -> None:
        self.client.flush(rounds)

    # How it is looked at

    def ask(self, name: str, data: Message) -> None:
        if self.client.lookup is not None:
            return  # the edge does not read on meanwhile
        self.ref += 1
        before = {job: self.watched_from(job) for job in ALL_JOBS if self.is_watched(job)}
        self.count_snapshots()
        pending = self.client.session.receive(
            orjson.dumps({"event": name, "data": data, "ref": self.ref}), 1.0
        )
        assert not isinstance(pending, Proof)
        self.client.lookup = pending
        if self.client.lookup is not None:
            self.waiting = (data["queueName"], data["jobId"])
        # What only the subscription that was ended has brought may be asked for again, as of any other job.
        left = {job for job, position in before.items() if self.watched_from(job) > position}
        self.left[self.ref] = left
        for job in left:
            self.wanted.pop(job, None)

    def is_watched(self, job: Job) -> bool:
        return self.watched_from(job) < math.inf

    def watched_from(self, job: Job) -> float:
        """The position at which the oldest subscription to this job began."""
        topics = self.relay.index.topics(self.client.session)
        return min(
            (topics[topic] for topic in topics_of(*job) if topic in topics), default=math.inf
        )

    def count_snapshots(self) -> None:
        for queue, job_id in ALL_JOBS:
            snapshot = self.relay.history.snapshot(job_id, queue)
            self.asked.update(orjson.loads(one.data)["n"] for one in snapshot)

    def sent(self) -> dict[Job, list[int]]:
        """The numbers of what the client was sent of each job since it last began to watch it."""
        found: dict[Job, list[int]] = {}
        for message in self.client.seen:
            if "id" in message:
                job = (message["data"]["queueName"], message["data"]["jobId"])
                found.setdefault(job, []).append(message["data"]["n"])
            for job in self.left.get(message.get("ref", 0), ()):
                found.pop(job, None)
        return found

    @invariant()
    def bytes_add_up(self) -> None:
        assert self.relay.stats.outbox_bytes == self.client.outbox.held_bytes

    def teardown(self) -> None:
        """In the end the client knows all that it was to know, and saw it in order."""
        if not hasattr(self, "client"):
            return
        self.resolve()
        self.client.relieve()
        sent = self.sent()
        assert not self.client.outbox.pending_bytes
        assert all(self.is_watched(job) for job in sent)
        assert all(numbers == sorted(numbers) for numbers in sent.values())
        for job, events in self.wanted.items():
            newest_by_name = dict(events)
            ends = {number for name, number in events if name == COMPLETED}
            assert {*newest_by_name.values(), *ends} <= set(sent.get(job, ())), job
        times = Counter(number for numbers in sent.values() for number in numbers)
        assert all(count <= 1 + self.asked[number] for number, count in times.items())


@pytest.mark.parametrize("second", [[COMPLETED], [PROGRESS, COMPLETED]])
def test_events_of_one_id_in_two_queues_are_told_once_to_whoever_was_owed_them(
    second: list[str],
) -> None:
    client = OneClient()
    client.begin()
    client.publish("q1", "j1", [PROGRESS])
    client.congest(congested=True)
    client.need_lookups(needed=True)
    client.subscribe(None, "j1", back=0)
    client.publish("q1", "j1", [PROGRESS])
    client.publish("q2", "j1", second)

    client.teardown()

    told = [message["data"]["n"] for message in client.client.seen if "id" in message]
    assert told.count(2 + len(second)) == 1


ALL_JOBS: list[Job] = [(queue, job_id) for queue in ("q1", "q2") for job_id in ("j1", "j2")]

TestOneClient = OneClient.TestCase
TestOneClient.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
