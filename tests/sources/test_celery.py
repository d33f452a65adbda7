"""What Celery's result backend publishes, as it was captured from Celery 5.7, and what is told of it."""

from __future__ import annotations

import json
import pickle
import zlib
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.core.errors import AmendedReason, DecodeError, InvalidReason
from relay.core.event import COMPLETED, FAILED, PROGRESS, Draft
from relay.sources.celery import CelerySource

TASK = "014d7a5c-1b66-44c4-b471-9024b4b1e0d1"
CHANNEL = b"celery-task-meta-" + TASK.encode()
DONE = "2026-11-22T22:56:03.283374+00:00"
DONE_MS = 1795388163283
VALUE_ERROR = {
    "exc_type": "ValueError",
    "exc_message": ['bad row 17: "na\u00efve"'],
    "exc_module": "builtins",
}


def stored(status: str, result: object, **more: object) -> bytes:
    """What Celery stores and publishes, its fields in Celery's order."""
    meta = {
        "status": status,
        "result": result,
        "traceback": None,
        "children": [],
        "date_done": None,
        **more,
        "task_id": TASK,
    }
    return json.dumps(meta).encode()


def parse(message: bytes, channel: bytes = CHANNEL) -> Draft:
    source = CelerySource()
    identity = source.identify(channel)
    assert identity is not None
    return source.parse(identity, message)


def refused(message: bytes) -> InvalidReason:
    with pytest.raises(DecodeError) as caught:
        parse(message)
    return caught.value.reason


# --- keys and channels -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key_prefix", "key"),
    [
        ("", b"celery-task-meta-x"),
        ("app", b"app_celery-task-meta-x"),
        ("app:", b"app:celery-task-meta-x"),
        ("app_", b"app_celery-task-meta-x"),
        ("app-", b"app-celery-task-meta-x"),
        ("app.", b"app.celery-task-meta-x"),
        ("{app}", b"{app}_celery-task-meta-x"),
    ],
)
def test_key_of_a_task_is_its_channel_behind_the_apps_prefix(key_prefix: str, key: bytes) -> None:
    source = CelerySource(key_prefix)

    identity = source.identify(key)

    assert source.key("x") == key
    assert identity is not None
    assert (identity.job_id, identity.queue, identity.source) == ("x", None, source)
    assert fnmatchcase(key.decode(), source.pattern)


def test_glob_characters_of_the_prefix_are_escaped_in_the_pattern() -> None:
    assert CelerySource("a*[b]?:").pattern == r"a\*\[b\]\?:celery-task-meta-*"


@pytest.mark.parametrize(
    "channel",
    [
        b"celery-taskset-meta-" + TASK.encode(),
        b"__keyspace@0__:celery-task-meta-" + TASK.encode(),
        b"__keyevent@0__:set",
        b"other_celery-task-meta-" + TASK.encode(),
        b"celery-task-meta",
        b"",
    ],
)
def test_channel_of_anything_but_a_task_is_not_identified(channel: bytes) -> None:
    assert CelerySource().identify(channel) is None


@pytest.mark.parametrize("task_id", [b"", b"a\x00b", b"\xff", b"x" * 257])
def test_task_id_that_cannot_name_a_job_is_refused(task_id: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        CelerySource().identify(b"celery-task-meta-" + task_id)

    assert caught.value.reason is InvalidReason.NO_IDENTITY


# --- states ----------------------------------------------------------------------------------------

STATES = {
    "progress with a count": (
        stored("PROGRESS", {"current": 1, "total": 4}),
        PROGRESS,
        {
            "status": "active",
            "stage": "PROGRESS",
            "data": {"current": 1, "total": 4},
            "progress": 25,
        },
    ),
    "progress as the celery-progress library writes it": (
        stored(
            "PROGRESS",
            {
                "pending": False,
                "current": 1,
                "total": 3,
                "percent": 33.33,
                "description": "step 1",
            },
        ),
        PROGRESS,
        {
            "status": "active",
            "stage": "PROGRESS",
            "data": {
                "pending": False,
                "current": 1,
                "total": 3,
                "percent": 33.33,
                "description": "step 1",
            },
            "progress": 33.33,
        },
    ),
    "a state of the task's own": (
        stored("UPLOADING", {"process_percent": 90}),
        PROGRESS,
        {
            "status": "active",
            "stage": "UPLOADING",
            "data": {"process_percent": 90},
            "progress": 90,
        },
    ),
    "a state without meta": (
        stored("WAITING_FOR_INPUT", None),
        PROGRESS,
        {"status": "active", "stage": "WAITING_FOR_INPUT"},
    ),
    "started": (
        stored("STARTED", {"pid": 13533, "hostname": "w1@worker-1"}),
        PROGRESS,
        {"status": "active", "stage": "STARTED"},
    ),
    "retry": (
        stored(
            "RETRY",
            {
                "exc_type": "ConnectionError",
                "exc_message": ["upstream 503"],
                "exc_module": "builtins",
            },
            traceback="Traceback (most recent call last): …",
        ),
        PROGRESS,
        {"status": "retrying", "failedReason": "upstream 503"},
    ),
    "success": (
        stored("SUCCESS", {"rows": 4, "label": "x"}, date_done=DONE),
        COMPLETED,
        {"status": "completed", "result": {"rows": 4, "label": "x"}, "finishedOn": DONE_MS},
    ),
    "success with nothing": (
        stored("SUCCESS", None, date_done=DONE),
        COMPLETED,
        {"status": "completed", "result": None, "finishedOn": DONE_MS},
    ),
    "failure": (
        stored("FAILURE", VALUE_ERROR, traceback="Traceback …", date_done=DONE),
        FAILED,
        {
            "status": "failed",
            "error": "ValueError",
            "failedReason": 'bad row 17: "na\u00efve"',
            "finishedOn": DONE_MS,
        },
    ),
    "revoked": (
        stored(
            "REVOKED",
            {
                "exc_type": "TaskRevokedError",
                "exc_message": ["terminated"],
                "exc_module": "celery.exceptions",
            },
            date_done=DONE,
        ),
        FAILED,
        {
            "status": "cancelled",
            "error": "TaskRevokedError",
            "failedReason": "terminated",
            "finishedOn": DONE_MS,
        },
    ),
}


@pytest.mark.parametrize(("message", "name", "fields"), STATES.values(), ids=STATES.keys())
def test_state_becomes_event(message: bytes, name: str, fields: dict[str, Any]) -> None:
    draft = parse(message)

    assert (draft.name, draft.fields) == (name, fields)
    assert (draft.job_id, draft.queue, draft.amended) == (TASK, None, ())


@pytest.mark.parametrize(
    ("state", "runs"),
    [("STARTED", True), ("RETRY", True), ("PROGRESS", False), ("SUCCESS", False), ("OWN", False)],
)
def test_only_what_celery_writes_at_a_run_says_that_an_ended_task_runs_again(
    state: str, *, runs: bool
) -> None:
    assert parse(stored(state, None)).runs is runs


@pytest.mark.parametrize(
    ("meta", "progress"),
    [
        (40, 40),
        (12.5, 12.5),
        ({"percent": 40, "current": 1, "total": 10}, 40),
        ({"percentage": 41}, 41),
        ({"pct": 42}, 42),
        ({"progress": 43}, 43),
        ({"pct_complete": 44}, 44),
        ({"done": 1, "total": 8}, 12.5),
        ({"completed": 2, "total": 8}, 25),
        ({"processed": 1, "total": 3}, 33.33),
        ({"at": 3, "total": 3}, 100),
        ({"current": 5, "total": 4}, 100),
        ({"current": -1, "total": 4}, 0),
        ({"percent": 140}, 100),
        ({"current": 1, "total": 0}, None),
        ({"current": 1}, None),
        ({"current": 1e308, "total": 1}, 100),
        ({"percent": True}, None),
        ({"percent": "40"}, None),
        ("loading", None),
        ([1, 2], None),
        (True, None),
    ],
)
def test_percentage_is_read_out_of_a_tasks_meta(meta: object, progress: float | None) -> None:
    fields = parse(stored("PROGRESS", meta)).fields

    assert fields.get("progress") == progress
    assert fields["data"] == meta


@pytest.mark.parametrize(
    ("result", "error", "reason"),
    [
        ({"exc_type": "SoftTimeLimitExceeded", "exc_message": []}, "SoftTimeLimitExceeded", None),
        ({"exc_type": "TimeLimitExceeded", "exc_message": [1]}, "TimeLimitExceeded", None),
        ({"exc_type": "OSError", "exc_message": [2, "no such file"]}, "OSError", "no such file"),
        ({"exc_type": "Custom", "exc_message": ["one", "two"]}, "Custom", "one, two"),
        ({"exc_type": "Custom", "exc_message": "by hand", "custom": "y"}, "Custom", "by hand"),
        ({"exc_type": "Custom"}, "Custom", None),
    ],
)
def test_failure_is_told_by_type_and_message_and_by_type_alone_without_one(
    result: object, error: str, reason: str | None
) -> None:
    fields = parse(stored("FAILURE", result)).fields

    assert fields == {"status": "failed", "error": error, "failedReason": reason or error}


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"exc_message": ["by hand"]}, "by hand"),
        ({"message": "out of stock"}, "out of stock"),
        ("out of stock", "out of stock"),
        ({"exc_type": 7, "exc_message": [None]}, None),
        ({"custom": "y"}, None),
        (None, None),
        ([], None),
    ],
)
def test_failure_that_a_task_wrote_itself_needs_no_exception(
    result: object, reason: str | None
) -> None:
    fields = parse(stored("FAILURE", result)).fields

    assert fields.pop("failedReason", None) == reason
    assert fields == {"status": "failed", "error": "failed"}


# --- what else is told, and what never -------------------------------------------------------------

EXTENDED: dict[str, object] = {
    "name": "app.report",
    "args": ["secret argument"],
    "kwargs": {"password": "secret argument"},
    "worker": "w1@secret-host",
    "retries": 1,
    "queue": "reports",
}


@pytest.mark.parametrize(
    ("status", "result"),
    [
        ("STARTED", {"pid": 13533, "hostname": "w1@secret-host"}),
        ("PROGRESS", {"current": 1, "total": 4}),
        ("RETRY", VALUE_ERROR),
        ("SUCCESS", 4),
        ("FAILURE", VALUE_ERROR),
        ("REVOKED", VALUE_ERROR),
    ],
)
def test_arguments_traceback_and_worker_are_never_told(status: str, result: object) -> None:
    message = stored(status, result, **EXTENDED, group_id="secret group")
    message = message.replace(b'"traceback": null', b'"traceback": "secret traceback"')

    draft = parse(message)

    assert "secret" not in json.dumps(draft.fields)
    assert (draft.fields["name"], draft.fields["retries"]) == ("app.report", 1)
    assert draft.queue == "reports"


@pytest.mark.parametrize("queue", ["", "x" * 257, "a\nb", 7, ["reports"]])
def test_queue_that_breaks_the_rules_is_left_out_and_counted(queue: object) -> None:
    draft = parse(stored("PROGRESS", None, queue=queue))

    assert (draft.queue, draft.amended) == (None, (AmendedReason.QUEUE_NAME,))


def test_task_id_in_the_message_that_differs_from_the_channels_is_counted() -> None:
    draft = parse(stored("PROGRESS", None), b"celery-task-meta-another")

    assert (draft.job_id, draft.amended) == ("another", (AmendedReason.MISMATCH,))


@pytest.mark.parametrize(
    ("date_done", "finished_on_ms"),
    [
        (DONE, DONE_MS),
        ("2026-11-22T22:56:03.283374", DONE_MS),
        ("2026-11-22T23:56:03.283374+01:00", DONE_MS),
        ("yesterday", None),
        (7, None),
        (None, None),
    ],
)
def test_end_is_told_in_unix_milliseconds(date_done: object, finished_on_ms: int | None) -> None:
    fields = parse(stored("SUCCESS", None, date_done=date_done)).fields

    assert fields.get("finishedOn") == finished_on_ms


def test_event_id_is_that_of_the_bytes_and_of_nothing_else() -> None:
    message = stored("PROGRESS", {"current": 1, "total": 4})

    first, again, other = parse(message), parse(message), parse(message + b" ")

    # By `printf … | b2sum --length 64`.
    assert first.id == again.id == "c-3fe1ac98d88941bf"
    assert other.id != first.id


def test_numbers_that_no_browser_reads_become_null() -> None:
    draft = parse(stored("SUCCESS", {"loss": float("nan"), "best": float("inf")}))

    assert draft.fields["result"] == {"loss": None, "best": None}


# --- what is refused -------------------------------------------------------------------------------

BODY: dict[str, object] = {"status": "SUCCESS", "result": 1}


class _Trap:
    """Unpickling this would fail the test."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a result was unpickled",)


@pytest.mark.parametrize(
    "message",
    [
        pickle.dumps(_Trap(), protocol=4),
        b"\x82\xa6status\xa7SUCCESS\xa6result\x01",
        b"result: 1\nstatus: SUCCESS\n",
        b"\0celery-compressed\0application/x-gzip\0" + zlib.compress(json.dumps(BODY).encode()),
        b"",
        b"[]",
        b"{}",
        b'{"status": 7}',
    ],
    ids=["pickle", "msgpack", "yaml", "compressed", "empty", "list", "no state", "state no text"],
)
def test_result_of_another_form_is_refused_unopened(message: bytes) -> None:
    assert refused(message) is InvalidReason.UNSUPPORTED


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b'{"status": "SUCCESS"', InvalidReason.NOT_JSON),
        (b'{"status": "\xff"}', InvalidReason.NOT_UTF8),
        (b'{"status": ' + b"[" * 100_000, InvalidReason.TOO_DEEP),
    ],
)
def test_broken_json_is_refused_with_its_reason(message: bytes, reason: InvalidReason) -> None:
    assert refused(message) is reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
states = st.sampled_from(["STARTED", "PROGRESS", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "OWN"])
names = st.sampled_from(
    ["percent", "current", "total", "exc_type", "exc_message", "message", "pid", "hostname"]
)
metas = st.dictionaries(names, json_values) | json_values
messages = st.fixed_dictionaries(
    {"status": states | json_values, "result": metas},
    optional=dict.fromkeys(
        ("task_id", "queue", "name", "retries", "date_done", "traceback"), json_values
    ),
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=300, deadline=None)
@given(st.binary() | st.binary().map(b"{".__add__) | messages)
@example(b'{"status": "SUCCESS", "date_done": "0001-01-01T00:00:00+23:59"}')
@example(b'{"status": "SUCCESS", "date_done": "9999-12-31T23:59:59-23:59"}')
def test_any_bytes_are_parsed_or_refused(message: bytes) -> None:
    try:
        draft = parse(message)
    except DecodeError:
        return

    assert draft.name in {PROGRESS, COMPLETED, FAILED}
    assert 0 <= draft.fields.get("progress", 0) <= 100
