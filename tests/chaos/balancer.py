"""One TCP address before several relays: connections go round in turn, past those that refuse.

It knows nothing of HTTP or of readiness, and it buffers little, so that a client that does not read is
felt by its relay.
"""

import asyncio
import itertools
import os
import random
import socket
import struct
from types import TracebackType
from typing import Self

CHUNK_BYTES = 4096
CONNECT_SECONDS = 1.0

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Balancer:
    """Use it as an async context manager.

    Attributes:
        port: where it listens on 127.0.0.1.
        targets: the relays' ports; replaced at will while it runs.
    """

    def __init__(self) -> None:
        self.port = 0
        self.targets: list[int] = []
        self._turn = itertools.count()
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    def __len__(self) -> int:
        return len(self._links)

    def cut(self, share: float, choose: random.Random) -> int:
        """Reset about this share of the connections, both ways. Returns how many."""
        links = [link for link in self._links.values() if choose.random() < share]
        for link in links:
            for writer in link:
                _reset(writer)
        return len(links)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._links:
            task.cancel()
        if self._links:
            await asyncio.wait(self._links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = self._links[task] = [writer]
        try:
            there = await self._connect()
            if there is None:
                return
            link.append(there[1])
            for each in link:
                each.transport.set_write_buffer_limits(CHUNK_BYTES)
            back = asyncio.create_task(_pump(there[0], writer))
            try:
                await _pump(reader, there[1])
            finally:
                back.cancel()
                await asyncio.wait({back})
        except (OSError, asyncio.CancelledError):
            pass  # one side is gone, or the balancer ends: either way this connection does
        finally:
            del self._links[task]
            for each in link:
                each.close()

    async def _connect(self) -> Stream | None:
        """A connection to the next relay that takes one; None where none does."""
        targets, first = self.targets, next(self._turn)
        for offset in range(len(targets)):
            port = targets[(first + offset) % len(targets)]
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await asyncio.open_connection("127.0.0.1", port, limit=CHUNK_BYTES)
            except OSError:  # TimeoutError is one
                continue
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST."""
    handle = writer.get_extra_info("socket")
    if handle is None or handle.fileno() < 0:
        return
    # A duplicate, because not every loop's sockets let their options be set; they share them.
    with socket.socket(fileno=os.dup(handle.fileno())) as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
