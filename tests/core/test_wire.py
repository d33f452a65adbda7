"""Each command of the client protocol is understood, each fault answered with its code."""

import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.core import payload
from relay.core.errors import CommandError, ErrorCode
from relay.core.event import JobEvent, is_event_id, text_frame
from relay.core.wire import (
    EVENT_STREAM,
    WEBSOCKET,
    AuthenticateCommand,
    Command,
    JobsCommand,
    PingCommand,
    QueueCommand,
    command_name,
    error_body,
    error_data,
    parse_command,
    parse_json,
)

LONGEST = "n" * 256
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=256)


def parse(text: str | bytes) -> Command:
    return parse_command(parse_json(text.encode() if isinstance(text, str) else text))


def command(event: str, data: object, **beside: object) -> Command:
    return parse(json.dumps({"event": event, "data": data, **beside}))


def fault_of(text: str | bytes) -> CommandError:
    with pytest.raises(CommandError) as caught:
        parse(text)
    return caught.value


def code_of(event: str, data: object) -> ErrorCode:
    return fault_of(json.dumps({"event": event, "data": data})).code


def body(frame: bytes) -> Any:
    """The JSON in a text frame; the frame is as RFC 6455 §5.2 wants it."""
    short = 2 + (2 if frame[1] == 126 else 8 if frame[1] == 127 else 0)
    assert frame == text_frame(frame[short:])
    return json.loads(frame[short:])


# --- commands that are understood ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "data", "expected"),
    [
        (
            "subscribe-to-job",
            {"jobId": "a"},
            JobsCommand(True, False, ["a"], None, {"jobId": "a"}, None),
        ),
        (
            "subscribe-to-job",
            {"jobId": "a:b", "queueName": "q", "since": "e-1"},
            JobsCommand(
                True, False, ["a:b"], "q", {"jobId": "a:b", "queueName": "q"}, None, {"a:b": "e-1"}
            ),
        ),
        (
            "unsubscribe-from-job",
            {"jobId": "a", "queueName": "q"},
            JobsCommand(False, False, ["a"], "q", {"jobId": "a", "queueName": "q"}, None),
        ),
        (
            "subscribe-to-jobs",
            {"jobIds": ["a", "b"], "since": {"b": "e-2"}},
            JobsCommand(True, True, ["a", "b"], None, {"jobIds": ["a", "b"]}, None, {"b": "e-2"}),
        ),
        (
            "subscribe-to-jobs",
            {"jobIds": []},
            JobsCommand(True, True, [], None, {"jobIds": []}, None),
        ),
        (
            "unsubscribe-from-jobs",
            {"jobIds": ["a"], "queueName": "q"},
            JobsCommand(False, True, ["a"], "q", {"jobIds": ["a"], "queueName": "q"}, None),
        ),
        (
            "subscribe-to-queue",
            {"queueName": "q"},
            QueueCommand(True, "q", False, {"queueName": "q"}, None),
        ),
        (
            "subscribe-to-queue",
            {"queueName": "q", "snapshot": True},
            QueueCommand(True, "q", True, {"queueName": "q", "snapshot": True}, None),
        ),
        (
            "unsubscribe-from-queue",
            {"queueName": "q"},
            QueueCommand(False, "q", False, {"queueName": "q"}, None),
        ),
        ("authenticate", {"token": "t"}, AuthenticateCommand("t", None)),
        ("ping", {"at": 1}, PingCommand({"at": 1}, None)),
        ("ping", "text", PingCommand("text", None)),
        ("ping", None, PingCommand(None, None)),
    ],
)
def test_command_is_understood(event: str, data: object, expected: Command) -> None:
    assert command(event, data) == expected


def test_ping_needs_no_data() -> None:
    assert parse('{"event":"ping"}') == PingCommand(None, None)


def test_integer_ids_become_decimal_strings() -> None:
    single = command("subscribe-to-job", {"jobId": 42, "since": "e"})
    batch = command("subscribe-to-jobs", {"jobIds": [42, "42", -1], "since": {"42": "e"}})

    assert single == JobsCommand(True, False, ["42"], None, {"jobId": "42"}, None, {"42": "e"})
    assert batch == JobsCommand(
        True, True, ["42", "-1"], None, {"jobIds": ["42", "42", "-1"]}, None, {"42": "e"}
    )


def test_null_in_an_optional_field_is_as_good_as_none() -> None:
    single = command("subscribe-to-job", {"jobId": "a", "queueName": None, "since": None})
    batch = command("subscribe-to-jobs", {"jobIds": ["a"], "since": {"a": None}})

    assert single == JobsCommand(True, False, ["a"], None, {"jobId": "a"}, None)
    assert batch == JobsCommand(True, True, ["a"], None, {"jobIds": ["a"]}, None)


def test_fields_that_are_not_known_are_ignored_and_given_back() -> None:
    asked = command("subscribe-to-job", {"jobId": "a", "view": "list"}, version=2)

    assert asked == JobsCommand(True, False, ["a"], None, {"jobId": "a", "view": "list"}, None)


def test_in_a_batch_each_job_answers_for_itself() -> None:
    asked = command("subscribe-to-jobs", {"jobIds": ["a", "", "b\n", "n" * 257, LONGEST]})

    assert isinstance(asked, JobsCommand)
    assert asked.job_ids == ["a", LONGEST]
    assert asked.refused == dict.fromkeys(["", "b\n", "n" * 257], ErrorCode.INVALID_JOB_ID)


def test_deepest_message_that_is_understood_fits_into_its_answer() -> None:
    asked = parse(b'{"event":"ping","data":' + b"[" * 253 + b"]" * 253 + b"}")

    assert isinstance(asked, PingCommand)
    assert body(WEBSOCKET.reply("pong", asked.data))["data"] == asked.data


def test_message_with_many_brackets_is_not_mistaken_for_a_deep_one() -> None:
    assert command("ping", [[]] * 300) == PingCommand([[]] * 300, None)


@pytest.mark.parametrize("ref", [0, 7, -1, 1.5, "", "r", "r" * 64])
def test_ref_is_kept_for_the_answer(ref: str | float) -> None:
    assert command("ping", None, ref=ref).ref == ref


# --- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"ping",
        b"{",
        b'{"event":"ping"} x',
        b'{"event":"ping","data":NaN}',
        b'{"event":"ping","data":"\\ud800"}',
        b"[]",
        b'"ping"',
        b"null",
        b"{}",
        b'{"event":null}',
        b'{"event":1,"data":{}}',
        b'{"event":["ping"],"data":{}}',
        b'{"event":"subscribe-to-job"}',
        b'{"event":"subscribe-to-job","data":null}',
        b'{"event":"subscribe-to-job","data":"a"}',
        b'{"event":"subscribe-to-job","data":["a"]}',
        b'{"event":"ping","ref":null}',
        b'{"event":"ping","ref":true}',
        b'{"event":"ping","ref":[]}',
        b'{"event":"ping","ref":{}}',
        b'{"event":"ping","ref":"%b"}' % (b"r" * 65),
        b"[" * 10_000 + b"]" * 10_000,
        b'{"event":"ping","data":' + b"[" * 254 + b"]" * 254 + b"}",
        b'{"event":"ping","data":' + b"[" * 1000 + b"]" * 1000 + b"}",
    ],
)
def test_message_that_is_no_command_is_a_bad_request(text: bytes) -> None:
    assert fault_of(text).code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize(
    ("event", "data", "code"),
    [
        ("subscribe-to-job", {}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-job", {"jobId": None}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-job", {"jobId": True}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-job", {"jobId": 1.5}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-job", {"jobId": ["a"]}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-job", {"job_id": "a"}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-job", {"jobId": "a", "queueName": 1}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-job", {"jobId": "a", "since": 1}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-job", {"jobId": "a", "since": {"a": "e"}}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-job", {"jobId": ""}, ErrorCode.INVALID_JOB_ID),
        ("subscribe-to-job", {"jobId": "n" * 257}, ErrorCode.INVALID_JOB_ID),
        ("subscribe-to-job", {"jobId": "a\x00"}, ErrorCode.INVALID_JOB_ID),
        ("subscribe-to-job", {"jobId": "a\x7f"}, ErrorCode.INVALID_JOB_ID),
        ("subscribe-to-job", {"jobId": "a\x85"}, ErrorCode.INVALID_JOB_ID),
        ("subscribe-to-job", {"jobId": "a", "queueName": ""}, ErrorCode.INVALID_QUEUE_NAME),
        ("subscribe-to-job", {"jobId": "a", "queueName": "\n"}, ErrorCode.INVALID_QUEUE_NAME),
        ("unsubscribe-from-job", {}, ErrorCode.BAD_REQUEST),
        ("unsubscribe-from-job", {"jobId": ""}, ErrorCode.INVALID_JOB_ID),
        ("subscribe-to-jobs", {"jobId": "a"}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-jobs", {"jobIds": "a"}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-jobs", {"jobIds": {"a": 1}}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-jobs", {"jobIds": ["a", None]}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-jobs", {"jobIds": ["a", ["b"]]}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-jobs", {"jobIds": ["a"], "since": "e"}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-jobs", {"jobIds": ["a"], "since": {"a": 1}}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-jobs", {"jobIds": [], "queueName": ""}, ErrorCode.INVALID_QUEUE_NAME),
        ("subscribe-to-queue", {}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-queue", {"queueName": 1}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-queue", {"queueName": "q", "snapshot": "yes"}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-queue", {"queueName": "q", "snapshot": 1}, ErrorCode.BAD_REQUEST),
        ("subscribe-to-queue", {"queueName": "q" * 257}, ErrorCode.INVALID_QUEUE_NAME),
        ("unsubscribe-from-queue", {"queueName": None}, ErrorCode.BAD_REQUEST),
        ("authenticate", {}, ErrorCode.BAD_REQUEST),
        ("authenticate", {"token": 1}, ErrorCode.BAD_REQUEST),
        ("subscribe", {"jobId": "a"}, ErrorCode.UNKNOWN_EVENT),
        ("job-progress", {"jobId": "a"}, ErrorCode.UNKNOWN_EVENT),
        ("", {}, ErrorCode.UNKNOWN_EVENT),
    ],
)
def test_command_at_fault_has_its_code(event: str, data: object, code: ErrorCode) -> None:
    assert code_of(event, data) is code


def test_fault_bears_the_messages_ref() -> None:
    assert fault_of('{"event":"subscribe-to-job","data":{},"ref":"r1"}').ref == "r1"
    assert fault_of('{"event":"what","ref":7}').ref == 7
    assert fault_of('{"event":"ping","ref":[]}').ref is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"event":"ping"}', "ping"),
        ('{"event":"subscribe-to-job","data":1}', "subscribe-to-job"),
        ('{"event":"invented"}', "other"),
        ('{"event":["ping"]}', "other"),
        ("[]", "other"),
    ],
)
def test_metric_label_is_one_of_the_protocols_names_or_other(text: str, name: str) -> None:
    assert command_name(orjson.loads(text)) == name


@given(st.binary(max_size=100))
def test_any_bytes_are_a_command_or_refused(text: bytes) -> None:
    try:
        parsed = parse(text)
    except CommandError:
        return
    assert isinstance(parsed, Command)


@given(
    st.sampled_from(
        [
            "subscribe-to-job", "subscribe-to-jobs", "subscribe-to-queue", "unsubscribe-from-job",
            "unsubscribe-from-jobs", "unsubscribe-from-queue", "authenticate", "ping", "other",
        ]
    ),
    st.dictionaries(
        st.sampled_from(["jobId", "jobIds", "queueName", "since", "snapshot", "token", "x"]), VALUES
    ),
)  # fmt: skip
def test_any_data_makes_a_command_whose_answer_can_be_written_or_is_refused(
    event: str, data: dict[str, object]
) -> None:
    try:
        parsed: object = command(event, data)
    except CommandError as error:
        parsed = error
    if isinstance(parsed, CommandError):
        assert error_data(parsed)["code"] == parsed.code
        return
    echo = getattr(parsed, "echo", None)
    assert body(WEBSOCKET.reply("answer", echo)) == {"event": "answer", "data": echo}


# --- replies ---------------------------------------------------------------------------------------


@given(NAMES, NAMES, NAMES)
def test_what_a_client_asks_for_is_what_the_command_says(
    job_id: str, queue: str, since: str
) -> None:
    data = {"jobId": job_id, "queueName": queue, "since": since}

    asked = command("subscribe-to-job", data)

    echo = {"jobId": job_id, "queueName": queue}
    assert asked == JobsCommand(True, False, [job_id], queue, echo, None, {job_id: since})


@given(TEXTS, VALUES, st.none() | st.integers(-(2**53), 2**53) | TEXTS)
def test_reply_can_be_read_back(event: str, data: object, ref: str | float | None) -> None:
    reply = body(WEBSOCKET.reply(event, data, ref))

    assert (reply["event"], reply["data"], reply.get("ref")) == (event, data, ref)


def test_reply_bears_a_ref_only_where_there_was_one() -> None:
    assert "ref" not in body(WEBSOCKET.reply("pong", None))
    assert body(WEBSOCKET.reply("pong", None, 0))["ref"] == 0
    assert body(WEBSOCKET.reply("pong", None, ""))["ref"] == ""


@pytest.mark.parametrize("size", [0, 95, 96, 97, 98, 65505, 65506, 65507, 65508, 70000])
def test_reply_of_any_size_is_one_text_frame(size: int) -> None:
    assert body(WEBSOCKET.reply("pong", "x" * size)) == {"event": "pong", "data": "x" * size}


@pytest.mark.parametrize("code", ErrorCode)
def test_error_reply_says_code_message_and_whether_to_try_again(code: ErrorCode) -> None:
    error = CommandError(code, "do this", "r")

    reply = body(WEBSOCKET.reply("error", error_data(error), error.ref))

    temporary = code in (ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE)
    data = {"code": code.value, "message": "do this", "temporary": temporary}
    assert reply == {"event": "error", "data": data, "ref": "r"}


def test_error_body_is_what_http_says_too() -> None:
    assert error_body(ErrorCode.FORBIDDEN, "no") == {"code": "forbidden", "message": "no"}


def test_codes_are_those_of_the_protocol() -> None:
    assert {code.value for code in ErrorCode} == {
        "bad-request", "unknown-event", "invalid-job-id", "invalid-queue-name", "forbidden",
        "too-many-subscriptions", "rate-limited", "unauthorized", "unavailable",
    }  # fmt: skip


# --- event streams ---------------------------------------------------------------------------------


def job_event(event_id: str = "e-1", data: bytes = b'{"jobId":"job"}') -> JobEvent:
    return JobEvent("job-progress", "job", None, event_id, 1, 1000, data)


def fields(block: bytes) -> list[tuple[str, str]]:
    """Names and values as an EventSource reads them, in order; WHATWG HTML §9.2.6."""
    text = block.decode()
    assert text.endswith("\n\n")
    assert "\n\n" not in text[:-1]
    pairs = [line.partition(":") for line in re.split(r"\r\n|\n|\r", text[:-2])]
    return [(name, value.removeprefix(" ")) for name, _, value in pairs]


def test_stream_event_bears_name_data_and_id() -> None:
    assert EVENT_STREAM.event(job_event()) == (
        b'event: job-progress\ndata: {"jobId":"job"}\nid: e-1\n\n'
    )


@given(st.text(min_size=1, max_size=64).filter(is_event_id), VALUES)
@example("a\nb", {})
@example("a\r", {})
@example("\x00", {})
@example("\x7f", {})
@example(" \u2028", {"text": "\u2028\r\n\n"})
def test_stream_event_is_one_event_whatever_its_id_and_data_hold(
    event_id: str, data: object
) -> None:
    encoded = payload.encode({"jobId": "job", "data": data})

    name, told, *ids = fields(EVENT_STREAM.event(job_event(event_id, encoded)))

    assert name == ("event", "job-progress")
    assert told == ("data", encoded.decode())
    assert ids in ([("id", event_id)], [])
    assert bool(ids) is not bool(re.search(r"[\x00-\x1f\x7f]", event_id))


def test_stream_reply_has_no_id() -> None:
    assert fields(EVENT_STREAM.reply("subscribed", {"jobId": "a\nb"})) == [
        ("event", "subscribed"),
        ("data", '{"jobId":"a\\nb"}'),
    ]


def test_stream_error_is_not_taken_for_a_lost_connection() -> None:
    error = CommandError(ErrorCode.FORBIDDEN, "no")

    name, _ = fields(EVENT_STREAM.reply("error", error_data(error), 7))

    assert name == ("event", "relay-error")


def test_stream_that_drains_tells_an_event_source_when_to_come_back() -> None:
    retry, *_ = fields(EVENT_STREAM.reply("relay-status", {"retryAfterMs": 1500}))

    assert retry == ("retry", "1500")
