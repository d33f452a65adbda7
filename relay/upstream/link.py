"""One connection to one Redis node: opened, authenticated and secured by redis-py, then handed over.

Whoever reads a subscription takes the transport (`Link`); nothing is left to read on it. Which node
that should be is not known here: see `connection`.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, unquote

from redis.asyncio.connection import AbstractConnection, Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    NoPermissionError,
    RedisError,
    ResponseError,
    TryAgainError,
)
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


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Leaving(NamedTuple):
    """Why a link should be left or was lost, and for how long it may have missed messages by then;
    `is_loss`: also such as no server holds any more."""

    reason: str
    doubt_seconds: float
    is_loss: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A connection whose handshake is done. It must be kept: redis-py closes what it loses."""

    transport: asyncio.Transport
    connection: AbstractConnection

    async def close(self) -> None:
        """Cut it off. Idempotent."""
        self.transport.abort()
        await self.connection.disconnect(nowait=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyHosts:
    """A URL that names several hosts, `SCHEME://[user:password@]HOST[:PORT],…[/PATH][?QUERY]`."""

    username: str
    password: str
    hosts: tuple[Address, ...]
    path: tuple[str, ...]
    query: dict[str, str]

    @classmethod
    def parse(cls, url: str, *, default_port: int, parameters: Sequence[str] = ()) -> "ManyHosts":
        """Take `url` apart.

        Args:
            parameters: what may stand in the query.

        Raises:
            ValueError: there is no host, or something else stands in the query; the text does not
                repeat the URL, which may hold a password.
        """
        address, _, query = url.partition("://")[2].partition("?")
        userinfo, _, rest = address.rpartition("@")
        hosts, *path = rest.split("/")
        username, _, password = userinfo.partition(":")
        given = dict(parse_qsl(query, keep_blank_values=True))
        unknown = sorted(given.keys() - set(parameters))
        if unknown:
            known = " and ".join(parameters) or "none"
            raise ValueError(f"redis.url: unknown parameter {unknown[0]!r}; known here: {known}")
        return cls(
            username=unquote(username),
            password=unquote(password),
            hosts=tuple(_address(host, default_port) for host in hosts.split(",")),
            path=tuple(unquote(part) for part in path if part),
            query=given,
        )


def _address(text: str, default_port: int) -> Address:
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::(\d+))?", text)
    if match is None:
        raise ValueError(f"redis.url: {text!r} is no host:port; list them as HOST:PORT,HOST:PORT")
    return Address(match[1] or match[2], int(match[3] or default_port))


def options(settings: RedisSettings) -> dict[str, Any]:
    """What redis-py is to know of every connection, whatever its address."""
    found: dict[str, Any] = {
        "protocol": 2,
        "socket_connect_timeout": settings.connect_timeout_seconds,
        # Else it reads its own version from a file for each connection, which fails without a
        # descriptor left, and tells it to Redis, which takes one more right and one more answer.
        "driver_info": None,
        # Trying again is the business of whoever asked: it knows how often, and says so.
        "retry": Retry(NoBackoff(), 0),
    }
    if settings.username:
        found["username"] = settings.username
    if settings.password:
        found["password"] = settings.password
    if settings.tls_ca_file and settings.url.startswith("rediss://"):
        found["ssl_ca_certs"] = settings.tls_ca_file
    return found


def credentials(settings: RedisSettings, url: ManyHosts) -> dict[str, str]:
    """The data nodes' user and password, wherever they stand."""
    found = {
        "username": url.username or settings.username,
        "password": url.password or settings.password,
    }
    return {key: value for key, value in found.items() if value}


def connection_to(address: Address, more: dict[str, Any]) -> AbstractConnection:
    """A connection that is not open yet."""
    return Connection(host=address.host, port=address.port, **more)


def is_refusal(error: BaseException) -> bool:
    """Whether Redis would say the same again: not where it only has to find its feet after a failover."""
    passing = AskError | TryAgainError | ClusterDownError  # AskError: MOVED, too
    return isinstance(error, ResponseError) and not isinstance(error, passing)


def heed_cancellation() -> None:
    """Raise the CancelledError that redis-py may have swallowed; due after every wait for it in a loop.

    It does so where a cancellation meets it in its handshake, whether ours or a timeout's.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def take(
    connection: AbstractConnection, timeout_seconds: float, *questions: Sequence[str]
) -> tuple[Link, list[Any]]:
    """Open the connection, ask, and hand out its transport with nothing left to read on it.

    Args:
        timeout_seconds: for all of it. questions: commands; their raw replies come back in order.

    Raises:
        UpstreamError: Redis cannot be reached, or refuses us.
    """
    replies = []
    try:
        async with asyncio.timeout(timeout_seconds):
            await connection.connect()  # type: ignore[no-untyped-call]
            heed_cancellation()
            for question in questions:
                await connection.send_command(*question)
                replies.append(await connection.read_response())
                heed_cancellation()
    except BaseException as error:
        # Also where we are cancelled: a connection half made would stay open.
        await connection.disconnect(nowait=True)
        heed_cancellation()
        if isinstance(error, TimeoutError | RedisTimeoutError):
            raise UpstreamError(
                f"no answer within {timeout_seconds:.3g} s: is redis.url right?"
            ) from None
        if isinstance(error, AuthenticationError):
            raise UpstreamError(
                f"Redis refuses: {error} See redis.username and redis.password"
            ) from error
        if isinstance(error, NoPermissionError):
            raise UpstreamError(f"Redis refuses: {error}; grant it to the ACL user") from error
        if isinstance(error, OSError | RedisError):
            raise UpstreamError(str(error) or type(error).__name__) from error
        raise
    # redis-py has no public way to hand over its transport; the writer has been there since 4.2.
    writer = connection._writer
    assert writer is not None
    return Link(cast("asyncio.Transport", writer.transport), connection), replies
