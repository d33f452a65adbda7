"""The outbox counts its bytes, conflates what may be conflated and keeps each job's order."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.event import COMPLETED, FAILED, PROGRESS, TERMINAL, JobEvent
from relay.core.outbox import Outbox, Verdict
from relay.core.stats import Stats
from relay.core.wire import EVENT_STREAM
from tests.fakes import burst, decode, event

Step: TypeAlias = tuple[str, str, list[str], int]

steps = st.lists(
    st.tuples(
        st.sampled_from(["offer", "offer", "offer", "reply", "take", "congest", "relieve"]),
        st.sampled_from(["j1", "j2"]),
        st.lists(
            st.sampled_from([PROGRESS, PROGRESS, "job-stalled", COMPLETED, FAILED]),
            min_size=1,
            max_size=3,
        ),
        st.integers(min_value=0, max_value=400),
    ),
    max_size=40,
)


@dataclass
class Run:
    """What was put into an outbox and what came out of it."""

    outbox: Outbox
    stats: Stats
    offered: list[JobEvent]
    replies: list[int]
    taken: list[Any]  # events as objects, replies as numbers


def run(script: list[Step], max_bytes: int = 1 << 20) -> Run:
    """Do the steps, looking after each whether the bytes add up."""
    stats = Stats()
    done = Run(Outbox(max_bytes, stats), stats, [], [], [])
    outbox = done.outbox
    for number, (what, job_id, names, size) in enumerate(script):
        if what == "offer":
            events = [
                event(name, job_id, seq=10 * number + offset, padding_bytes=size)
                for offset, name in enumerate(names)
            ]
            done.offered += events
            assert outbox.offer(burst(*events)) is not Verdict.OVERFLOW
        elif what == "reply":
            done.replies.append(number)
            outbox.reply(b"\x81%c" % len(b"%d" % number) + b"%d" % number)
        elif what == "take":
            before = outbox.pending_bytes
            data = outbox.take(size)
            assert outbox.pending_bytes == before - len(data)
            assert bool(data) is bool(before)
            done.taken += decode(data)
        else:
            outbox.becomes(congested=what == "congest")
        assert stats.outbox_bytes == outbox.held_bytes >= 0
    return done


def drained(done: Run) -> list[Any]:
    """All that came out, to the last byte."""
    while done.outbox.pending_bytes:
        done.taken += decode(done.outbox.take(1))
    assert done.outbox.take(1) == b""
    return done.taken


@given(steps)
@settings(max_examples=60, deadline=None)
def test_bytes_add_up_and_all_comes_out(script: list[Step]) -> None:
    done = run(script)

    drained(done)

    assert done.outbox.pending_bytes == done.stats.outbox_bytes == 0


@given(steps)
@settings(max_examples=60, deadline=None)
def test_order_of_each_job_never_goes_back(script: list[Step]) -> None:
    taken = drained(run(script))

    for job_id in ("j1", "j2"):
        seqs = [m["data"]["seq"] for m in taken if type(m) is dict and m["data"]["jobId"] == job_id]
        assert seqs == sorted(set(seqs))


@given(steps)
@settings(max_examples=60, deadline=None)
def test_only_what_something_newer_replaced_is_missing(script: list[Step]) -> None:
    done = run(script)

    out = {m["data"]["seq"] for m in drained(done) if type(m) is dict}

    missing = [one for one in done.offered if one.seq not in out]
    assert len(missing) == done.stats.conflated
    for one in missing:
        newer = [e for e in done.offered if (e.job_id, e.name) == (one.job_id, one.name)]
        assert one.name not in TERMINAL
        assert newer[-1].seq in out
        assert newer[-1] is not one


@given(steps)
@settings(max_examples=30, deadline=None)
def test_replies_all_come_out_in_order(script: list[Step]) -> None:
    done = run(script)

    assert [m for m in drained(done) if type(m) is int] == done.replies


@given(steps)
@settings(max_examples=30, deadline=None)
def test_nothing_is_conflated_while_the_transport_takes_all(script: list[Step]) -> None:
    done = run([step for step in script if step[0] != "congest"])

    out = [m["data"]["seq"] for m in drained(done) if type(m) is dict]

    assert out == [one.seq for one in done.offered]


@pytest.fixture
def congested() -> Outbox:
    """An outbox of 1000 bytes beside a transport that takes nothing."""
    outbox = Outbox(1000, Stats())
    outbox.becomes(congested=True)
    return outbox


def test_a_conflated_event_does_not_overtake_another_of_its_job(congested: Outbox) -> None:
    congested.offer(burst(event(PROGRESS, seq=1), event("job-stalled", seq=2)))

    congested.offer(burst(event(PROGRESS, seq=3)))

    assert [m["data"]["seq"] for m in decode(congested.take(1000))] == [2, 3]


def test_jobs_of_two_queues_with_one_id_are_not_conflated(congested: Outbox) -> None:
    congested.offer(burst(event(queue="q1", seq=1)))

    congested.offer(burst(event(queue="q2", seq=2)))

    assert [m["data"]["seq"] for m in decode(congested.take(1000))] == [1, 2]


def test_what_does_not_fit_overflows(congested: Outbox) -> None:
    first = congested.offer(burst(event(COMPLETED, seq=1, padding_bytes=600)))
    second = congested.offer(burst(event(COMPLETED, "other", seq=2, padding_bytes=600)))

    assert (first, second) == (Verdict.HELD, Verdict.OVERFLOW)
    assert congested.reply(b"\x81\x7e" + b"x" * 600) is Verdict.OVERFLOW


def test_one_frame_fits_an_empty_outbox_whatever_its_size(congested: Outbox) -> None:
    verdict = congested.offer(burst(event(COMPLETED, padding_bytes=5000)))

    assert verdict is Verdict.HELD
    assert congested.pending_bytes > 5000


def test_a_burst_that_conflates_to_what_fits_does_not_overflow(congested: Outbox) -> None:
    events = [event(seq=seq, padding_bytes=600) for seq in range(1, 20)]

    assert congested.offer(burst(*events)) is Verdict.HELD
    assert [m["data"]["seq"] for m in decode(congested.take(1000))] == [19]


def test_one_read_is_no_backlog_however_large(congested: Outbox) -> None:
    congested.becomes(congested=False)
    events = [event(seq=seq, padding_bytes=600) for seq in range(1, 20)]

    assert congested.offer(burst(*events)) is Verdict.PASSED
    assert len(decode(congested.take(1))) == 19


def test_take_gives_as_many_held_frames_as_fit(congested: Outbox) -> None:
    congested.offer(burst(*(event(COMPLETED, seq=seq, padding_bytes=150) for seq in (1, 2, 3))))

    data = congested.take(600)

    assert [m["data"]["seq"] for m in decode(data)] == [1, 2]
    assert len(data) <= 600


def test_what_follows_held_frames_waits_behind_them(congested: Outbox) -> None:
    congested.offer(burst(event(COMPLETED, seq=1)))
    congested.becomes(congested=False)

    assert congested.offer(burst(event(seq=2))) is Verdict.HELD
    assert [m["data"]["seq"] for m in decode(congested.take(1000))] == [1, 2]
    assert congested.offer(burst(event(seq=3))) is Verdict.PASSED


def test_held_events_count_as_delivered_when_taken() -> None:
    stats = Stats()
    outbox = Outbox(1000, stats)
    outbox.becomes(congested=True)

    outbox.offer(burst(event(seq=1), event(seq=2), event("job-stalled", seq=3)))

    assert not stats.deliveries
    outbox.take(1000)
    assert stats.deliveries == {PROGRESS: 1, "other": 1}


def test_clear_forgets_all() -> None:
    stats = Stats()
    outbox = Outbox(1000, stats)
    outbox.offer(burst(event(seq=1)))
    outbox.becomes(congested=True)
    outbox.offer(burst(event(seq=2)))

    outbox.clear()

    assert outbox.pending_bytes == stats.outbox_bytes == 0
    assert outbox.take(1000) == b""


def test_congestions_counts_beginnings_only() -> None:
    outbox = Outbox(1000, Stats())

    for congested in (True, True, False, False, True):
        outbox.becomes(congested=congested)

    assert outbox.congestions == 2


def test_each_format_is_written_once_for_all_its_watchers() -> None:
    one_batch = burst(event(seq=1), event(seq=2))
    texts = [Outbox(1 << 20, Stats()) for _ in range(2)]
    streams = [Outbox(1 << 20, Stats(), EVENT_STREAM) for _ in range(2)]

    for outbox in (*texts, *streams):
        outbox.offer(one_batch)
    written = [outbox.take(1) for outbox in (*texts, *streams)]

    assert written[0] is written[1]
    assert written[2] is written[3]
    assert [message["data"]["seq"] for message in decode(written[0])] == [1, 2]
    assert written[2] == b"".join(EVENT_STREAM.event(one) for one in one_batch.events)


def test_congested_stream_holds_frames_of_its_own_format() -> None:
    outbox = Outbox(1 << 20, Stats(), EVENT_STREAM)
    outbox.becomes(congested=True)

    outbox.offer(burst(event(seq=1)))
    outbox.offer(burst(event(seq=2)))

    assert outbox.take(1 << 20) == EVENT_STREAM.event(event(seq=2))
