"""What Redis can still tell of a job: its stream where history is durable, its key where it is Celery's.

Turns what was read into events in history, and judges whether that was all: a job of which something may
have been missed is *cut*, so that no client is promised a whole recovery across the gap. Redis: XRANGE,
XREVRANGE, GET, ZRANGEBYSCORE.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from relay.core.event import Identity, Source, event_name, is_name
from relay.core.history import History
from relay.core.router import Found, Router
from relay.sources.celery import CelerySource, event_id
from relay.upstream.connection import Client

MAX_QUEUE_JOBS: Final = 10_000  # of one queue that are read after a reconnect
_STREAM_ID: Final = re.compile(r"\d+-\d+")


class Recall:
    """Keys, reading and merging for `Lookups`.

    Args:
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
        client: Client,
        celery: Sequence[CelerySource],
        durable: Source | None,
        prefix: str,
        max_events: int,
        barrier: Callable[[], Awaitable[None]],
        clock: Callable[[], tuple[float, int]],
    ) -> None:
        self._late: set[str] = (
            set()
        )  # jobs whose reads queues' watchers wait for; each read takes one out
        self._missed: set[str] | None = None  # jobs with a gap since `watch_for_gaps`
        self._router = router
        self._history = history
        self._client = client
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
        with _closed_is_lost():
            answers = await pipeline.execute(raise_on_error=False)
        refusals = [answer for answer in answers if isinstance(answer, Exception)]
        if refusals and len(refusals) == len(keys):
            raise refusals[0]
        # What was read may be newer than messages still on their way over the other connection: those
        # come first, else an end would be followed by what led to it.
        await self._barrier()
        # A key that holds something of another kind counts as not there.
        return [None if isinstance(answer, Exception) else answer or None for answer in answers]

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
        self._late.discard(job_id)
        self._router.merge(found, now, by_name=by_name)

    async def servers(self) -> frozenset[str] | None:
        """Who holds the history, by the id that each server gives itself at its start; None where that
        cannot be asked. Redis: INFO."""
        try:
            with _closed_is_lost():
                info: Any = await self._client.info("server")
        except RedisError:
            return None
        one_server = "run_id" in info
        return frozenset(one["run_id"] for one in ([info] if one_server else info.values()))

    async def jobs_of_queues(
        self, queues: Iterable[str], since_ms: int
    ) -> dict[str, tuple[set[str], bool]]:
        """The jobs of each queue that publishers noted since then, and whether all were noted.

        Raises:
            RedisError: Redis is away, slow, or refuses.
        """
        noted: dict[str, tuple[set[str], bool]] = {}
        for queue in queues:
            key = self._prefix + b"queue:" + queue.encode()
            with _closed_is_lost():
                jobs: Any = await self._client.zrangebyscore(
                    key, since_ms, "+inf", start=0, num=MAX_QUEUE_JOBS
                )
                # An empty set does not exist: then nobody notes jobs, or Redis has lost the notes.
                whole = bool(jobs) or bool(await self._client.exists(key))
            names = {job.decode(errors="replace") for job in jobs}
            noted[queue] = names, whole and len(jobs) < MAX_QUEUE_JOBS
        return noted

    async def newest_of_queue(self, queue: str, limit: int) -> list[str]:
        """The jobs that publishers noted for the queue, the newest first. Redis: ZREVRANGE.

        Raises:
            RedisError: Redis is away, slow, or refuses.
        """
        with _closed_is_lost():
            jobs: Any = await self._client.zrevrange(
                self._prefix + b"queue:" + queue.encode(), 0, limit - 1
            )
        return [job.decode(errors="replace") for job in jobs]

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


@contextmanager
def _closed_is_lost() -> Iterator[None]:
    """redis-py does not see that a connection was cut while nobody used it; uvloop, asked to write to
    one, raises what it raises for bugs."""
    try:
        yield
    except RuntimeError as error:
        if "closed" not in str(error):
            raise
        raise RedisConnectionError("the connection was cut while it was idle") from error


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
