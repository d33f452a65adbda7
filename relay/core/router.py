"""One batch from Redis: messages → events → a burst a job → an offer to each who watches.

All of a batch is routed before anything is written, so a session is written to once a batch. A message
of a job that nobody watches costs a look at its channel and its size; its bytes go to history. No fault in
one message disturbs another.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from relay.core.errors import DecodeError, InvalidReason
from relay.core.event import TERMINAL, Burst, Draft, Identity, JobEvent, Source
from relay.core.history import History, Key
from relay.core.index import Index
from relay.core.outbox import OVERFLOW, PASSED
from relay.core.record import RawMessage, Refusal
from relay.core.remembered import CHANNELS_BESIDE_HISTORY, Remembered
from relay.core.session import Session
from relay.core.stats import Stats

# A payload above the limit is still read for how the job ended, up to this many times the limit.
OVERSIZE_FACTOR: Final = 16

_NOTHING: Final[Mapping[bytes, Identity]] = {}

RedisMessage = Sequence[bytes]  # b"pmessage", pattern, channel, payload


class OnInvalid(Protocol):
    """Told of each message that is dropped; `error` is there where the fault is ours."""

    def __call__(
        self, reason: InvalidReason, channel: bytes, error: Exception | None = None
    ) -> None: ...


class Found(NamedTuple):
    """A message read from Redis: `event_id` where it is stored beside it, `at_ms` when it was written."""

    identity: Identity
    message: bytes
    event_id: str | None
    at_ms: int


@dataclass(slots=True)
class Routed:
    """What a batch came to: how many watched events, and when their publishers said they sent them."""

    count: int
    ts_ms: list[float]


class Router:
    """Routes batches. `seq` is the position of the newest message received.

    Args:
        history: is told to call `understand` and `refused` of this object.
        max_channels: of each source; so many are taken apart once, and not with each message.
        on_overflow: told of each session whose outbox is full, after the batch.
        on_routed: told of each watched event, for the debug log; None costs nothing.
    """

    def __init__(
        self,
        *,
        sources: Mapping[bytes, Source],
        index: Index[Session],
        stats: Stats,
        max_payload_bytes: int,
        max_channels: int = CHANNELS_BESIDE_HISTORY,
        on_invalid: OnInvalid,
        on_overflow: Callable[[Session], None],
        on_routed: Callable[[JobEvent, int | float | None], None] | None = None,
    ) -> None:
        self.seq = 0
        self.history: History  # given right after: history understands by this object
        self._sources = sources
        self._remembered = {pattern: Remembered(max_channels) for pattern in sources}
        self._index = index
        self._stats = stats
        self.max_payload_bytes = max_payload_bytes
        self._on_invalid = on_invalid
        self._on_overflow = on_overflow
        self.on_routed = on_routed
        # Told of each event and to how many clients it went, for the debug log.
        self.on_published: Callable[[JobEvent, int], None] | None = None

    def receive(self, messages: Sequence[RedisMessage], now: float, now_ms: int) -> Routed:
        """Route one batch, received at `now` (monotonic seconds) and `now_ms` (Unix milliseconds)."""
        # Most messages are of jobs that nobody watches: what is done for each of them is done by local
        # names and without a call (which costs as much as the rest of a step).
        stats, index, history = self._stats, self._index, self.history
        named, queues, watches, holding = index.named, index.queues, index.watches, history.holding
        remembered, known_jobs = self._remembered, history.known_jobs
        max_bytes = self.max_payload_bytes * OVERSIZE_FACTOR
        kept: list[RawMessage] | None = [] if history.keeps_unwatched else None
        any_queue, watched = bool(queues), False
        unwatched = 0
        bursts: dict[Key, list[JobEvent]] = {}
        routed = Routed(0, [])
        of_pattern, identities = b"", _NOTHING
        seq = self.seq
        stats.received += len(messages)
        self.seq += len(messages)
        for _, pattern, channel, message in messages:
            seq += 1
            if pattern != of_pattern:  # most relays have one
                of_pattern, identities = pattern, remembered[pattern]
            identity = identities.get(channel) or self._identify(pattern, channel)
            if identity is None:
                continue
            if len(message) > max_bytes:
                self._invalid(InvalidReason.TOO_LARGE, channel)
                continue
            job_id, queue = identity.job_id, identity.queue
            if job_id is not None and job_id not in holding:
                if queue is None:
                    watched = job_id in named or any_queue
                else:
                    watched = (job_id in named or queue in queues) and watches(queue, job_id)
                if not watched:
                    unwatched += 1
                    if kept is not None:
                        kept.append((identity, message, seq, now_ms))
                    elif job_id in known_jobs:
                        history.skip(job_id)
                    continue
            if kept:
                history.keep(kept, now)
                kept = []
            if job_id in holding:
                history.keep(((identity, message, seq, now_ms),), now)
                continue
            draft = self.understand(identity, message)
            if draft is None:
                continue
            if draft.job_id in holding:
                told = Identity(identity.source, channel, draft.job_id, draft.queue, draft.name)
                history.keep(((told, message, seq, now_ms),), now)
                continue
            # Where the payload tells nothing more than the channel, the question was answered above.
            if job_id is None or draft.queue != queue:
                watched = watches(draft.queue, draft.job_id)
                if not watched:
                    unwatched += 1
                    if kept is None:
                        history.skip(draft.job_id)
                        continue
            event = history.admit(draft, seq, now, now_ms)
            if event is None or not watched:
                continue
            routed.count += 1
            if self.on_routed is not None:
                self.on_routed(event, draft.fields.get("progress"))
            if draft.ts_ms is not None:
                routed.ts_ms.append(draft.ts_ms)
            key = (draft.queue, draft.job_id)
            if key in bursts:
                bursts[key].append(event)
            else:
                bursts[key] = [event]
        if kept:
            history.keep(kept, now)
        stats.unwatched += unwatched
        if bursts:
            self._deliver(bursts)
        return routed

    def merge(self, found: Sequence[Found], now: float, *, by_name: bool = False) -> None:
        """Take what was read from Redis of jobs that are held, oldest first, and tell whoever watches;
        `by_name`: whoever watches these jobs, and not their queues.

        What is held back of a job came after everything that was read of it, save what was read itself.
        """
        bursts: dict[Key, list[JobEvent]] = {}
        for identity, message, event_id, at_ms in found:
            if self._is_too_large(message, identity.channel):
                continue
            draft = self.understand(identity, message)
            if draft is None:
                continue
            draft.id = event_id or draft.id
            if draft.id is not None and self.history.knows(draft.job_id, draft.id):
                continue
            if event_id is None and self.history.holds(draft.job_id, message):
                continue
            event = self.history.admit(draft, self.next_seq(), now, at_ms)
            if event is not None:
                bursts.setdefault((draft.queue, draft.job_id), []).append(event)
        self._deliver(bursts, by_name=by_name)

    def hold(self, job_ids: Iterable[str]) -> None:
        """Hold back what comes of these jobs, until `release` was called as often."""
        for job_id in job_ids:
            self.history.hold(job_id)

    def release(self, job_ids: Iterable[str]) -> None:
        """Tell what was held back of these jobs, if nobody else holds it."""
        bursts: dict[Key, list[JobEvent]] = {}
        for job_id in job_ids:
            for event in self.history.release(job_id, self.next_seq):
                bursts.setdefault((event.queue, event.job_id), []).append(event)
        self._deliver(bursts)

    def next_seq(self) -> int:
        """A position after all that there were."""
        self.seq += 1
        return self.seq

    def understand(self, identity: Identity, message: bytes) -> Draft | None:
        """The draft in `message`; None where it is invalid, which has then been counted and told."""
        try:
            draft = identity.source.parse(identity, message)
            if len(message) > self.max_payload_bytes:
                if draft.name not in TERMINAL:
                    raise DecodeError(InvalidReason.TOO_LARGE)
                draft.truncate()
        except DecodeError as error:
            self._invalid(error.reason, identity.channel)
            return None
        except Exception as error:  # noqa: BLE001  a fault of ours must not cost more than this message
            self._invalid(InvalidReason.INTERNAL, identity.channel, error)
            return None
        for reason in draft.amended:
            self._stats.amended[reason.value] += 1
        return draft

    def refused(self, refusal: Refusal) -> None:
        """Count what history did not tell on."""
        if refusal is Refusal.DUPLICATE:
            self._stats.duplicates += 1
        else:
            self._stats.invalid[InvalidReason.LATE.value] += 1

    def _identify(self, pattern: bytes, channel: bytes) -> Identity | None:
        try:
            identity = self._sources[pattern].identify(channel)
        except DecodeError as error:
            self._invalid(error.reason, channel)
            return None
        except Exception as error:  # noqa: BLE001  as in `understand`
            self._invalid(InvalidReason.INTERNAL, channel, error)
            return None
        if identity is None:
            self._invalid(InvalidReason.NO_IDENTITY, channel)
        else:
            self._remembered[pattern].keep(identity)
        return identity

    def _is_too_large(self, message: bytes, channel: bytes) -> bool:
        if len(message) <= self.max_payload_bytes * OVERSIZE_FACTOR:
            return False
        self._invalid(InvalidReason.TOO_LARGE, channel)
        return True

    def _invalid(
        self, reason: InvalidReason, channel: bytes, error: Exception | None = None
    ) -> None:
        self._stats.invalid[reason.value] += 1
        self._on_invalid(reason, channel, error)

    def _deliver(self, bursts: Mapping[Key, list[JobEvent]], *, by_name: bool = False) -> None:
        deliveries = self._stats.deliveries
        overflowed: list[Session] = []
        for (queue, job_id), events in bursts.items():
            burst = Burst(queue, job_id, events)
            audience = self._index.audience(queue, job_id, by_name=by_name)
            passed = 0
            for session in audience:
                verdict = session.offer(burst)
                if verdict is PASSED:
                    passed += 1
                elif verdict is OVERFLOW:
                    overflowed.append(session)
            if passed:
                for event in events:
                    deliveries[event.metric_name] += passed
            if self.on_published is not None:
                for event in events:
                    self.on_published(event, len(audience))
        # Closing changes the index, so it waits until nobody iterates over it.
        for session in overflowed:
            self._on_overflow(session)
