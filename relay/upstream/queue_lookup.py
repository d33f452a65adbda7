"""Reads which jobs a queue has, then has those looked up of which we may not know the newest.

One task; many requests for one queue cost one read, and each request is answered once, within
`timeout_seconds`. What cannot be read by then is tried again for as long as somebody watches the queue
and Redis is there; its watchers hear of what is found then. Knows no session and no keys. Redis: ZREVRANGEBYSCORE,
through `read`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

import structlog
from redis.exceptions import RedisError

from relay.upstream.link import is_refusal
from relay.upstream.lookup import RETRY_SECONDS, TIMEOUT_SECONDS, Waiter

log = structlog.stdlib.get_logger()


class QueueLookups:
    """All queues that are asked for.

    Args:
        read: the names of a queue's jobs noted since a time in Unix milliseconds; may raise what Redis
            clients raise.
        on_late: told of the jobs that will be read after the answer: the queue's watchers must hear of
            them.
        is_watched: whether anybody watches the queue.
    """

    def __init__(
        self,
        *,
        read: Callable[[str, int], Awaitable[list[str]]],
        needs_lookup: Callable[[str, str | None], bool],
        request: Callable[[Sequence[str], Callable[[], None]], None],
        on_late: Callable[[Sequence[str]], None],
        is_watched: Callable[[str], bool],
        is_connected: Callable[[], bool],
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._read = read
        self._needs_lookup = needs_lookup
        self._request = request
        self._on_late = on_late
        self._is_watched = is_watched
        self._is_connected = is_connected
        self._timeout_seconds = timeout_seconds
        self._asked: dict[str, list[Waiter]] = {}
        self._unread: dict[str, int] = {}  # watched queues to be tried again, and since when
        self._wake = asyncio.Event()

    def request(self, queue: str, done: Callable[[], None]) -> None:
        """Have the queue's jobs looked up and call `done` when that is over, found or not."""
        waiter = Waiter(done)
        if not self._is_connected():
            waiter.answer()
            return
        loop = asyncio.get_running_loop()
        waiter.timer = loop.call_later(self._timeout_seconds, waiter.answer)
        self._asked.setdefault(queue, []).append(waiter)
        self._wake.set()

    def try_again(self, queues: Iterable[str], since_ms: int) -> None:
        """These could not be read after a reconnect: tell their watchers what was noted since, once they can."""
        for queue in queues:
            self._unread[queue] = min(since_ms, self._unread.get(queue, since_ms))
        self._wake.set()

    async def run(self) -> None:
        """Never returns; cancel to stop."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if self._unread else None):
                    await self._wake.wait()
            self._wake.clear()
            for queue in list(dict.fromkeys((*self._asked, *self._unread))):
                await self._look_up(queue)

    async def _look_up(self, queue: str) -> None:
        if not self._is_connected():
            _answer_all(self._asked.pop(queue, ()))
            return  # what was missed before is still to be read after the reconnect
        late_since_ms = self._unread.get(queue)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                # Who asks now is to see all jobs, whatever was missed.
                jobs = await self._read(queue, 0 if queue in self._asked else late_since_ms or 0)
        except (RedisError, OSError) as error:
            log.warning("lookup_failed", error=str(error) or type(error).__name__, queue=queue)
            if self._is_watched(queue) and not is_refusal(error):
                self._unread.setdefault(queue, 0)
            else:
                self._unread.pop(queue, None)
            _answer_all(self._asked.pop(queue, ()))
            return
        self._unread.pop(queue, None)
        wanted = [job_id for job_id in jobs if self._needs_lookup(job_id, queue)]
        if late_since_ms is not None:
            self._on_late(wanted)
        # Whoever asked while it was read is answered with the rest.
        self._request(wanted, partial(self._answer, queue, wanted, self._asked.pop(queue, [])))

    def _answer(self, queue: str, wanted: Sequence[str], waiters: Sequence[Waiter]) -> None:
        late = [job_id for job_id in wanted if self._needs_lookup(job_id, queue)]
        if late:
            self._on_late(late)
        _answer_all(waiters)


def _answer_all(waiters: Sequence[Waiter]) -> None:
    for waiter in waiters:
        waiter.answer()
