"""What the relay does when its link to Redis comes up and goes: who is told, and what is read again.

With history in memory every reconnection is a gap, said at once. With durable history the jobs that are
watched, and those that publishers noted for watched queues, are read again; only then is everybody told
that Redis is back, and whether something may have been missed. From the moment the link is up until a
job was read its live messages are held, so that nothing newer comes first.

The first link is like any other to who watched something before it was up; to everybody else it is no
gap.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

import structlog
from redis.exceptions import RedisError

from relay.clock import now_ms
from relay.core.history import History
from relay.core.index import Index
from relay.core.router import Router
from relay.core.session import Session
from relay.core.stats import Stats
from relay.upstream.lookup import Lookups
from relay.upstream.queue_lookup import QueueLookups
from relay.upstream.recall import Recall

Noted = Mapping[str, tuple[set[str], bool]]  # by queue: its jobs, and whether these are all

# How far the clocks of Redis, of who publishes and of this machine may differ, with a margin.
CLOCKS_SECONDS: Final = 10.0

log = structlog.stdlib.get_logger()


class TellAll(Protocol):
    """Sends `relay-status` to everybody; `gap` says who may have missed something."""

    def __call__(self, *, redis_up: bool, gap: Callable[[Session], bool] | None = None) -> None: ...


class CatchUp:
    """Keeps the clients' knowledge whole, or says that it is not.

    Args:
        durable: whether history is in Redis.
    """

    def __init__(
        self,
        stats: Stats,
        history: History,
        router: Router,
        index: Index[Session],
        *,
        recall: Recall,
        lookups: Lookups,
        queue_lookups: QueueLookups,
        durable: bool,
        tell_all: TellAll,
    ) -> None:
        self._stats = stats
        self._history = history
        self._router = router
        self._index = index
        self._recall = recall
        self._lookups = lookups
        self._queue_lookups = queue_lookups
        self._durable = durable
        self._tell_all = tell_all
        self._link = 0  # which link this is
        self._owing = False  # whether somebody lived through the time before this link
        self._came_up = asyncio.Event()
        self._held: list[str] = []  # jobs held since the link came up
        # From when on something may have been missed; None while nothing is.
        self._behind_since_ms: int | None = now_ms()
        self._is_loss = False  # whether something is gone that cannot be read any more
        self._servers: frozenset[str] | None = None  # who held the history when it was last whole

    def came_up(self) -> None:
        """The subscription is confirmed; called before any message of the new link is routed."""
        self._stats.redis_up = True
        self._link += 1
        if self._durable:
            self._history.mark_stale(self._router.seq)
        is_first = self._link == 1
        self._owing = not is_first or any(self._index.counts.values())
        self._stats.redis_reconnects += not is_first
        if not self._owing:
            self._tell_all(redis_up=True)
        elif not self._durable:
            self._stats.gaps += 1
            log.warning("events_missed", advice='history.backend = "redis" would fill the gap')
            self._history.mark_gap(self._router.seq)
            self._tell_all(redis_up=True, gap=self._watches_something if is_first else _everybody)
        if self._recall.knows_anything:
            self._recall.renew()
            # What is being read now may have been read before the link was up: it is read once more.
            held = [*self._index.named, *self._lookups.jobs(), *self._recall.late()]
            self._router.hold(held)
            self._held += held  # those of a link that was lost again may still be among them
        self._recall.watch_for_gaps()
        self._came_up.set()

    def went_down(self, doubt_seconds: float, *, is_loss: bool = False) -> None:
        """The link is lost, or was left; it may have missed messages for `doubt_seconds` by then;
        `is_loss`: also such as no server holds any more."""
        self._is_loss |= is_loss
        self._stats.redis_up = False
        since_ms = now_ms() - int(1000 * doubt_seconds)
        if self._behind_since_ms is None or since_ms < self._behind_since_ms:
            self._behind_since_ms = since_ms
        self._tell_all(redis_up=False)

    async def run(self) -> None:
        """After each time that the link came up: have everything read that may have been missed."""
        while True:
            await self._came_up.wait()
            self._came_up.clear()
            link, (held, self._held) = self._link, (self._held, [])
            changed = self._durable and await self._are_others()
            noted = await self._noted() if self._durable else {}
            jobs = {job_id for names, _ in noted.values() for job_id in names}
            self._recall.tell_queues(jobs)
            self._lookups.refresh(
                [*held, *jobs], partial(self._on_caught_up, link, noted, changed=changed)
            )
            self._router.release(held)

    async def _noted(self) -> Noted:
        """What publishers noted for the watched queues since something may have been missed."""
        queues = list(self._index.queues)
        since_ms = (self._behind_since_ms or now_ms()) - int(1000 * CLOCKS_SECONDS)
        noted = await self._recall.jobs_of_queues(queues, since_ms)
        unread = [queue for queue in queues if queue not in noted]
        if unread:
            # Their keys are with a node that is away: their watchers are told of a gap now, and of the
            # jobs as soon as they can be read.
            log.warning("queues_unread", queues=len(unread))
            self._queue_lookups.try_again(unread, since_ms)
        return noted | {queue: (set(), False) for queue in unread}

    async def _are_others(self) -> bool:
        """Whether other servers hold the history than before: one that was restarted, a replica that took
        over. Then an event may be gone of which no trace is left; so where it cannot be found out."""
        try:
            servers = await self._recall.servers()
        except (RedisError, OSError):
            return True
        before, self._servers = self._servers, servers or self._servers
        return None not in (before, servers) and before != servers

    def _on_caught_up(self, link: int, noted: Noted, *, changed: bool) -> None:
        if not self._stats.redis_up or link != self._link:
            return  # lost again: the next time goes back as far
        self._behind_since_ms = None
        changed |= self._is_loss
        self._is_loss = False
        missed = self._recall.gaps()
        holed = {queue for queue, (jobs, whole) in noted.items() if not whole or jobs & missed}
        if not (self._durable and self._owing):
            return  # told already
        if changed or missed or holed:
            self._stats.gaps += 1
            log.warning(
                "events_missed", jobs=len(missed), queues=len(holed), servers_changed=changed
            )

        def has_gap(session: Session) -> bool:
            return self._watches_something(session) and (
                changed
                or any(
                    queue in holed if job is None else job in missed
                    for queue, job in self._index.topics(session)
                )
            )

        self._tell_all(redis_up=True, gap=has_gap)

    def _watches_something(self, session: Session) -> bool:
        return bool(self._index.topics(session))


def _everybody(_: Session) -> bool:
    return True
