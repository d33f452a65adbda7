"""One fuzzing run: a real daemon, five ways in, two clients that judge what comes out, and a verdict.

    payloads   PUBLISH            messages, frames   many on a WebSocket     heads, admin   many on an HTTP connection

An input counts when it is known to have been read: the inputs of a batch stand before a marker whose answer is
awaited, the broken one behind it ends its connection. Clients subscribed to all that is published check that
the relay never sends what is no frame, no event and no JSON, whatever it was sent.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis

from relay.demo.embedded import EmbeddedRedis
from tests.bench.proc import pss_kib
from tests.e2e.conftest import Daemon, Launcher
from tests.fuzz import inputs
from tests.fuzz.listening import EventStreamListener, Listener, WebSocketListener
from tests.web.conftest import PING, frame, upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SOON_SECONDS: Final = 30.0
# What may come on top after a tenth of the run: the memory that Python does not give back.
GROWTH_BYTES: Final = 24 * 1024 * 1024
# Of a hundred inputs so many go in by each way: what is read by our own code gets the most.
SHARES: Final = {"payloads": 40, "messages": 30, "frames": 20, "heads": 7, "admin": 3}
BATCH: Final = {"payloads": 400, "messages": 100, "frames": 100, "heads": 30, "admin": 20}
WORKERS: Final = {"payloads": 1, "messages": 2, "frames": 2, "heads": 2, "admin": 1}
# Limits on how much one client may send are out of the way, and what is remembered is small: it is full
# when the first tenth is over, so what grows after that is a leak.
SETTINGS: Final[dict[str, dict[str, object]]] = {
    "limits": {
        "messages_per_second": 1_000_000,
        "messages_burst": 1_000_000,
        "max_errors": 1_000_000,
        "max_payload_bytes": 65_536,
    },
    "history": {"max_bytes": 4 * 1024 * 1024, "max_jobs": 2000, "max_events": 20},
    "source.jobs": {"kind": "channel"},
    "source.anywhere": {"kind": "channel", "channel": "anywhere:{event}"},
    "source.celery": {"kind": "celery"},
    "log": {"level": "warning", "format": "json"},
}
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MARKER: Final = b"marker"
_PONG: Final = b"\x8a" + bytes([len(_MARKER)]) + _MARKER


@dataclass(slots=True)
class Report:
    """What happened."""

    seed: int
    wanted: int
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    alive: bool = False
    start_bytes: int = 0
    tenth_bytes: int = 0
    end_bytes: int = 0
    told: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether the daemon stood it, within its memory and without a complaint."""
        return self.alive and not self.faults

    def __str__(self) -> str:
        ways = ", ".join(f"{name} {count:,}" for name, count in sorted(self.counts.items()))
        return (
            f"fuzz {'passed' if self.is_good else 'FAILED'}: seed {self.seed},"
            f" {self.counts.total():,} inputs in {self.seconds:.0f} s ({ways});"
            f" {self.told:,} events told; daemon {'alive' if self.alive else 'DEAD'},"
            f" PSS {_mebibytes(self.start_bytes)} at the start, {_mebibytes(self.tenth_bytes)}"
            f" after a tenth, {_mebibytes(self.end_bytes)} at the end; {len(self.faults)} faults"
        )


async def run(wanted: int, seed: int, folder: Path, say: Callable[[str], None]) -> Report:
    """Send so many inputs, and judge.

    Args:
        folder: an empty one, for the daemon's log.
        say: told a line of progress now and then.
    """
    async with AsyncExitStack() as on:
        redis_server = on.enter_context(EmbeddedRedis())
        launcher = Launcher(folder)
        on.callback(launcher.end)
        daemon = launcher.serve(SETTINGS | {"redis": {"url": redis_server.url}})
        redis = Redis.from_url(redis_server.url)
        on.push_async_callback(redis.aclose)
        listeners: list[Listener] = [
            await WebSocketListener.at(daemon.public),
            await EventStreamListener.at(daemon.public),
        ]
        fuzzer = Fuzzer(daemon, redis, listeners, Report(seed, wanted), say)
        await fuzzer.run()
        for listener in listeners:
            listener.close()
        return fuzzer.report


class Fuzzer:
    """Sends inputs to one daemon until there were enough."""

    def __init__(
        self,
        daemon: Daemon,
        redis: Redis,
        listeners: list[Listener],
        report: Report,
        say: Callable[[str], None],
    ) -> None:
        self.report = report
        self._daemon = daemon
        self._redis = redis
        self._listeners = listeners
        self._say = say
        self._markers = itertools.count()
        self._began_at = time.monotonic()

    async def run(self) -> None:
        """Send all, wait until all is read, judge."""
        report = self.report
        await self._everything_is_told()
        report.start_bytes = 1024 * pss_kib([self._daemon.pid])
        try:
            async with asyncio.TaskGroup() as tasks:
                listening = [tasks.create_task(listener.run()) for listener in self._listeners]
                workers = [
                    tasks.create_task(self._work(way, number))
                    for way in SHARES
                    for number in range(WORKERS[way])
                ]
                tasks.create_task(self._watch(workers, listening))
        except* (AssertionError, OSError, TimeoutError, ValueError, EOFError) as errors:
            report.faults += [f"{type(error).__name__}: {error}" for error in _leaves(errors)]
        report.seconds = time.monotonic() - self._began_at
        await self._judge()

    async def _watch(
        self, workers: list[asyncio.Task[None]], listening: list[asyncio.Task[None]]
    ) -> None:
        """Tell of progress; end the listeners when the workers have ended."""
        report = self.report
        told_at = 0
        while not all(worker.done() for worker in workers):
            await asyncio.wait(workers, timeout=0.5)
            sent = report.counts.total()
            if not report.tenth_bytes and sent >= report.wanted / 10:
                report.tenth_bytes = 1024 * pss_kib([self._daemon.pid])
            if sent - told_at >= report.wanted / 10:
                told_at = sent
                seconds = time.monotonic() - self._began_at
                memory = _mebibytes(1024 * pss_kib([self._daemon.pid]))
                self._say(f"fuzz: {sent:,} inputs, {seconds:.0f} s, PSS {memory}")
        for task in listening:
            task.cancel()

    async def _work(self, way: str, number: int) -> None:
        """Send this worker's part of the inputs."""
        random = Random(f"{self.report.seed} {way} {number}")
        share = self.report.wanted * SHARES[way] // 100 // WORKERS[way]
        for size in _batches(share, BATCH[way]):
            async with asyncio.timeout(SOON_SECONDS):
                match way:
                    case "payloads":
                        await self._publish(random, size)
                    case "messages":
                        await self._speak(random, inputs.sound_message, size)
                    case "frames":
                        await self._speak(random, inputs.sound_frames, size)
                    case "heads":
                        url, broken = self._daemon.public, inputs.broken_head
                        await self._ask(random, url, inputs.sound_head, broken, size)
                    case _:
                        url, broken = self._daemon.admin, inputs.broken_admin
                        await self._ask(random, url, inputs.sound_admin, broken, size)
            self.report.counts[way] += size

    async def _publish(self, random: Random, size: int) -> None:
        async with self._redis.pipeline(transaction=False) as batch:
            for _ in range(size):
                _ = batch.publish(*inputs.payload(random))
            await batch.execute()
        await self._everything_is_told()

    async def _everything_is_told(self) -> None:
        """Wait until the listeners were told of an event that is published now, behind all others."""
        job_id = f"marker-{next(self._markers)}"
        told = [listener.expect(job_id) for listener in self._listeners]
        await self._redis.publish(f"jobs:{inputs.QUEUE}:{job_id}", '{"event":"job-completed"}')
        if self.report.start_bytes:
            await asyncio.gather(*told)

    async def _speak(self, random: Random, sound: Callable[[Random], bytes], size: int) -> None:
        reader, writer = await _connect(self._daemon.public)
        writer.write(upgrade())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        said = [sound(random) for _ in range(size - 1)]
        writer.write(b"".join(said) + frame(PING, _MARKER))
        await _read_until(reader, _PONG)
        await _finish(reader, writer, inputs.broken_frames(random))

    async def _ask(
        self,
        random: Random,
        url: str,
        sound: Callable[[Random], bytes],
        broken: Callable[[Random], bytes],
        size: int,
    ) -> None:
        reader, writer = await _connect(url)
        asked = [sound(random) for _ in range(size - 1)]
        writer.write(b"".join(asked))
        for request in asked:
            head = await reader.readuntil(b"\r\n\r\n")
            status = _STATUS.match(head)
            assert status is not None, f"{request!r} was answered {head!r}"
            length = _LENGTH.search(head)
            if length is not None and status[1] not in (b"204", b"304"):
                await reader.readexactly(int(length[1]))
        await _finish(reader, writer, broken(random))

    async def _judge(self) -> None:
        report, daemon = self.report, self._daemon
        report.told = sum(listener.told for listener in self._listeners)
        try:
            report.alive = await daemon.is_ready()
        except OSError as error:
            report.faults.append(f"the daemon does not answer: {error}")
            return
        report.end_bytes = 1024 * pss_kib([daemon.pid])
        if report.tenth_bytes and report.end_bytes > report.tenth_bytes + GROWTH_BYTES:
            report.faults.append("memory went on growing after the first tenth")
        report.faults += complaints(daemon)


def complaints(daemon: Daemon) -> list[str]:
    """What the log says that it should not have to, each thing once, with how often."""
    found = [
        f"{line['event']}: {_end_of(line.get('exception', ''))}"
        for line in map(json.loads, daemon.log_text().split("\n")[:-1])  # U+2028 ends no line here
        if line["level"] == "error" or "exception" in line or line.get("reason") == "internal"
    ]
    found += daemon.error_text().splitlines()
    return [f"{count} × {complaint}" for complaint, count in Counter(found).most_common()]


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def _read_until(reader: asyncio.StreamReader, end: bytes) -> None:
    """Read on until `end`; there may be much before it."""
    tail = b""
    while end not in tail:
        data = await reader.read(65_536)
        assert data, f"the connection was closed on a sound input, after {tail[-100:]!r}"
        tail = tail[-len(end) :] + data


async def _finish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, last: bytes) -> None:
    """Send the last input, say that nothing follows, and wait for the end of the connection."""
    try:
        writer.write(last)
        writer.write_eof()
        while await reader.read(65_536):
            pass
    except ConnectionError:
        pass  # it was cut off in the middle of it
    finally:
        writer.close()


def _batches(total: int, size: int) -> Iterator[int]:
    while total > 0:
        yield min(size, total)
        total -= size


def _leaves(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _end_of(traceback: str) -> str:
    """Where it was raised, and what; without the place in the input, so that the same fault looks the same."""
    lines = [line.strip() for line in traceback.splitlines() if line.strip(" ^~")]
    return re.sub(r"(line|column|char) \d+\b(?!, in)", r"\1 …", " ".join(lines[-3:]))


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
