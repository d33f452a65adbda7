"""The ways to Redis that `redis.url` can name: one server, a service behind sentinels, a cluster.

Each is a `Topology`: it opens the one link that a subscription reads, tells when that link should be
left although it still stands, and makes clients for commands. One topology keeps what it has learned
of the nodes from one link to the next, so it is made once.
"""

import asyncio
from typing import Protocol, TypeAlias

import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

from relay.core.errors import UpstreamError
from relay.upstream.cluster import ClusterTopology
from relay.upstream.link import Leaving, Link, RedisSettings, options, take
from relay.upstream.sentinel import SentinelTopology

__all__ = [
    "Client",
    "Link",
    "RedisSettings",
    "Topology",
    "make_client",
    "make_topology",
    "open_link",
]

# Both take single commands and pipelines of them; in a cluster each finds its key's node.
Client: TypeAlias = redis.asyncio.Redis | RedisCluster


class Topology(Protocol):
    """How Redis is laid out, and so which of its nodes to talk to."""

    async def open_link(self) -> Link:
        """Connect to a node that serves, with nothing left to read.

        Raises:
            UpstreamError: there is none, or it refuses us; says what to do.
        """

    async def left(self, link: Link, /) -> Leaving:
        """Return, with the reason, once the link that was opened last should be left.

        Whether it still stands is for its reader to find out. Never returns where there is nowhere
        else to go. Safe to cancel.
        """

    async def rest(self, seconds: float) -> None:
        """Wait before the next attempt to open a link; ends early if that has become worth it."""

    def make_client(self, timeout_seconds: float) -> Client:
        """A client for commands; each is given up after `timeout_seconds`."""


class SingleServer:
    """`redis://`, `rediss://` and `unix://`."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings

    async def open_link(self) -> Link:
        """See `Topology.open_link`."""
        settings = self._settings
        try:
            pool = ConnectionPool.from_url(settings.url, **options(settings))
            connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        except (RedisError, ValueError) as error:
            raise UpstreamError(str(error)) from error
        # Whether it speaks at all, and wants a password, it says only when it is asked something; this is
        # what every user may ask.
        link, _ = await take(connection, settings.connect_timeout_seconds, ["HELLO"])
        return link

    async def left(self, _: Link) -> Leaving:
        """Never: there is no other."""
        never: asyncio.Future[Leaving] = asyncio.get_running_loop().create_future()
        return await never

    async def rest(self, seconds: float) -> None:
        """See `Topology.rest`."""
        await asyncio.sleep(seconds)

    def make_client(self, timeout_seconds: float) -> redis.asyncio.Redis:
        """See `Topology.make_client`."""
        settings = self._settings
        return redis.asyncio.Redis.from_url(
            settings.url, **options(settings), socket_timeout=timeout_seconds
        )


def make_topology(settings: RedisSettings) -> Topology:
    """The layout that `settings.url` names; connects to nothing yet.

    Raises:
        ValueError: a URL of several hosts is at fault.
    """
    scheme = settings.url.partition("://")[0]
    if scheme == "redis+sentinel":
        return SentinelTopology(settings)
    if scheme == "redis+cluster":
        return ClusterTopology(settings)
    return SingleServer(settings)


def make_client(settings: RedisSettings, timeout_seconds: float) -> Client:
    """A client for commands; each is given up after `timeout_seconds`. Made in a running loop."""
    return make_topology(settings).make_client(timeout_seconds)


async def open_link(settings: RedisSettings) -> Link:
    """One link, for whoever needs no second; see `Topology.open_link`."""
    return await make_topology(settings).open_link()
