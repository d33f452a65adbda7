"""A whole relay inside the test's loop, and a client that may say anything at all.

Invariants: listeners are on free ports; whatever a test leaves open is closed with it, and must close;
everything waits on what the other side says, within a bound. Frames are written and read here anew, so
that a fault in the relay's own framing does not meet itself.
"""

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from relay.app import Addresses, Relay
from relay.config import parse
from relay.demo.embedded import EmbeddedRedis

# Far above what anything takes on a busy machine, far below what a human waits for.
SOON_SECONDS = 15.0
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455 §1.3, and what answers it:
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
PATH = "/job-progress"

# Nobody is believed to speak for others, so that a test's own connections count for their address.
NO_PROXY: dict[str, Any] = {"server.trusted_proxies": []}

Json = dict[str, Any]
Settings = Mapping[str, object]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Modules that say `EVERY_LOOP = True` run on each loop that is installed."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]]
    factories = {"asyncio": asyncio.new_event_loop}
    module = item.getparent(pytest.Module)
    if getattr(module and module.obj, "EVERY_LOOP", False) and find_spec("uvloop"):
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories


def frame(
    opcode: int, data: bytes = b"", *, final: bool = True, masked: bool = True, flags: int = 0
) -> bytes:
    """One frame as a client sends it, or should not: unmasked, or with reserved bits in `flags`."""
    mask_bit = 0x80 if masked else 0
    head = bytes([(0x80 if final else 0) | flags | opcode])
    if len(data) < 126:
        head += bytes([mask_bit | len(data)])
    elif len(data) < 65536:
        head += bytes([mask_bit | 126]) + struct.pack("!H", len(data))
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", len(data))
    if not masked:
        return head + data
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))


def command(event: str, data: object = None, **rest: object) -> bytes:
    """A client's message in its frame."""
    return frame(TEXT, json.dumps({"event": event, "data": data, **rest}).encode())


def upgrade(path: str = PATH, *, host: str = "localhost", without: str = "", **more: str) -> bytes:
    """The head of a handshake.

    Args:
        without: a header to leave out. more: further headers, or other values; `_` is written as `-`.
    """
    headers = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
    } | {name.replace("_", "-"): value for name, value in more.items()}
    headers.pop(without, None)
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer as it came over the wire; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> Json:
        error: Json = json.loads(self.body)["error"]
        return error


class RawClient:
    """A TCP connection that sends what it is told to, and reads only when it is asked to."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._loop = asyncio.get_running_loop()
        self._unread = b""

    @classmethod
    async def connect(cls, url: str, *, receive_buffer_bytes: int = 0) -> Self:
        """Connect; a small receive buffer makes a client that soon takes no more."""
        parts = urlsplit(url)
        sock = socket.socket(socket.AF_INET)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        except BaseException:  # a test that ends meanwhile leaves none behind
            sock.close()
            raise
        return cls(sock)

    async def send(self, data: bytes) -> None:
        """Send these bytes."""
        await self._loop.sock_sendall(self.socket, data)

    async def upgrade(self, data: bytes | None = None) -> Answer:
        """Shake hands, and be accepted."""
        await self.send(upgrade() if data is None else data)
        answer = await self.answer()
        assert answer.status == 101, answer
        return answer

    async def answer(self) -> Answer:
        """Read one HTTP answer."""
        first, *lines = (await self._until(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(": ") for line in lines if line)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await self._exactly(int(headers.get("content-length", "0")))
        return Answer(int(first.split()[1]), headers, body)

    async def frame(self) -> tuple[int, bytes]:
        """Read one frame: its opcode and data."""
        first, second = await self._exactly(2)
        assert first & 0xF0 == 0x80, "final, and no extension"
        assert second < 0x80, "a server does not mask"
        length = second
        if second == 126:
            (length,) = struct.unpack("!H", await self._exactly(2))
        elif second == 127:
            (length,) = struct.unpack("!Q", await self._exactly(8))
        return first & 0x0F, await self._exactly(length)

    async def message(self) -> Json:
        """Read one message of the relay."""
        opcode, data = await self.frame()
        assert opcode == TEXT, (opcode, data)
        message: Json = json.loads(data)
        return message

    async def until(self, event: str, **fields: object) -> Json:
        """Read on until a message of that name whose data holds `fields`."""
        while True:
            message = await self.message()
            if message["event"] == event and fields.items() <= message["data"].items():
                return message

    async def until_event(self, event: str) -> Json:
        """Read on until a message of that name."""
        while (message := await self.message())["event"] != event:
            pass
        return message

    async def close_code(self) -> int | None:
        """Read on until the close frame; its code."""
        while True:
            opcode, data = await self.frame()
            if opcode == CLOSE:
                return int.from_bytes(data[:2], "big") if data else None

    async def ended(self) -> None:
        """Read on until the relay has closed the connection."""
        while await self._receive():
            pass

    def reset(self) -> None:
        """Be gone without a farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    async def _until(self, end: bytes) -> bytes:
        while end not in self._unread:
            assert await self._receive(), f"closed after {self._unread!r}"
        found, _, self._unread = self._unread.partition(end)
        return found

    async def _exactly(self, size: int) -> bytes:
        while len(self._unread) < size:
            assert await self._receive(), f"closed after {self._unread!r}"
        found, self._unread = self._unread[:size], self._unread[size:]
        return found

    async def _receive(self) -> bool:
        async with asyncio.timeout(SOON_SECONDS):
            try:
                data = await self._loop.sock_recv(self.socket, 65536)
            except ConnectionError:
                data = b""
        self._unread += data
        return bool(data)


@dataclass(slots=True)
class Running:
    """A relay that runs, and the way to all its sides."""

    relay: Relay
    addresses: Addresses
    redis: Redis
    http: aiohttp.ClientSession
    closing: AsyncExitStack

    @property
    def public(self) -> str:
        return self.addresses.public

    @property
    def admin(self) -> str:
        return self.addresses.admin

    @property
    def websocket_url(self) -> str:
        return self.public.replace("http", "ws", 1) + PATH

    async def raw(self, *, receive_buffer_bytes: int = 0) -> RawClient:
        """A connection that has said nothing yet."""
        client = await RawClient.connect(self.public, receive_buffer_bytes=receive_buffer_bytes)
        self.closing.callback(client.socket.close)
        return client

    async def websocket(self, *, receive_buffer_bytes: int = 0) -> RawClient:
        """A connection after its handshake, told that the relay is subscribed to Redis."""
        client = await self.raw(receive_buffer_bytes=receive_buffer_bytes)
        await client.upgrade()
        await client.until("relay-status", redis="connected")
        return client

    async def subscribed(self) -> None:
        """Wait until the relay has its subscription to Redis."""
        client = await self.websocket()
        await client.send(frame(CLOSE))
        await client.ended()

    async def publish(self, job_id: str = "job", queue: str = "q", **fields: object) -> None:
        """Publish a message on the default channel of the job."""
        await self.redis.publish(f"jobs:{queue}:{job_id}", json.dumps(fields))

    async def known(self, job_id: str, **fields: object) -> Json:
        """Wait until the job's document holds `fields`, as a client that polls would."""
        async with asyncio.timeout(SOON_SECONDS):
            while True:
                async with self.http.get(f"{self.public}/jobs/{job_id}") as answer:
                    document: Json = await answer.json()
                if fields.items() <= document.items():
                    return document

    async def metric(self, name: str, **labels: str) -> float:
        """The value that a scrape shows."""
        async with self.http.get(f"{self.admin}/metrics") as answer:
            text = await answer.text()
        (value,) = (
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        )
        return value

    async def metric_reaches(self, value: float, name: str, **labels: str) -> None:
        """Wait until a scrape shows that value."""
        async with asyncio.timeout(SOON_SECONDS):
            while await self.metric(name, **labels) != value:
                pass


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve(shared_redis: EmbeddedRedis) -> AsyncIterator[Serve]:
    """Starts relays: `await serve({"limits.max_errors": 3})`, further routes as `routes=`."""
    async with AsyncExitStack() as closing:

        async def start(settings: Settings | None = None, **arguments: Any) -> Running:
            defaults = {"server.port": 0, "admin.port": 0, "redis.url": shared_redis.url}
            environ = {
                f"RELAY_{key.upper().replace('.', '__')}": _text(value)
                for key, value in (defaults | dict(settings or {})).items()
            }
            relay = Relay(parse(None, environ, read_file=str), **arguments)
            addresses = await relay.start()
            closing.push_async_callback(relay.stop)
            closing.push_async_callback(_end, asyncio.create_task(relay.run()))
            redis = Redis.from_url(shared_redis.url)
            closing.push_async_callback(redis.aclose)
            http = await closing.enter_async_context(aiohttp.ClientSession())
            return Running(relay, addresses, redis, http, closing)

        yield start


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel the task, and fail with it if it has failed before."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool | list) else str(value)
