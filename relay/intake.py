"""One read of Redis, from its replies to the sockets: where the hot path begins.

What one read brought is routed as a whole, then each session that has something to send is written to. What
does not fit into a slice of time is written in the next turns of the loop, and Redis is not read meanwhile:
nothing piles up in between.
"""

import time
from asyncio import AbstractEventLoop
from typing import Protocol

from relay.clock import now_ms
from relay.core.router import Routed, Router
from relay.core.stats import Stats
from relay.web.flusher import Flusher


class Pausable(Protocol):
    """Where the messages come from."""

    def pause(self) -> None:
        """Bring no more until `resume`. Idempotent."""

    def resume(self) -> None:
        """Bring more again. Idempotent."""


class Intake:
    """Takes what Redis brings. Set `source` right after: it is given `take`, so it comes later.

    Attributes:
        flusher: writes to the sessions that the router, or anybody else, wakes.
    """

    def __init__(self, loop: AbstractEventLoop, router: Router, stats: Stats) -> None:
        self.source: Pausable
        self.flusher = Flusher(loop, self._on_flushed)
        self._loop = loop
        self._router = router
        self._stats = stats
        self._paused = False
        self._unfinished: list[tuple[float, Routed]] = []  # batches not yet at their last socket

    def take(self, messages: list[list[bytes]]) -> None:
        """Route these, and write to whoever watches."""
        received_at = time.perf_counter()  # uvloop's clock stands still within a turn
        self.flusher.gather()
        routed = self._router.receive(messages, self._loop.time(), now_ms())
        if routed.count:
            self._unfinished.append((received_at, routed))
        if self.flusher.flush():
            self._on_flushed()
        elif not self._paused:
            self._paused = True
            self.source.pause()

    def on_up(self) -> None:
        """There is a new link: it waits, too, while the last batch is still on its way."""
        if self._paused:
            self.source.pause()

    def _on_flushed(self) -> None:
        """Every session has been written to: what was received is with its last socket."""
        if self._unfinished:
            now, now_ms = time.perf_counter(), time.time() * 1000
            for received_at, routed in self._unfinished:
                self._stats.relay_seconds.observe(now - received_at, routed.count)
                for ts_ms in routed.ts_ms:
                    self._stats.delivery_seconds.observe((now_ms - ts_ms) / 1000)
            self._unfinished.clear()
        if self._paused:
            self._paused = False
            self.source.resume()
