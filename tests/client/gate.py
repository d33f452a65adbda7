"""An HTTP proxy that lets some kinds of requests through and others not, as proxies in companies do.

Each connection carries one request, so that every request is judged by what is closed when it comes.
"""

import asyncio
from types import TracebackType
from typing import Self

# With a header for CORS, without which a browser blames the page for what it shows of it.
_REFUSAL = (
    b"HTTP/1.1 403 Forbidden\r\nAccess-Control-Allow-Origin: *\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


def kind_of(head: bytes) -> str:
    """The client's transport that a request head belongs to."""
    target = head.split(b" ", 2)[1]
    if b"upgrade: websocket" in head.lower():
        return "websocket"
    if target.startswith(b"/events"):
        return "sse"
    return "long-poll" if b"wait=" in target else "polling"


class Gate:
    """Stands before `port` on 127.0.0.1; an async context manager.

    Attributes:
        closed: the kinds of requests (see `kind_of`) that are refused.
        told: the kinds of requests that came, in order.
    """

    def __init__(self, port: int, closed: set[str]) -> None:
        self.closed = closed
        self.told: list[str] = []
        self.port = 0
        self._target_port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
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
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            kind = kind_of(head)
            self.told.append(kind)
            if kind in self.closed:
                writer.write(_REFUSAL)
                return
            back, there = await asyncio.open_connection("127.0.0.1", self._target_port)
            there.write(head.replace(b"Connection: keep-alive", b"Connection: close"))
            pumps = [
                asyncio.create_task(_pump(*pair)) for pair in ((reader, there), (back, writer))
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one side is away, or the gate ends: either way this connection does
        finally:
            for end in (writer, there):
                if end is not None:
                    end.close()
            self._tasks.discard(task)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
