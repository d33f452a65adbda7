"""What is told of one job: nothing twice, nothing late, with what was missing filled in."""

from typing import Any

import orjson
import pytest

from relay.core.event import COMPLETED, FAILED, PROGRESS, Draft, JobEvent
from relay.core.record import EVENT_OVERHEAD_BYTES, RAW_OVERHEAD_BYTES, Record, Refusal
from tests.fakes import EPOCH, draft, identity, raw


def told(record: Record, *drafts: Draft) -> list[str]:
    """What becomes of each draft: the name of the event that is told, or of the refusal."""
    outcomes = [admitted(record, each) for each in drafts]
    return [each.name for each in outcomes]


def admitted(record: Record, each: Draft, at_ms: int | None = None) -> JobEvent | Refusal:
    seq = record.updated_seq + 1
    return record.admit(each, seq, 1000 * seq if at_ms is None else at_ms, EPOCH)


def data(record: Record, each: Draft, at_ms: int | None = None) -> dict[str, Any]:
    """The data that clients are given of this draft."""
    event = admitted(record, each, at_ms)
    assert isinstance(event, JobEvent)
    fields: dict[str, Any] = orjson.loads(event.data)
    return fields


@pytest.fixture
def record() -> Record:
    return Record(("q", "job"))


# After the end


@pytest.mark.parametrize("first", [COMPLETED, FAILED])
@pytest.mark.parametrize("second", [COMPLETED, FAILED])
def test_a_second_end_is_a_duplicate(record: Record, first: str, second: str) -> None:
    assert told(record, draft(first), draft(second)) == [first, "DUPLICATE"]


def test_a_second_end_is_told_where_another_event_was_told_between(record: Record) -> None:
    outcomes = told(record, draft(FAILED), draft("job-retrying"), draft(COMPLETED))

    assert outcomes == [FAILED, "job-retrying", COMPLETED]


def test_a_refused_event_does_not_stand_between_two_ends(record: Record) -> None:
    outcomes = told(record, draft(COMPLETED), draft(progress=50), draft(COMPLETED))

    assert outcomes == [COMPLETED, "LATE", "DUPLICATE"]


def test_a_progress_stays_late_after_an_informational_event(record: Record) -> None:
    outcomes = told(record, draft(COMPLETED), draft("job-archived"), draft(progress=50))

    assert outcomes == [COMPLETED, "job-archived", "LATE"]


@pytest.mark.parametrize("status", ["active", "queued", "waiting", "retrying"])
def test_a_running_status_lets_the_job_run_and_end_again(record: Record, status: str) -> None:
    outcomes = told(
        record, draft(FAILED), draft(status=status), draft(progress=5), draft(COMPLETED)
    )

    assert outcomes == [FAILED, PROGRESS, PROGRESS, COMPLETED]
    assert record.ended


@pytest.mark.parametrize("status", ["completed", "stalled", "ACTIVE"])
def test_another_status_does_not_wake_an_ended_job(record: Record, status: str) -> None:
    assert told(record, draft(COMPLETED), draft(status=status)) == [COMPLETED, "LATE"]


# Event ids


def test_another_attempt_may_repeat_what_an_earlier_one_said(record: Record) -> None:
    outcomes = told(
        record,
        draft(progress=10, id="c-a"), draft(status="retrying", id="c-r"),
        draft(progress=10, id="c-a"), draft(status="retrying", id="c-r"), draft(progress=10, id="c-a"),
    )  # fmt: skip

    assert outcomes == [PROGRESS] * 5


def test_a_copy_of_the_announcement_of_another_attempt_is_a_duplicate(record: Record) -> None:
    retrying = draft(status="retrying", id="r")

    assert told(record, retrying, retrying) == [PROGRESS, "DUPLICATE"]


def test_an_id_that_a_publisher_gave_is_given_once_whatever_attempt_it_is(record: Record) -> None:
    events = [draft(progress=10, id="1-0"), draft(status="retrying", id="2-0"), draft(id="3-0")]

    outcomes = told(record, *events, *events)

    assert outcomes == [PROGRESS] * 3 + ["DUPLICATE"] * 3


def test_an_id_that_the_job_has_is_a_duplicate(record: Record) -> None:
    outcomes = told(record, draft(id="1-0"), draft(id="2-0"), draft(id="1-0"))

    assert outcomes == [PROGRESS, PROGRESS, "DUPLICATE"]


def test_ids_without_a_publishers_are_made_of_epoch_and_position(record: Record) -> None:
    admitted(record, draft())
    admitted(record, draft(id="theirs"))
    admitted(record, draft())

    assert [event.id for event in record.told] == ["e-1", "theirs", "e-3"]


# Fields


def test_progress_has_identity_progress_and_status_first(record: Record) -> None:
    fields = data(record, draft(PROGRESS, queue="q", stage="s", progress=5))

    assert list(fields.items()) == [
        ("jobId", "job"), ("progress", 5), ("status", "active"), ("queueName", "q"), ("stage", "s"),
    ]  # fmt: skip


def test_a_queue_that_is_not_known_is_not_told(record: Record) -> None:
    assert "queueName" not in data(record, draft())


def test_missing_progress_is_the_jobs_last_else_zero(record: Record) -> None:
    assert data(record, draft())["progress"] == 0
    admitted(record, draft("job-stalled", progress=30))
    assert data(record, draft())["progress"] == 30


def test_a_new_run_begins_at_zero(record: Record) -> None:
    told(record, draft(progress=90), draft(FAILED))

    assert data(record, draft(status="active"))["progress"] == 0


@pytest.mark.parametrize(
    ("given", "told_on"), [("paused", "paused"), (3, "active"), (None, "active")]
)
def test_a_status_that_is_no_text_is_active(record: Record, given: object, told_on: str) -> None:
    assert data(record, draft(status=given))["status"] == told_on


def test_an_end_has_its_fields_even_where_the_publisher_left_them_out(record: Record) -> None:
    assert data(record, draft(COMPLETED)) == {
        "jobId": "job",
        "result": None,
        "processingTime": None,
    }
    admitted(record, draft("job-retrying"))
    assert data(record, draft(FAILED, failedReason="r")) == {
        "jobId": "job",
        "error": None,
        "failedReason": "r",
    }


def test_what_can_be_read_but_not_written_is_told_without_what_is_too_deep(record: Record) -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]

    fields = data(record, draft(COMPLETED, result=deep, note="kept"))

    assert fields == {"jobId": "job", "processingTime": None, "note": "kept", "truncated": True}


def test_too_deep_a_progress_still_tells_progress_and_status(record: Record) -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]

    fields = data(record, draft(progress=7, data=deep))

    assert fields == {"jobId": "job", "progress": 7, "status": "active", "truncated": True}


# processingTime


@pytest.mark.parametrize(
    ("fields", "expected_ms"),
    [
        ({"processingTime": 7, "startedAt": 1, "finishedOn": 5}, 7),
        ({"processingTime": -7}, 0),
        ({"startedAt": 100, "processedOn": 300, "finishedOn": 500}, 400),
        ({"processedOn": 300, "finishedOn": 500}, 200),
        ({"startedAt": 900, "processedOn": 300, "finishedOn": 500}, 200),
        ({"processingTime": "fast"}, 2500),
        ({"processingTime": True}, 2500),
        ({"startedAt": 100}, 2500),
        ({"finishedOn": 100}, 2500),
        ({}, 2500),
    ],
)
def test_processing_time(record: Record, fields: dict[str, Any], expected_ms: float) -> None:
    admitted(record, draft("job-queued"), at_ms=1000)
    admitted(record, draft(), at_ms=2000)

    assert data(record, draft(COMPLETED, **fields), at_ms=3500)["processingTime"] == expected_ms


def test_processing_time_of_a_new_run_counts_from_its_begin(record: Record) -> None:
    admitted(record, draft(), at_ms=1000)
    admitted(record, draft(FAILED), at_ms=2000)
    admitted(record, draft(status="active"), at_ms=5000)

    assert data(record, draft(COMPLETED), at_ms=5600)["processingTime"] == 600


def test_processing_time_counts_from_a_message_that_was_trimmed_away(record: Record) -> None:
    record.raw += (identity(), raw(), 1, 1000)
    record.raw += (identity(), raw(), 2, 2000)
    record.trim(1)
    record.take_raw()

    assert data(record, draft(COMPLETED), at_ms=4000)["processingTime"] == 3000


def test_a_clock_that_went_back_gives_no_negative_time(record: Record) -> None:
    admitted(record, draft(), at_ms=5000)

    assert data(record, draft(COMPLETED), at_ms=4000)["processingTime"] == 0


# Snapshot and trimming


def names(events: list[JobEvent]) -> list[str]:
    return [event.name for event in events]


def test_snapshot_is_the_newest_event(record: Record) -> None:
    assert record.snapshot() == []
    told(record, draft(progress=1), draft("job-stalled"), draft(progress=2))

    assert [event.seq for event in record.snapshot()] == [3]


def test_snapshot_of_an_ended_job_tells_the_end_before_what_came_since(record: Record) -> None:
    told(record, draft(), draft(COMPLETED), draft("job-a"), draft("job-b"))

    assert names(record.snapshot()) == [COMPLETED, "job-b"]


def test_snapshot_of_a_job_that_runs_again_does_not_tell_its_former_end(record: Record) -> None:
    told(record, draft(), draft(FAILED), draft(status="retrying"))

    assert names(record.snapshot()) == [PROGRESS]


def test_trim_keeps_the_newest_and_the_end(record: Record) -> None:
    told(record, draft(), draft(COMPLETED), *(draft("job-note", id=str(n)) for n in range(8)))

    record.trim(3)

    assert names(record.snapshot()) == [COMPLETED, "job-note"]
    assert [event.id for event in record.told] == ["e-2", "6", "7"]


def test_trim_takes_what_is_settled_before_what_is_raw(record: Record) -> None:
    record.raw += (identity(), raw(), 1, 1000)
    told(record, draft(), draft(COMPLETED), draft("job-note"))

    record.trim(2)

    assert names(record.told) == [COMPLETED]
    assert record.count == 2
    record.trim(1)
    assert names(record.told) == [COMPLETED]
    assert record.raw == []


def test_an_id_is_known_as_long_as_its_event_is_held(record: Record) -> None:
    told(record, draft(id="a"), draft(id="b"))

    record.trim(1)

    assert told(record, draft(id="b"), draft(id="a")) == ["DUPLICATE", PROGRESS]


def test_size_is_what_is_held(record: Record) -> None:
    record.raw += (identity(), b"12345", 1, 1000)
    assert record.size_bytes == record.raw_bytes == 5 + RAW_OVERHEAD_BYTES
    admitted(record, draft())
    assert record.size_bytes == record.raw_bytes + len(record.told[0].data) + EVENT_OVERHEAD_BYTES

    record.take_raw()
    record.trim(1)

    assert record.size_bytes == len(record.told[0].data) + EVENT_OVERHEAD_BYTES


def test_a_message_is_held_until_it_is_understood(record: Record) -> None:
    record.raw += (identity(), b"m", 1, 1000)

    before, between = record.holds(b"m"), record.holds(b"other")
    record.take_raw()

    assert (before, between, record.holds(b"m")) == (True, False, False)


def test_a_cut_is_behind_the_newest_entry(record: Record) -> None:
    told(record, draft(), draft())

    record.cut()

    assert record.trimmed_seq == 2
