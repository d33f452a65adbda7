"""`relay watch`: follows jobs over the relay's WebSocket, as bars on a terminal, else as lines.

Owns the connection and comes back as the client protocol asks: after 1001, 1011, 1012, 1013, 3008 and a
lost connection (RFC 6455 §7.4), with full jitter or when told. What is shown is `board.py`'s. A client
like any other: of the relay's inside it knows names, codes and close reasons, no more.
"""

import asyncio
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson
import yarl
from rich.console import Console
from rich.live import Live

from relay.board import Bars, Board, Lines, printable, render
from relay.core import payload
from relay.core.closing import CloseReason
from relay.core.errors import TEMPORARY, ErrorCode

DEFAULT_URL: Final = "http://localhost:3001"
_DEFAULT_PATH: Final = "/job-progress"
_SCHEMES: Final = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}

_BACKOFF_FIRST_SECONDS: Final = 0.5
_BACKOFF_MAX_SECONDS: Final = 20.0
# A connection that lived this long was a good one; to be let in only to be thrown out is not.
_STEADY_SECONDS: Final = 20.0
_CONNECT_SECONDS: Final = 10.0
_GREETING_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0
_PING_SECONDS: Final = 20.0
_MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

_RETURN_CODES: Final = frozenset(
    {None, 1001, 1006, *(reason.code for reason in CloseReason if reason.may_return)}
)
_TOKEN_CODE: Final = 3000
_BUSY_STATUSES: Final = frozenset({408, 425, 429})
_ADVICE: Final[dict[str, str]] = {
    ErrorCode.FORBIDDEN: "the token does not allow this job",
    ErrorCode.INVALID_JOB_ID: "a job id has 1 to 256 characters, none of them a control",
    ErrorCode.TOO_MANY_SUBSCRIPTIONS: "watch fewer jobs at once",
}
_NEEDS_TOKEN: Final = "the relay asks for a valid token: pass one with --token"

_DRAWINGS_PER_SECOND: Final = 8


class WatchError(Exception):
    """Watching cannot go on and trying again would not help; the text says what to do."""


def endpoint(url: str) -> yarl.URL:
    """The WebSocket address that `url` means; a path of its own is kept.

    Raises:
        ValueError: it is no http, https, ws or wss URL.
    """
    try:
        parsed = yarl.URL(url)
    except ValueError as error:
        raise ValueError(f"{url!r} is no URL ({error}); it looks like {DEFAULT_URL}") from None
    if parsed.scheme not in _SCHEMES or not parsed.host:
        raise ValueError(f"{url!r} is no http, https, ws or wss URL; it looks like {DEFAULT_URL}")
    if parsed.path in ("", "/"):
        parsed = parsed.with_path(_DEFAULT_PATH, keep_query=True)
    return parsed.with_scheme(_SCHEMES[parsed.scheme])


def backoff_seconds(attempt: int, chance: float) -> float:
    """How long to wait before trying again: full jitter, its bound doubling from 0.5 to 20 s.

    Args:
        attempt: how many in a row failed before, from 0.
        chance: a random number from 0 to 1.
    """
    doublings = min(attempt, 10)
    return chance * min(_BACKOFF_MAX_SECONDS, _BACKOFF_FIRST_SECONDS * 2.0**doublings)


@dataclass(frozen=True, slots=True)
class _Lost:
    """Why there is no connection, and when the relay wants us back (None: it did not say)."""

    reason: str
    retry_after_seconds: float | None = None


async def watch(
    job_ids: Iterable[str], *, url: str, token: str, console: Console, notes: Console
) -> int:
    """Show the jobs until all have ended.

    Args:
        job_ids: the jobs; one named twice is shown once.
        url: where the relay is, see `endpoint`.
        token: sent as `Authorization: Bearer`; empty: none.
        console: for the jobs; bars where it is a terminal, else lines.
        notes: for what is to be said about the connection, beside lines.

    Returns:
        0 if every job completed, 1 if one failed or was refused.

    Raises:
        ValueError: `url` is none.
        WatchError: there is no relay, or it wants nothing to do with us.
    """
    board = Board(job_ids)
    address = endpoint(url)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers) as http:
        if console.is_terminal and not console.is_dumb_terminal:
            with Live(
                console=console,
                get_renderable=lambda: render(board, time.monotonic(), console.height - 2),
                refresh_per_second=_DRAWINGS_PER_SECOND,
            ) as live:
                await _follow(http, address, board, Bars(live))
        else:
            await _follow(http, address, board, Lines(console, notes))
    return board.exit_code


def _why(error: Exception) -> str:
    """What went wrong in the system's words, without aiohttp's around them."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    return str(error) or "no answer"


async def _follow(
    http: aiohttp.ClientSession, address: yarl.URL, board: Board, display: Bars | Lines
) -> None:
    attempt = 0
    said = ""
    while True:
        connection = _Connection(address, board, display, recovers=attempt > 0)
        opened_at = time.monotonic()
        lost = await connection.run(http)
        if lost is None:
            return
        if time.monotonic() - opened_at >= _STEADY_SECONDS:
            attempt = 0
        wait = lost.retry_after_seconds
        if wait is None:
            wait = backoff_seconds(attempt, random.random())
        attempt += 1
        # Said once for a row of equal failures, so that a night's outage does not fill a log file.
        if connection.greeted or lost.reason != said:
            said = lost.reason
            when = "" if lost.retry_after_seconds is None else f" in {wait:.1f} s"
            display.note(f"{lost.reason}; trying again{when} (Ctrl-C stops)")
        await asyncio.sleep(wait)


class _Connection:
    """One WebSocket from its handshake to its end."""

    def __init__(
        self, address: yarl.URL, board: Board, display: Bars | Lines, *, recovers: bool
    ) -> None:
        self._address = address
        # Neither a password nor a token in the URL is for the screen.
        self._where = str(address.with_user(None).with_query(None))
        self._board = board
        self._display = display
        self._recovers = recovers
        self._batches = board.subscriptions()
        self._retry_after_seconds: float | None = None
        self._redis_away = False
        self.greeted = False

    async def run(self, http: aiohttp.ClientSession) -> _Lost | None:
        """Follow the jobs; None once all have ended."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                socket = await http.ws_connect(
                    self._address,
                    heartbeat=_PING_SECONDS,
                    max_msg_size=_MAX_MESSAGE_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
                )
        except aiohttp.ClientResponseError as error:
            return _refused(self._where, error)
        except (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError) as error:
            raise WatchError(f"cannot connect to {self._where}: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            return _Lost(f"cannot reach {self._where}: {_why(error)}")
        async with socket:
            try:
                return await self._read(socket)
            except aiohttp.ClientError:
                return _Lost("connection lost")

    async def _read(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> _Lost | None:
        for ref, data in enumerate(self._batches):
            command = {"event": "subscribe-to-jobs", "ref": ref, "data": data}
            await socket.send_str(payload.encode(command).decode())
        while not self._board.finished:
            try:
                frame = await socket.receive(None if self.greeted else _GREETING_SECONDS)
            except TimeoutError:
                return _Lost(f"{self._where} accepts connections but does not answer")
            if frame.type is aiohttp.WSMsgType.TEXT:
                lost = self._take(_envelope(frame.data, self._where))
                if lost is not None:
                    return lost
            elif frame.type is aiohttp.WSMsgType.BINARY:
                raise WatchError(f"{self._where} is no relay: it sends binary messages")
            else:
                return self._ended(socket.close_code, frame.extra)
        return None

    def _take(self, message: dict[str, Any]) -> _Lost | None:
        name, data = message["event"], message["data"]
        if name == "relay-status":
            self._note_status(data)
        elif name == "subscribed":
            for job_id, answer in (data.get("jobs") or {}).items():
                if "error" in answer:
                    lost = self._refuse([job_id], answer["error"], "")
                    if lost is not None:
                        return lost
        elif name == "error":
            ref = message.get("ref")
            jobs = self._batches[ref]["jobIds"] if isinstance(ref, int) else []
            return self._refuse(jobs, str(data.get("code")), str(data.get("message", "")))
        elif name.startswith("job-"):
            row = self._board.apply(name, data, message.get("id"), time.monotonic())
            if row is not None:
                self._display.changed(row)
        return None

    def _note_status(self, status: dict[str, Any]) -> None:
        if not self.greeted and self._recovers:
            self._display.note("connected")
        self.greeted = True
        away = status.get("redis") == "disconnected"
        if away != self._redis_away:
            self._redis_away = away
            self._display.note(
                "the relay has lost Redis and waits for it" if away else "the relay has Redis back"
            )
        if status.get("gap"):
            self._display.note("events may have been missed meanwhile")
        retry_after_ms = status.get("retryAfterMs")
        if isinstance(retry_after_ms, int | float):
            self._retry_after_seconds = max(retry_after_ms, 0) / 1000

    def _refuse(self, job_ids: list[str], code: str, message: str) -> _Lost | None:
        if code == ErrorCode.UNAUTHORIZED:
            raise WatchError(_NEEDS_TOKEN)
        if code in TEMPORARY:
            return _Lost(f"the relay is busy ({printable(code)})")
        detail = message or _ADVICE.get(code, "")
        for job_id in job_ids:
            row = self._board.refuse(job_id, f"{code}: {detail}" if detail else code)
            if row is not None:
                self._display.changed(row)
        if not job_ids:
            self._display.note(f"the relay reports {printable(code)}: {printable(message)}")
        return None

    def _ended(self, code: int | None, text: object) -> _Lost:
        told = printable(f"{code} {text}" if text else f"{code}")
        if code == _TOKEN_CODE:
            raise WatchError(_NEEDS_TOKEN)
        if code not in _RETURN_CODES:
            raise WatchError(f"the relay closed the connection for good ({told})")
        reason = "connection lost" if code in (None, 1006) else f"closed by the relay ({told})"
        return _Lost(reason, self._retry_after_seconds)


def _envelope(text: str, where: str) -> dict[str, Any]:
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        message = None
    if (
        isinstance(message, dict)
        and isinstance(message.get("event"), str)
        and isinstance(message.setdefault("data", {}), dict)
    ):
        return message
    raise WatchError(f"{where} is no relay: its messages are of another shape; check --url")


def _refused(where: str, error: aiohttp.ClientResponseError) -> _Lost:
    """What a refused handshake means: a reason to come back, else WatchError."""
    if error.status >= 500 or error.status in _BUSY_STATUSES:
        told = "" if error.headers is None else error.headers.get("Retry-After", "")
        return _Lost(f"{where} answers {error.status}", float(told) if told.isdecimal() else None)
    if error.status == 401:
        raise WatchError(_NEEDS_TOKEN)
    if error.status == 403:
        raise WatchError(f"{where} refuses us (403): it serves other hosts or origins only")
    raise WatchError(
        f"there is no relay at {where} (HTTP {error.status}): check --url; a path other than "
        f"{_DEFAULT_PATH} must be named in it"
    )
