"""Whether the hot path costs what it did: steps and memory a unit, against recorded bounds.

    make bench-check                    exit code 1 if one costs more than recorded
    make bench-check ARGS=--record      record what it costs now, after a change that is meant

What is counted does not depend on the machine or on what else it does: lines of Python run, calls (of C
functions too, as the interpreter reports them), and memory blocks that are there afterwards. It does depend a little on
the version of Python, hence the tolerance. It says nothing of the kernel, which `make bench` measures.

The parts are the real ones, put together as the composition root does; only the socket is missing.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from relay.core.grants import EVERYTHING
from relay.core.session import Session
from relay.sources.channel import ChannelSource
from relay.sources.template import ChannelTemplate
from tests import fakes

RECORD = Path(__file__).with_name("bounds.json")
TOLERANCE = 0.1
# So small a number may move by rounding alone.
SLACK = 0.05
UNITS = 1000
WATCHERS = 100

Message = tuple[bytes, bytes, bytes, bytes]


class Cost(NamedTuple):
    """Of one unit."""

    lines: float
    calls: float
    blocks: float


class Core(fakes.Relay):
    """The hot path without its ends. A session's outbox is emptied when a batch is done."""

    def __init__(self, *, keeps: bool = True) -> None:
        super().__init__(
            source=ChannelSource(ChannelTemplate.parse("jobs:{jobId}")),
            max_jobs=100_000,
            exposed=keeps,
            keeps_unwatched=keeps,
            max_subscriptions=1_000_000,
            messages_per_second=1e9,
            messages_burst=1_000_000_000,
        )
        self.router.on_routed = None  # as without the debug log
        self._sequence = 0

    def session(self, job_id: str) -> Session:
        """A client that watches a job."""
        session = Session(self.hub, "c", None, EVERYTHING)
        self.subscribe(session, job_id)
        return session

    def subscribe(self, session: Session, job_id: str) -> None:
        """What a client does first, to the answer."""
        request = b'{"event":"subscribe-to-job","data":{"jobId":"%b"}}' % job_id.encode()
        session.receive(request, 1.0)
        session.outbox.take(65536)
        session.woken = False
        self.woken.clear()

    def message(self, job_id: str) -> Message:
        """A message as it comes from Redis."""
        self._sequence += 1
        payload = b'{"jobId":"%b","progress":%d,"status":"active","message":"%b"}' % (
            job_id.encode(),
            self._sequence % 100,
            b"x" * 120,
        )
        return b"pmessage", b"jobs:*", b"jobs:" + job_id.encode(), payload

    def receive(self, batch: list[Message]) -> None:
        """Route a batch and empty the outboxes that got something."""
        self.router.receive(batch, 1.0, 1000)
        for session in self.woken:
            session.woken = False
            session.outbox.take(65536)
        self.woken.clear()


# --- what is measured: prepared first, then run once with nothing counted, then counted ---------------

Work = tuple[Callable[[], None], int]


def unwatched(*, keeps: bool) -> Work:
    """Messages of jobs that nobody watches, heard of before, in batches of a hundred."""
    core = Core(keeps=keeps)
    core.session("watched")
    batches = [
        [core.message(f"job-{number}") for number in range(100)] for _ in range(UNITS // 100)
    ]

    return _receiving(core, batches), UNITS


def _receiving(core: Core, batches: list[list[Message]]) -> Callable[[], None]:
    def work() -> None:
        for batch in batches:
            core.receive(batch)

    return work


def burst() -> Work:
    """A batch of twenty events of one job to all its watchers; a unit is a delivery."""
    core = Core()
    sessions = [core.session("watched") for _ in range(WATCHERS)]
    batches = [[core.message("watched") for _ in range(20)] for _ in range(5)]

    return _receiving(core, batches), 100 * len(sessions)


def paced() -> Work:
    """One event a batch to all watchers of its job; a unit is a delivery."""
    core = Core()
    sessions = [core.session("watched") for _ in range(WATCHERS)]
    batches = [[core.message("watched")] for _ in range(UNITS // 10)]

    return _receiving(core, batches), len(batches) * len(sessions)


def single() -> Work:
    """One event a batch to the only watcher of its job."""
    core = Core()
    jobs = [f"job-{number}" for number in range(100)]
    sessions = [core.session(job_id) for job_id in jobs]
    batches = [[core.message(job_id)] for job_id in jobs * (UNITS // 100)]

    return _receiving(core, batches), len(batches) * len(sessions) // len(jobs)


def subscribe() -> Work:
    """Each client to a job of its own, of which nothing is known."""
    core = Core()
    rounds = iter(range(1_000_000))
    kept: list[Session] = []

    def work() -> None:
        for _ in range(UNITS):
            session = Session(core.hub, "c", None, EVERYTHING)
            core.subscribe(session, f"job-{next(rounds)}")
            kept.append(session)

    return work, UNITS


WORKS: dict[str, Callable[[], Work]] = {
    "unwatched message, history off": lambda: unwatched(keeps=False),
    "unwatched message, kept": lambda: unwatched(keeps=True),
    "burst, a delivery": burst,
    "paced, a delivery": paced,
    "single watcher, an event": single,
    "subscribe": subscribe,
}


def cost(make: Callable[[], Work]) -> Cost:
    """What a unit costs once everything is warm."""
    work, units = make()
    work()
    gc.collect()
    before = sys.getallocatedblocks()
    work()
    gc.collect()
    blocks = sys.getallocatedblocks() - before
    lines = _lines(work)
    return Cost(*(round(count / units, 3) for count in (lines, _calls(work), max(0, blocks))))


def _lines(work: Callable[[], None]) -> int:
    count = 0

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return local

    sys.settrace(local)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


def _calls(work: Callable[[], None]) -> int:
    count = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def faults(measured: dict[str, Cost], recorded: dict[str, Cost]) -> list[str]:
    """What costs more than recorded, and what was never recorded."""
    found = []
    for name, now in measured.items():
        bound = recorded.get(name)
        if bound is None:
            found.append(f"{name}: not recorded yet; record it with --record")
            continue
        for what, is_now, was in zip(Cost._fields, now, bound, strict=True):
            if is_now > was * (1 + TOLERANCE) + SLACK:
                found.append(
                    f"{name}: {is_now:g} {what} a unit, recorded {was:g}; if that is meant, and"
                    " make bench shows what it buys, record it with --record"
                )
    return found


def main() -> int:
    """Measure, and compare or record; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.guard")
    parser.add_argument("--record", action="store_true", help="these are the bounds from now on")
    is_to_record = parser.parse_args().record
    measured = {name: cost(make) for name, make in WORKS.items()}
    for name, now in measured.items():
        sys.stdout.write(
            f"{name:<32}{now.lines:9.2f} lines{now.calls:9.2f} calls{now.blocks:9.2f} blocks\n"
        )
    if is_to_record:
        kept = {name: now._asdict() for name, now in measured.items()}
        RECORD.write_text(json.dumps(kept, indent=2) + "\n")
        return 0
    recorded = {name: Cost(**kept) for name, kept in json.loads(RECORD.read_text()).items()}
    found = faults(measured, recorded)
    for line in found:
        sys.stdout.write(f"costs more: {line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
