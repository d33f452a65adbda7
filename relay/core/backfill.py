"""What a session still owes its client from history: snapshots and replays, given as the client takes them.

A job in the backfill is read from history, from the position where the client stands until it has
caught up; its live events wait in history meanwhile. So a thousand large snapshots, or a long replay, are
never in memory twice. What the transport held up is conflated like live events. A live event that comes
while the transport is congested, and the end of a job at any time, bring what is owed of that job into
the outbox: history may let go of it, the outbox does not.

Invariant: no event is owed under two keys: (None, job) stands for the job of every queue.
"""

import math
from collections.abc import Container, Sequence
from typing import NamedTuple

from relay.core.event import Burst, JobEvent
from relay.core.history import History, Key
from relay.core.index import Topic, topics_of
from relay.core.outbox import Outbox, Verdict
from relay.core.stats import Stats


class _Debt(NamedTuple):
    """What came after `position` is owed; with `snapshot` also where the job stood by then.

    What came between `sent_after` and `position` another subscription has brought: nothing older than that
    must follow. `congestions` is what the outbox counted when the debt began, one less if it was congested: where it
    differs now, the transport has held the debt up. One that `is_paid` owes nothing, but the batch that had it paid
    may bring more of what was paid: the debt stays until something newer comes, or there is room for more.
    """

    position: int
    snapshot: bool
    sent_after: float
    congestions: int
    is_paid: bool = False


class Backfill:
    """The jobs one session is owed. Key: (queue or None, job id)."""

    __slots__ = ("_history", "_outbox", "_owed", "_stats")

    def __init__(self, history: History, outbox: Outbox, stats: Stats) -> None:
        self._history = history
        self._outbox = outbox
        self._stats = stats
        self._owed: dict[str, dict[str | None, _Debt]] = {}

    def __bool__(self) -> bool:
        """Whether anything is owed."""
        return any(not debt.is_paid for debts in self._owed.values() for debt in debts.values())

    def owe(
        self, key: Key, position: int, *, snapshot: bool, sent_after: float = math.inf
    ) -> Verdict:
        """Begin to owe what came of this job after `position`, with `snapshot` also where it stood.

        What came after `sent_after` another subscription brought before. A debt that brings the same events already stays as it is.
        """
        queue, job_id = key
        for each, debt in list(self._owed.get(job_id, {}).items()):
            if debt.is_paid:
                self.cancel((each, job_id))
        debts = self._owed.get(job_id, {})
        if None in debts or queue in debts:
            return Verdict.PASSED
        verdict = Verdict.PASSED
        if queue is None:
            verdict = self.pay(job_id)
        congestions = self._outbox.congestions - self._outbox.congested
        debt = _Debt(position, snapshot, sent_after, congestions)
        self._owed.setdefault(job_id, {})[queue] = debt
        return verdict

    def owed(self, queue: str | None, job_id: str | None) -> list[Key]:
        """The keys that a subscription to this job, or with `job_id` None to this queue, may owe to."""
        if job_id is not None:
            return [(queue, job_id)] if queue in self._owed.get(job_id, {}) else []
        return [(queue, owed_id) for owed_id, debts in self._owed.items() if queue in debts]

    def cancel(self, key: Key) -> None:
        """Owe this job nothing more; idempotent."""
        queue, job_id = key
        debts = self._owed.get(job_id, {})
        debts.pop(queue, None)
        if not debts:
            self._owed.pop(job_id, None)

    def restrict(self, topics: Container[Topic]) -> None:
        """Owe only what the subscriptions that are left match: less than there were, and perhaps of a job
        that was owed whatever queue it is in, only what came of it in one of them."""
        for job_id, debts in list(self._owed.items()):
            left: dict[str | None, _Debt] = {}
            for queue, debt in debts.items():
                if queue is not None or (None, job_id) in topics:
                    left[queue] = debt
                    continue
                # What the others brought meanwhile waits in this debt, too.
                queues = {event.queue for event in self._history.events(job_id, None)}
                rest = debt._replace(snapshot=False)
                left |= {name: rest for name in queues if name is not None}
            left = {
                queue: debt
                for queue, debt in left.items()
                if any(topic in topics for topic in topics_of(queue, job_id))
            }
            if left:
                self._owed[job_id] = left
            else:
                del self._owed[job_id]

    def pay(self, job_id: str) -> Verdict:
        """Put all that is owed of this job into the outbox now."""
        verdict = Verdict.PASSED
        for queue in list(self._owed.get(job_id, ())):
            if self._give((queue, job_id), None) is Verdict.OVERFLOW:
                verdict = Verdict.OVERFLOW
            self.cancel((queue, job_id))
        return verdict

    def refill(self, room_bytes: int) -> Verdict:
        """Put more into the outbox, while it lets frames pass and holds less than `room_bytes`."""
        outbox = self._outbox
        while self._owed and not outbox.congested and outbox.pending_bytes < room_bytes:
            job_id, debts = next(iter(self._owed.items()))
            if self._give((next(iter(debts)), job_id), room_bytes) is Verdict.OVERFLOW:
                return Verdict.OVERFLOW
        return Verdict.PASSED

    def absorb(self, burst: Burst) -> Verdict | None:
        """Whether a live burst is left to the backfill; None where its job is not owed anything."""
        debts = self._owed.get(burst.job_id)
        if debts is None:
            return None
        queue = None if None in debts else burst.queue
        if queue not in debts:
            return None
        debt = debts[queue]
        if debt.is_paid:
            if burst.events[-1].seq <= debt.position:
                return Verdict.HELD  # it was among what was paid
            self.cancel((queue, burst.job_id))
            return None
        if not self._outbox.congested and not any(event.terminal for event in burst.events):
            return Verdict.HELD
        verdict = self._give((queue, burst.job_id), None)
        return Verdict.OVERFLOW if verdict is Verdict.OVERFLOW else Verdict.HELD

    def _give(self, key: Key, room_bytes: int | None) -> Verdict:
        """Hand one job's owed events to the outbox, until `room_bytes` are used (None: all)."""
        queue, job_id = key
        debt = self._owed[job_id][queue]
        events = self._events(key, debt)
        given = events if room_bytes is None else _fitting(events, room_bytes)
        is_paid = len(given) == len(events)
        if not given or (is_paid and room_bytes is not None):
            self.cancel(key)
        else:
            rest = debt._replace(position=given[-1].seq, snapshot=False, is_paid=is_paid)
            self._owed[job_id][queue] = rest
        if not given:
            return Verdict.PASSED
        verdict = self._outbox.offer(Burst(queue, job_id, given))
        if verdict is Verdict.PASSED:
            for event in given:
                self._stats.deliveries[event.metric_name] += 1
        return verdict

    def _events(self, key: Key, debt: _Debt) -> Sequence[JobEvent]:
        queue, job_id = key
        position = debt.position
        held = self._history.events(job_id, queue)
        if debt.snapshot:
            snapshot = self._history.snapshot(job_id, queue)
            newest_then = max((event.seq for event in held if event.seq <= position), default=-1)
            if newest_then > debt.sent_after:
                snapshot = snapshot[-1:]
            if snapshot and snapshot[-1].seq <= position:
                return snapshot
            # Something came since: it is owed event by event, after how the job ended before.
            position = min(position, snapshot[0].seq - 1) if snapshot else position
        events = [event for event in held if event.seq > position]
        held_up = debt.congestions != self._outbox.congestions
        return _conflate(events) if held_up else events


def _fitting(events: Sequence[JobEvent], room_bytes: int) -> Sequence[JobEvent]:
    """As many of the first events as fit, at least one."""
    size = 0
    for count, event in enumerate(events):
        size += len(event.data)
        if size > room_bytes and count:
            return events[:count]
    return events


def _conflate(events: Sequence[JobEvent]) -> list[JobEvent]:
    """Of each kind that may be conflated the newest, and all the others, in order."""
    newest = {event.conflation_key: event for event in events}
    return [
        event
        for event in events
        if event.conflation_key is None or newest[event.conflation_key] is event
    ]
