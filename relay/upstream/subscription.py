"""The one PSUBSCRIBE: connect, have the link read, reconnect for ever with backoff, and say so.

A link counts as lost when it has been silent for `health_check_seconds`: a frozen or half-open server never
closes anything.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog

from relay.core.errors import UpstreamError
from relay.upstream.connection import Link, RedisSettings, make_topology
from relay.upstream.link import Leaving
from relay.upstream.reader import Reader

BACKOFF_BASE_SECONDS: Final = 0.1
STEADY_SECONDS: Final = 5.0

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
        self._reader: Reader | None = None

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
        reader = Reader(self._patterns, self._health_check_seconds / 2, self._on_batch, self._on_up)
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

    async def _lost_or_left(self, reader: Reader, link: Link) -> Leaving:
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
