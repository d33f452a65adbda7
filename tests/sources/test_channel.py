"""Messages on plain channels: a row for each thing that is understood, put right or refused."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.errors import AmendedReason, DecodeError, InvalidReason
from relay.core.event import Draft, Identity, JobEvent, event_name, is_name
from relay.core.payload import encode, parse_object
from relay.core.record import Record
from relay.sources import channel as channel_source
from relay.sources.channel import ChannelSource, percent
from relay.sources.template import ChannelTemplate

PLAIN = "events"  # a channel that tells nothing: all is read from the payload
JOB = "jobs:{jobId}"
QUEUED = "jobs:{queueName}:{jobId}"


def source(template: str = PLAIN) -> ChannelSource:
    return ChannelSource(ChannelTemplate.parse(template))


def identity_of(template: str, channel: str) -> Identity:
    identity = source(template).identify(channel.encode())
    assert identity is not None
    return identity


def parse_bytes(message: bytes, template: str = PLAIN, channel: str = "events") -> Draft:
    reader = source(template)
    identity = reader.identify(channel.encode())
    assert identity is not None
    return reader.parse(identity, message)


def parse(message: dict[str, Any], template: str = PLAIN, channel: str = "events") -> Draft:
    return parse_bytes(json.dumps(message).encode(), template, channel)


def told(**fields: Any) -> Draft:
    """The draft of a message on a channel that tells the job."""
    return parse(fields, JOB, "jobs:a")


# --- what the channel tells ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "channel", "job_id", "queue", "event"),
    [
        (QUEUED, "jobs:q:a", "a", "q", None),
        (QUEUED, "jobs:q:a:b", "a:b", "q", None),
        (JOB, "jobs:q:a", "q:a", None, None),
        ("queue:{queueName}", "queue:q", None, "q", None),
        ("{event}:{jobId}", "completed:a", "a", None, "job-completed"),
        ("{event}:{jobId}", "job-stalled:a", "a", None, "job-stalled"),
        ("{event}:{jobId}", "whatever:a", "a", None, None),
        (PLAIN, "events", None, None, None),
    ],
)
def test_channel_tells_what_stands_in_the_placeholders(
    template: str, channel: str, job_id: str | None, queue: str | None, event: str | None
) -> None:
    identity = identity_of(template, channel)

    assert (identity.job_id, identity.queue, identity.event) == (job_id, queue, event)
    assert identity.channel == channel.encode()


def test_channel_of_another_shape_is_not_identified() -> None:
    assert source(QUEUED).identify(b"jobs:a") is None


@pytest.mark.parametrize(
    "channel",
    [
        b"jobs:q:",
        b"jobs::a",
        b"jobs:q:a\n",
        b"jobs:\x7f:a",
        b"jobs:q:\xff",
        b"jobs:q:" + b"a" * 257,
    ],
)
def test_channel_whose_names_break_the_rules_has_no_identity(channel: bytes) -> None:
    reader = source(QUEUED)

    with pytest.raises(DecodeError) as first:
        reader.identify(channel)
    with pytest.raises(DecodeError) as again:
        reader.identify(channel)

    assert first.value.reason is again.value.reason is InvalidReason.NO_IDENTITY


# --- the two forms ---------------------------------------------------------------------------------


def test_flat_form() -> None:
    draft = parse(
        {
            "event": "job-progress",
            "jobId": "similarity-ABC123",
            "queueName": "similarity-operations",
            "progress": 45,
            "status": "active",
            "data": {"stage": 2},
        }
    )

    assert (draft.name, draft.job_id, draft.queue) == (
        "job-progress",
        "similarity-ABC123",
        "similarity-operations",
    )
    assert draft.fields == {"progress": 45, "status": "active", "data": {"stage": 2}}
    assert (draft.id, draft.runs, draft.ts_ms, draft.amended) == (None, True, None, ())


@pytest.mark.parametrize("key", ["jobId", "job_id"])
def test_wrapped_form(key: str) -> None:
    draft = parse({"event": "completed", "data": {key: "a", "result": 7, "data": [1]}})

    assert (draft.name, draft.job_id) == ("job-completed", "a")
    assert draft.fields == {"result": 7, "data": [1]}


@pytest.mark.parametrize("key", ["jobId", "job_id"])
def test_message_with_an_id_at_its_top_level_is_flat(key: str) -> None:
    draft = parse({key: "a", "data": {"jobId": "b", "progress": 5}})

    assert (draft.job_id, draft.fields) == ("a", {"data": {"jobId": "b", "progress": 5}})


@pytest.mark.parametrize("data", [{"progress": 5}, {"id": "b"}, [], "jobId", None])
def test_message_whose_data_names_no_job_is_flat(data: object) -> None:
    draft = told(data=data)

    assert (draft.job_id, draft.fields) == ("a", {"data": data})


def test_wrapped_form_is_understood_on_a_channel_that_tells_the_job() -> None:
    draft = told(event="progress", data={"jobId": "a", "progress": 5})

    assert (draft.fields, draft.amended) == ({"progress": 5}, ())


def test_what_stands_beside_the_wrapped_object_counts_where_that_is_silent() -> None:
    draft = parse(
        {
            "event": "failed",
            "eventId": "outer",
            "queueName": "q",
            "ts": 1,
            "data": {"jobId": "a", "event": "progress", "eventId": "inner", "ts": 2},
        }
    )

    assert (draft.name, draft.id, draft.queue, draft.ts_ms) == ("job-failed", "outer", "q", 2)


def test_name_inside_the_wrapped_object_counts_where_the_one_outside_is_none() -> None:
    draft = parse({"event": "update", "data": {"jobId": "a", "event": "job-failed"}})

    assert draft.name == "job-failed"


# --- identity --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "job_id"),
    [
        ({"jobId": "a"}, "a"),
        ({"job_id": "a"}, "a"),
        ({"id": "a"}, "a"),
        ({"jobId": "a", "id": "b"}, "a"),
        ({"jobId": None, "id": "b"}, "b"),
        ({"id": "b", "data": {"job_id": "a"}}, "a"),
        ({"jobId": None, "data": {"jobId": "a"}}, "a"),
        ({"jobId": 42}, "42"),
        ({"id": -1}, "-1"),
        ({"jobId": 2**63}, str(2**63)),
        ({"data": {"jobId": 42}}, "42"),
        ({"jobId": "a" * 256}, "a" * 256),
        ({"jobId": "€:*"}, "€:*"),
    ],
)
def test_job_is_read_from_the_payload_where_the_channel_is_silent(
    fields: dict[str, Any], job_id: str
) -> None:
    assert parse(fields).job_id == job_id


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"progress": 5},
        {"jobId": None},
        {"jobId": ""},
        {"jobId": "a\n"},
        {"jobId": "a" * 257},
        {"jobId": True},
        {"jobId": 1.5},
        {"jobId": ["a"]},
        {"jobId": {"id": "a"}},
        {"jobId": "\ud800"},
        {"jobId": "", "id": "b"},
        {"data": {"id": "a"}},
    ],
)
def test_message_without_an_identity_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(DecodeError) as caught:
        parse(fields)

    assert caught.value.reason is InvalidReason.NO_IDENTITY


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"{", InvalidReason.NOT_JSON),
        (b"[]", InvalidReason.NOT_OBJECT),
        (b'{"jobId":"\xff"}', InvalidReason.NOT_UTF8),
        (b'{"data":' + b"[" * 10_000 + b"]" * 10_000 + b"}", InvalidReason.TOO_DEEP),
    ],
)
def test_message_that_is_no_object_is_refused(message: bytes, reason: InvalidReason) -> None:
    with pytest.raises(DecodeError) as caught:
        parse_bytes(message, JOB, "jobs:a")

    assert caught.value.reason is reason


@pytest.mark.parametrize("fields", [{}, {"jobId": "a"}, {"job_id": "a"}, {"jobId": None}])
def test_channel_tells_the_job_and_the_payload_need_not(fields: dict[str, Any]) -> None:
    draft = told(**fields)

    assert (draft.job_id, draft.amended, draft.fields) == ("a", (), {})


@pytest.mark.parametrize("job_id", ["b", 1, True, "", {"id": "a"}])
def test_payload_that_names_another_job_is_delivered_under_the_channels(job_id: object) -> None:
    draft = told(jobId=job_id)

    assert (draft.job_id, draft.amended, draft.fields) == ("a", (AmendedReason.MISMATCH,), {})


def test_integer_id_in_the_payload_is_no_mismatch() -> None:
    assert parse({"jobId": 42}, JOB, "jobs:42").amended == ()


def test_id_is_a_field_like_others_where_the_channel_tells_the_job() -> None:
    draft = told(id="b")

    assert (draft.job_id, draft.amended, draft.fields) == ("a", (), {"id": "b"})


@pytest.mark.parametrize("key", ["queueName", "queue_name", "queue"])
def test_queue_is_read_from_the_payload_where_the_channel_is_silent(key: str) -> None:
    draft = told(**{key: "q"})

    assert (draft.queue, draft.amended, draft.fields) == ("q", (), {})


@pytest.mark.parametrize("queue", ["", "q\n", "q" * 257, 1, True, {"name": "q"}, "\udfff"])
def test_queue_name_that_breaks_the_rules_is_left_out(queue: object) -> None:
    draft = told(queueName=queue)

    assert (draft.queue, draft.amended) == (None, (AmendedReason.QUEUE_NAME,))
    assert draft.fields == {}


def test_payload_that_names_another_queue_is_delivered_under_the_channels() -> None:
    draft = parse({"queueName": "r", "jobId": "b"}, QUEUED, "jobs:q:a")

    assert (draft.queue, draft.job_id) == ("q", "a")
    assert draft.amended == (AmendedReason.MISMATCH,)


def test_null_names_no_queue() -> None:
    draft = told(queueName=None, queue="q")

    assert (draft.queue, draft.amended) == ("q", ())


# --- the event's name ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"event": "job-progress"}, "job-progress"),
        ({"event": "job-completed"}, "job-completed"),
        ({"event": "job-failed"}, "job-failed"),
        ({"event": "progress"}, "job-progress"),
        ({"event": "completed"}, "job-completed"),
        ({"event": "failed"}, "job-failed"),
        ({"event": "job-queued"}, "job-queued"),
        ({"event": "job-stalled"}, "job-stalled"),
        ({"type": "completed"}, "job-completed"),
        ({"event": "failed", "type": "completed"}, "job-failed"),
        ({"event": "similarity", "type": "completed"}, "job-completed"),
        # The name wins over what the rest would tell.
        ({"event": "progress", "status": "completed", "result": 1, "error": "e"}, "job-progress"),
        # No name: by the status.
        *(
            ({"status": status}, "job-completed")
            for status in ("completed", "complete", "succeeded", "success", "finished", "done")
        ),
        *(({"status": s}, "job-failed") for s in ("failed", "failure", "error", "cancelled")),
        ({"status": "failed", "result": 1}, "job-failed"),
        ({"status": "completed", "error": "e"}, "job-completed"),
        ({"status": "active"}, "job-progress"),
        ({"status": ["failed"]}, "job-progress"),
        # Else by an error.
        ({"error": "e"}, "job-failed"),
        ({"error": ""}, "job-failed"),
        ({"failedReason": "r", "result": 1}, "job-failed"),
        ({"error": "e", "status": "active", "progress": 5}, "job-failed"),
        ({"error": None, "progress": 5}, "job-progress"),
        # Else by a result.
        ({"result": 0}, "job-completed"),
        ({"returnvalue": {"n": 1}}, "job-completed"),
        ({"result": 1, "progress": 100}, "job-completed"),
        ({"returnvalue": 1, "progress": 100}, "job-completed"),
        ({"result": None}, "job-completed"),
        ({"returnvalue": None}, "job-completed"),
        ({"result": None, "progress": 5}, "job-progress"),
        ({"error": None, "failedReason": None, "result": None}, "job-completed"),
        # Else it is a progress; a field that holds no event name is ignored.
        ({}, "job-progress"),
        ({"progress": 100}, "job-progress"),
        ({"event": "similarity", "result": 1}, "job-completed"),
        ({"event": "Completed"}, "job-progress"),
        ({"event": "job-"}, "job-progress"),
        ({"event": "job-\n"}, "job-progress"),
        ({"event": 'job-"x'}, "job-progress"),
        ({"event": 7}, "job-progress"),
        ({"event": None}, "job-progress"),
        ({"event": ["completed"]}, "job-progress"),
    ],
)
def test_event_is_named_by_the_first_that_tells(fields: dict[str, Any], name: str) -> None:
    assert told(**fields).name == name


def test_field_that_holds_no_event_name_is_passed_on() -> None:
    assert told(event="similarity", type="capital").fields == {
        "event": "similarity",
        "type": "capital",
    }


def test_field_that_holds_the_event_name_is_not_told_twice() -> None:
    assert told(event="job-queued", type="progress").fields == {}


@pytest.mark.parametrize(
    ("fields", "amended"),
    [
        ({}, ()),
        ({"event": "job-completed"}, ()),
        ({"type": "completed"}, ()),
        ({"event": "similarity"}, ()),
        ({"event": "failed"}, (AmendedReason.MISMATCH,)),
        ({"event": "failed", "jobId": "b"}, (AmendedReason.MISMATCH,)),
    ],
)
def test_event_that_the_channel_names_wins(
    fields: dict[str, Any], amended: tuple[AmendedReason, ...]
) -> None:
    draft = parse(fields, "jobs:{event}:{jobId}", "jobs:completed:a")

    assert (draft.name, draft.job_id, draft.amended) == ("job-completed", "a", amended)


# --- put right, not refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_progress", "progress"),
    [(0, 0), (45, 45), (45.5, 45.5), (100, 100), (-1, 0), (101, 100), (1e300, 100), (-1e300, 0)],
)
def test_progress_is_clamped(given_progress: float, progress: float) -> None:
    assert told(progress=given_progress).fields == {"progress": progress}


@pytest.mark.parametrize("progress", [None, "45", True, [45], math.nan, math.inf])
def test_progress_that_is_no_number_is_missing(progress: object) -> None:
    draft = told(progress=progress)

    assert (draft.name, draft.fields) == ("job-progress", {})


@pytest.mark.parametrize(
    ("given_progress", "progress"),
    [
        ({"percent": 40}, 40),
        ({"progress": 40}, 40),
        ({"percent": 40, "progress": 50, "current": 1, "total": 10}, 40),
        ({"percent": 140}, 100),
        ({"percent": None, "progress": 50}, 50),
        ({"current": 2, "total": 5}, 40),
        ({"current": 1, "total": 3}, 33.33),
        ({"current": 7, "total": 5}, 100),
        ({"current": -1, "total": 5}, 0),
        ({"current": 1e308, "total": 1}, 100),
        ({"current": -1e308, "total": 0.1}, 0),
        ({"current": 1, "total": 5e-324}, 100),
    ],
)
def test_object_as_progress_moves_to_data_and_tells_the_number(
    given_progress: dict[str, Any], progress: float
) -> None:
    assert told(progress=given_progress).fields == {"data": given_progress, "progress": progress}


@pytest.mark.parametrize(
    "progress", [{}, {"step": 2}, {"current": 2}, {"current": 2, "total": 0}, {"percent": "4"}]
)
def test_object_as_progress_without_a_number_moves_to_data(progress: dict[str, Any]) -> None:
    assert told(progress=progress).fields == {"data": progress}


def test_object_as_progress_joins_the_data_that_is_there() -> None:
    draft = told(progress={"percent": 4, "step": 1}, data={"step": 2, "of": 3})

    assert draft.fields == {"progress": 4, "data": {"percent": 4, "step": 2, "of": 3}}


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("percent", "progress", "current", "total"),
            st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False),
        ),
    )
)
def test_any_numbers_in_an_object_make_a_finite_progress_or_none(value: dict[str, Any]) -> None:
    made = percent(value)

    assert made is None or math.isfinite(made)


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"event": "completed"}, None),
        ({"event": "completed", "result": 0}, 0),
        ({"event": "completed", "returnvalue": {"n": 1}}, {"n": 1}),
        ({"event": "completed", "result": None, "returnvalue": 1}, 1),
        ({"event": "completed", "result": 1, "returnvalue": 2}, 1),
        ({"event": "progress", "returnvalue": 1}, 1),
    ],
)
def test_result_is_there_under_one_name(fields: dict[str, Any], result: object) -> None:
    assert told(**fields).fields == {"result": result}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"error": "broke"}, "broke"),
        ({"error": {"message": "broke", "stack": "…"}}, "broke"),
        ({"error": {"code": 1}, "failedReason": "why"}, "why"),
        ({"error": {"message": 1}}, "failed"),
        ({"failedReason": "why"}, "why"),
        ({"error": None, "status": "cancelled"}, "cancelled"),
        ({"event": "failed"}, "failed"),
    ],
)
def test_failed_job_has_an_error_that_can_be_read(fields: dict[str, Any], error: str) -> None:
    draft = told(**fields)

    assert (draft.name, draft.fields["error"]) == ("job-failed", error)


def test_object_as_error_becomes_its_message_whatever_the_event() -> None:
    assert told(event="job-stalled", error={"message": "slow"}).fields == {"error": "slow"}


def test_numbers_that_are_not_finite_become_null() -> None:
    message = b'{"progress":5,"data":{"eta":NaN,"cost":-Infinity}}'

    draft = parse_bytes(message, JOB, "jobs:a")

    assert draft.fields == {"progress": 5, "data": {"eta": None, "cost": None}}


@given(
    st.dictionaries(
        st.text("uvwxyz", min_size=1),
        st.none() | st.integers(0, 9) | st.text(max_size=3) | st.lists(st.booleans(), max_size=2),
        max_size=4,
    )
)
def test_fields_that_are_not_known_are_passed_on_unchanged(fields: dict[str, Any]) -> None:
    assert told(**fields, progress=5).fields == {**fields, "progress": 5}


@pytest.mark.parametrize("status", ["active", "queued", "waiting", "retrying"])
def test_status_of_a_running_job_is_noticed(status: str) -> None:
    draft = told(status=status)

    assert (draft.runs, draft.fields) == (True, {"status": status})


@pytest.mark.parametrize("status", ["completed", "paused", "", None, ["active"], {}])
def test_other_status_does_not_say_that_the_job_runs(status: object) -> None:
    assert told(status=status).runs is False


# --- event id and time -----------------------------------------------------------------------------


@pytest.mark.parametrize("event_id", ["e", "1700000000000-0", "e" * 64, "€"])
def test_event_id_of_the_publisher_is_kept(event_id: str) -> None:
    draft = told(eventId=event_id)

    assert (draft.id, draft.amended, draft.fields) == (event_id, (), {})


@pytest.mark.parametrize("event_id", ["", "e" * 65, 7, True, ["e"], "\ud800"])
def test_event_id_that_breaks_the_rules_is_left_out(event_id: object) -> None:
    draft = told(eventId=event_id)

    assert (draft.id, draft.amended, draft.fields) == (None, (AmendedReason.EVENT_ID,), {})


def test_null_is_no_event_id() -> None:
    draft = told(eventId=None)

    assert (draft.id, draft.amended) == (None, ())


@pytest.mark.parametrize(
    ("ts", "ts_ms"),
    [(1700000000000, 1700000000000), (1.5, 1.5), ("1700000000000", None), (True, None)],
)
def test_time_of_the_publisher_is_read_and_passed_on(ts: object, ts_ms: float | None) -> None:
    draft = told(ts=ts)

    assert (draft.ts_ms, draft.fields) == (ts_ms, {"ts": ts})


# --- whatever comes --------------------------------------------------------------------------------

KEYS = st.sampled_from(
    [
        "event", "type", "jobId", "job_id", "id", "queueName", "queue_name", "queue", "eventId",
        "progress", "percent", "current", "total", "status", "result", "returnvalue", "error",
        "failedReason", "message", "data", "ts", "x",
    ]
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "a", "active", "done", "failed", "job-progress", "job-x", "\ud800"])
)
VALUES = SCALARS | st.dictionaries(KEYS, SCALARS, max_size=4) | st.lists(SCALARS, max_size=2)


@given(
    st.dictionaries(KEYS, VALUES, max_size=8),
    st.sampled_from([(PLAIN, "events"), (JOB, "jobs:a"), (QUEUED, "jobs:q:a")]),
)
def test_any_object_is_a_draft_that_keeps_the_rules_or_has_no_identity(
    fields: dict[str, Any], shape: tuple[str, str]
) -> None:
    try:
        draft = parse(fields, *shape)
    except DecodeError as error:
        reason = error.reason
    else:
        assert is_name(draft.job_id)
        assert draft.queue is None or is_name(draft.queue)
        assert event_name(draft.name) == draft.name
        assert 0 <= draft.fields.get("progress", 0) <= 100
        assert not draft.fields.keys() & {"jobId", "job_id", "queueName", "queue", "eventId"}
        assert json.loads(encode(draft.fields), parse_constant=pytest.fail) is not None
        return
    assert (reason, shape[0]) == (InvalidReason.NO_IDENTITY, PLAIN)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_draft_or_refused(message: bytes) -> None:
    try:
        draft = parse_bytes(message, JOB, "jobs:a")
    except DecodeError:
        return
    assert draft.job_id == "a"


@given(st.binary(max_size=30))
def test_any_channel_is_identified_or_not_or_refused(channel: bytes) -> None:
    reader = source("{event}:{queueName}:{jobId}")
    try:
        identity = reader.identify(channel)
    except DecodeError:
        return
    assert identity is None or (is_name(identity.job_id or "") and is_name(identity.queue or ""))


def test_an_id_in_front_is_the_events_whatever_the_payload_says_further_on() -> None:
    source = ChannelSource(ChannelTemplate.parse("jobs:{jobId}"))
    identity = source.identify(b"jobs:a")
    assert identity is not None

    draft = source.parse(identity, b'{"eventId":"7-0","progress":1,"eventId":"mine"}')

    assert draft.id == "7-0"
    assert "eventId" not in draft.fields


# --- the short way for a plain progress --------------------------------------------------------------

_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        ["a", "q", "x", "", "progress", "job-progress", "job-completed", "job-stalled"]
    ),
    st.sampled_from(["active", "Completed", "failed", "running", "queued"]),
    st.integers(-5, 105),
    st.sampled_from([0.0, -0.0, 55.5, 100.0, 100.5, 1700000000000]),
    st.just({}),
    st.just({"jobId": "a", "progress": 3}),
)
_FIELDS = st.sampled_from(
    [
        "jobId", "job_id", "id", "queueName", "queue_name", "queue", "event", "type", "progress",
        "status", "data", "error", "failedReason", "result", "returnvalue", "eventId", "ts", "more",
    ]
)  # fmt: skip
_ORDINARY = st.fixed_dictionaries(
    {"jobId": st.just("a"), "progress": st.sampled_from([0, 45, 99.5, 100])},
    optional={
        "event": st.sampled_from(["progress", "job-progress"]),
        "queueName": st.just("q"),
        "status": st.sampled_from(["active", "running", "waiting"]),
        "eventId": st.sampled_from(["1-0", "é"]),
        "ts": st.just(1700000000000),
        "data": st.just({"jobId": "b"}),
    },
)
# One thing at a time that is not plain, or looks as if it were not.
_ODD: list[dict[str, Any]] = [
        {"type": "job-completed"}, {"type": "csv"}, {"event": "job-stalled"}, {"event": "other"},
        {"event": None}, {"status": "Completed"}, {"status": "FAILED"}, {"status": 5},
        {"progress": 103}, {"progress": -1}, {"progress": True}, {"progress": "5"}, {"progress": {}},
        {"jobId": "b"}, {"jobId": None}, {"job_id": "a"}, {"queueName": "x"}, {"queueName": None},
        {"queue": "q"}, {"result": None}, {"returnvalue": 1}, {"error": "e"}, {"failedReason": "r"},
        {"eventId": ""}, {"eventId": 7}, {"ts": "late"}, {"id": "x"},
]  # fmt: skip


@pytest.mark.parametrize("odd", _ODD)
@pytest.mark.parametrize("plain", [{}, {"event": "progress"}], ids=["nameless", "named"])
@pytest.mark.parametrize(("template", "channel"), [(QUEUED, "jobs:q:a"), (JOB, "jobs:a")])
def test_short_way_with_one_odd_thing_comes_to_what_the_long_way_does(
    template: str, channel: str, plain: dict[str, Any], odd: dict[str, Any]
) -> None:
    identity = identity_of(template, channel)
    message = encode({"jobId": "a", "progress": 45, "status": "active", **plain, **odd})

    short = identity.source.parse(identity, message)
    long = channel_source._any_message(identity, message, parse_object(message))

    if short.data is None:
        assert seen(short) == seen(long)
    assert given_to_clients(short) == given_to_clients(long)


@given(
    st.sampled_from([(JOB, "jobs:a"), (QUEUED, "jobs:q:a"), ("{event}:{jobId}", "progress:a")]),
    st.sampled_from(["", "eventId"]),
    st.one_of(_ORDINARY, st.dictionaries(_FIELDS, _VALUES, max_size=8)),
    st.one_of(st.just({}), st.sampled_from(_ODD)),
)
def test_short_way_for_a_plain_progress_comes_to_what_the_long_way_does(
    channel: tuple[str, str], first: str, ordinary: dict[str, Any], odd: dict[str, Any]
) -> None:
    identity = identity_of(*channel)
    message = encode({**({first: "7-0"} if first else {}), **ordinary, **odd})

    short = identity.source.parse(identity, message)
    long = channel_source._any_message(identity, message, parse_object(message))

    if short.data is None:
        assert seen(short) == seen(long)
    assert given_to_clients(short) == given_to_clients(long)


def given_to_clients(draft: Draft) -> object:
    """What is sent of a draft that is the first that is heard of its job."""
    event = Record((draft.queue, draft.job_id)).admit(draft, 1, 1000, "e")
    assert isinstance(event, JobEvent)
    return (event.name, event.id, json.loads(event.data))


def seen(draft: Draft) -> tuple[object, ...]:
    """All of a draft, with 0.0 and -0.0, 1 and True told apart; the order of `progress` is no matter."""
    fields = sorted((name, repr(value)) for name, value in draft.fields.items())
    others = [name for name in draft.fields if name != "progress"]
    return (
        draft.name, draft.job_id, draft.queue, fields, others, draft.id, draft.runs, draft.ts_ms,
        draft.amended,
    )  # fmt: skip


def test_plain_progress_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(channel_source, "_any_message")

    draft = parse(
        {"event": "job-progress", "jobId": "a", "queueName": "q", "progress": 45, "data": {}},
        QUEUED,
        "jobs:q:a",
    )

    assert (draft.name, draft.fields) == ("job-progress", {"progress": 45, "data": {}})


@pytest.mark.parametrize(
    ("message", "is_whole"),
    [
        (b'{"jobId":"a","queueName":"q","progress":4.50,"status":"active"}', True),
        (b' {"more": [1, 2], "status": "x","progress":0,"queueName":"q","jobId":"a"} ', True),
        (b'{"jobId":"a","queueName":"q","progress":45,\n"status":"active"}', False),
        (b'{"jobId":"a","queueName":"q","progress":45,\r"status":"active"}', False),
        (b'{"jobId":"a","progress":45,"status":"active"}', False),
        (b'{"jobId":"a","queueName":"q","progress":45}', False),
        (b'{"jobId":"a","queueName":"q","progress":45,"status":null}', False),
        (
            b'{"event":"progress","jobId":"a","queueName":"q","progress":45,"status":"active"}',
            False,
        ),
        (b'{"eventId":"1-0","jobId":"a","queueName":"q","progress":45,"status":"active"}', False),
    ],
)
def test_progress_that_says_all_that_clients_are_given_is_passed_on_byte_for_byte(
    message: bytes, is_whole: bool
) -> None:
    draft = parse_bytes(message, QUEUED, "jobs:q:a")

    event = Record(("q", "a")).admit(draft, 1, 1000, "e")

    assert isinstance(event, JobEvent)
    assert (event.data == message) is is_whole
    assert json.loads(event.data)["queueName"] == "q"
