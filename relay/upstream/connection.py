"""Opens, authenticates and secures connections to Redis, with redis-py, from the `[redis]` settings.

Whoever reads a subscription takes the transport over from redis-py (`Link`); everything else uses a client.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import redis.asyncio
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from relay.core.errors import UpstreamError


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """How to reach Redis. Credentials stand in `url` or in `username` and `password`, not in both."""

    url: str
    username: str
    password: str
    tls_ca_file: str
    connect_timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Link:
    """A connection whose handshake is done. It must be kept: redis-py closes what it loses."""

    transport: asyncio.Transport
    connection: AbstractConnection

    async def close(self) -> None:
        """Cut it off. Idempotent."""
        self.transport.abort()
        await self.connection.disconnect(nowait=True)


def _options(settings: RedisSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_connect_timeout": settings.connect_timeout_seconds,
        # Trying again is the business of whoever asked: it knows how often, and says so.
        "retry": Retry(NoBackoff(), 0),
    }
    if settings.username:
        options["username"] = settings.username
    if settings.password:
        options["password"] = settings.password
    if settings.tls_ca_file and settings.url.startswith("rediss://"):
        options["ssl_ca_certs"] = settings.tls_ca_file
    return options


def make_client(settings: RedisSettings, timeout_seconds: float) -> redis.asyncio.Redis:
    """A client for commands; each is given up after `timeout_seconds`."""
    return redis.asyncio.Redis.from_url(
        settings.url, **_options(settings), socket_timeout=timeout_seconds
    )


async def open_link(settings: RedisSettings) -> Link:
    """Connect, and hand out the transport with nothing left to read on it.

    Raises:
        UpstreamError: Redis cannot be reached, or refuses us.
    """
    try:
        pool = ConnectionPool.from_url(settings.url, **_options(settings))
        connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    except (RedisError, ValueError) as error:
        raise UpstreamError(str(error)) from error
    try:
        async with asyncio.timeout(settings.connect_timeout_seconds):
            await connection.connect()  # type: ignore[no-untyped-call]
            # redis-py swallows a cancellation that meets it in its handshake, ours and the timeout's.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError
    except BaseException as error:
        # Also where we are cancelled: a connection half made would stay open.
        await connection.disconnect(nowait=True)
        if isinstance(error, TimeoutError | RedisTimeoutError):
            raise UpstreamError(
                f"no answer within {settings.connect_timeout_seconds:g} s: is redis.url right?"
            ) from None
        if isinstance(error, AuthenticationError):
            raise UpstreamError(
                f"Redis refuses: {error} See redis.username and redis.password"
            ) from error
        if isinstance(error, OSError | RedisError):
            raise UpstreamError(str(error) or type(error).__name__) from error
        raise
    # redis-py has no public way to hand over its transport; the writer has been there since 4.2.
    writer = connection._writer
    assert writer is not None
    return Link(cast("asyncio.Transport", writer.transport), connection)
