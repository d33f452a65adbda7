"""Reads what Redis still holds of jobs that nobody told us of, and answers whoever waits for it.

One task reads, a bounded number of keys at a time, whatever the number of those who ask; many requests
for one job cost one read. A request is answered once, within `timeout_seconds`, whatever happens to
Redis. Nothing read is handed out here: it goes to `on_found`, which merges it into the job's history,
and `done` only says that there is no more to wait for.

Knows no session, no dialect and no history: keys, positions and merging are callables. Redis: GET.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import redis.asyncio
import structlog
from redis.exceptions import RedisError, ResponseError

from relay.core.event import Identity

MAX_IN_FLIGHT: Final = 64  # keys a read
TIMEOUT_SECONDS: Final = 2.0
NEGATIVE_CACHE_SECONDS: Final = 1.0
MAX_NEGATIVE: Final = 16_384  # jobs remembered as not found
MAX_WAITING_JOBS: Final = 16_384  # jobs asked for and not read yet
# Redis loads its data before it answers GET, but confirms a subscription at once.
RETRY_SECONDS: Final = 1.0
LOG_INTERVAL_SECONDS: Final = 10.0

Read = Callable[[list[bytes]], Awaitable[list[bytes | None]]]

log = structlog.stdlib.get_logger()


async def read_keys(client: redis.asyncio.Redis, keys: list[bytes]) -> list[bytes | None]:
    """The values of `keys`, None where there is none, in one round trip.

    GETs in a pipeline: an MGET would need one more right in an ACL. A key that holds no string counts
    as not there, so that it spoils no other's answer.

    Raises:
        RedisError: Redis is away, slow, or refuses every key.
    """
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.execute_command("GET", key)
    answers = await pipeline.execute(raise_on_error=False)
    refusals = [answer for answer in answers if isinstance(answer, Exception)]
    if refusals and len(refusals) == len(keys):
        raise refusals[0]
    return [answer if isinstance(answer, bytes) else None for answer in answers]


class _Waiter:
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
    """A job to be read. `refresh`: it must be read after now; `issued`: its read is under way."""

    __slots__ = ("issued", "job_id", "keys", "position", "refresh", "waiters")

    def __init__(self, job_id: str, keys: list[tuple[Identity, bytes]]) -> None:
        self.job_id = job_id
        self.keys = keys
        self.waiters: list[_Waiter] = []
        self.position = 0  # the job's newest message when the read was issued
        self.refresh = False
        self.issued = False


class Lookups:
    """All reads there are.

    Args:
        read: the values of the keys given, at most `MAX_IN_FLIGHT` of them (more only where one job
            has more); may raise what Redis clients raise.
        keys_of: where a job may be stored, and as whose message each value is to be understood.
        position_of: the position of the newest message received of a job, 0 where there is none.
        on_found: given each value that was found and is not older than what came meanwhile.
        is_connected: whether Redis is believed to be there.
        clock: monotonic seconds. timeout_seconds: until a request is answered.
    """

    def __init__(
        self,
        *,
        read: Read,
        keys_of: Callable[[str], list[tuple[Identity, bytes]]],
        position_of: Callable[[str], int],
        on_found: Callable[[Identity, bytes], None],
        is_connected: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._read = read
        self._keys_of = keys_of
        self._position_of = position_of
        self._on_found = on_found
        self._is_connected = is_connected
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._jobs: dict[str, _Job] = {}  # all that are in a queue or in flight
        # Whoever waits comes first. A job may stand in both, and is read when it first comes up.
        self._asked: deque[_Job] = deque()
        self._refreshing: deque[_Job] = deque()
        self._negative: dict[str, float] = {}  # job id -> when it may be read again, oldest first
        self._wake = asyncio.Event()
        self._closed = False
        self._logged_at = float("-inf")
        self._unlogged = 0

    def request(self, job_ids: Sequence[str], done: Callable[[], None]) -> None:
        """Have the jobs read and call `done` when that is over: found, not found, failed, or too late.

        `done` is called once; before this returns where there is nothing to wait for. What is found
        after `done` was called for lateness is merged all the same.
        """
        waiter = _Waiter(done)
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

    def refresh(self, job_ids: Iterable[str]) -> None:
        """Read the jobs again, whatever is known of them; due after every reconnect.

        Nobody waits for it. While Redis is there and gives no answer, it is tried again. Call it with
        no job where none is watched: what was not there before the reconnect may be there now.
        """
        self._negative.clear()
        for job_id in dict.fromkeys(job_ids):
            job = self._jobs.get(job_id)
            if job is None:
                keys = self._keys_of(job_id)
                if not keys:
                    continue
                job = self._jobs[job_id] = _Job(job_id, keys)
                self._refreshing.append(job)
            # One in flight may have been read before the reconnect: it goes round once more.
            job.refresh = True
        self._wake.set()

    async def run(self) -> None:
        """Read what is asked for, until `close`; may be cancelled, which closes."""
        try:
            while not self._closed:
                await self._wake.wait()
                self._wake.clear()
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
            job = self._jobs[job_id] = _Job(job_id, keys)
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
        again = {job.job_id for job in batch if job.refresh}
        for job in batch:
            job.refresh = False
            job.position = self._position_of(job.job_id)
        keys = [key for job in batch for _, key in job.keys]
        try:
            async with asyncio.timeout(self._timeout_seconds):
                values = iter(await self._read(keys))
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            self._log(str(error) or type(error).__name__)
            lasting = isinstance(error, ResponseError)  # refused: it would be again
            retry = self._is_connected() and not lasting
            for job in batch:
                job.refresh |= retry and job.job_id in again
                self._end(job)
            if retry and again:
                await self._pause()
            return
        retry_at = self._clock() + NEGATIVE_CACHE_SECONDS
        for job in batch:
            found = [(identity, next(values)) for identity, _ in job.keys]
            self._merge(job, found, retry_at)
            self._end(job)

    async def _pause(self) -> None:
        """Wait before what failed is tried again, or until somebody asks."""
        if self._asked or self._closed:
            return
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                await self._wake.wait()

    def _merge(
        self, job: _Job, found: list[tuple[Identity, bytes | None]], retry_at: float
    ) -> None:
        # What came live since the read was issued is what was read, or newer, or soon followed by
        # something newer: whatever is stored is published too. Told after it, a value that was read
        # before would be an older event after a newer one.
        if self._position_of(job.job_id) != job.position:
            return
        for identity, value in found:
            if value is not None:
                self._on_found(identity, value)
        if all(value is None for _, value in found):
            self._remember_absent(job.job_id, retry_at)

    def _end(self, job: _Job) -> None:
        """The read is over: answer, and let go of the job unless it must be read again."""
        if self._closed:
            return
        job.issued = False
        if job.refresh:
            self._refreshing.append(job)
        else:
            del self._jobs[job.job_id]
        _answer(job)

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
