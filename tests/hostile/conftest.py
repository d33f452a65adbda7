"""A real daemon under attack, beside it a client that did nothing wrong.

Every test here attacks over raw sockets. When it is done, with the attackers still connected, the daemon must be
alive, the bystander must get its next event, nothing may have been logged as an error, and at no moment may
the daemon have needed more memory than `GROWTH_BYTES` beyond what it had before.

A module says in `SETTINGS` how its daemon is configured and in `BYSTANDER_HEADERS` what the bystander has to
bring; the daemon serves all tests of the module.
"""

from __future__ import annotations

import itertools
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from tests.e2e.conftest import Client, Daemon, Launcher
from tests.web.conftest import Answer, RawClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from relay.demo.embedded import EmbeddedRedis

# Half as much again as the costliest attack takes, a flood of messages: up to 63 MB, most of it garbage that waits for the
# collector, whose threshold bounds it (with a threshold of 2,000 in place of 50,000 it is 2 to 32 MB). An attack that
# finds a way around the bounds takes that in a second or two.
GROWTH_BYTES = 96 * 1024 * 1024
# Small, so that what is published here cannot hide what an attack takes.
_HISTORY_BYTES = 1024 * 1024

_numbers = itertools.count()


def request(
    path: str = "/jobs/x",
    *headers: str,
    method: str = "GET",
    host: str = "localhost",
    body: bytes = b"",
) -> bytes:
    """A request, written as it is given; its connection ends with the answer."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def post(path: str, document: object, *headers: str, host: str = "localhost") -> bytes:
    """A POST of a JSON document."""
    body = json.dumps(document).encode()
    return request(
        path, "Content-Type: application/json", *headers, method="POST", host=host, body=body
    )


class Attacker(RawClient):
    """A raw client that can also read an answer whose head is no text."""

    async def answer(self) -> Answer:
        """Read one HTTP answer."""
        first, *lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines if line)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await self._exactly(int(headers.get("content-length", "0")))
        return Answer(int(first.split()[1]), headers, body)


class Target:
    """The daemon, and the ways to get at it."""

    def __init__(
        self, daemon: Daemon, redis: Redis, closing: AsyncExitStack, headers: Mapping[str, str]
    ) -> None:
        self.daemon = daemon
        self.redis = redis
        self.headers = headers
        self._closing = closing

    async def raw(self, *, admin: bool = False, receive_buffer_bytes: int = 0) -> Attacker:
        """A connection that has said nothing yet."""
        url = self.daemon.admin if admin else self.daemon.public
        client = await Attacker.connect(url, receive_buffer_bytes=receive_buffer_bytes)
        self._closing.callback(client.socket.close)
        return client

    async def websocket(self, *, receive_buffer_bytes: int = 0) -> Attacker:
        """A connection after its handshake and greeting."""
        client = await self.raw(receive_buffer_bytes=receive_buffer_bytes)
        await client.upgrade()
        await client.until_event("relay-status")
        return client

    async def ask(self, data: bytes, *, admin: bool = False) -> Answer:
        """The first answer to these bytes on a connection of their own."""
        client = await self.raw(admin=admin)
        await client.send(data)
        return await client.answer()

    async def publish(self, payload: bytes | str, job_id: str = "job", queue: str = "q") -> None:
        """Publish what need not be JSON."""
        await self.redis.publish(f"jobs:{queue}:{job_id}", payload)

    async def friend(self) -> Client:
        """A well-behaved client of the bystander's kind."""
        options: dict[str, Any] = {"additional_headers": dict(self.headers)}
        return await self._closing.enter_async_context(Client.at(self.daemon.ws_url, **options))


@pytest.fixture(scope="module")
def attacked(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_redis: EmbeddedRedis,
) -> Iterator[Daemon]:
    """The module's daemon."""
    launcher = Launcher(tmp_path_factory.mktemp("hostile"))
    settings = dict(getattr(request.module, "SETTINGS", {}))
    settings["redis"] = {"url": shared_redis.url}
    settings["history"] = {"max_bytes": _HISTORY_BYTES}
    settings["heartbeat"] = {
        "interval_seconds": 3600
    }  # no frame comes but what an attack brings about
    try:
        yield launcher.serve(settings)
    finally:
        launcher.end()


@pytest.fixture
async def target(
    request: pytest.FixtureRequest, attacked: Daemon, shared_redis: EmbeddedRedis
) -> AsyncIterator[Target]:
    """What a test attacks; judged when the test is done."""
    async with AsyncExitStack() as closing:
        redis = Redis.from_url(shared_redis.url)
        closing.push_async_callback(redis.aclose)
        headers = getattr(request.module, "BYSTANDER_HEADERS", {})
        target = Target(attacked, redis, closing, headers)
        bystander = await target.friend()
        job_id = f"bystander-{next(_numbers)}"
        await bystander.subscribe(job_id)
        errors_before = len(_complaints(attacked))
        memory = Memory(attacked.pid)
        yield target
        await target.publish('{"progress": 50}', job_id)
        assert (await bystander.told("job-progress"))["data"]["progress"] == 50
        assert _complaints(attacked)[errors_before:] == []
        assert memory.growth_bytes() < GROWTH_BYTES


class Memory:
    """How much a process has needed at most since this was made (Linux; elsewhere nothing is known)."""

    def __init__(self, pid: int) -> None:
        self._process = Path("/proc") / str(pid)
        self._is_known = (self._process / "clear_refs").exists()
        if self._is_known:
            # Sets the peak back to what is in use now: proc(5), clear_refs.
            (self._process / "clear_refs").write_text("5")
            self._before = self._bytes("VmRSS")

    def growth_bytes(self) -> int:
        """The peak since then, beyond what was in use."""
        return self._bytes("VmHWM") - self._before if self._is_known else 0

    def _bytes(self, name: str) -> int:
        lines = (self._process / "status").read_text().splitlines()
        (kibibytes,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
        return int(kibibytes) * 1024


def _complaints(daemon: Daemon) -> list[str]:
    """What the daemon said that it should not have to: errors, tracebacks, anything on standard error."""
    whole = daemon.log_text().split("\n")[:-1]  # a log's line may hold what else ends a line
    lines = [line for line in whole if json.loads(line)["level"] in ("error", "critical")]
    return lines + daemon.error_text().splitlines()
