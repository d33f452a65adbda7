"""A job's document says where the job stands, whatever has come of it."""

from typing import Any

import pytest

from relay.core import payload
from relay.core.document import job_document
from relay.core.event import COMPLETED, FAILED
from tests.fakes import EPOCH, Relay

FIELDS = {
    "jobId", "queueName", "event", "status", "progress", "data", "result", "error",
    "failedReason", "processingTime", "id", "updatedAt",
}  # fmt: skip


def document(relay: Relay, queue: str | None = None) -> dict[str, Any]:
    found = job_document(relay.history, "job", queue)
    assert found is not None
    assert found.keys() == FIELDS
    return found


def test_nothing_is_known_of_a_stranger() -> None:
    assert job_document(Relay().history, "job", None) is None


def test_first_progress_leaves_the_rest_unknown() -> None:
    relay = Relay()

    relay.publish(progress=40, status="active", data={"step": 1})

    assert document(relay) == {
        "jobId": "job", "queueName": None, "event": "job-progress", "status": "active",
        "progress": 40, "data": {"step": 1}, "result": None, "error": None, "failedReason": None,
        "processingTime": None, "id": f"{EPOCH}-1", "updatedAt": 1000,
    }  # fmt: skip


def test_end_is_told_beside_the_progress_it_came_after() -> None:
    relay = Relay()
    relay.publish(progress=70, status="active")

    relay.publish(COMPLETED, result={"n": 1}, processingTime=12)

    told = document(relay)
    assert (told["event"], told["status"], told["id"]) == (COMPLETED, "completed", f"{EPOCH}-2")
    assert (told["progress"], told["result"], told["processingTime"]) == (70, {"n": 1}, 12)
    assert told["updatedAt"] == 2000


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"error": "Boom"}, "failed"),
        ({"error": "Boom", "status": "failed"}, "failed"),
        ({"error": "Boom", "status": "error"}, "failed"),
        ({"status": "cancelled"}, "cancelled"),
    ],
)
def test_failure_is_told_from_cancellation(fields: dict[str, str], status: str) -> None:
    relay = Relay()
    relay.publish(progress=1, status="active")

    relay.publish(FAILED, failedReason="why", **fields)

    told = document(relay)
    assert (told["status"], told["failedReason"]) == (status, "why")
    assert told["error"] == fields.get("error")


def test_status_of_a_completed_job_is_completed_whatever_its_publisher_calls_it() -> None:
    relay = Relay()

    relay.publish(COMPLETED, status="success")

    assert document(relay)["status"] == "completed"


def test_job_that_runs_again_has_no_end() -> None:
    relay = Relay()
    relay.publish(FAILED, error="Boom", failedReason="why")

    relay.publish(progress=5, status="retrying")

    told = document(relay)
    assert (told["event"], told["status"], told["progress"]) == ("job-progress", "retrying", 5)
    assert (told["error"], told["failedReason"]) == (None, None)


@pytest.mark.parametrize(
    ("fields", "status"),
    [({}, "queued"), ({"status": "waiting"}, "waiting"), ({"status": 7}, "queued")],
)
def test_job_that_has_not_begun_stands_where_its_event_says(
    fields: dict[str, Any], status: str
) -> None:
    relay = Relay()

    relay.publish("job-queued", **fields)

    told = document(relay)
    assert (told["event"], told["status"]) == ("job-queued", status)


def test_queue_narrows_and_without_one_the_newest_is_told() -> None:
    relay = Relay()
    relay.publish(queue="q1", progress=10)
    relay.publish(queue="q2", progress=20)

    assert (document(relay)["queueName"], document(relay)["progress"]) == ("q2", 20)
    assert (document(relay, "q1")["queueName"], document(relay, "q1")["progress"]) == ("q1", 10)
    assert job_document(relay.history, "job", "q3") is None


def test_document_keeps_nothing_of_what_was_asked_before() -> None:
    relay = Relay()
    relay.publish(progress=1, data={"old": True})
    before = document(relay)

    relay.publish(progress=2)

    assert (before["progress"], before["data"]) == (1, {"old": True})
    assert (document(relay)["progress"], document(relay)["data"]) == (2, None)


def published(data: object) -> Relay:
    """A relay with a job whose newest event holds `data`, which need be no JSON of the test's own."""
    relay = Relay()
    relay.publish(progress=5)
    relay.history.snapshot("job", None)[-1].data = payload.encode({"progress": 5, "data": data})
    return relay


def test_half_a_surrogate_pair_is_told_as_it_came() -> None:
    told = document(published({"half": "\ud800"}))

    assert told["data"] == {"half": "\ud800"}
    assert b"\\ud800" in payload.encode(told)


def test_event_too_deep_to_be_told_again_is_told_without_its_fields() -> None:
    nested: list[Any] = []
    for _ in range(800):
        nested = [nested]
    relay = published(nested)

    def told_from(frames: int) -> dict[str, Any]:
        return told_from(frames - 1) if frames else document(relay)

    assert told_from(0)["data"] == nested
    assert told_from(250)["data"] is None
