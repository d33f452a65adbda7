"""Every line is one object, whoever logged it; level and form change at once."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from relay import logs
from relay.logs import RateLimited

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger


class Stream(io.TextIOWrapper):
    """What `sys.stdout` is: text over bytes, perhaps on a terminal."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        self.raw_bytes = io.BytesIO()
        self.is_terminal = is_terminal
        super().__init__(self.raw_bytes)

    def isatty(self) -> bool:
        return self.is_terminal

    def text(self) -> str:
        return self.raw_bytes.getvalue().decode()

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def stream() -> Stream:
    stream = Stream()
    logs.configure("info", "json", stream)
    return stream


def get_logger() -> FilteringBoundLogger:
    log: FilteringBoundLogger = structlog.get_logger()
    return log


# --- JSON lines ------------------------------------------------------------------------------------


def test_line_has_time_level_event_and_then_the_facts(stream: Stream) -> None:
    get_logger().bind(connection_id="c1").info("session_closed", duration_seconds=1.5)

    (entry,) = stream.objects()
    assert list(entry) == ["ts", "level", "event", "connection_id", "duration_seconds"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("ts"))
    assert entry == {
        "level": "info",
        "event": "session_closed",
        "connection_id": "c1",
        "duration_seconds": 1.5,
    }


def test_exception_is_part_of_its_line_without_the_values_of_variables(stream: Stream) -> None:
    token = "s3cret" * 2
    try:
        raise RuntimeError(len(token))
    except RuntimeError:
        get_logger().exception("task_failed")

    (entry,) = stream.objects()
    assert entry["level"] == "error"
    assert entry["exception"].startswith("Traceback (most recent call last):\n")
    assert entry["exception"].endswith("RuntimeError: 12")
    assert "s3crets3cret" not in entry["exception"]


def test_exception_may_be_given_by_hand(stream: Stream) -> None:
    get_logger().warning("redis_lost", exc_info=ConnectionError("refused"))

    assert stream.objects()[0]["exception"] == "ConnectionError: refused"


@pytest.mark.parametrize(
    "fact", [object(), b"\xff", 2**70, "\udcff", {1: 2}, {(1, 2): 3}, {1, 2}, float("nan"), "a\nb"]
)
def test_no_fact_is_too_strange_for_a_line(stream: Stream, fact: object) -> None:
    get_logger().info("oddity_seen", fact=fact)

    (entry,) = stream.objects()
    assert entry["event"] == "oddity_seen"
    assert "fact" in entry


def test_reader_that_is_gone_ends_nothing(stream: Stream) -> None:
    stream.close()

    get_logger().info("session_closed")


# --- what libraries log ----------------------------------------------------------------------------


def test_library_lines_come_in_the_same_form(stream: Stream) -> None:
    logging.getLogger("aiohttp.server").warning("odd %s", "request")

    (entry,) = stream.objects()
    assert list(entry) == ["ts", "level", "event", "logger"]
    assert (entry["level"], entry["event"]) == ("warning", "odd request")
    assert entry["logger"] == "aiohttp.server"


def test_library_traceback_is_one_object_on_one_line(stream: Stream) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved\nfuture: …")

    (entry,) = stream.objects()
    assert entry["event"] == "Task exception was never retrieved\nfuture: …"
    assert entry["exception"].endswith("ValueError: broken")


def test_warnings_are_lines_too(stream: Stream) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logs.configure("info", "json", stream)
        warnings.warn("will go", DeprecationWarning, stacklevel=1)

    (entry,) = stream.objects()
    assert entry["logger"] == "py.warnings"
    assert "DeprecationWarning: will go" in entry["event"]


def test_request_lines_are_not_logged_for_they_may_hold_tokens(stream: Stream) -> None:
    logging.getLogger("aiohttp.access").info("GET /job-progress?token=s3cret")

    assert stream.text() == ""


def test_configuring_twice_logs_once(stream: Stream) -> None:
    logs.configure("info", "json", stream)

    logging.getLogger("redis").error("gone")

    assert len(stream.objects()) == 1


# --- level and form --------------------------------------------------------------------------------


def test_level_below_is_not_logged(stream: Stream) -> None:
    get_logger().debug("event_routed")
    get_logger().info("session_opened")

    assert [entry["event"] for entry in stream.objects()] == ["session_opened"]


def test_level_changes_for_loggers_that_are_in_use(stream: Stream) -> None:
    log = get_logger()
    bound = log.bind(connection_id="c1")
    log.debug("unseen")
    bound.debug("unseen")

    logs.set_level("debug")
    log.debug("seen")
    bound.debug("seen_bound")
    logs.set_level("error")
    log.warning("unseen")
    logging.getLogger("redis").warning("unseen")
    bound.error("seen_still")

    assert [e["event"] for e in stream.objects()] == ["seen", "seen_bound", "seen_still"]


def test_libraries_do_not_join_in_at_debug(stream: Stream) -> None:
    logs.set_level("debug")

    logging.getLogger("asyncio").debug("Using selector: EpollSelector")

    assert stream.text() == ""


def test_form_and_stream_change_for_loggers_that_are_in_use(stream: Stream) -> None:
    log = get_logger()
    log.info("first")
    other = Stream()

    logs.configure("info", "console", other)
    log.info("second", reason="drain")

    assert [entry["event"] for entry in stream.objects()] == ["first"]
    assert "second" in other.text()
    assert "{" not in other.text()


def test_console_form_is_coloured_on_a_terminal_only() -> None:
    terminal, pipe = Stream(is_terminal=True), Stream()

    logs.configure("info", "console", terminal)
    get_logger().info("relay_listening", port=3001)
    logs.configure("info", "console", pipe)
    get_logger().info("relay_listening", port=3001)

    assert "\x1b[" in terminal.text()
    assert "\x1b" not in pipe.text()
    assert "relay_listening" in pipe.text()
    assert "port=3001" in pipe.text()


@pytest.mark.parametrize(("is_terminal", "is_json"), [(True, False), (False, True)])
def test_auto_is_console_on_a_terminal_else_json(is_terminal: bool, is_json: bool) -> None:
    stream = Stream(is_terminal=is_terminal)

    logs.configure("info", "auto", stream)
    get_logger().info("relay_listening")

    assert stream.text().startswith('{"ts":') is is_json


def test_control_sequences_in_facts_do_not_reach_the_terminal() -> None:
    stream = Stream()
    logs.configure("info", "console", stream)

    get_logger().info("handshake_rejected", origin="\x1b[2J", host="a\nb")

    assert "\x1b" not in stream.text()
    assert stream.text().count("\n") == 1


def test_console_form_shows_tracebacks_without_the_values_of_variables() -> None:
    stream = Stream()
    logs.configure("info", "console", stream)
    payload = "s3cret" * 2
    try:
        raise RuntimeError(len(payload))
    except RuntimeError:
        get_logger().exception("task_failed")

    assert "RuntimeError: 12" in stream.text()
    assert "s3crets3cret" not in stream.text()


# --- RateLimited -----------------------------------------------------------------------------------


def test_rate_limited_lets_so_many_through_and_counts_the_others() -> None:
    limited = RateLimited(2)

    verdicts = [limited.admit(now) for now in (10.0, 10.1, 10.2, 10.9, 11.0, 11.1, 11.2)]

    assert verdicts == [0, 0, None, None, 2, 0, None]


def test_rate_limited_keeps_its_count_through_silence() -> None:
    limited = RateLimited(1)
    limited.admit(0.0)
    limited.admit(0.5)

    assert limited.admit(3600.0) == 1
    assert limited.admit(3601.0) == 0
