"""Takes one message to Redis, however Redis is laid out; with durable history, in the right order.

`Sender` is for asyncio, `SyncSender` for everything else. A queue's note goes out before the event it
is about: what breaks in between must not leave an event of which the queue's watchers could never
learn. On one server both are one round trip. In a cluster they live on different nodes, so there the
note goes alone, and what becomes of it is no reason to keep the event back.

Behind sentinels a master that was replaced goes on taking messages for some ten seconds, which are lost
with it; so the sentinels are asked again, before a message, once the last time is a second ago.

Redis: PUBLISH; EVALSHA, and EVAL where a node does not know the script.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisClusterException, RedisError
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from relay.upstream.clients import LazyCluster, make_sync_client
from relay.upstream.connection import make_client
from relay.upstream.durable import APPEND_SCRIPT, APPEND_SHA, Command
from relay.upstream.link import RedisSettings

RETRIES: Final = 1
CHECK_SECONDS: Final = 1.0
# A sentinel that is frozen holds up each check; this bounds what part of the time that can be.
_REST_PER_CHECK: Final = 10

# A frozen server is not asked twice: the caller's own work waits for the answer.
_RETRIED: Final = (RedisConnectionError,)

# The standard library's: this runs in other people's workers, whose logs are theirs to arrange.
_log = logging.getLogger(__name__)


class Sender:
    """Sends from asyncio code, one message at a time; nothing connects before the first."""

    __slots__ = ("_check", "_client", "_complaint")

    def __init__(self, settings: RedisSettings, timeout_seconds: float) -> None:
        """timeout_seconds: for a node's answer. Raises ValueError for a URL at fault."""
        self._client = make_client(settings, timeout_seconds)
        self._client.set_retry(AsyncRetry(NoBackoff(), RETRIES, supported_errors=_RETRIED))
        self._complaint = _Complaint()
        self._check = _Check()

    async def publish(self, channel: str, payload: bytes) -> int:
        """How many subscribers got it. Raises redis.RedisError, as `append` does."""
        await self._follow_master()
        with _redis_errors():
            return int(await self._client.execute_command("PUBLISH", channel, payload))

    async def append(self, notes: Sequence[Command], event: Command) -> str:
        """The id of the event that was appended and published.

        Args:
            notes: commands that note the job among its queue's. event: the script's arguments.

        Raises:
            redis.RedisError: Redis is away, slower than the timeout, or refuses the event.
        """
        await self._follow_master()
        with _redis_errors():
            if isinstance(self._client, RedisCluster):
                self._complaint.look_at(await self._noted(self._client, notes))
                try:
                    appended = await self._client.execute_command(*_evalsha(event))
                except NoScriptError as error:
                    appended = error
            else:
                pipeline: Any
                async with self._client.pipeline(transaction=False) as pipeline:
                    for command in (*notes, _evalsha(event)):
                        pipeline.execute_command(*command)
                    *noted, appended = await pipeline.execute(raise_on_error=False)
                self._complaint.look_at(noted)
            if isinstance(appended, NoScriptError):
                appended = await self._client.execute_command(*_eval(event))
        return _event_id(appended)

    async def close(self) -> None:
        """Close the connection; idempotent."""
        await self._client.aclose()

    async def _follow_master(self) -> None:
        if isinstance(self._client, RedisCluster) or not self._check.is_due():
            return
        pool = self._client.connection_pool
        # Without a word from them, the master that we have is as good as any.
        with self._check.made(), suppress(RedisError):
            if isinstance(pool, AsyncSentinelConnectionPool):
                # Closes what leads elsewhere.
                await pool.get_master_address()  # type: ignore[no-untyped-call]

    async def _noted(self, client: RedisCluster, notes: Sequence[Command]) -> Sequence[object]:
        pipeline: Any = client.pipeline()
        for command in notes:
            pipeline.execute_command(*command)
        try:
            with _redis_errors():
                answers: list[object] = await pipeline.execute(raise_on_error=False)
        except RedisError as error:
            return [error]
        return answers


class SyncSender:
    """`Sender` for code without an event loop; one thread at a time."""

    __slots__ = ("_check", "_client", "_complaint")

    def __init__(self, settings: RedisSettings, timeout_seconds: float) -> None:
        """See `Sender`."""
        retry = Retry(NoBackoff(), RETRIES, supported_errors=_RETRIED)
        self._client = make_sync_client(settings, timeout_seconds, retry)
        self._complaint = _Complaint()
        self._check = _Check()

    def publish(self, channel: str, payload: bytes) -> int:
        """See `Sender.publish`."""
        self._follow_master()
        return int(self._execute("PUBLISH", channel, payload))

    def append(self, notes: Sequence[Command], event: Command) -> str:
        """See `Sender.append`."""
        self._follow_master()
        if isinstance(self._client, LazyCluster):
            self._complaint.look_at(self._noted(self._client, notes))
            try:
                appended = self._client.execute(*_evalsha(event))
            except NoScriptError as error:
                appended = error
        else:
            pipeline: Any
            with self._client.pipeline(transaction=False) as pipeline:
                for command in (*notes, _evalsha(event)):
                    pipeline.execute_command(*command)
                *noted, appended = pipeline.execute(raise_on_error=False)
            self._complaint.look_at(noted)
        if isinstance(appended, NoScriptError):
            appended = self._execute(*_eval(event))
        return _event_id(appended)

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._client.close()

    def _follow_master(self) -> None:
        if isinstance(self._client, LazyCluster) or not self._check.is_due():
            return
        pool = self._client.connection_pool
        with self._check.made(), suppress(RedisError):
            if isinstance(pool, SentinelConnectionPool):
                pool.get_master_address()  # type: ignore[no-untyped-call]

    def _execute(self, *command: str | bytes | int) -> Any:
        if isinstance(self._client, redis.Redis):
            return self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        return self._client.execute(*command)

    def _noted(self, client: LazyCluster, notes: Sequence[Command]) -> Sequence[object]:
        try:
            return client.execute_all(notes)
        except RedisError as error:
            return [error]


class _Check:
    """When the sentinels are asked again."""

    __slots__ = ("_due_at",)

    def __init__(self) -> None:
        self._due_at = 0.0

    def is_due(self) -> bool:
        return time.monotonic() >= self._due_at

    @contextmanager
    def made(self) -> Iterator[None]:
        """Around a check, whatever comes of it."""
        began_at = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            self._due_at = now + max(CHECK_SECONDS, _REST_PER_CHECK * (now - began_at))


class _Complaint:
    """Says once that queues' jobs cannot be noted: events go out all the same, message after message."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made = False

    def look_at(self, replies: Sequence[object]) -> None:
        fault = next((reply for reply in replies if isinstance(reply, Exception)), None)
        if fault is not None and not self._made:
            self._made = True
            _log.warning(
                "Redis does not note a queue's jobs, so its watchers may miss what they were away "
                "for; where it refuses to, allow ZADD, ZREMRANGEBYRANK and EXPIRE on the keys of "
                "durable history: %s",
                fault,
            )


@contextmanager
def _redis_errors() -> Iterator[None]:
    """Say what redis-py says of a cluster as a RedisError, which it is not."""
    try:
        yield
    except RedisClusterException as error:
        raise RedisConnectionError(str(error)) from error


def _evalsha(event: Command) -> Command:
    return ("EVALSHA", APPEND_SHA, 1, *event)


def _eval(event: Command) -> Command:
    return ("EVAL", APPEND_SCRIPT, 1, *event)


def _event_id(appended: Any) -> str:
    if isinstance(appended, Exception):
        raise appended
    event_id: str = appended.decode()
    return event_id
