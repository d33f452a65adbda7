"""The one PSUBSCRIBE: connect, probe, read in batches, reconnect for ever with backoff, and say so.

Redis: PSUBSCRIBE, PING in subscribed mode (RESP2). The socket is read by hiredis straight from the
transport, and each read is handed on as one batch. A connection counts as lost when a PING, sent every half
of `health_check_seconds`, is followed by silence for the other half: a frozen or half-open server never
closes anything. Reading stops while the last batch is not handed on (`pause`), and after a bounded
number of bytes a turn of the loop, so that sockets get their turn however fast Redis is.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis
import structlog

from relay.core.errors import UpstreamError
from relay.upstream.connection import Link, RedisSettings, make_topology
from relay.upstream.link import Leaving

BACKOFF_BASE_SECONDS: Final = 0.1
STEADY_SECONDS: Final = 5.0
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

log = structlog.stdlib.get_logger()


class Subscription:
    """Keeps the subscription alive.

    Args:
        settings: they also say how Redis is laid out, and so which node is read and when it is left
            for another; see `connection`.
        on_batch: given all `pmessage` replies of one read.
        on_up: called when every pattern is confirmed. on_down: called with why the link was lost, and
            what it may have missed.

    Raises:
        ValueError: a URL of several hosts is at fault.
    """

    def __init__(
        self,
        settings: RedisSettings,
        patterns: Sequence[str],
        *,
        health_check_seconds: float,
        backoff_max_seconds: float,
        on_batch: Callable[[list[list[bytes]]], None],
        on_up: Callable[[], None],
        on_down: Callable[[Leaving], None],
    ) -> None:
        self._connect_timeout_seconds = settings.connect_timeout_seconds
        self._topology = make_topology(settings)
        self._patterns = patterns
        self._health_check_seconds = health_check_seconds
        self._backoff_max_seconds = backoff_max_seconds
        self._on_batch = on_batch
        self._on_up = on_up
        self._on_down = on_down
        self._reader: _Reader | None = None

    async def run(self) -> None:
        """Never returns; cancel to stop."""
        attempt = 0
        loop = asyncio.get_running_loop()
        while True:
            began_at = loop.time()
            try:
                link = await self._topology.open_link()
                try:
                    leaving = await self._read(link)
                finally:
                    await link.close()
            except (UpstreamError, OSError) as error:  # OSError: out of descriptors, for one
                attempt += 1
                delay = self._backoff_seconds(attempt)
                log.warning(
                    "redis_connect_failed", error=str(error), attempt=attempt,
                    retry_in_seconds=round(delay, 3),
                )  # fmt: skip
            else:
                # A link that does not hold is no reason to hurry.
                attempt = 1 if loop.time() - began_at >= STEADY_SECONDS else attempt + 1
                delay = self._backoff_seconds(attempt)
                log.warning("redis_lost", reason=leaving.reason, retry_in_seconds=round(delay, 3))
                self._on_down(leaving)
            await self._topology.rest(delay)

    def pause(self) -> None:
        """Stop reading until `resume`: what was read is not yet handed on. Idempotent."""
        if self._reader is not None:
            self._reader.pause(handing_on=True)

    def resume(self) -> None:
        """Read again. Idempotent."""
        if self._reader is not None:
            self._reader.resume(handed_on=True)

    async def barrier(self) -> None:
        """Return when everything that Redis had published before this call has been handed on.

        Redis answers a PING behind what it has written to the link by then. Returns too when the link
        is lost, or there is none: then nothing of it will be handed on.
        """
        if self._reader is not None:
            await self._reader.barrier()

    async def _read(self, link: Link) -> Leaving:
        """Subscribe and read until the link is lost or should be left; returns why."""
        reader = _Reader(
            self._patterns, self._health_check_seconds / 2, self._on_batch, self._on_up
        )
        try:
            reader.take_over(link.transport)
            self._reader = reader  # the read that confirms may bring messages, too, and be paused
            async with asyncio.timeout(self._connect_timeout_seconds):
                await reader.subscribed
            return await self._lost_or_left(reader, link)
        except TimeoutError:
            raise UpstreamError("no answer to PSUBSCRIBE") from None
        finally:
            self._reader = None
            reader.stop()

    async def _lost_or_left(self, reader: "_Reader", link: Link) -> Leaving:
        leaving = asyncio.create_task(self._topology.left(link))
        try:
            ends: set[asyncio.Future[Any]] = {reader.lost, leaving}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                return await leaving
            # It may have been silent for as long before that was noticed.
            return Leaving(await reader.lost, self._health_check_seconds)
        except OSError as error:  # no descriptor left to ask who is the master
            return Leaving(str(error), self._health_check_seconds)
        finally:
            leaving.cancel()
            await asyncio.wait({leaving})

    def _backoff_seconds(self, attempt: int) -> float:
        """Full jitter: anything up to an exponentially growing, bounded delay."""
        ceiling = min(BACKOFF_BASE_SECONDS * 2 ** min(attempt, 30), self._backoff_max_seconds)
        return random.uniform(0, ceiling)


class _Reader(asyncio.Protocol):
    """Reads one link. `subscribed` and `lost` are futures; `lost` gives the reason."""

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

    async def barrier(self) -> None:
        if self._transport.is_closing():
            return
        answered: asyncio.Future[None] = self._loop.create_future()
        self._barriers.append(answered)
        self._transport.write(_BARRIER)
        await answered

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
