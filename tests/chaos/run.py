"""One chaos run: real servers, relays behind one address, clients, publishers, faults; then the verdict.

    stage      Redis, with what can break it
    fleet      relays, behind the balancer
    watchers   clients       workload  publishers       storm  faults

When the storm is over everything is whole again, the publishers get their last events acknowledged, the
clients get a bounded time to catch up, and only then is judged.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.balancer import Balancer
from tests.chaos.faults import Storm, client_faults, relay_faults
from tests.chaos.fleet import Fleet
from tests.chaos.many import ClusterStage, SentinelStage
from tests.chaos.single import Single
from tests.chaos.stage import Stage
from tests.chaos.verdict import Verdict, is_owed, is_up_to_date, judge
from tests.chaos.watcher import Watcher
from tests.chaos.workload import QUEUES, Workload

SECONDS = 130.0  # with what comes after it, three minutes
# For all that comes after the storm; and for the clients alone.
GRACE_SECONDS = 48.0
CATCH_UP_SECONDS = 10.0
POLL_SECONDS = 0.1
# A process start, a kill, a wait for an exit: each holds a thread.
THREADS = 16
QUEUE_WATCHERS_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How large a run is, and what it is about."""

    seed: int
    seconds: float = SECONDS
    history: str = "redis"
    topology: str = "single"
    empty: bool = False
    relays: int = 3
    clients: int = 200
    events_per_second: float = 50.0
    fault_every_seconds: float = 1.1

    @property
    def durable(self) -> bool:
        """Whether history survives the relays."""
        return self.history == "redis"

    @property
    def lossy(self) -> bool:
        """Whether Redis itself may lose what it acknowledged."""
        return self.empty or self.topology != "single"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened, in numbers and lines."""

    options: Options
    faults: Counter[str]
    timeline: list[str]
    verdict: Verdict
    caught_up_seconds: float
    jobs: int
    events: int
    retries: int
    closes: Counter[str]
    connections: int
    deliveries: int
    repeated: int
    gaps: int
    refusals: int
    complaints: list[str]

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, out of order or told twice, and no relay crashed."""
        return not self.verdict.failures and not self.complaints

    def __str__(self) -> str:
        verdict, options = self.verdict, self.options
        rows = {
            "faults": f"{self.faults.total()}: {_counted(self.faults)}",
            "clients": f"{options.clients}, {self.connections} connections,"
            f" ended by {_counted(self.closes) or 'nothing'}",
            "published": f"{self.jobs} jobs, {self.events} events,"
            f" {self.retries} attempts not acknowledged",
            "delivered": f"{self.deliveries} events,"
            f" {self.repeated} of them again after a reconnect (dropped by id)",
            "announced": f"{self.gaps} times gap: true, {self.refusals} times recovered: false",
            "redis lost": f"{verdict.redis_lost} acknowledged events",
            "caught up": f"after {self.caught_up_seconds:.1f} s",
        }
        table = "\n".join(f"{name:<12}{text}" for name, text in rows.items())
        return (
            f"{table}\nchaos {'passed' if self.is_good else 'FAILED'}: seed {options.seed},"
            f" {options.topology}{', emptied' if options.empty else ''},"
            f" history {options.history}, {self.faults.total()} faults:"
            f" {len(verdict.lost)} lost of {verdict.owed} ends owed,"
            f" {len(verdict.faults)} out of order or twice,"
            f" {verdict.announced} missed with a gap announced"
        )


async def run(options: Options, folder: Path) -> Report:
    """Run, and clean up whatever happens.

    Args:
        folder: an empty one, for the servers' data and the relays' logs.

    Raises:
        TimeoutError: it did not come to an end in time.
    """
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS))
    async with asyncio.timeout(options.seconds + GRACE_SECONDS), contextlib.AsyncExitStack() as on:
        stage = await on.enter_async_context(_stage(options, folder))
        front = await on.enter_async_context(Balancer())
        fleet = Fleet(folder, stage.urls, options.history, front)
        on.callback(fleet.end)
        await asyncio.gather(*(fleet.start(place) for place in range(len(fleet))))
        await fleet.ready()
        watchers = _watchers(options, front)
        tasks = [asyncio.create_task(watcher.run()) for watcher in watchers]
        on.push_async_callback(_cancel, tasks)
        workload = Workload(
            await stage.publishers(),
            watchers,
            events_per_second=options.events_per_second,
            keyed=options.durable,
            choose=_random(options, "workload"),
        )
        choose = _random(options, "faults")
        faults = [
            *stage.faults(),
            *relay_faults(fleet, choose),
            *client_faults(front, watchers, choose),
        ]
        storm = Storm(faults, options.fault_every_seconds, _random(options, "storm"))
        async with asyncio.TaskGroup() as both:
            both.create_task(storm.run(options.seconds))
            both.create_task(workload.run(options.seconds))
        caught_up_seconds = await _caught_up(watchers, workload)
        held = await stage.held([job.id for job in workload.jobs]) if options.durable else None
        verdict = judge(workload.jobs, watchers, held, lossy=options.lossy)
        return _report(options, storm, workload, watchers, verdict, caught_up_seconds, fleet)


def _stage(options: Options, folder: Path) -> Stage:
    choose = _random(options, "stage")
    if options.topology == "single":
        return Single(
            folder,
            relays=options.relays,
            durable=options.durable,
            empty=options.empty,
            choose=choose,
        )
    made = SentinelStage if options.topology == "sentinel" else ClusterStage
    return made(folder, relays=options.relays, durable=options.durable, choose=choose)


def _random(options: Options, part: str) -> random.Random:
    """A source of its own for each part, so that one does not depend on how often another is asked."""
    return random.Random(f"{options.seed} {part}")


def _watchers(options: Options, front: Balancer) -> list[Watcher]:
    url = f"ws://127.0.0.1:{front.port}/job-progress"
    of_queues = int(options.clients * QUEUE_WATCHERS_SHARE)
    return [
        Watcher(
            f"client-{number}",
            url,
            _random(options, f"client {number}"),
            QUEUES[number % len(QUEUES)] if number < of_queues else None,
        )
        for number in range(options.clients)
    ]


async def _caught_up(watchers: list[Watcher], workload: Workload) -> float:
    """Wait until every client knows how its jobs ended, no longer than they may take; how long it was."""
    began_at = time.monotonic()
    waiting = [
        (watcher, job) for watcher in watchers for job in workload.jobs if is_owed(watcher, job)
    ]
    while True:
        waiting = [pair for pair in waiting if not is_up_to_date(*pair)]
        passed = time.monotonic() - began_at
        if not waiting or passed > CATCH_UP_SECONDS:
            return passed
        await asyncio.sleep(POLL_SECONDS)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _report(
    options: Options,
    storm: Storm,
    workload: Workload,
    watchers: list[Watcher],
    verdict: Verdict,
    caught_up_seconds: float,
    fleet: Fleet,
) -> Report:
    return Report(
        options=options,
        faults=storm.counts,
        timeline=storm.timeline,
        verdict=verdict,
        caught_up_seconds=caught_up_seconds,
        jobs=len(workload.jobs),
        events=sum(len(job.events) for job in workload.jobs),
        retries=workload.retries,
        closes=sum((watcher.closes for watcher in watchers), Counter()),
        connections=sum(watcher.connections for watcher in watchers),
        deliveries=sum(watcher.deliveries for watcher in watchers),
        repeated=sum(watcher.repeated for watcher in watchers),
        gaps=sum(len(watcher.gaps_at) for watcher in watchers),
        refusals=sum(watcher.refusals for watcher in watchers),
        complaints=fleet.complaints(),
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
