"""The next read of Redis waits until the last one is in its sockets."""

import asyncio
from typing import Any

import pytest

from relay.intake import Intake
from relay.web import flusher
from relay.web.flusher import SLICE_SECONDS
from tests import fakes

CHANNEL = b":job"
WATCHERS = 40  # more than are written to without a look at the clock


class Source:
    """Where messages come from, and what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.resumed = asyncio.Event()

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")
        self.resumed.set()


class Slow:
    """A link whose writes take half a slice each, by a clock of its own."""

    def __init__(self, sent: list["Slow"], clock: list[float]) -> None:
        self._sent = sent
        self._clock = clock

    def flush(self) -> None:
        self._sent.append(self)
        self._clock[0] += SLICE_SECONDS / 2


class Bench:
    """An intake and so many watchers of one job; `sent` is who was written to."""

    def __init__(self, watchers: int, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [0.0]
        monkeypatch.setattr(flusher, "perf_counter", lambda: clock[0])
        self.sent: list[Slow] = []
        self.source = Source()
        self.relay = fakes.Relay()
        self.intake = Intake(asyncio.get_running_loop(), self.relay.router, self.relay.stats)
        self.intake.source = self.source
        self.relay.hub.wake = self.intake.flusher.wake
        for _ in range(watchers):
            client = fakes.Client(self.relay)
            client.send("subscribe-to-job", {"jobId": "job"})
            link: Any = Slow(self.sent, clock)
            client.session.link = link

    async def settled(self) -> None:
        """What subscribing woke is done with."""
        for _ in range(WATCHERS):
            await asyncio.sleep(0)
        self.sent.clear()
        self.source.told.clear()
        self.source.resumed.clear()

    def take(self) -> None:
        self.intake.take([[b"pmessage", b"*", CHANNEL, fakes.raw(progress=1)]])

    @property
    def finished(self) -> int:
        """How many events are known to be with their last socket."""
        return sum(self.relay.stats.relay_seconds.counts)


async def test_source_waits_until_all_sockets_are_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(WATCHERS, monkeypatch)
    await bench.settled()

    bench.take()
    at_first = (0 < len(bench.sent) < WATCHERS, bench.finished, list(bench.source.told))
    async with asyncio.timeout(10):
        await bench.source.resumed.wait()

    assert at_first == (True, 0, ["pause"])
    assert (len(bench.sent), bench.finished) == (WATCHERS, 1)
    assert bench.source.told == ["pause", "resume"]


async def test_source_does_not_wait_where_all_is_written_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(1, monkeypatch)
    await bench.settled()

    bench.take()

    assert (len(bench.sent), bench.finished, bench.source.told) == (1, 1, [])


async def test_new_link_waits_for_what_the_old_one_brought(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(WATCHERS, monkeypatch)
    await bench.settled()
    bench.intake.on_up()
    bench.take()

    bench.intake.on_up()

    assert bench.source.told == ["pause", "pause"]
