"""Reads one link to Redis: subscribes, probes, hands on what each read brought as one batch.

Redis: PSUBSCRIBE, PING in subscribed mode (RESP2). The socket is read by hiredis straight from the
transport. The link counts as lost when a PING, sent every half of the health check's time, is followed by
silence for the other half. Reading stops while the last batch is not handed on (`pause`), and after a bounded
number of bytes a turn of the loop, so that sockets get their turn however fast Redis is.

No coroutines: this file is on the hot path, which can be compiled (setup.py).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis

from relay.core.errors import UpstreamError

MAX_TURN_BYTES: Final = 256 * 1024
# The event loops read again in the same turn only where a read filled their buffers (of some 256 KiB).
_SMALL_READ_BYTES: Final = 64 * 1024
# A stalled loop finds its timers due before it has read the socket: look twice before giving up.
SECOND_LOOK_SECONDS: Final = 0.1
# hiredis moves all that it holds to the front for every KiB that it has read: of a large read it is
# given a little at a time.
_PIECE_BYTES: Final = 16 * 1024
# pmessage, pattern, channel, payload: no other reply to a subscriber has as many.
_MESSAGE_FIELDS: Final = 4
_PING: Final = b"*1\r\n$4\r\nPING\r\n"
# For people who look at CLIENT LIST. Refused to a user that may do no more than it needs to, and then
# left at that: so it is not redis-py that asks.
_SET_NAME: Final = b"*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$5\r\nrelay\r\n"
_BARRIER: Final = b"*2\r\n$4\r\nPING\r\n$7\r\nbarrier\r\n"


class Reader(asyncio.Protocol):
    """Reads one link. `subscribed` and `lost` are futures; `lost` gives the reason.

    Args:
        half_seconds: between two PINGs; so long may be silence after one.
        on_batch: given all `pmessage` replies of one read. on_up: called when every pattern is confirmed.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        half_seconds: float,
        on_batch: Callable[[list[list[bytes]]], None],
        on_up: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.subscribed: asyncio.Future[None] = self._loop.create_future()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._patterns = patterns
        self._unconfirmed = len(patterns)
        self._half_seconds = half_seconds
        self._look_seconds = min(SECOND_LOOK_SECONDS, half_seconds / 4)
        self._on_batch = on_batch
        self._on_up = on_up
        self._early: list[list[bytes]] = []  # messages of a pattern while another is not confirmed
        self._replies = hiredis.Reader()
        self._named = False  # whether the answer to CLIENT SETNAME, the first command, is there
        self._barriers: deque[asyncio.Future[None]] = deque()
        self._heard = True  # whether a byte came since the last PING
        self._timer: asyncio.TimerHandle | None = None
        self._turn_bytes = 0
        self._handing_on = False
        self._turn_over = False
        self._transport: asyncio.Transport

    def take_over(self, transport: asyncio.Transport) -> None:
        """Become the transport's protocol and subscribe."""
        self._transport = transport
        transport.set_protocol(self)
        transport.resume_reading()
        transport.write(_SET_NAME)
        # PING before PSUBSCRIBE: a user who may not send it is refused before, not after, we are up.
        self._ping()
        command = [b"PSUBSCRIBE", *(pattern.encode() for pattern in self._patterns)]
        transport.write(
            b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in command)
        )

    def stop(self) -> None:
        """End the probe and whoever waits; the transport is the owner's."""
        if self._timer is not None:
            self._timer.cancel()
        self.subscribed.cancel()
        self.lost.cancel()
        while self._barriers:
            _finish(self._barriers.popleft())

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if len(data) > _SMALL_READ_BYTES:
            self._count(len(data))
        replies = self._replies
        batch: list[Any] = []
        try:
            for start in range(0, len(data), _PIECE_BYTES):
                replies.feed(data, start, min(_PIECE_BYTES, len(data) - start))
                batch += iter(replies.gets, False)
        except hiredis.ProtocolError as error:
            self._lose(f"not the Redis protocol: {error}")
        try:
            # Looked at one by one only where there is anything else: that takes as long as reading them.
            if set(map(type, batch)) != {list} or set(map(len, batch)) != {_MESSAGE_FIELDS}:
                batch = [reply for reply in batch if self._is_message(reply)]
            self._hand_on(batch)
        except Exception as error:  # noqa: BLE001  a bug of ours: it must end the task that owns us
            if not self.lost.done():
                self.lost.set_exception(error)

    def _hand_on(self, batch: list[list[bytes]]) -> None:
        """Hand messages on, none of them before it was told that the subscription is whole."""
        if self._unconfirmed:
            self._early += batch
            return
        if not self.subscribed.done():
            self.subscribed.set_result(None)
            self._on_up()
            batch = self._early + batch
            self._early = []
        if batch:
            self._on_batch(batch)

    def barrier(self) -> asyncio.Future[None]:
        """Done when what Redis had published before is handed on, or the link is lost; see `Subscription`."""
        answered: asyncio.Future[None] = self._loop.create_future()
        if self._transport.is_closing():
            answered.set_result(None)
        else:
            self._barriers.append(answered)
            self._transport.write(_BARRIER)
        return answered

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(f"connection lost: {exc}" if exc else "closed by Redis")

    def pause(self, *, handing_on: bool) -> None:
        self._handing_on = handing_on
        self._transport.pause_reading()

    def resume(self, *, handed_on: bool) -> None:
        self._handing_on = not handed_on
        self._read_on()

    def _count(self, size: int) -> None:
        """Stop reading where this turn of the loop brought too much. A small read is not worth the
        callback: what it costs, most of them cost in all."""
        if not self._turn_bytes:
            self._loop.call_soon(self._begin_turn)
        self._turn_bytes += size
        if self._turn_bytes >= MAX_TURN_BYTES:
            self._turn_over = True
            self._transport.pause_reading()

    def _begin_turn(self) -> None:
        self._turn_bytes = 0
        self._turn_over = False
        self._read_on()

    def _read_on(self) -> None:
        if not (self._handing_on or self._turn_over or self._transport.is_closing()):
            self._transport.resume_reading()

    def _is_message(self, reply: Any) -> bool:
        """Whether it is one; obeys what it is else: confirmations, answers to PING, errors."""
        if type(reply) is list and len(reply) == _MESSAGE_FIELDS:
            return True
        self._obey(reply)
        return False

    def _obey(self, reply: Any) -> None:
        if not self._named:
            self._named = True
        elif type(reply) is list and reply[0] == b"pong":
            if reply[1] == b"barrier" and self._barriers:
                _finish(self._barriers.popleft())
        elif isinstance(reply, hiredis.ReplyError):
            self._refused(str(reply))
        elif type(reply) is list and reply[0] == b"psubscribe":
            self._unconfirmed -= 1

    def _refused(self, message: str) -> None:
        patterns = " ".join(f"&{pattern}" for pattern in self._patterns)
        hint = f"; the ACL user needs +psubscribe +ping {patterns}" if "NOPERM" in message else ""
        if not self.subscribed.done():
            self.subscribed.set_exception(UpstreamError(f"Redis refuses: {message}{hint}"))
        else:
            self._lose(f"Redis says: {message}")

    def _lose(self, reason: str) -> None:
        if not self.subscribed.done():
            self.subscribed.set_exception(UpstreamError(reason))
        if not self.lost.done():
            self.lost.set_result(reason)

    def _ping(self) -> None:
        self._heard = False
        self._transport.write(_PING)
        self._timer = self._loop.call_later(self._half_seconds - self._look_seconds, self._look)

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._look_seconds, self._judge)

    def _judge(self) -> None:
        # While we do not read ourselves, silence says nothing of Redis.
        if self._heard or self._handing_on or self._turn_over:
            self._ping()
        else:
            self._lose(f"no answer to PING within {self._half_seconds:g} s")


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
