"""What Redis can still tell of a job: its stream where history is durable, its key where it is Celery's.

Turns what was read into events in history, and judges whether that was all: a job of which something may
have been missed is *cut*, so that no client is promised a whole recovery across the gap. Redis: XRANGE,
XREVRANGE, GET, ZRANGEBYSCORE, ZREVRANGEBYSCORE, INFO.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from relay.core.event import Identity, Source, event_name, is_name
from relay.core.history import History
from relay.core.router import Found, Router
from relay.sources.celery import CelerySource, event_id
from relay.upstream.connection import Client
from relay.upstream.link import heed_cancellation, is_refusal

MAX_QUEUE_JOBS: Final = 10_000  # of one queue that are read after a reconnect
MAX_QUEUES_A_READ: Final = 64
RETIRE_SECONDS: Final = 5.0  # for a client's last reads: they are given up well before
_STREAM_ID: Final = re.compile(r"\d+-\d+")


class Recall:
    """Keys, reading and merging for `Lookups`.

    Args:
        make_client: a new client for commands; called for each link.
        durable: the source in whose forms stored payloads are read; None where history is not durable.
        prefix: of the streams' keys. max_events: entries a stream.
        barrier: awaited after each read: what Redis published before it has been received by then.
        clock: monotonic seconds and Unix milliseconds.
    """

    def __init__(
        self,
        router: Router,
        history: History,
        *,
        make_client: Callable[[], Client],
        celery: Sequence[CelerySource],
        durable: Source | None,
        prefix: str,
        max_events: int,
        barrier: Callable[[], Awaitable[None]],
        clock: Callable[[], tuple[float, int]],
    ) -> None:
        # Jobs whose reads queues' watchers wait for; each read takes one out.
        self._late: set[str] = set()
        self._missed: set[str] | None = None  # jobs with a gap since `watch_for_gaps`
        self._router = router
        self._history = history
        self._make_client = make_client
        self._client = make_client()
        self._retiring: set[asyncio.Task[None]] = set()
        self._celery = celery
        self._durable = durable
        self._prefix = prefix.encode()
        self._max_events = max_events
        self._barrier = barrier
        self._clock = clock

    @property
    def knows_anything(self) -> bool:
        """Whether Redis holds anything beside what it publishes."""
        return bool(self._celery) or self._durable is not None

    def renew(self) -> None:
        """There is a new link: read from where that leads, from now on.

        A client keeps its connections, also to a master that was replaced and answers as if nothing had
        happened: what it says is old, and would be taken for the newest.
        """
        retiring = asyncio.create_task(_retire(self._client))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        self._client = self._make_client()

    async def aclose(self) -> None:
        """Close every connection."""
        for retiring in list(self._retiring):
            retiring.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._client.aclose()

    def watch_for_gaps(self) -> None:
        """From now on remember the jobs of which something may have been missed, beside those remembered."""
        if self._missed is None:
            self._missed = set()

    def gaps(self) -> set[str]:
        """Those jobs; they are remembered no longer."""
        missed, self._missed = self._missed, None
        return missed or set()

    def tell_queues(self, job_ids: Iterable[str]) -> None:
        """What is read of these jobs is told to their queues' watchers, too: their snapshot came without."""
        if len(self._late) < MAX_QUEUE_JOBS:  # more would mean that their reads never came
            self._late.update(job_ids)

    def late(self) -> set[str]:
        """Those jobs, as far as they are not read yet."""
        return set(self._late)

    def is_late(self, job_id: str) -> bool:
        """Whether it is one of them."""
        return job_id in self._late

    def needs_lookup(self, job_id: str, queue: str | None) -> bool:
        """Whether Redis may know more of the job than we do."""
        return self.knows_anything and not self._history.is_current(job_id, queue)

    def keys_of(self, job_id: str) -> list[tuple[Identity, bytes]]:
        """Where the job may be stored, and as whose message each value is to be understood."""
        keys: list[tuple[Identity, bytes]] = []
        if self._durable is not None:
            key = self._prefix + job_id.encode()
            keys.append((Identity(self._durable, key, job_id, None), key))
        for source in self._celery:
            key = source.key(job_id)
            identity = source.identify(key)
            if identity is not None:
                keys.append((identity, key))
        return keys

    async def read(self, keys: list[bytes]) -> list[Any]:
        """The streams' entries and the keys' values, None where there is none, in one round trip.

        In a cluster one node may be away and another there: an exception stands for what could not be read.

        Raises:
            RedisError: Redis is away, slow, or refuses every key.
        """
        pipeline: Any = self._client.pipeline(transaction=False)
        for key in keys:
            if self._is_stream(key):
                self._read_stream(pipeline, key)
            else:
                # Not MGET: it would need one more right in an ACL, and one slot in a cluster.
                pipeline.get(key)
        with _asking():
            answers = await pipeline.execute(raise_on_error=False)
        faults = [answer for answer in answers if isinstance(answer, Exception)]
        if faults and len(faults) == len(keys):
            raise faults[0]
        # What was read may be newer than messages still on their way over the other connection: those
        # come first, else an end would be followed by what led to it.
        await self._barrier()
        # A key that holds something of another kind counts as not there.
        return [
            None if isinstance(answer, Exception) and is_refusal(answer) else answer or None
            for answer in answers
        ]

    def merge(self, job_id: str, read: list[tuple[Identity, Any]] | None) -> None:
        """Bring what was read of a held job into history. None: it could not be read."""
        now, _ = self._clock()
        found: list[Found] = []
        whole = False
        newest = self._history.newest_id(job_id)
        for identity, value in read or ():
            if isinstance(value, list):
                entries = sorted(value, key=lambda entry: _position(entry[0]))
                whole = whole or (newest is not None and entries[0][0].decode() == newest)
                found += [_found(identity, entry, fields) for entry, fields in entries]
            else:
                whole = whole or event_id(value) == newest
                found.append(Found(identity, value, None, self._clock()[1]))
        if newest is not None and not whole:
            self._history.cut(job_id)
        # Where nothing was known and Redis has nothing, there was most likely nothing.
        if self._missed is not None and (read is None or (newest is not None and not whole)):
            self._missed.add(job_id)
        if read is not None:
            self._history.confirm(job_id, self._router.next_seq())
        # A job's past is news to whoever watches it and knew nothing, or has a gap; a queue's watchers did
        # not ask for it.
        by_name = newest is None and self._missed is None and job_id not in self._late
        if read is not None:
            self._late.discard(job_id)
        self._router.merge(found, now, by_name=by_name)

    async def servers(self) -> frozenset[str] | None:
        """Who holds the history, by the id that each server gives itself at its start; None where nobody may
        ask that. Redis: INFO.

        Raises:
            RedisError: Redis is away, or slow.
        """
        try:
            with _asking():
                info: Any = await self._client.info("server")
        except RedisError as error:
            if is_refusal(error):
                return None
            raise
        one_server = "run_id" in info
        return frozenset(one["run_id"] for one in ([info] if one_server else info.values()))

    async def jobs_of_queues(
        self, queues: Sequence[str], since_ms: int
    ) -> dict[str, tuple[set[str], bool]]:
        """The jobs of each queue that publishers noted since then, and whether all were noted; a queue that
        could not be read is left out. Redis: ZRANGEBYSCORE, EXISTS."""
        noted: dict[str, tuple[set[str], bool]] = {}
        for start in range(0, len(queues), MAX_QUEUES_A_READ):
            some = queues[start : start + MAX_QUEUES_A_READ]
            with suppress(RedisError, OSError):
                noted |= await self._jobs_of_some_queues(some, since_ms)
        return noted

    async def _jobs_of_some_queues(
        self, queues: Sequence[str], since_ms: int
    ) -> dict[str, tuple[set[str], bool]]:
        pipeline: Any = self._client.pipeline(transaction=False)
        for queue in queues:
            key = self._notes_key(queue)
            pipeline.zrangebyscore(key, since_ms, "+inf", start=0, num=MAX_QUEUE_JOBS)
            pipeline.exists(key)
        with _asking():
            answers = await pipeline.execute(raise_on_error=False)
        noted: dict[str, tuple[set[str], bool]] = {}
        for queue, jobs, exists in zip(queues, answers[::2], answers[1::2], strict=True):
            faults = [one for one in (jobs, exists) if isinstance(one, Exception)]
            if not faults:
                names = {job.decode(errors="replace") for job in jobs}
                # An empty set does not exist: then nobody notes jobs, or Redis has lost the notes.
                noted[queue] = names, bool(exists) and len(jobs) < MAX_QUEUE_JOBS
            elif all(map(is_refusal, faults)):
                noted[queue] = set(), False
        return noted

    async def newest_of_queue(self, queue: str, since_ms: int, limit: int) -> list[str]:
        """The jobs that publishers noted for the queue since then, the newest first. Redis: ZREVRANGEBYSCORE.

        Raises:
            RedisError: Redis is away, slow, or refuses.
        """
        with _asking():
            jobs: Any = await self._client.zrevrangebyscore(
                self._notes_key(queue), "+inf", since_ms, start=0, num=limit
            )
        return [job.decode(errors="replace") for job in jobs]

    def _notes_key(self, queue: str) -> bytes:
        return self._prefix + b"queue:" + queue.encode()

    def _is_stream(self, key: bytes) -> bool:
        return self._durable is not None and key.startswith(self._prefix)

    def _read_stream(self, pipeline: Any, key: bytes) -> None:
        """What came after the newest event known, and that event too: it proves that none is missing."""
        newest = self._history.newest_id(key[len(self._prefix) :].decode())
        if newest is not None and _STREAM_ID.fullmatch(newest):
            # From the end: where there is more than may be read, the newest are what counts.
            pipeline.xrevrange(key, max="+", min=newest, count=self._max_events + 1)
        else:
            pipeline.xrevrange(key, max="+", min="-", count=self._max_events)


async def _retire(client: Client) -> None:
    """Close it once its last reads are over."""
    try:
        await asyncio.sleep(RETIRE_SECONDS)
    finally:
        await client.aclose()


@contextmanager
def _asking() -> Iterator[None]:
    """Makes good what redis-py gets wrong: it may swallow a cancellation; and it does not see that a connection was
    cut while nobody used it (uvloop, asked to write to one, raises what it raises for bugs)."""
    try:
        yield
    except RuntimeError as error:
        if "closed" not in str(error):
            raise
        raise RedisConnectionError("the connection was cut while it was idle") from error
    finally:
        heed_cancellation()


def _found(identity: Identity, entry: bytes, fields: dict[bytes, bytes]) -> Found:
    queue: str | None = fields.get(b"queueName", b"").decode(errors="replace")
    if queue is not None and not is_name(queue):
        queue = None
    event = event_name(fields.get(b"event", b"").decode(errors="replace"))
    told = Identity(identity.source, identity.channel, identity.job_id, queue, event)
    return Found(told, fields.get(b"payload", b""), entry.decode(), _position(entry)[0])


def _position(entry: bytes) -> tuple[int, int]:
    """A stream id as numbers: milliseconds, and which of that millisecond."""
    milliseconds, _, number = entry.decode().partition("-")
    return int(milliseconds), int(number)
