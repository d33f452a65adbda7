"""The newest messages of each job, in memory, bounded in jobs, bytes, events a job and age.

The job goes first that was updated least recently, to the second: a job is put in its place once a second and
not with each message, which would cost more than all the rest of keeping it. Raw messages are understood when
first read. Reading by job id alone covers every queue that uses the id. A `Record` is this file's only
collaborator; sources and metrics are reached through the callbacks given to the constructor.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest
from itertools import islice
from operator import attrgetter
from typing import Final

from relay.core.event import Draft, Identity, JobEvent
from relay.core.record import (
    EVENT_OVERHEAD_BYTES,
    RAW_FIELDS,
    RAW_OVERHEAD_BYTES,
    RawMessage,
    Record,
    Refusal,
    Understand,
)

Key = tuple[str | None, str]  # queue, job id
# Jobs passed over at one eviction, which must not take long: watched ones, and such as were updated since
# they were put in their place.
_MAX_SPARED: Final = 64
_MAX_PUT_BACK: Final = 16
PLACE_SECONDS: Final = 1.0  # how long a job that is updated keeps its place in the order
_CANDIDATES_PER_JOB: Final = 4  # looked at for each of a queue's newest jobs


class History:
    """All records, in the order in which they go.

    Args:
        epoch: new at every start; the first part of event ids that the relay makes.
        understand: parses a raw message; None where it is invalid (and has been counted).
        on_refused: told of each message that was understood and is not told on.
        max_events: entries a job. max_jobs: jobs in all. max_bytes: entries' bytes in all.
        ttl_seconds: a job not updated for so long is forgotten.
        exposed: False for `history.backend = "off"`: records keep a job's state, nothing is readable.
        keeps_unwatched: False where Redis holds the history: messages that nobody watches are dropped.
        is_watched: whether a job is watched by name; such a one is forgotten after the others.
    """

    def __init__(
        self,
        *,
        epoch: str,
        understand: Understand,
        on_refused: Callable[[Refusal], None],
        max_events: int,
        max_jobs: int,
        max_bytes: int,
        ttl_seconds: float,
        exposed: bool = True,
        keeps_unwatched: bool = True,
        is_watched: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.epoch = epoch
        self.exposed = exposed
        self.keeps_unwatched = exposed and keeps_unwatched
        self.size_bytes = 0
        self.gap_seq = 0  # events up to this one may have successors that were never received
        self.stale_seq = 0  # what is known of a job only up to here may not be the newest
        self._is_watched = is_watched
        self._understand = understand
        self._on_refused = on_refused
        # With history off the newest event and the end are kept all the same, unseen: they answer
        # a subscription that had to wait for Redis.
        self._max_events = max_events if exposed else 2
        self._max_held = max_events
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._ttl_seconds = ttl_seconds
        self._records: OrderedDict[Key, Record] = OrderedDict()
        self.known_jobs: dict[str, tuple[Record, ...]] = {}  # not to be changed by others
        self._by_queue: dict[str, OrderedDict[str, Record]] = {}
        self.holding: dict[str, int] = {}  # jobs whose messages are held back, and by how many

    def __len__(self) -> int:
        return len(self._records)

    def keep(self, messages: Sequence[RawMessage], now: float) -> None:
        """Keep messages as they are, to be understood later. Their identities must tell their jobs.

        The bounds on all jobs together are seen to once, when all are kept.
        """
        limit, holding = self._max_events, self.holding
        raw_limit = limit * RAW_FIELDS
        place_due_at = now - PLACE_SECONDS
        size_bytes = len(messages) * RAW_OVERHEAD_BYTES
        for fields in messages:
            identity, message, seq, _ = fields
            record: Record | None = identity.record
            if record is None or record.placed_at <= place_due_at:  # true of a forgotten one, too
                record = self._touch_at(identity, now, seq)
            raw = record.raw
            raw += fields
            size_bytes += len(message)
            record.updated_at = now
            record.updated_seq = seq
            if holding and identity.job_id in holding:
                # Beside what was known and what is read. It is not yet told: nothing newer is known.
                size_bytes -= record.trim(limit + self._max_held)
                continue
            record.known_seq = seq
            if len(raw) > raw_limit or record.told:
                size_bytes -= record.trim(limit)
        self.size_bytes += size_bytes
        if self.size_bytes > self._max_bytes or len(self._records) > self._max_jobs:
            self._evict(messages[-1][0].record)

    def skip(self, job_id: str) -> None:
        """A message that nobody watches is dropped: what is known of its job is not the newest now."""
        for record in self.known_jobs.get(job_id, ()):
            record.known_seq = 0

    def hold(self, job_id: str) -> None:
        """Hold the job's messages back while what came before them is read from Redis. Counted."""
        if job_id not in self.holding:
            self._settle(job_id, None)
        self.holding[job_id] = self.holding.get(job_id, 0) + 1

    def release(self, job_id: str, next_seq: Callable[[], int]) -> list[JobEvent]:
        """End one hold. Returns the events to be told now, where it was the last; they are the newest."""
        left = self.holding[job_id] - 1
        if left:
            self.holding[job_id] = left
            return []
        del self.holding[job_id]
        return self._settle(job_id, None, next_seq)

    def holds(self, job_id: str, message: bytes) -> bool:
        """Whether this very message is among those held back."""
        return any(record.holds(message) for record in self.known_jobs.get(job_id, ()))

    def admit(self, draft: Draft, seq: int, now: float, now_ms: int) -> JobEvent | None:
        """Put `draft` in relation to what is known of its job and make it the newest event.

        Returns None where it is not to be told, which `on_refused` has then heard.
        """
        record = None
        for known in self.known_jobs.get(draft.job_id, ()):
            if known.raw and (draft.queue is None or known.queue in (None, draft.queue)):
                self._settle(draft.job_id, draft.queue)
            if known.queue == draft.queue:
                record = known
        if record is None:  # or made just now, of what was raw
            record = self._touch((draft.queue, draft.job_id), now, seq)
        else:
            self._place(record, now, seq)
        if record.known_seq <= self.stale_seq:
            record.cut()  # what lies between was skipped, or missed, and nobody has read it
        event = record.admit(draft, seq, now_ms, self.epoch)
        if isinstance(event, Refusal):
            self._on_refused(event)
            return None
        self.size_bytes += len(event.data) + EVENT_OVERHEAD_BYTES
        if len(record.told) > self._max_events:
            # What is held back is not yet told: it must not make room for what is read.
            self.size_bytes -= record.trim(self._max_events + record.count - len(record.told))
        if self.size_bytes > self._max_bytes or len(self._records) > self._max_jobs:
            self._evict(record)
        return event

    def is_current(self, job_id: str, queue: str | None) -> bool:
        """Whether what is known of the job is the newest that Redis gave."""
        known = any(record.count for record in self._matching(job_id, queue))
        return known and job_id not in self.holding and not self._is_stale(job_id, queue)

    def confirm(self, job_id: str, seq: int) -> None:
        """What is known of the job was compared with Redis at `seq`: it is the newest."""
        for record in self.known_jobs.get(job_id, ()):
            record.known_seq = seq

    def knows(self, job_id: str, event_id: str) -> bool:
        """Whether an event with this id was told of the job before, and is still remembered."""
        return any(record.knows(event_id) for record in self.known_jobs.get(job_id, ()))

    def newest_id(self, job_id: str) -> str | None:
        """The id of the newest event known of the job, whatever queue it is in."""
        events = self.events(job_id, None)
        return events[-1].id if events else None

    def cut(self, job_id: str) -> None:
        """Something was missed of the job after what is known: recovery across it is refused."""
        for record in self.known_jobs.get(job_id, ()):
            record.cut()

    def snapshot(self, job_id: str, queue: str | None) -> list[JobEvent]:
        """What tells a newcomer where the job stands; empty where nothing valid is known of it."""
        newest: list[JobEvent] = []
        self._settle(job_id, queue)
        for record in self._matching(job_id, queue):
            events = record.snapshot()
            if events and (not newest or events[-1].seq > newest[-1].seq):
                newest = events
        return newest

    def progress(self, job_id: str, queue: str | None) -> int | float | None:
        """The last progress known of the job that `snapshot` would tell of."""
        records = [record for record in self._matching(job_id, queue) if record.count]
        return max(records, key=attrgetter("updated_seq")).progress if records else None

    def events(self, job_id: str, queue: str | None) -> list[JobEvent]:
        """All that is held of the job, oldest first."""
        found: list[JobEvent] = []
        self._settle(job_id, queue)
        for record in self._matching(job_id, queue):
            found += record.told
        found.sort(key=attrgetter("seq"))
        return found

    def after(self, job_id: str, queue: str | None, since: str) -> list[JobEvent] | None:
        """Every event later than the one whose id is `since`; None where that cannot be promised:
        it is not held, or something after it may have been missed or is still to be read."""
        if self._is_stale(job_id, queue):
            return None
        events = self.events(job_id, queue)
        trimmed = (record.trimmed_seq for record in self._matching(job_id, queue))
        missed_seq = max(trimmed, default=0)
        for position in range(len(events) - 1, -1, -1):
            if events[position].id == since:
                # An event is lost behind a gap, or where an end outlived what came after it.
                whole = events[position].seq > max(self.gap_seq, missed_seq)
                return events[position + 1 :] if whole else None
        return None

    def newest_of_queue(self, queue: str, limit: int) -> list[str]:
        """The ids of the queue's most recently updated jobs, at most `limit`, oldest of them first."""
        # Where the channels tell no queue, the payloads must: those of the newest jobs are looked at.
        for record in list(islice(reversed(self._records.values()), limit)):
            if record.queue is None and record.raw:
                self._settle(record.job_id, None)
        jobs = self._by_queue.get(queue)
        if jobs is None:
            return []
        # In order to the second; exactly so, unless more jobs than these were updated within one.
        candidates = islice(reversed(jobs.values()), _CANDIDATES_PER_JOB * limit)
        newest = nlargest(limit, candidates, key=attrgetter("updated_seq"))
        return [record.job_id for record in reversed(newest)]

    def mark_stale(self, seq: int) -> None:
        """What came after `seq` may have been missed, of every job, and may be read from Redis."""
        self.stale_seq = seq

    def mark_gap(self, seq: int) -> None:
        """What came after `seq` may have been missed: recovery across it is refused from now on."""
        self.gap_seq = self.stale_seq = seq

    def expire(self, now: float, limit: int = 1000) -> None:
        """Forget jobs that were not updated for `ttl_seconds`, at most `limit` at once."""
        horizon = now - self._ttl_seconds
        for _ in range(limit):
            oldest = next(iter(self._records.values()), None)
            if oldest is None or oldest.updated_at > horizon:
                return
            self._forget(oldest)

    def _is_stale(self, job_id: str, queue: str | None) -> bool:
        """Whether Redis may have told more of the job than is known."""
        return any(
            record.known_seq <= self.stale_seq and record.count
            for record in self._matching(job_id, queue)
        )

    def _matching(self, job_id: str, queue: str | None) -> Iterable[Record]:
        if queue is None:
            return self.known_jobs.get(job_id, ())
        record = self._records.get((queue, job_id))
        return () if record is None else (record,)

    def _touch(self, key: Key, now: float, seq: int) -> Record:
        """The record of `key`, which is about to be updated."""
        record = self._records.get(key) or self._add(key)
        self._place(record, now, seq)
        return record

    def _touch_at(self, identity: Identity, now: float, seq: int) -> Record:
        """The record of a channel's job, to be found without a look-up from now on."""
        record: Record | None = identity.record
        if record is None or record.is_forgotten:
            key = (identity.queue, identity.job_id)
            record = identity.record = self._touch(key, now, seq)  # type: ignore[arg-type]
        else:
            self._place(record, now, seq)
        return record

    def _place(self, record: Record, now: float, seq: int) -> None:
        """Put a record that is updated at `seq` in its place, where that is due."""
        record.updated_at = now
        if record.placed_at <= now - PLACE_SECONDS:
            record.placed_at = now
            record.placed_seq = seq
            self._put_last(record)

    def _add(self, key: Key) -> Record:
        queue, job_id = key
        record = self._records[key] = Record(key)
        self.known_jobs[job_id] = (*self.known_jobs.get(job_id, ()), record)
        if queue is not None:
            jobs = self._by_queue.get(queue)
            if jobs is None:
                jobs = self._by_queue[queue] = OrderedDict()
            jobs[job_id] = record
        return record

    def _put_last(self, record: Record) -> None:
        """Let `record` go after all others."""
        self._records.move_to_end(record.key)
        if record.queue is not None:
            self._by_queue[record.queue].move_to_end(record.job_id)

    def _settle(
        self, job_id: str, queue: str | None, next_seq: Callable[[], int] | None = None
    ) -> list[JobEvent]:
        """Understand what is still raw of the job, oldest first; returns the events it came to.

        What a channel without a queue brought lies under (None, job id) until its payload names the
        queue. What is held back stays raw. `next_seq` gives it new positions: what was merged
        meanwhile is older.
        """
        if job_id in self.holding:
            return []
        raw: list[tuple[RawMessage, float]] = []
        for record in self.known_jobs.get(job_id, ()):
            if record.raw and (queue is None or record.queue in (None, queue)):
                self.size_bytes -= record.raw_bytes
                raw += [(message, record.updated_at) for message in record.take_raw()]
        raw.sort(key=lambda kept: kept[0][2])
        events = []
        for (identity, message, seq, at_ms), updated_at in raw:
            draft = self._understand(identity, message)
            if draft is not None:
                position = seq if next_seq is None else next_seq()
                event = self._settle_one(draft, position, updated_at, at_ms)
                if event is not None:
                    events.append(event)
        return events

    def _settle_one(self, draft: Draft, seq: int, updated_at: float, at_ms: int) -> JobEvent | None:
        key = (draft.queue, draft.job_id)
        record = self._records.get(key) or self._touch(key, updated_at, seq)
        event = record.admit(draft, seq, at_ms, self.epoch)
        if isinstance(event, Refusal):
            self._on_refused(event)
            return None
        self.size_bytes += len(event.data) + EVENT_OVERHEAD_BYTES
        if record.count > self._max_events:
            self.size_bytes -= record.trim(self._max_events)
        return event

    def _evict(self, newest: Record) -> None:
        """Get back within the bounds: whole jobs first, then the newest job's own past.

        A job that was updated since it was put in its place is put behind the others. Of a job that is
        watched by name the newest is kept in their place: to know what its watchers were told is what keeps
        them from being told it again.
        """
        spared = put_back = 0
        while len(self._records) > self._max_jobs or (
            self.size_bytes > self._max_bytes and len(self._records) > 1
        ):
            oldest = next(iter(self._records.values()))
            is_due = put_back >= _MAX_PUT_BACK or oldest.updated_seq <= oldest.placed_seq
            if oldest is newest or not is_due:
                put_back += 1
                oldest.placed_seq = oldest.updated_seq
                self._put_last(oldest)
            elif spared < _MAX_SPARED and self._is_watched(oldest.job_id):
                spared += 1
                self.size_bytes -= oldest.trim(1)
                self._put_last(oldest)
            else:
                self._forget(oldest)
        while self.size_bytes > self._max_bytes and newest.count > 1:
            self.size_bytes -= newest.trim(newest.count - 1)

    def _forget(self, record: Record) -> None:
        self.size_bytes -= record.size_bytes
        record.forget()
        del self._records[record.key]
        records = self.known_jobs.pop(record.job_id)
        if len(records) > 1:
            self.known_jobs[record.job_id] = tuple(
                other for other in records if other is not record
            )
        if record.queue is not None:
            jobs = self._by_queue[record.queue]
            del jobs[record.job_id]
            if not jobs:
                del self._by_queue[record.queue]
