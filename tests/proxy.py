"""A TCP proxy for faults: it delays, swallows, resets and refuses, as networks do.

Each fault begins at once and, save `reset`, holds for connections that are open and for new ones alike.
"""

import asyncio
import os
import socket
import struct
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 65536


class Proxy:
    """Stands between a client and `port` on 127.0.0.1; use it as an async context manager.

    Attributes:
        port: where it listens; kept while it refuses.
        accepted: how many connections were made so far.
        delay_seconds: how long each chunk is held back.
        swallowing: bytes, and ends of connections, are taken and not passed on: a half-open link.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.accepted = 0
        self.delay_seconds = 0.0
        self.swallowing = False
        self._target_port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._used = asyncio.Event()

    @property
    def url(self) -> str:
        """The Redis URL of what is behind the proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def accept(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Reset what is open and refuse what is new, until `accept`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def reset(self) -> None:
        """Cut every open connection with a RST."""
        for writer in self._writers:
            # A duplicate, because not every loop's sockets let their options be set; they share them.
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as shared:
                shared.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def used(self) -> None:
        """Return once somebody has connected."""
        await self._used.wait()

    async def left_alone(self) -> None:
        """Return once nobody is connected."""
        await self._idle.wait()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        for task in self._tasks:
            task.cancel()
        await self._idle.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._idle.clear()
        self._used.set()
        mine = {writer}
        self._writers |= mine
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target_port)
            mine.add(there[1])
            self._writers.add(there[1])
            back = asyncio.create_task(self._pump(there[0], writer))
            try:
                await self._pump(reader, there[1])
            finally:
                back.cancel()
                await asyncio.wait({back})
        except (OSError, asyncio.CancelledError):
            pass  # the target is away, or the proxy ends: either way this connection does
        finally:
            self._writers -= mine
            for each in mine:
                each.close()
            self._tasks.discard(task)
            if not self._tasks:
                self._idle.set()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if not self.swallowing:
                writer.write(chunk)
                await writer.drain()
        if not self.swallowing:
            writer.close()
