"""A subscription, and a client's reads, on servers that come and go: waits until they work again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from redis.exceptions import RedisError

from relay.upstream.subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from relay.upstream.connection import Client, RedisSettings
    from relay.upstream.link import Leaving

CHANNEL = "jobs:q:1"
# Far above what anything takes on a busy machine, far below what a human waits for.
SOON_SECONDS = 20.0
_AGAIN_SECONDS = 0.05


class Ear:
    """What a subscription to `CHANNEL` hears.

    Attributes:
        ups: how often it was subscribed. reasons: why it lost each link.
    """

    def __init__(self, settings: RedisSettings, *, health_check_seconds: float) -> None:
        self.ups = 0
        self.reasons: list[str] = []
        self._heard: set[bytes] = set()
        self._told = 0
        self._changed = asyncio.Event()
        self.subscription = Subscription(
            settings,
            ["jobs:*"],
            health_check_seconds=health_check_seconds,
            backoff_max_seconds=0.2,
            on_batch=self._take,
            on_up=self._up,
            on_down=self._down,
        )

    @classmethod
    @asynccontextmanager
    async def on(
        cls, settings: RedisSettings, *, health_check_seconds: float = 120.0
    ) -> AsyncIterator[Self]:
        """Subscribed, until the end of the block.

        Args:
            health_check_seconds: so long, unless told otherwise, that no test sees it at work.
        """
        ear = cls(settings, health_check_seconds=health_check_seconds)
        running = asyncio.create_task(ear.subscription.run())
        try:
            await ear._until(lambda: ear.ups > 0)
            yield ear
        finally:
            running.cancel()
            await asyncio.wait({running})

    async def hears(self, payload: bytes) -> None:
        """Wait until this was heard."""
        await self._until(lambda: payload in self._heard)

    async def hears_again(self, publish: Callable[[bytes], object]) -> None:
        """Have something new published, again and again, until one of those is heard."""
        async with asyncio.timeout(SOON_SECONDS):
            known = len(self._heard)
            while len(self._heard) == known:
                self._told += 1
                await asyncio.to_thread(publish, b"again %d" % self._told)
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_SECONDS):
                        await self._changed.wait()

    async def is_up(self, times: int) -> None:
        """Wait until it was subscribed for the so-manieth time."""
        await self._until(lambda: self.ups >= times)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_SECONDS):
            while not is_so():
                self._changed.clear()
                await self._changed.wait()

    def _take(self, batch: list[list[bytes]]) -> None:
        self._heard.update(message[3] for message in batch)
        self._changed.set()

    def _up(self) -> None:
        self.ups += 1
        self._changed.set()

    def _down(self, leaving: Leaving) -> None:
        self.reasons.append(leaving.reason)
        self._changed.set()


async def read_keys(client: Client, keys: list[bytes]) -> list[Any]:
    """What the keys hold, read in one pipeline; an exception in the place of what could not be read."""
    pipeline: Any = client.pipeline(transaction=False)
    for key in keys:
        pipeline.get(key)
    answers: list[Any] = await pipeline.execute(raise_on_error=False)
    return answers


async def read_until(client: Client, keys: list[bytes], values: list[bytes]) -> None:
    """Read the keys again and again, whatever goes wrong meanwhile, until they hold the values."""
    found: list[Any] = []
    while found != values:
        with suppress(RedisError, OSError):
            found = await read_keys(client, keys)
        await asyncio.sleep(_AGAIN_SECONDS)
