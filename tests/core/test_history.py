"""History keeps within its bounds, reads what it kept at most once and answers as a plain list would."""

from dataclasses import dataclass
from typing import TypeAlias

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.event import COMPLETED, PROGRESS, JobEvent
from relay.core.history import History
from relay.core.record import EVENT_OVERHEAD_BYTES, RAW_OVERHEAD_BYTES, Refusal
from tests.fakes import EPOCH, INVALID, Dialect, draft, identity, raw

JOBS = ["j1", "j2", "j3"]
QUEUES = [None, "q1", "q2"]
LARGE = 1 << 20


class Kept:
    """A history with the clock and the running number that the router would give it."""

    def __init__(
        self,
        *,
        max_events: int = 100,
        max_jobs: int = 100,
        max_bytes: int = LARGE,
        exposed: bool = True,
    ) -> None:
        self.dialect = Dialect()
        self.refused: list[Refusal] = []
        self.seq = 0
        self.history = History(
            epoch=EPOCH,
            understand=self.dialect.understand,
            on_refused=self.refused.append,
            max_events=max_events,
            max_jobs=max_jobs,
            max_bytes=max_bytes,
            ttl_seconds=60,
            exposed=exposed,
        )

    def keep(self, message: bytes, job_id: str = "job", queue: str | None = None) -> None:
        """A message that nobody watches, received at `seq` seconds."""
        self.seq += 1
        told = identity(job_id, queue)
        self.history.keep([(told, message, self.seq, 1000 * self.seq)], float(self.seq))

    def admit(
        self, name: str = PROGRESS, job_id: str = "job", queue: str | None = None, **fields: object
    ) -> JobEvent | None:
        """A message that somebody watches, received at `seq` seconds."""
        self.seq += 1
        each = draft(name, job_id, queue, **fields)  # type: ignore[arg-type]
        return self.history.admit(each, self.seq, float(self.seq), 1000 * self.seq)

    def ids(self) -> list[str]:
        """The ids of the job's events that can be read, oldest first."""
        return [event.id for event in self.history.events("job", None)]

    def seqs(self, job_id: str = "job", queue: str | None = None) -> list[int]:
        return [event.seq for event in self.history.events(job_id, queue)]


# Against a model


@dataclass
class Entry:
    seq: int
    told_bytes: int
    is_raw: bool

    @property
    def size_bytes(self) -> int:
        return self.told_bytes + (RAW_OVERHEAD_BYTES if self.is_raw else EVENT_OVERHEAD_BYTES)


Key: TypeAlias = tuple[str | None, str]
Step: TypeAlias = tuple[bool, str, str | None, int]


class Model:
    """Lists in a dict, in order of their last update, with the bounds applied after each message.

    Payloads are written so that the bytes kept are the bytes that clients are given.
    """

    def __init__(self, max_events: int, max_jobs: int, max_bytes: int) -> None:
        self.max_events, self.max_jobs, self.max_bytes = max_events, max_jobs, max_bytes
        self.jobs: dict[Key, list[Entry]] = {}

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entries in self.jobs.values() for entry in entries)

    def settle(self, queue: str | None, job_id: str) -> None:
        """The job's messages are understood."""
        for (where, which), entries in self.jobs.items():
            if which == job_id and (queue is None or where in (None, queue)):
                for entry in entries:
                    entry.is_raw = False

    def add(self, key: Key, entry: Entry) -> None:
        if not entry.is_raw:
            self.settle(*key)
        entries = self.jobs[key] = [*self.jobs.pop(key, []), entry]
        del entries[: -self.max_events]
        while len(self.jobs) > self.max_jobs or (
            len(self.jobs) > 1 and self.size_bytes > self.max_bytes
        ):
            del self.jobs[next(iter(self.jobs))]
        while len(entries) > 1 and self.size_bytes > self.max_bytes:
            del entries[0]


def informational(job_id: str, queue: str | None, padding: int) -> dict[str, object]:
    """The fields of an event that nothing is filled into, in the order in which they are told."""
    where = {} if queue is None else {"queueName": queue}
    return {"jobId": job_id, **where, "padding": "x" * padding}


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from(JOBS),
            st.sampled_from(QUEUES),
            st.integers(min_value=0, max_value=300),
        ),
        max_size=40,
    ),
    st.integers(min_value=1, max_value=4),
    st.integers(min_value=1, max_value=5),
    st.sampled_from([300, 1000, 2000, LARGE]),
)
@settings(max_examples=80, deadline=None)
def test_agrees_with_a_model_of_its_bounds(
    steps: list[Step], max_events: int, max_jobs: int, max_bytes: int
) -> None:
    kept = Kept(max_events=max_events, max_jobs=max_jobs, max_bytes=max_bytes)
    kept.dialect.default_name = "job-note"  # nothing is filled in, so the bytes stay as many
    model = Model(max_events, max_jobs, max_bytes)

    for watched, job_id, queue, padding in steps:
        fields = informational(job_id, queue, padding)
        told = orjson.dumps(fields)
        if watched:
            event = kept.admit("job-note", job_id, queue, padding=fields["padding"])
            assert event is not None
            assert event.data == told
        else:
            kept.keep(told, job_id, queue)
        model.add((queue, job_id), Entry(kept.seq, len(told), is_raw=not watched))

    history = kept.history
    assert history.size_bytes == model.size_bytes
    assert len(history) == len(model.jobs)
    for queue in ("q1", "q2"):
        newest = [job_id for where, job_id in model.jobs if where == queue]
        assert history.newest_of_queue(queue, 100) == newest
        assert history.newest_of_queue(queue, 1) == newest[-1:]
    for queue, job_id in model.jobs:
        expected = [
            entry.seq
            for (where, which), entries in model.jobs.items()
            if which == job_id and queue in (None, where)
            for entry in entries
        ]
        held = kept.seqs(job_id, queue)
        assert held == sorted(expected)
        assert [event.seq for event in history.snapshot(job_id, queue)] == held[-1:]
        assert history.is_current(job_id, queue)


def test_size_stays_the_sum_when_raw_messages_are_understood() -> None:
    kept = Kept()
    kept.keep(raw(progress=1))
    kept.keep(INVALID)
    kept.keep(raw(COMPLETED))

    events = kept.history.events("job", None)

    assert kept.history.size_bytes == sum(len(e.data) + EVENT_OVERHEAD_BYTES for e in events)


def test_one_message_larger_than_all_bytes_is_kept_alone() -> None:
    kept = Kept(max_bytes=500)
    kept.admit("job-note", "other")

    kept.admit("job-note", padding="x" * 1000)

    assert kept.seqs() == [2]
    assert kept.seqs("other") == []


def test_a_job_is_forgotten_when_it_was_not_updated_for_its_time() -> None:
    kept = Kept()
    kept.admit(job_id="old")
    kept.admit(job_id="renewed")
    kept.admit(job_id="renewed")

    kept.history.expire(now=62.5)

    assert kept.seqs("old") == []
    assert kept.seqs("renewed") == [2, 3]
    kept.history.expire(now=63.5)
    assert len(kept.history) == kept.history.size_bytes == 0


def test_expire_forgets_no_more_at_once_than_it_is_told() -> None:
    kept = Kept()
    for job_id in JOBS:
        kept.admit(job_id=job_id)

    kept.history.expire(now=1000, limit=2)

    assert len(kept.history) == 1


# Raw until read


def test_messages_are_understood_once_and_only_when_read() -> None:
    kept = Kept()
    kept.keep(raw(progress=1))
    kept.keep(raw(progress=2))
    kept.keep(raw(progress=9), "other")
    assert kept.dialect.understood == []

    for _ in range(2):
        kept.history.snapshot("job", None)
        kept.history.events("job", None)

    assert kept.dialect.understood == [raw(progress=1), raw(progress=2)]


def test_an_invalid_newest_message_is_skipped_for_the_newest_valid_one() -> None:
    kept = Kept()
    kept.keep(raw(progress=1))
    kept.keep(INVALID)

    assert [event.seq for event in kept.history.snapshot("job", None)] == [1]
    assert len(kept.dialect.understood) == 2


def test_a_job_of_invalid_messages_alone_is_not_known() -> None:
    kept = Kept()
    kept.keep(INVALID)

    assert kept.history.snapshot("job", None) == []
    assert kept.history.events("job", None) == []


def test_what_was_kept_raw_counts_for_what_comes_after() -> None:
    kept = Kept()
    kept.keep(raw(progress=40))
    kept.keep(raw(COMPLETED))

    assert kept.admit(progress=50) is None
    assert kept.admit(COMPLETED) is None
    assert kept.refused == [Refusal.LATE, Refusal.DUPLICATE]
    assert kept.history.progress("job", None) == 40


def test_what_is_refused_among_raw_messages_is_told_when_read() -> None:
    kept = Kept()
    kept.keep(raw(COMPLETED))
    kept.keep(raw(COMPLETED))
    kept.keep(raw(progress=1))
    assert kept.refused == []

    assert kept.seqs() == [1]
    assert kept.refused == [Refusal.DUPLICATE, Refusal.LATE]


# A queue that only the payload tells


def test_a_queue_told_by_a_raw_payload_is_that_jobs_queue() -> None:
    kept = Kept()
    kept.keep(raw(queueName="q1", progress=1))
    kept.keep(raw(queueName="q2", progress=2))

    assert kept.seqs("job", "q1") == [1]
    assert kept.seqs("job", "q2") == [2]
    assert kept.seqs() == [1, 2]


def test_an_end_that_was_kept_raw_holds_for_the_queue_its_payload_tells() -> None:
    kept = Kept()
    kept.keep(raw(COMPLETED, queueName="q1"))

    assert kept.admit(queue="q1", progress=50) is None
    assert kept.admit(COMPLETED, queue="q1") is None
    assert kept.admit(COMPLETED, queue="q2") is not None


def test_raw_messages_of_two_channels_are_understood_in_the_order_they_came() -> None:
    kept = Kept()
    kept.keep(raw(progress=1), queue="q1")
    kept.keep(raw(COMPLETED, queueName="q1"))
    kept.keep(raw(progress=2), queue="q1")

    assert kept.seqs("job", "q1") == [1, 2]
    assert kept.refused == [Refusal.LATE]


def test_events_per_job_stay_bounded_when_payloads_tell_the_queue() -> None:
    kept = Kept(max_events=2)
    kept.admit(queue="q1", progress=1)
    kept.admit(queue="q1", progress=2)
    kept.keep(raw(queueName="q1", progress=3))

    assert kept.seqs("job", "q1") == [2, 3]


# Two queues, one id


def test_jobs_of_two_queues_with_one_id_are_kept_apart() -> None:
    kept = Kept()
    kept.admit(COMPLETED, queue="q1")
    kept.admit(queue="q2", progress=5)

    assert [event.seq for event in kept.history.snapshot("job", "q1")] == [1]
    assert [event.seq for event in kept.history.snapshot("job", None)] == [2]
    assert kept.history.progress("job", None) == 5
    assert kept.seqs() == [1, 2]


# since


def test_after_gives_all_that_is_later() -> None:
    kept = Kept()
    kept.keep(raw(eventId="a"))
    kept.admit(id="b")
    kept.admit(id="c")

    def later(since: str) -> list[str] | None:
        events = kept.history.after("job", None, since)
        return None if events is None else [event.id for event in events]

    assert later("a") == ["b", "c"]
    assert later("c") == []
    assert later("unknown") is None
    assert kept.history.after("another", None, "a") is None


def test_after_does_not_promise_what_was_trimmed() -> None:
    kept = Kept(max_events=2)
    for event_id in ("a", "b", "c"):
        kept.admit(id=event_id)

    assert kept.history.after("job", None, "a") is None


def test_after_does_not_reach_across_a_gap() -> None:
    kept = Kept()
    kept.admit(id="a")
    kept.admit(id="b")
    kept.history.mark_gap(kept.seq)
    assert not kept.history.is_current("job", None)
    kept.admit(id="c")
    kept.admit(id="d")

    assert kept.history.after("job", None, "a") is None
    assert kept.history.after("job", None, "b") is None
    assert [event.id for event in kept.history.after("job", None, "c") or ()] == ["d"]
    assert kept.history.is_current("job", None)


# Off


def test_with_history_off_the_state_of_a_job_is_kept_all_the_same() -> None:
    kept = Kept(exposed=False)
    for progress in (1, 2, 3):
        kept.admit(progress=progress)
    kept.admit(COMPLETED)

    assert kept.admit(progress=4) is None
    assert kept.admit(COMPLETED) is None
    assert kept.seqs() == [3, 4]


@pytest.mark.parametrize("count", [1, 5])
def test_newest_of_queue_gives_the_most_recently_updated_jobs_last(count: int) -> None:
    kept = Kept()
    for job_id in ("a", "b", "c", "a"):
        kept.keep(raw(), job_id, "q")

    assert kept.history.newest_of_queue("q", count) == ["b", "c", "a"][-count:]
    assert kept.history.newest_of_queue("unknown", count) == []


def test_a_queue_that_only_payloads_tell_lists_jobs_that_nobody_has_read() -> None:
    kept = Kept()
    kept.keep(raw(queueName="q"), "a")
    kept.keep(raw(queueName="other"), "b")

    assert kept.history.newest_of_queue("q", 10) == ["a"]


def test_a_job_is_current_again_once_it_was_compared_with_redis() -> None:
    kept = Kept()
    kept.admit(COMPLETED)
    kept.history.mark_gap(kept.seq)

    before = kept.history.is_current("job", None)
    kept.history.confirm("job", kept.seq + 1)

    assert not before
    assert kept.history.is_current("job", None)


def test_what_was_trimmed_behind_an_end_cannot_be_replayed_from_it() -> None:
    kept = Kept(max_events=2)
    end = kept.admit(COMPLETED)
    kept.admit("job-archived")
    kept.admit("job-moved")
    assert end is not None

    later = kept.history.after("job", None, end.id)

    assert later is None


# Holding back


def hold_and_keep(kept: Kept, *messages: bytes) -> None:
    kept.history.hold("job")
    for message in messages:
        kept.keep(message)


def release(kept: Kept) -> list[JobEvent]:
    def next_seq() -> int:
        kept.seq += 1
        return kept.seq

    return kept.history.release("job", next_seq)


def test_what_is_held_back_is_not_told_until_it_is_released() -> None:
    kept = Kept()
    kept.admit(id="a")
    hold_and_keep(kept, raw(eventId="b"), raw(COMPLETED, eventId="c"))

    held = kept.ids(), kept.history.snapshot("job", None)[-1].id
    told = [event.id for event in release(kept)]

    assert held == (["a"], "a")
    assert told == ["b", "c"]
    assert kept.ids() == ["a", "b", "c"]


def test_what_was_known_before_the_hold_is_not_held_back() -> None:
    kept = Kept()
    kept.keep(raw(eventId="a"))

    hold_and_keep(kept, raw(eventId="b"))

    assert kept.ids() == ["a"]
    assert [event.id for event in release(kept)] == ["b"]


def test_only_the_last_of_several_holds_lets_go() -> None:
    kept = Kept()
    kept.history.hold("job")
    hold_and_keep(kept, raw())

    first, second = release(kept), release(kept)

    assert (len(first), len(second)) == (0, 1)
    assert kept.history.holding == {}


def test_what_is_merged_during_a_hold_is_older_than_what_was_held_back() -> None:
    kept = Kept()
    hold_and_keep(kept, raw(eventId="c"))
    kept.admit(id="a")
    kept.admit(id="b")
    release(kept)

    events = kept.history.events("job", None)

    assert [event.id for event in events] == ["a", "b", "c"]
    assert [event.id for event in kept.history.after("job", None, "a") or ()] == ["b", "c"]


def test_what_was_merged_and_held_back_too_is_told_once() -> None:
    kept = Kept()
    hold_and_keep(kept, raw(eventId="a"), raw(eventId="b"))
    kept.admit(id="a")

    assert [event.id for event in release(kept)] == ["b"]
    assert kept.refused == [Refusal.DUPLICATE]


def test_what_is_held_back_makes_no_room_for_what_is_merged() -> None:
    kept = Kept(max_events=3)
    hold_and_keep(kept, raw(COMPLETED, eventId="end"))
    for number in range(10):
        kept.admit(id=str(number))

    assert [event.id for event in release(kept)] == ["end"]
    assert kept.ids() == ["8", "9", "end"]


def test_what_is_held_back_is_bounded() -> None:
    kept = Kept(max_events=3)
    kept.admit(id="known")
    hold_and_keep(kept, *(raw(eventId=str(number)) for number in range(100)))

    told = [event.id for event in release(kept)]

    assert told == ["94", "95", "96", "97", "98", "99"]
    assert kept.ids() == told[-3:]
    assert kept.history.after("job", None, "known") is None


def test_with_history_off_what_is_held_back_is_told_all_the_same() -> None:
    kept = Kept(exposed=False)
    hold_and_keep(kept, *(raw(eventId=str(number)) for number in range(5)))

    assert [event.id for event in release(kept)] == ["0", "1", "2", "3", "4"]


def test_size_stays_the_sum_while_messages_are_held_and_merged() -> None:
    kept = Kept(max_events=3)
    hold_and_keep(kept, *(raw(eventId=str(number)) for number in range(9)))
    for number in range(9):
        kept.admit(id=str(number))
    release(kept)

    sizes = [len(event.data) + EVENT_OVERHEAD_BYTES for event in kept.history.events("job", None)]
    assert kept.history.size_bytes == sum(sizes)


def test_this_very_message_is_held_as_long_as_it_is_held_back() -> None:
    kept = Kept()
    hold_and_keep(kept, raw(n=1))

    assert kept.history.holds("job", raw(n=1))
    assert not kept.history.holds("job", raw(n=2))
    assert not kept.history.holds("another", raw(n=1))
    release(kept)
    assert not kept.history.holds("job", raw(n=1))


def test_job_that_is_held_is_not_current() -> None:
    kept = Kept()
    kept.admit()
    hold_and_keep(kept)

    held = kept.history.is_current("job", None)
    release(kept)

    assert not held
    assert kept.history.is_current("job", None)


def test_what_is_held_back_does_not_pass_for_what_was_read() -> None:
    kept = Kept()
    kept.admit(id="a")
    kept.history.mark_stale(kept.seq)
    hold_and_keep(kept, raw(eventId="c"))

    assert kept.history.after("job", None, "a") is None


# What Redis may know better


def test_a_message_that_is_skipped_leaves_the_job_to_be_read() -> None:
    kept = Kept()
    kept.admit(id="a")
    kept.admit(id="b")
    kept.history.skip("job")

    skipped = kept.history.is_current("job", None), kept.history.after("job", None, "a")
    kept.seq += 1
    kept.history.confirm("job", kept.seq)

    assert skipped == (False, None)
    assert kept.history.is_current("job", None)
    assert [event.id for event in kept.history.after("job", None, "a") or ()] == ["b"]


@pytest.mark.parametrize("away", ["skipped", "stale"])
def test_an_event_that_follows_what_was_not_read_is_not_replayed_to(away: str) -> None:
    kept = Kept()
    kept.admit(id="a")
    if away == "skipped":
        kept.history.skip("job")
    else:
        kept.history.mark_stale(kept.seq)
    kept.admit(id="c")
    kept.admit(id="d")

    assert kept.history.after("job", None, "a") is None
    assert [event.id for event in kept.history.after("job", None, "c") or ()] == ["d"]


def test_what_was_read_after_a_skip_is_replayed_to() -> None:
    kept = Kept()
    kept.admit(id="a")
    kept.history.skip("job")
    kept.history.confirm("job", kept.seq)
    kept.admit(id="b")

    assert [event.id for event in kept.history.after("job", None, "a") or ()] == ["b"]


def test_after_does_not_reach_across_a_cut() -> None:
    kept = Kept()
    kept.admit(id="a")
    kept.history.cut("job")
    kept.admit(id="b")
    kept.admit(id="c")

    assert kept.history.after("job", None, "a") is None
    assert [event.id for event in kept.history.after("job", None, "b") or ()] == ["c"]


def test_a_job_is_current_only_where_it_is_in_each_of_its_queues() -> None:
    kept = Kept()
    kept.admit(id="a", queue="q1")
    kept.admit(id="b", queue="q2")
    kept.history.skip("job")
    kept.admit(id="c", queue="q1")

    assert kept.history.is_current("job", "q1")
    assert not kept.history.is_current("job", "q2")
    assert not kept.history.is_current("job", None)
    assert kept.history.after("job", None, "b") is None


def test_a_record_that_holds_nothing_does_not_make_a_job_stale() -> None:
    kept = Kept()
    hold_and_keep(kept, raw(eventId="a", queueName="q"), raw(eventId="b", queueName="q"))
    release(kept)

    assert kept.history.is_current("job", None)
    assert [event.id for event in kept.history.after("job", None, "a") or ()] == ["b"]


def test_a_job_is_known_by_the_ids_that_publishers_gave_in_any_of_its_queues() -> None:
    kept = Kept()
    kept.admit(id="a", queue="q1")
    kept.admit(queue="q2")
    made = kept.history.newest_id("job")

    assert kept.history.knows("job", "a")
    assert not kept.history.knows("job", "b")
    assert not kept.history.knows("another", "a")
    assert made == f"{EPOCH}-2"
    assert not kept.history.knows("job", made)
    assert kept.history.newest_id("another") is None


# The order in which jobs go


def at_once(kept: Kept, *job_ids: str) -> None:
    """A message of each of these jobs, all received at the same moment."""
    messages = []
    for job_id in job_ids:
        kept.seq += 1
        messages.append((identity(job_id), raw(), kept.seq, 1000))
    kept.history.keep(messages, 1.0)


def test_a_job_that_was_updated_within_the_second_goes_after_one_that_was_not() -> None:
    kept = Kept(max_jobs=2)
    at_once(kept, "a", "b")
    at_once(kept, "a")

    at_once(kept, "c")

    assert [job_id for job_id in "abc" if kept.seqs(job_id)] == ["a", "c"]


def test_the_job_of_the_newest_message_stays_however_many_were_updated_within_the_second() -> None:
    kept = Kept(max_jobs=50)
    many = [str(number) for number in range(50)]
    at_once(kept, *many)
    at_once(kept, *many)

    at_once(kept, *(f"new-{number}" for number in range(30)), many[20])

    assert len(kept.history) == 50
    assert len(kept.seqs(many[20])) == 3


def test_newest_of_a_queue_are_in_order_within_a_second_too() -> None:
    kept = Kept()
    for job_id in "abca":
        kept.seq += 1
        kept.history.keep([(identity(job_id, "q"), raw(), kept.seq, 1000)], 1.0)

    assert kept.history.newest_of_queue("q", 2) == ["c", "a"]


def test_a_channel_finds_its_job_again_after_it_was_forgotten() -> None:
    kept = Kept(max_jobs=1)
    channel = identity("a")
    for told in (channel, identity("b"), channel):
        kept.seq += 1
        kept.history.keep([(told, raw(), kept.seq, 1000)], 1.0)

    assert kept.seqs("a") == [3]
    assert kept.seqs("b") == []
    assert len(kept.history) == 1
