"""Pending frames of one session, counted in bytes.

While the transport takes what it is given, frames pass through in order. Once it does not (`congested`),
what comes is conflated: an event replaces the unsent one of the same job and name and goes to the end,
so that nothing newer ever overtakes something older of the same job; an end and a reply are never
replaced. The bound is on what waits beside a congested transport; one frame always fits an empty box.

Invariant: `held_bytes` is the sum of len() of the frames in `held`, which is None where there is none. Knows no
socket, never blocks and never raises on a full box: a verdict says what happened and the caller decides.
"""

from collections.abc import Callable, Hashable
from enum import Enum
from typing import Final, NamedTuple

from relay.core.event import Burst, Format, JobEvent
from relay.core.stats import Stats
from relay.core.wire import WEBSOCKET


class Verdict(Enum):
    """What became of an offer."""

    PASSED = "on its way to the transport, all of it"
    HELD = "kept for a congested transport, conflated"
    OVERFLOW = "did not fit; the session is to be closed"


# To read a member off its class costs as much as a call in Python 3.11, and a fan-out does it five times
# a session.
PASSED: Final = Verdict.PASSED
HELD: Final = Verdict.HELD
OVERFLOW: Final = Verdict.OVERFLOW


class _Held(NamedTuple):
    """A frame that waits; the rest tells of a job's event, and is None for any other frame."""

    frame: bytes
    metric_name: str | None = None
    job_id: str | None = None
    queue: str | None = None


class Outbox:
    """See the module's promise. `congested` says whether the transport does not take more, `congestions`
    how often it stopped; `format` is how its frames are written."""

    __slots__ = (
        "_flow", "_next_key", "_stats", "congested", "congestions", "format", "held", "held_bytes",
        "max_bytes",
    )  # fmt: skip

    def __init__(self, max_bytes: int, stats: Stats, format: Format = WEBSOCKET) -> None:
        self.max_bytes = max_bytes
        self.format = format
        self.held_bytes = 0
        self.congested = False
        self.congestions = 0
        self._stats = stats
        # What passes through: nearly always one piece, which then needs no list.
        self._flow: bytes | list[bytes] | None = None
        self.held: dict[Hashable, _Held] | None = None
        self._next_key = 0

    @property
    def pending_bytes(self) -> int:
        """All that is still to be sent."""
        flow = self._flow
        if flow is None:
            return self.held_bytes
        return self.held_bytes + (len(flow) if isinstance(flow, bytes) else sum(map(len, flow)))

    def becomes(self, *, congested: bool) -> None:
        """The transport stops taking, or takes again."""
        if congested and not self.congested:
            self.congestions += 1
        self.congested = congested

    def offer(self, burst: Burst) -> Verdict:
        """Take one job's events of one batch."""
        if burst.format is not self.format:
            burst.write_as(self.format)
        if self.held is None and not self.congested:
            # As `_pass` does: this is the hot path, and a call saved is a tenth of it.
            if self._flow is None:
                self._flow = burst.joined
            else:
                self._pass(burst.joined)
            return PASSED
        verdict = HELD
        for event, frame in zip(burst.events, burst.frames, strict=True):
            if not self._hold(event.conflation_key, frame, event):
                verdict = OVERFLOW
        return verdict

    def reply(self, frame: bytes) -> Verdict:
        """Take an answer or another frame that is no job event."""
        if not self.congested and self.held is None:
            self._pass(frame)
            return PASSED
        return HELD if self._hold(None, frame, None) else OVERFLOW

    def take(self, room_bytes: int) -> bytes:
        """Remove what is to be sent next: all that passes through, or of what was held as many frames
        as fit into `room_bytes`, at least one."""
        flow = self.take_flow()
        if flow is not None:
            return flow
        if self.held is None:
            return b""
        taken: list[bytes] = []
        size = 0
        for key in list(self.held):
            held = self.held[key]
            if taken and size + len(held.frame) > room_bytes:
                break
            del self.held[key]
            taken.append(held.frame)
            size += len(held.frame)
            if held.metric_name is not None:
                self._stats.deliveries[held.metric_name] += 1
        if not self.held:
            self.held = None
        self._release(size)
        return b"".join(taken)

    def take_flow(self) -> bytes | None:
        """Remove what passes through, if anything does."""
        flow = self._flow
        if flow is None:
            return None
        self._flow = None
        return flow if isinstance(flow, bytes) else b"".join(flow)

    def restrict(self, may_send: Callable[[str, str | None], bool]) -> None:
        """Forget the held events of jobs, given by id and queue, that may not be sent any more."""
        if self.held is None:
            return
        for key, held in list(self.held.items()):
            if held.job_id is not None and not may_send(held.job_id, held.queue):
                del self.held[key]
                self._release(len(held.frame))
        if not self.held:
            self.held = None

    def clear(self) -> None:
        """Forget everything: the session has ended."""
        self._flow = self.held = None
        self._release(self.held_bytes)

    def _pass(self, data: bytes) -> None:
        flow = self._flow
        if flow is None:
            self._flow = data
        elif isinstance(flow, bytes):
            self._flow = [flow, data]
        else:
            flow.append(data)

    def _hold(self, key: Hashable | None, frame: bytes, event: JobEvent | None) -> bool:
        if self.held is None:
            self.held = {}
        if key is None:
            key = self._next_key
            self._next_key += 1
        else:
            replaced = self.held.pop(key, None)
            if replaced is not None:
                self._release(len(replaced.frame))
                self._stats.conflated += 1
        if self.pending_bytes and self.pending_bytes + len(frame) > self.max_bytes:
            return False
        # Not the event itself: its own bytes would stay in memory beside the frame.
        self.held[key] = (
            _Held(frame)
            if event is None
            else _Held(frame, event.metric_name, event.job_id, event.queue)
        )
        self.held_bytes += len(frame)
        self._stats.outbox_bytes += len(frame)
        return True

    def _release(self, size: int) -> None:
        self.held_bytes -= size
        self._stats.outbox_bytes -= size
