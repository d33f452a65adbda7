"""structlog and the standard library's logging come out of one place in one form, one event a line.

JSON for a pipe, console for a terminal. Invariants: a log call never raises, whatever it is given and whoever
stopped reading; level and form change at once for every logger there is, also for those bound earlier.
Refuses to know what is logged: no name of an event stands here.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import orjson
import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class RateLimited:
    """Lets through at most so many lines a second, and counts the others.

    The count is told with the next line that is let through.
    """

    __slots__ = ("_lines_per_second", "_passed", "_second", "_suppressed")

    def __init__(self, lines_per_second: int) -> None:
        self._lines_per_second = lines_per_second
        self._second = float("-inf")  # when the current second began
        self._passed = 0
        self._suppressed = 0

    def admit(self, now: float) -> int | None:
        """Ask for one line to be written.

        Args:
            now: monotonic seconds.

        Returns:
            How many lines were suppressed since the last one that was let through; None where this
            one is suppressed too.
        """
        if now - self._second >= 1:
            self._second = now
            self._passed = 0
        if self._passed >= self._lines_per_second:
            self._suppressed += 1
            return None
        self._passed += 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


def configure(level: str, format: str, stream: TextIO | None = None) -> None:
    """Set up logging for the process. May be called again.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        format: `json`, `console`, or `auto`: console where `stream` is a terminal.
        stream: one over a binary buffer; None is `sys.stdout`.
    """
    stream = stream or sys.stdout
    is_terminal = stream.isatty()
    if format == "console" or (format == "auto" and is_terminal):
        _processors[:] = [_completed, _console(colors=is_terminal)]
    else:
        _processors[:] = [_completed, _as_json]
    _output.stream = stream
    structlog.configure(
        processors=_processors,
        wrapper_class=_Logger,
        logger_factory=lambda *_: _output,
        cache_logger_on_first_use=True,
    )
    logging.getLogger().addHandler(_bridge)
    logging.captureWarnings(True)
    # Its lines hold request lines, and those may hold tokens.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    set_level(level)


def set_level(level: str) -> None:
    """Change what is logged from now on, by every logger.

    Args:
        level: `debug`, `info`, `warning` or `error`. What libraries say at debug is never logged.
    """
    number = _LEVELS[level]
    # Loggers are cached by those who use them, so the class they share changes, not the loggers.
    # structlog makes a class for each level, in which a method below it does nothing.
    for name, method in vars(structlog.make_filtering_bound_logger(number)).items():
        if not name.startswith("__"):
            setattr(_Logger, name, method)
    logging.getLogger().setLevel(max(number, logging.INFO))


class _Logger(structlog.BoundLoggerBase):
    """The class of every logger; `set_level` gives it its methods."""


class _Output:
    """Writes lines that are encoded already, under each of the names that structlog calls."""

    __slots__ = ("stream",)

    def __init__(self) -> None:
        self.stream: TextIO = sys.stdout

    def write(self, line: bytes) -> None:
        try:
            self.stream.buffer.write(line)
            self.stream.buffer.flush()
        except (OSError, ValueError):
            # The reader is gone, or the stream closed. Jobs go on without a log.
            pass

    debug = info = warning = error = critical = write


class _Bridge(logging.Handler):
    """Takes what libraries log through the same processors."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = record.levelname.lower()
            line: Any = {"event": record.getMessage(), "logger": record.name}
            if record.exc_info:
                line["exc_info"] = record.exc_info
            for processor in _processors:
                line = processor(None, level, line)
            _output.write(line)
        except Exception:  # noqa: BLE001 - a library's faulty log call must not end what it logs about
            self.handleError(record)


def _completed(_: object, level: str, facts: EventDict) -> EventDict:
    """Time, level and event first, then the facts; a traceback as text."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"ts": now[:-6] + "Z", "level": level, "event": facts.pop("event", ""), **facts}
    if exc_info := entry.pop("exc_info", None):
        if isinstance(exc_info, tuple):
            error = exc_info[1]
        else:
            error = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
        if error is not None:
            # Without the frames' variables: those hold payloads and tokens.
            entry["exception"] = "".join(traceback.format_exception(error)).rstrip()
    return entry


def _as_json(_: object, __: str, entry: EventDict) -> bytes:
    try:
        return orjson.dumps(entry, default=repr, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # Half of a surrogate pair, an integer beyond 64 bits, a key that is no text: rare, so slow.
        return json.dumps(entry, default=repr, skipkeys=True).encode() + b"\n"


def _console(*, colors: bool) -> Processor:
    render = structlog.dev.ConsoleRenderer(
        colors=colors,
        timestamp_key="ts",
        sort_keys=False,
        # What clients send may hold control sequences, which are no terminal's business.
        repr_native_str=True,
        # A traceback is text already; the default would also want to show variables.
        exception_formatter=structlog.dev.plain_traceback,
    )

    def as_text(logger: object, level: str, entry: EventDict) -> bytes:
        return f"{render(logger, level, entry)}\n".encode(errors="backslashreplace")

    return as_text


# Shared by every logger ever bound, so that `configure` reaches them all.
_processors: list[Processor] = []
_output = _Output()
_bridge = _Bridge()
