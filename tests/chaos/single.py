"""One Redis on disk, and a proxy before each who talks to it: links break apart from the server.

`appendfsync always`: what a publisher was told is kept survives a SIGKILL of the server.
"""

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import redis.asyncio

from relay import Publisher
from relay.demo.embedded import EmbeddedRedis
from relay.upstream.durable import DurableHistory
from tests.chaos.faults import Fault
from tests.chaos.stage import PUBLISH_TIMEOUT_SECONDS, PUBLISHERS, read_streams
from tests.chaos.workload import Publishes
from tests.proxy import Proxy

# Above what the server keeps outside the buffer that it counts.
FILLER_BYTES = 200_000


class Single:
    """Use it as an async context manager. `empty`: it also loses its data now and then."""

    def __init__(
        self, folder: Path, *, relays: int, durable: bool, empty: bool, choose: random.Random
    ) -> None:
        self._data = folder / "redis"
        self._data.mkdir()
        self._server = EmbeddedRedis(
            ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(self._data)]
        )
        self._relays = relays
        self._durable = durable
        self._empty = empty
        self._choose = choose
        self._proxies: list[Proxy] = []
        self._stack = AsyncExitStack()

    @property
    def urls(self) -> list[str]:
        """See `Stage`."""
        return [proxy.url for proxy in self._proxies[: self._relays]]

    async def publishers(self) -> Sequence[Publishes]:
        """See `Stage`."""
        history = DurableHistory() if self._durable else None
        return [
            await self._stack.enter_async_context(
                Publisher(
                    self._proxies[-1].url, history=history, timeout_seconds=PUBLISH_TIMEOUT_SECONDS
                )
            )
            for _ in range(PUBLISHERS)
        ]

    def faults(self) -> list[Fault]:
        """See `Stage`; here the server and the links."""
        faults = [
            Fault("redis killed", "redis", self._killed),
            Fault("redis killed", "redis", self._killed),
            Fault("redis frozen", "redis", self._frozen),
            Fault("redis cuts subscribers", "redis", self._subscribers_killed),
            Fault("redis cuts for the output buffer", "redis", self._output_buffer_cut),
            Fault("redis out of memory", "redis", self._out_of_memory),
            Fault("redis refuses auth", "redis", self._refusing_auth),
        ]
        if self._empty:
            faults += [Fault("redis emptied", "redis", self._emptied)] * 3
        for number, proxy in enumerate(self._proxies):
            faults += self._link_faults(f"link {number}", proxy)
        return faults

    async def held(self, job_ids: list[str]) -> dict[str, list[str]]:
        """See `Stage`."""
        async with redis.asyncio.Redis.from_url(self._server.url) as client:
            return await read_streams(client, job_ids)

    async def __aenter__(self) -> Self:
        self._stack.callback(self._server.stop)
        await asyncio.to_thread(self._server.start)
        for _ in range(self._relays + 1):
            proxy = await self._stack.enter_async_context(Proxy(self._server.port))
            self._proxies.append(proxy)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    # The server

    async def _killed(self) -> None:
        await asyncio.to_thread(self._server.kill)
        await asyncio.sleep(self._choose.uniform(0.0, 1.5))
        await asyncio.to_thread(self._server.start)

    async def _emptied(self) -> None:
        await asyncio.to_thread(self._server.kill)
        shutil.rmtree(self._data)
        self._data.mkdir()
        await asyncio.sleep(self._choose.uniform(0.0, 1.0))
        await asyncio.to_thread(self._server.start)

    async def _frozen(self) -> None:
        self._server.freeze()
        try:
            await asyncio.sleep(self._choose.uniform(0.3, 2.5))
        finally:
            self._server.resume()

    async def _subscribers_killed(self) -> None:
        async with redis.asyncio.Redis.from_url(self._server.url) as admin:
            await admin.client_kill_filter(_type="pubsub")

    async def _output_buffer_cut(self) -> None:
        async with redis.asyncio.Redis.from_url(self._server.url) as admin:
            limit = "client-output-buffer-limit"
            await admin.config_set(limit, f"pubsub {FILLER_BYTES // 2} 0 0")
            await admin.publish("jobs:filler:filler", " " * FILLER_BYTES)
            await admin.config_set(limit, "pubsub 32mb 8mb 60")

    async def _out_of_memory(self) -> None:
        await self._configured("maxmemory", "1", "0")

    async def _refusing_auth(self) -> None:
        await self._configured("requirepass", "another", "", cut=True)

    async def _configured(self, name: str, bad: str, good: str, *, cut: bool = False) -> None:
        """Set `name` to a bad value for a while, over one connection: a new one might be refused.

        With `cut` all others are closed, so that they have to come back.
        """
        async with redis.asyncio.Redis.from_url(
            self._server.url, single_connection_client=True
        ) as admin:
            await admin.config_set(name, bad)
            try:
                if cut:
                    await admin.client_kill_filter(skipme=True)
                await asyncio.sleep(self._choose.uniform(0.3, 1.5))
            finally:
                await admin.config_set(name, good)

    # The links

    def _link_faults(self, needs: str, proxy: Proxy) -> list[Fault]:
        def on(act: Callable[[Proxy], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
            return lambda: act(proxy)

        return [
            Fault("link half-open", needs, on(self._half_open)),
            Fault("link reset", needs, on(self._reset)),
            Fault("link slow", needs, on(self._slow)),
        ]

    async def _half_open(self, proxy: Proxy) -> None:
        proxy.swallowing = True
        try:
            await asyncio.sleep(self._choose.uniform(0.3, 2.5))
        finally:
            # No network loses bytes from the middle of a stream: who swallowed some must be gone.
            proxy.reset()
            proxy.swallowing = False

    async def _reset(self, proxy: Proxy) -> None:
        proxy.reset()

    async def _slow(self, proxy: Proxy) -> None:
        proxy.delay_seconds = self._choose.uniform(0.05, 0.7)
        try:
            await asyncio.sleep(self._choose.uniform(0.5, 2.0))
        finally:
            proxy.delay_seconds = 0.0
