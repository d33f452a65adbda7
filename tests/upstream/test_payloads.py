"""What a payload says, which channel it goes to, and what is refused with advice."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.event import is_name
from relay.sources.channel import ChannelSource
from relay.upstream.payloads import (
    DEFAULT_CHANNEL,
    compose,
    error_fields,
    flat_payload,
    parse_template,
)

TEMPLATE = parse_template(DEFAULT_CHANNEL)
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40).filter(
    is_name
)


def test_a_payload_says_who_and_what_and_leaves_out_what_is_not_known() -> None:
    assert flat_payload("job-progress", "a", {"progress": 45}, None, None, None, 7) == {
        "event": "job-progress", "jobId": "a", "progress": 45, "ts": 7
    }  # fmt: skip


def test_a_payload_carries_queue_status_and_data() -> None:
    payload = flat_payload("job-progress", "a", {}, "q", "queued", {"stage": "x"}, 7)

    assert payload == {
        "event": "job-progress", "jobId": "a", "queueName": "q",
        "status": "queued", "data": {"stage": "x"}, "ts": 7,
    }  # fmt: skip


def test_a_text_as_error_is_passed_on() -> None:
    assert error_fields("disk full") == {"error": "disk full"}


def test_an_exception_as_error_tells_its_type_and_its_text() -> None:
    assert error_fields(ValueError("no such wallet")) == {
        "error": "ValueError", "failedReason": "no such wallet"
    }  # fmt: skip


def test_an_exception_without_text_gives_no_reason() -> None:
    assert error_fields(TimeoutError()) == {"error": "TimeoutError"}


def test_an_integer_job_becomes_its_digits() -> None:
    assert compose(TEMPLATE, {"jobId": 12, "queueName": "q"}).channel == "jobs:q:12"


@pytest.mark.parametrize(
    "payload",
    [
        {"jobId": "a", "queueName": "q"},
        {"job_id": "a", "queue_name": "q"},
        {"id": "a", "queue": "q"},
    ],
)
def test_every_spelling_of_the_names_leads_to_the_channel(payload: dict[str, Any]) -> None:
    assert compose(TEMPLATE, payload).channel == "jobs:q:a"


def test_a_short_event_name_is_written_out_in_the_channel() -> None:
    template = parse_template("e.{event}.{jobId}")

    assert compose(template, {"jobId": "a", "event": "failed"}).channel == "e.job-failed.a"


@pytest.mark.parametrize(
    ("payload", "advice"),
    [
        ({"queueName": "q"}, "jobId"),
        ({"event": "job-progress", "data": {"jobId": "a", "queueName": "q"}}, "jobId"),
        ({"jobId": "", "queueName": "q"}, "1 to 256"),
        ({"jobId": "a\nb", "queueName": "q"}, "1 to 256"),
        ({"jobId": "a" * 257, "queueName": "q"}, "1 to 256"),
        ({"jobId": "\ud800", "queueName": "q"}, "1 to 256"),
        ({"jobId": True, "queueName": "q"}, "cannot name a job"),
        ({"jobId": "a", "queueName": 5.5}, "cannot name a queue"),
        ({"jobId": "a", "queueName": "q", "data": {1, 2}}, "no JSON"),
    ],
)
def test_what_the_relay_could_not_place_is_refused_with_advice(
    payload: dict[str, Any], advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        compose(TEMPLATE, payload)


def test_a_job_whose_publisher_names_no_queue_is_in_the_default_one() -> None:
    assert compose(TEMPLATE, {"jobId": "a"}).channel == "jobs:default:a"


def test_a_template_with_the_event_asks_for_it() -> None:
    with pytest.raises(ValueError, match="job-progress"):
        compose(parse_template("e.{event}.{jobId}"), {"jobId": "a", "status": "done"})


def test_a_queue_that_the_relay_would_split_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="would be read as"):
        compose(TEMPLATE, {"jobId": "job", "queueName": "two:parts"})


def test_a_template_that_is_none_is_named_in_the_fault() -> None:
    with pytest.raises(ValueError, match=r"channel template 'jobs:\{job\}'"):
        parse_template("jobs:{job}")


def test_the_names_are_told_beside_the_channel() -> None:
    message = compose(TEMPLATE, {"job_id": 7, "queue": "q", "type": "failed"})

    assert (message.job, message.queue, message.event) == ("7", "q", "job-failed")


def test_an_event_that_only_the_status_tells_is_left_to_the_relay() -> None:
    assert compose(TEMPLATE, {"jobId": "a", "status": "done"}).event is None


def test_a_queue_that_nothing_tells_stays_unknown_where_the_channel_needs_none() -> None:
    assert compose(parse_template("own.{jobId}"), {"jobId": "a"}).queue is None


def test_an_event_id_can_be_left_out_without_touching_the_callers_payload() -> None:
    payload = {"jobId": "a", "eventId": "7", "own": 1}

    assert compose(TEMPLATE, payload).payload == b'{"jobId":"a","eventId":"7","own":1}'
    assert compose(TEMPLATE, payload, keep_event_id=False).payload == b'{"jobId":"a","own":1}'
    assert payload["eventId"] == "7"


@given(job=NAMES, queue=NAMES.filter(lambda name: ":" not in name))
def test_the_relay_reads_back_what_was_composed(job: str, queue: str) -> None:
    source = ChannelSource(TEMPLATE)
    payload = flat_payload("job-progress", job, {"progress": 45}, queue, None, None, 7)
    message = compose(TEMPLATE, payload)

    identity = source.identify(message.channel.encode())
    assert identity is not None
    draft = source.parse(identity, message.payload)

    assert (draft.job_id, draft.queue, draft.fields["progress"]) == (job, queue, 45)
