"""Compares what was published with what clients hold: lost, told twice, left behind, and what was announced.

An end that Redis still holds must be with every client that watches its job. One that Redis lost, or never
kept, may be missing only where the client was told of a gap after it was published. Pure: it reads
notes that were taken, and no clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.ledger import Job, View
from tests.chaos.watcher import Watcher

Held = Mapping[str, Sequence[str]]


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What a run came to. `failures` is empty if it was good.

    Attributes:
        owed: how many ends were owed to clients: one for each job and client that watches it.
        lost: ends that a client lacks, and states older than the end, that no gap excuses.
        announced: the same where a gap was announced to that client.
        redis_lost: acknowledged events that Redis no longer holds.
        faults: whatever else no client should see.
    """

    owed: int = 0
    lost: list[str] = field(default_factory=list)
    announced: int = 0
    redis_lost: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """One line for each thing that went wrong."""
        return [*self.lost, *self.faults]


def judge(
    jobs: Sequence[Job], watchers: Sequence[Watcher], held: Held | None, *, lossy: bool
) -> Verdict:
    """Judge a run that is over.

    Args:
        held: the event ids that Redis holds of each job; None where history is not durable.
        lossy: whether Redis itself may have lost what it had acknowledged.
    """
    verdict = Verdict()
    by_id = {job.id: job for job in jobs}
    for watcher in watchers:
        verdict.faults += watcher.faults
        for job in jobs:
            if is_owed(watcher, job):
                _judge_view(verdict, watcher, job, None if held is None else held[job.id])
        verdict.faults += [
            f"{watcher.name} {job_id}: nobody published that"
            for job_id in watcher.views
            if job_id not in by_id
        ]
    if held is not None:
        for job in jobs:
            _judge_redis(verdict, job, held[job.id], lossy=lossy)
    return verdict


def is_owed(watcher: Watcher, job: Job) -> bool:
    """Whether the client is to learn how the job ends."""
    return job.id in watcher.asked or job.queue == watcher.queue


def is_up_to_date(watcher: Watcher, job: Job) -> bool:
    """Whether the last that the client was told of the job is how it ended."""
    view = watcher.views.get(job.id)
    return view is not None and bool(view.told) and view.told[-1].n == job.events[-1].n


def _judge_view(verdict: Verdict, watcher: Watcher, job: Job, held: Sequence[str] | None) -> None:
    verdict.owed += 1
    view = watcher.views.get(job.id, View())
    by = "its id" if job.id in watcher.asked else f"its queue {job.queue}"
    where = f"{watcher.name} {job.id} (watched by {by})"
    if not is_up_to_date(watcher, job):
        end = job.events[-1]
        at = f"told up to n={view.told[-1].n}" if view.told else "told nothing"
        what = f"{where}: {at}, not how it ended, n={end.n} {end.id or ''}"
        if held is not None and end.id in held:
            verdict.lost.append(f"{what}, which Redis holds")
        elif _last_announced(watcher, view, job) < end.offered_at:
            verdict.lost.append(f"{what}, and no gap was announced")
        else:
            verdict.announced += 1
    ends = [told for told in view.told if told.is_end]
    if held is not None:
        ids = {told.id for told in ends}
        if len(ids) > 1 and ids <= set(held):
            verdict.faults.append(f"{where}: ended with {len(ids)} ids: {', '.join(sorted(ids))}")
    for connection in {told.connection for told in ends}:
        if len({told.id for told in ends if told.connection == connection}) > 1:
            verdict.faults.append(f"{where}: ended twice on connection {connection}")


def _last_announced(watcher: Watcher, view: View, job: Job) -> float:
    """When the client was last told that it may have missed something of the job."""
    times = [*view.announced_at, *watcher.gaps_at]
    if job.id not in watcher.asked:
        # A queue has no `since`: who comes back to it is promised nothing but what follows.
        times += watcher.subscribed_at
    return max(times, default=float("-inf"))


def _judge_redis(verdict: Verdict, job: Job, held: Sequence[str], *, lossy: bool) -> None:
    kept = set(held)
    missing = [event for event in job.events if event.id not in kept]
    verdict.redis_lost += len(missing)
    if missing and not lossy:
        ids = ", ".join(str(event.id) for event in missing)
        verdict.faults.append(f"{job.id}: Redis lost what it had acknowledged: {ids}")
    extra = kept - {event.id for event in job.events}
    if extra and not lossy:
        verdict.faults.append(f"{job.id}: appended twice: {', '.join(sorted(extra))}")
