"""Reads what Redis still holds of jobs that nobody told us of, and answers whoever waits for it.

One task reads, a bounded number of keys at a time, whatever the number of those who ask; many requests
for one job cost one read. A request is answered once, within `timeout_seconds`, whatever happens to
Redis. Nothing read is handed out here: it goes to `on_read`, which merges it into the job's history,
and `done` only says that there is no more to wait for. A job is held from when it is first asked for
until its read is over: what comes of it live meanwhile is told behind what was read.

Knows no session, no dialect and no history: keys, holding and merging are callables. Redis: GET, XREVRANGE.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any, Final

import structlog
from redis.exceptions import RedisError

from relay.core.event import Identity
from relay.upstream.link import is_refusal

MAX_IN_FLIGHT: Final = 64  # keys a read
TIMEOUT_SECONDS: Final = 2.0
NEGATIVE_CACHE_SECONDS: Final = 1.0
MAX_NEGATIVE: Final = 16_384  # jobs remembered as not found
MAX_WAITING_JOBS: Final = 16_384  # jobs asked for and not read yet
# Redis loads its data before it answers GET, but confirms a subscription at once.
RETRY_SECONDS: Final = 1.0
# How long failing reads may hold a job's live events back; then it is said that something may be missing.
REFRESH_SECONDS: Final = 10.0
# From then on a job is held only while it is read, once in so many seconds.
LATER_SECONDS: Final = 5.0
LOG_INTERVAL_SECONDS: Final = 10.0

# What a key holds, None where there is none, an exception where that could not be read; what it is, is known
# to who reads and who merges.
Value = Any
Read = Callable[[list[bytes]], Awaitable[list[Value]]]

log = structlog.stdlib.get_logger()


class Waiter:
    """One request: how many of its jobs are still to be read, and whom to tell."""

    __slots__ = ("_done", "jobs", "timer")

    def __init__(self, done: Callable[[], None]) -> None:
        self.jobs = 0
        self.timer: asyncio.TimerHandle | None = None
        self._done: Callable[[], None] | None = done

    def answer(self) -> None:
        """Tell that the wait is over; idempotent."""
        if self.timer is not None:
            self.timer.cancel()
        if self._done is not None:
            done, self._done = self._done, None
            done()


class _Job:
    """A job to be read. `refresh`: it must be read after now; `issued`: its read is under way;
    `give_up_at`: until when it is worth trying again."""

    __slots__ = ("give_up_at", "issued", "job_id", "keys", "refresh", "waiters")

    def __init__(self, job_id: str, keys: list[tuple[Identity, bytes]], give_up_at: float) -> None:
        self.job_id = job_id
        self.keys = keys
        self.waiters: list[Waiter] = []
        self.give_up_at = give_up_at
        self.refresh = False
        self.issued = False


class Lookups:
    """All reads there are.

    Args:
        read: the values of the keys given, at most `MAX_IN_FLIGHT` of them (more only where one job
            has more); may raise what Redis clients raise.
        keys_of: where a job may be stored, and as whose message each value is to be understood.
        on_read: given a job and what was found of it, which may be nothing; None where that could not
            be read. Called while the job is held.
        hold: called once a job before it is read. release: once after that.
        is_watched: whether anybody waits to hear of the job; then it is read again for as long as Redis is
            there, since nobody else would tell what was missed.
        is_connected: whether Redis is believed to be there.
        clock: monotonic seconds. timeout_seconds: until a request is answered.
    """

    def __init__(
        self,
        *,
        read: Read,
        keys_of: Callable[[str], list[tuple[Identity, bytes]]],
        on_read: Callable[[str, list[tuple[Identity, Value]] | None], None],
        hold: Callable[[list[str]], None],
        release: Callable[[list[str]], None],
        is_watched: Callable[[str], bool],
        is_connected: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._read = read
        self._keys_of = keys_of
        self._on_read = on_read
        self._hold = hold
        self._release = release
        self._is_watched = is_watched
        self._is_connected = is_connected
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._jobs: dict[str, _Job] = {}  # all that are in a queue or in flight
        # Whoever waits comes first. A job may stand in both, and is read when it first comes up.
        self._asked: deque[_Job] = deque()
        self._refreshing: deque[_Job] = deque()
        self._negative: dict[str, float] = {}  # job id -> when it may be read again, oldest first
        self._later: set[str] = set()  # watched jobs given up, to be tried again at `_later_at`
        self._later_at = 0.0
        self._unrefreshed: set[str] = set()  # jobs that the refresh has not yet read or given up
        self._on_refreshed: Callable[[], None] | None = None
        self._wake = asyncio.Event()
        self._closed = False
        self._logged_at = float("-inf")
        self._unlogged = 0

    def request(self, job_ids: Sequence[str], done: Callable[[], None]) -> None:
        """Have the jobs read and call `done` when that is over: found, not found, failed, or too late.

        `done` is called once; before this returns where there is nothing to wait for. What could not be
        read is tried again, for `REFRESH_SECONDS`, and where it is watched for as long as Redis is there:
        what is found after `done` was called is merged all the same.
        """
        waiter = Waiter(done)
        if self._is_connected() and not self._closed:
            now = self._clock()
            for job_id in dict.fromkeys(job_ids):
                job = self._ask(job_id, now)
                if job is not None:
                    job.waiters.append(waiter)
                    waiter.jobs += 1
        if waiter.jobs:
            loop = asyncio.get_running_loop()
            waiter.timer = loop.call_later(self._timeout_seconds, waiter.answer)
            self._wake.set()
        else:
            waiter.answer()

    def jobs(self) -> list[str]:
        """The jobs that wait to be read or are being read."""
        return list(self._jobs)

    def refresh(self, job_ids: Iterable[str], done: Callable[[], None]) -> None:
        """Read the jobs again, whatever is known of them; due after every reconnect.

        While Redis is there and gives no answer, it is tried again, for `REFRESH_SECONDS`. `done` is
        called when each of them was read or given up; a later refresh takes its place. Call it with no
        job where none is watched: what was not there before the reconnect may be there now.
        """
        self._negative.clear()
        self._later.clear()  # those that are watched come now
        give_up_at = self._clock() + REFRESH_SECONDS
        self._unrefreshed.clear()
        for job_id in dict.fromkeys(job_ids):
            job = self._jobs.get(job_id)
            if job is None:
                keys = self._keys_of(job_id)
                if not keys:
                    continue
                job = self._add(job_id, keys)
                self._refreshing.append(job)
            # One in flight may have been read before the reconnect: it goes round once more.
            job.refresh = True
            job.give_up_at = give_up_at
            self._unrefreshed.add(job_id)
        self._on_refreshed = done
        self._tell_refreshed()
        self._wake.set()

    async def run(self) -> None:
        """Read what is asked for, until `close`; may be cancelled, which closes."""
        try:
            while not self._closed:
                wait_seconds = max(0.0, self._later_at - self._clock()) if self._later else None
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_seconds):
                        await self._wake.wait()
                self._wake.clear()
                if self._later and self._clock() >= self._later_at:
                    self._try_again()
                while batch := self._take():
                    await self._read_batch(batch)
        finally:
            self.close()

    def close(self) -> None:
        """Answer everybody now and read no more; idempotent."""
        self._closed = True
        jobs = list(self._jobs.values())
        self._jobs.clear()
        self._asked.clear()
        self._refreshing.clear()
        self._wake.set()
        for job in jobs:
            _answer(job)
            self._release([job.job_id])

    def _add(self, job_id: str, keys: list[tuple[Identity, bytes]]) -> _Job:
        self._hold([job_id])
        job = self._jobs[job_id] = _Job(job_id, keys, self._clock() + REFRESH_SECONDS)
        return job

    def _ask(self, job_id: str, now: float) -> _Job | None:
        """The job, in the queue or in flight; None where it is known, or taken, as not found."""
        job = self._jobs.get(job_id)
        if job is not None and (job.issued or job.waiters):
            return job
        if job is None and self._is_known_absent(job_id, now):
            return None
        if len(self._asked) >= MAX_WAITING_JOBS:
            self._log(f"{MAX_WAITING_JOBS} jobs wait to be read: Redis is slow or overloaded")
            return None
        if job is None:
            keys = self._keys_of(job_id)
            if not keys:
                return None
            job = self._add(job_id, keys)
        self._asked.append(job)
        return job

    def _take(self) -> list[_Job]:
        """The next jobs to read."""
        batch: list[_Job] = []
        keys = 0
        while queue := self._asked or self._refreshing:
            job = queue[0]
            if not job.issued and self._jobs.get(job.job_id) is job:
                keys += len(job.keys)
                if batch and keys > MAX_IN_FLIGHT:
                    break
                job.issued = True
                batch.append(job)
            queue.popleft()
        return batch

    async def _read_batch(self, batch: list[_Job]) -> None:
        for job in batch:
            job.refresh = False
        keys = [key for job in batch for _, key in job.keys]
        values: Iterator[Value]
        try:
            async with asyncio.timeout(self._timeout_seconds):
                values = iter(await self._read(keys))
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            values = repeat(error)
        if self._closed:
            return  # nobody waits, and nothing is held any more
        retry_at = self._clock() + NEGATIVE_CACHE_SECONDS
        soon = False
        for job in batch:
            found = [(identity, next(values)) for identity, _ in job.keys]
            # In a cluster the node of one key may be away, and that of another there.
            fault = next((value for _, value in found if isinstance(value, Exception)), None)
            if fault is None:
                self._merge(job, found, retry_at)
            else:
                soon |= self._fail(job, fault)
            self._end(job)
        if soon:
            await self._pause()

    def _fail(self, job: _Job, error: Exception) -> bool:
        """The job could not be read; whether it is to be read again at once."""
        self._log(str(error) or type(error).__name__)
        retry = self._is_connected() and not is_refusal(error)
        # Also where everybody was answered: who watches must still learn what is there.
        worth_it = retry and self._clock() < job.give_up_at
        bounded = len(self._refreshing) < MAX_WAITING_JOBS
        job.refresh |= worth_it and (bounded or job.job_id in self._unrefreshed)
        if not job.refresh:
            self._on_read(job.job_id, None)
            if retry and self._is_watched(job.job_id):
                if not self._later:
                    self._later_at = self._clock() + LATER_SECONDS
                self._later.add(job.job_id)
        return job.refresh

    def _try_again(self) -> None:
        """Have those read once more that were given up and are still watched."""
        later, self._later = self._later, set()
        for job_id in later:
            if self._is_connected() and self._is_watched(job_id) and job_id not in self._jobs:
                job = self._add(job_id, self._keys_of(job_id))
                job.give_up_at = self._clock()
                self._refreshing.append(job)

    async def _pause(self) -> None:
        """Wait before what failed is tried again, or until somebody asks."""
        if self._asked or self._closed:
            return
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                await self._wake.wait()

    def _merge(self, job: _Job, found: list[tuple[Identity, Value]], retry_at: float) -> None:
        there = [(identity, value) for identity, value in found if value is not None]
        self._on_read(job.job_id, there)
        if not there:
            self._remember_absent(job.job_id, retry_at)

    def _end(self, job: _Job) -> None:
        """The read is over: answer, and let go of the job unless it must be read again."""
        if self._closed:
            return
        job.issued = False
        if job.refresh:
            self._refreshing.append(job)
            _answer(job)
            return
        del self._jobs[job.job_id]
        _answer(job)
        self._release([job.job_id])
        self._unrefreshed.discard(job.job_id)
        self._tell_refreshed()

    def _tell_refreshed(self) -> None:
        if not self._unrefreshed and self._on_refreshed is not None:
            done, self._on_refreshed = self._on_refreshed, None
            done()

    def _is_known_absent(self, job_id: str, now: float) -> bool:
        retry_at = self._negative.get(job_id)
        return retry_at is not None and now < retry_at

    def _remember_absent(self, job_id: str, retry_at: float) -> None:
        self._negative.pop(job_id, None)
        if len(self._negative) >= MAX_NEGATIVE:
            del self._negative[next(iter(self._negative))]
        self._negative[job_id] = retry_at

    def _log(self, error: str) -> None:
        """A warning, at most one in `LOG_INTERVAL_SECONDS`; the next one tells how many were not."""
        now = self._clock()
        if now - self._logged_at < LOG_INTERVAL_SECONDS:
            self._unlogged += 1
            return
        log.warning("lookup_failed", error=error, suppressed=self._unlogged)
        self._logged_at = now
        self._unlogged = 0


def _answer(job: _Job) -> None:
    waiters, job.waiters = job.waiters, []
    for waiter in waiters:
        waiter.jobs -= 1
        if not waiter.jobs:
            waiter.answer()
