"""What is known of one job: its newest messages, and the little state that outlives them.

Messages of a job that nobody watches are kept as they came and understood when somebody first looks
(`take_raw`), in order and at most once. `admit` decides what is told of a job: nothing twice, no progress
after the end, no second end.
"""

import math
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from relay.core import payload
from relay.core.event import COMPLETED, FAILED, PROGRESS, TERMINAL, Draft, Identity, JobEvent

# What an entry costs beside its bytes: objects, numbers, places in lists. Measured on CPython 3.11, rounded up,
# so that `history.max_bytes` stays an honest bound for small messages.
EVENT_OVERHEAD_BYTES: Final = 250
RAW_OVERHEAD_BYTES: Final = 112

# An id made of a message's bytes, as Celery's is, comes again when an attempt repeats what an earlier one
# said. Any other is given once.
_CONTENT_ID: Final = "c-"

RawMessage = tuple[Identity, bytes, int, int]  # identity, payload, seq, at_ms
RAW_FIELDS: Final = 4
Understand = Callable[[Identity, bytes], Draft | None]


class Refusal(Enum):
    """Why a draft is not told."""

    DUPLICATE = "a second end, or an id that the job already has"
    LATE = "a progress after the end"


class Record:
    """One job's newest entries and its state.

    `told` holds the events that were made of messages, `raw` the messages that are not yet understood,
    both oldest first; whatever is raw is newer than whatever was told. Of each message the fields of a RawMessage
    lie in `raw` one after another: a tuple for each would take as much memory again, and the garbage
    collector's time. Invariant: while `ended`, the event that ended the job is not trimmed away by what came
    after it.
    """

    __slots__ = (
        "_end", "_first_ms", "_ids", "_told_end", "job_id", "key", "known_seq", "placed_at",
        "placed_seq", "progress", "queue", "raw", "told", "trimmed_seq", "updated_at", "updated_seq",
    )  # fmt: skip

    def __init__(self, key: tuple[str | None, str]) -> None:
        self.key = key
        self.queue, self.job_id = key
        self.told: list[JobEvent] = []
        self.raw: list[Any] = []
        self.updated_at = 0.0  # monotonic seconds
        self.updated_seq = 0
        # When it was last put behind all others in history's order, and `updated_seq` of then.
        self.placed_at = -math.inf
        self.placed_seq = 0
        self.known_seq = 0  # up to where it is the newest that Redis gave, as far as we know
        self.trimmed_seq = 0  # of the newest entry that was trimmed away, or lost behind
        self.progress: int | float | None = None
        self._end: JobEvent | None = None  # the event the job ended with, until it runs again
        self._told_end = False  # whether the newest event told is an end
        self._first_ms: int | None = None  # when this run of the job was first seen
        self._ids: set[str] | None = None  # event ids that publishers gave, to tell a copy

    @property
    def ended(self) -> bool:
        """Whether the job has ended and not begun again."""
        return self._end is not None

    @property
    def is_forgotten(self) -> bool:
        """Whether history has no place for it any more."""
        return self.placed_at == -math.inf

    @property
    def count(self) -> int:
        """How many entries there are."""
        return len(self.told) + len(self.raw) // RAW_FIELDS

    @property
    def size_bytes(self) -> int:
        """What the entries take, their overhead with them."""
        told = sum([len(event.data) for event in self.told]) + len(self.told) * EVENT_OVERHEAD_BYTES
        return told + self.raw_bytes

    @property
    def raw_bytes(self) -> int:
        """What the raw ones of them take."""
        sizes = map(len, self.raw[1::RAW_FIELDS])
        return sum(sizes) + len(self.raw) // RAW_FIELDS * RAW_OVERHEAD_BYTES

    def forget(self) -> None:
        """Let go of everything: this record is no longer the job's, though a channel may still have it."""
        self.told, self.raw = [], []
        self._end = self._ids = None
        self.placed_at = -math.inf

    def holds(self, message: bytes) -> bool:
        """Whether this very message is among those not yet understood."""
        return message in self.raw[1::RAW_FIELDS]

    def knows(self, event_id: str) -> bool:
        """Whether a publisher gave an event this id."""
        return self._ids is not None and event_id in self._ids

    def cut(self) -> None:
        """Something is lost after the newest entry: nothing can be replayed across it."""
        self.trimmed_seq = max(self.trimmed_seq, self.updated_seq)

    def take_raw(self) -> list[RawMessage]:
        """Remove the messages that are still raw, oldest first: they are about to be understood."""
        raw, self.raw = self.raw, []
        return [
            (raw[at], raw[at + 1], raw[at + 2], raw[at + 3])
            for at in range(0, len(raw), RAW_FIELDS)
        ]

    def admit(self, draft: Draft, seq: int, at_ms: int, epoch: str) -> JobEvent | Refusal:
        """Make `draft` the job's newest event, or say why it is not told."""
        name, id, ended = draft.name, draft.id, self._end is not None
        # Nothing speaks against a progress of a running job without an id of its own, and most are such.
        is_plain = name == PROGRESS and id is None and not ended
        if not is_plain:
            refusal = self._judge(draft)
            if refusal is not None:
                return refusal
        seen_before = self._first_ms is not None and not (ended and draft.runs)
        if not seen_before:
            self._first_ms = at_ms
        data = draft.data
        if data is None or not is_plain:
            data = _encode(self._fill_in(draft, at_ms, seen_before=seen_before))
        else:
            self.progress = draft.fields["progress"]
        event = JobEvent(name, draft.job_id, draft.queue, id or f"{epoch}-{seq}", seq, at_ms, data)
        if not is_plain:
            self._told_end = name in TERMINAL
            if self._told_end:
                self._end = event
            elif draft.runs:
                self._end = None
        if self._ids is not None and draft.fields.get("status") == "retrying":
            self._ids = {known for known in self._ids if not known.startswith(_CONTENT_ID)}
        if id is not None:
            self._ids = self._ids or set()
            self._ids.add(id)
        self.told.append(event)
        self.updated_seq = self.known_seq = seq
        return event

    def trim(self, max_events: int) -> int:
        """Drop the oldest entries beyond `max_events`, save the one that the job ended with.

        Returns the bytes that this frees.
        """
        freed = 0
        told, raw = self.told, self.raw
        for _ in range(self.count - max(max_events, 1)):
            place = 1 if told and told[0] is self._end else 0
            if place < len(told):
                event = told.pop(place)
                seq = event.seq
                freed += len(event.data) + EVENT_OVERHEAD_BYTES
                if self._ids is not None:
                    self._ids.discard(event.id)
            else:
                _, message, seq, at_ms = raw[:RAW_FIELDS]
                del raw[:RAW_FIELDS]
                freed += len(message) + RAW_OVERHEAD_BYTES
                if self._first_ms is None:
                    self._first_ms = at_ms
            self.trimmed_seq = max(self.trimmed_seq, seq)
        return freed

    def snapshot(self) -> list[JobEvent]:
        """What tells a newcomer where the job stands: its newest event.

        Where the job has ended and something else was told since, how it ended comes before that.
        """
        if not self.told:
            return []
        newest = self.told[-1]
        if self._end is None or self._end is newest:
            return [newest]
        return [self._end, newest]

    def _judge(self, draft: Draft) -> Refusal | None:
        if draft.id is not None and self.knows(draft.id) and not self._retries(draft):
            return Refusal.DUPLICATE
        if draft.name in TERMINAL:
            return Refusal.DUPLICATE if self._told_end else None
        if draft.name == PROGRESS and self._end is not None and not draft.runs:
            return Refusal.LATE
        return None

    def _retries(self, draft: Draft) -> bool:
        """Whether another attempt at the job is announced, and this is not a copy of the announcement."""
        return (
            draft.fields.get("status") == "retrying"
            and draft.id is not None
            and draft.id.startswith(_CONTENT_ID)
            and not (self.told and self.told[-1].id == draft.id)
        )

    def _fill_in(self, draft: Draft, at_ms: int, *, seen_before: bool) -> dict[str, Any]:
        """The fields that clients are given, the identity first, with what was missing."""
        given = draft.fields
        progress = given.get("progress")
        if progress is not None:
            self.progress = progress
        elif draft.runs and self._end is not None:
            self.progress = None  # a new run starts over
        fields: dict[str, Any] = {"jobId": draft.job_id}
        if draft.name == PROGRESS:
            fields["progress"] = self.progress or 0
            status = given.get("status")
            fields["status"] = status if type(status) is str else "active"
        elif draft.name == COMPLETED:
            fields["result"] = given.get("result")
            fields["processingTime"] = _processing_time_ms(
                given, self._first_ms, at_ms, seen_before
            )
        elif draft.name == FAILED:
            fields["error"] = given.get("error")
        if draft.queue is not None:
            fields["queueName"] = draft.queue
        # What stands in `fields` comes first, and is not overridden by what was given.
        return {**fields, **given, **fields}


def _encode(fields: dict[str, Any]) -> bytes:
    try:
        return payload.encode(fields)
    except RecursionError:
        # It could be parsed and cannot be written: too deep by a hair. The end of a job is told all the
        # same, anything else without what was too deep.
        shallow = {name: value for name, value in fields.items() if type(value) not in (dict, list)}
        return payload.encode({**shallow, "truncated": True})


def _processing_time_ms(
    given: dict[str, Any], first_ms: int | None, at_ms: int, seen_before: bool
) -> int | float | None:
    told = given.get("processingTime")
    if _is_number(told):
        return max(told, 0)  # type: ignore[type-var]
    finished = given.get("finishedOn")
    for name in ("startedAt", "processedOn"):
        started = given.get(name)
        if _is_number(started) and _is_number(finished) and finished >= started:  # type: ignore[operator]
            return finished - started  # type: ignore[operator, no-any-return]
    if first_ms is None or not seen_before:
        return None
    return max(at_ms - first_ms, 0)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
