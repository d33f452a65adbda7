"""Clients that are told everything and believe nothing: each frame and each event must be what it should be.

They read with parsers of their own, so that a fault in the relay's does not meet itself.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final, Self
from urllib.parse import urlsplit

from tests.fuzz.inputs import JOBS, QUEUE
from tests.web.conftest import CLOSE, PING, PONG, TEXT, command, frame, upgrade

_EVENTS: Final = frozenset({"relay-status", "subscribed", "unsubscribed", "error"})


class Listener:
    """What both kinds have in common: a connection, what was told, and what is waited for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.told = 0
        self._reader = reader
        self._writer = writer
        self._expected: dict[str, asyncio.Future[None]] = {}

    async def run(self) -> None:
        """Read and judge, until cancelled. Raises AssertionError, ValueError or EOFError."""
        raise NotImplementedError

    def expect(self, job_id: str) -> asyncio.Future[None]:
        """Done when that job was told of."""
        return self._expected.setdefault(job_id, asyncio.get_running_loop().create_future())

    def close(self) -> None:
        """Go."""
        self._writer.close()

    def _judge(self, event: str, data: object) -> None:
        """Whether this is something that the protocol knows."""
        assert isinstance(data, dict), (event, data)
        if event in _EVENTS:
            return
        assert event.startswith("job-"), event
        assert isinstance(data["jobId"], str), data
        assert event != "job-progress" or 0 <= data["progress"] <= 100, data
        self.told += 1
        expected = self._expected.pop(data["jobId"], None)
        if expected is not None:
            expected.set_result(None)


class WebSocketListener(Listener):
    """Over WebSocket."""

    @classmethod
    async def at(cls, url: str) -> Self:
        """Connected and subscribed to all that is published."""
        reader, writer = await _connect(url)
        ids = [f"job-{number}" for number in range(JOBS)]
        writer.write(upgrade())
        writer.write(command("subscribe-to-queue", {"queueName": QUEUE}))
        writer.write(command("subscribe-to-jobs", {"jobIds": ids}))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        return cls(reader, writer)

    async def run(self) -> None:
        while True:
            first, length = await self._reader.readexactly(2)
            assert first & 0xF0 == 0x80, "a fragment, or a reserved bit"
            if length >= 126:
                length = int.from_bytes(
                    await self._reader.readexactly(2 if length == 126 else 8), "big"
                )
            data = await self._reader.readexactly(length)
            opcode = first & 0x0F
            assert opcode != CLOSE, data
            if opcode == PING:
                self._writer.write(frame(PONG, data))
            elif opcode == TEXT:
                message = json.loads(data, parse_constant=_refuse)
                self._judge(message["event"], message["data"])


class EventStreamListener(Listener):
    """Over Server-Sent Events."""

    @classmethod
    async def at(cls, url: str) -> Self:
        """Connected and subscribed to all that is published."""
        reader, writer = await _connect(url)
        ids = ",".join(f"job-{number}" for number in range(JOBS))
        path = f"/events?queues={QUEUE}&jobs={ids}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        return cls(reader, writer)

    async def run(self) -> None:
        while True:
            block = await self._reader.readuntil(b"\n\n")
            fields: dict[str, str] = {}
            for line in block.decode().rstrip("\n").split("\n"):
                name, colon, value = line.partition(":")
                assert colon, line
                assert name in ("", "event", "data", "id", "retry"), line
                assert name not in fields, block
                assert "\r" not in value, line
                fields[name] = value.removeprefix(" ")
            if "event" in fields:
                event = fields["event"].replace("relay-error", "error")
                self._judge(event, json.loads(fields["data"], parse_constant=_refuse))


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port, limit=2**24)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
