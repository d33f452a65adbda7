"""Writes to the sockets of all sessions that have something to send, a slice of time at once.

A session wakes the flusher once, however much it is offered. A flush to many sockets yields to the loop
after some milliseconds, so that nobody else waits for it; `flush` says whether it got through, and
`on_done` is called when what was left over is done.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final

from relay.core.outbox import HELD, OVERFLOW, Verdict
from relay.core.session import Session

SLICE_SECONDS: Final = 0.005
_CHECK_EVERY: Final = 16  # sockets between two looks at the clock: a write costs some 10 µs


class Flusher:
    """See the module's promise. `link` of each session must have a `flush()`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_done: Callable[[], None]) -> None:
        self._loop = loop
        self._on_done = on_done
        self._woken: deque[Session] = deque()
        self._scheduled = False
        self._gathering = False

    def gather(self) -> None:
        """Who wakes the flusher from now on waits for the `flush` that must follow in this turn.

        It saves each batch a callback and the turn of the loop that it needs.
        """
        self._gathering = True

    def wake(self, session: Session) -> None:
        """Remember that `session` has something to send. It must not wake us again until flushed."""
        self._woken.append(session)
        if not self._gathering:
            self._schedule()

    def flush(self) -> bool:
        """Write now, for a slice of time. Returns whether nothing is left to be written; what is left
        is written in the next turns of the loop."""
        self._gathering = False
        woken = self._woken
        # A few are written to without a look at the clock: most batches are one event for one session.
        deadline = perf_counter() + SLICE_SECONDS if len(woken) > _CHECK_EVERY else math.inf
        written = 0
        while woken:
            session = woken.popleft()
            session.woken = False
            session.link.flush()
            written += 1
            if written % _CHECK_EVERY == 0 and woken and perf_counter() > deadline:
                self._schedule()
                return False
        return True

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._scheduled = False
        if self.flush():
            self._on_done()


def pour(session: Session, write: Callable[[bytes], None], room_bytes: int) -> Verdict:
    """Hand to `write` what the transport takes: the outbox, then what is owed from history.

    Args:
        room_bytes: how much of what was held back is written at once.

    Returns OVERFLOW where the session is to be closed as a slow consumer.
    """
    outbox = session.outbox
    while not outbox.congested:
        if not outbox.pending_bytes:
            verdict = session.refill()
            if verdict is OVERFLOW or not outbox.pending_bytes:
                return verdict
        write(outbox.take(room_bytes))
    return HELD
