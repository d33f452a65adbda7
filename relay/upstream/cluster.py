"""Keeps a connection to any one node of a cluster that is in touch with the others.

A cluster passes what is published on one node to all of them, so one subscription on any node hears
everything; nobody but us moves it when its node dies, or lives on cut off from the rest. A node is cut
off where it does not see most of the masters that hold slots. That is not `cluster_state:fail`, which
every node says for a moment in each failover, while messages still flow.

Redis: CLUSTER SLOTS for where the nodes are, CLUSTER NODES for what a node sees of them.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

import redis.asyncio
from redis.asyncio.cluster import ClusterNode, ClusterPipeline, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from relay.core.errors import UpstreamError
from relay.upstream.link import (
    Address,
    Leaving,
    Link,
    ManyHosts,
    RedisSettings,
    connection_to,
    credentials,
    heed_cancellation,
    options,
    take,
)

CHECK_SECONDS: Final = 1.0
DEFAULT_PORT: Final = 6379
COMMAND_RETRIES: Final = 2

_SLOTS: Final = ("CLUSTER", "SLOTS")
_NODES: Final = ("CLUSTER", "NODES")


class ClusterTopology:
    """One cluster: `redis+cluster://HOST:PORT,HOST:PORT`, of whose nodes the URL names a few.

    Raises:
        ValueError: the URL is at fault.
    """

    def __init__(self, settings: RedisSettings) -> None:
        url = ManyHosts.parse(settings.url, default_port=DEFAULT_PORT)
        if url.path:
            raise ValueError("redis.url: a cluster has no databases; should end after the hosts")
        self._seeds = url.hosts
        self._timeout_seconds = settings.connect_timeout_seconds
        self._options = {**options(settings), **credentials(settings, url)}
        self._nodes: list[Address] = []  # as last heard from the cluster itself
        self._used: Address | None = None  # the node of the link, or of the last one
        self._seen = (frozenset[str](), True)  # what it saw of the masters when it was linked

    async def open_link(self) -> Link:
        """Connect to a node; they are tried in turn, and share `connect_timeout_seconds`.

        Raises:
            UpstreamError: none can be used; says why for each.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_seconds
        untried = self._in_order()
        complaints = []
        while untried:
            # One that is frozen must not use up the time of those that are not.
            share_seconds = max(deadline - loop.time(), 0) / len(untried)
            address = untried.pop(0)
            try:
                return await self._open(address, share_seconds)
            except UpstreamError as error:
                complaints.append(f"{address}: {error}")
        raise UpstreamError(f"no node of the cluster can be used: {'; '.join(complaints)}")

    async def left(self, _: Link) -> Leaving:
        """Return, with the reason, once the link that was opened last should be left."""
        assert self._used is not None
        loop = asyncio.get_running_loop()
        whole_at = loop.time()  # when everything that was published came to us for certain
        host, port = self._used
        node: dict[str, Any] = {"host": host, "port": port, "socket_timeout": self._timeout_seconds}
        masters, calm = self._seen
        disturbed = not calm
        async with redis.asyncio.Redis(**node, **self._options) as client:
            while True:
                heed_cancellation()
                await asyncio.sleep(CHECK_SECONDS)
                try:
                    slots = await client.execute_command(*_SLOTS)  # type: ignore[no-untyped-call]
                    nodes = await client.execute_command(*_NODES)  # type: ignore[no-untyped-call]
                except (RedisError, OSError):
                    disturbed = True
                    continue  # whether the link itself still lives, its reader finds out
                if is_cut_off(nodes.decode()):
                    reason = f"{self._used} is cut off from the cluster"
                    return Leaving(reason, loop.time() - whole_at)
                self._nodes = list(_addresses(slots, host))
                before, (masters, calm) = masters, masters_seen(nodes.decode())
                if masters != before or not calm:
                    disturbed = True
                elif disturbed:
                    reason = "the cluster's nodes were out of touch: messages may be missing"
                    return Leaving(reason, loop.time() - whole_at)
                else:
                    whole_at = loop.time()

    async def rest(self, seconds: float) -> None:
        """Wait before the next attempt."""
        await asyncio.sleep(seconds)

    def make_client(self, timeout_seconds: float) -> RedisCluster:
        """A client that sends each command to the node that holds its key."""
        return _Client(
            startup_nodes=[ClusterNode(host, port) for host, port in self._seeds],
            socket_timeout=timeout_seconds,
            **{**self._options, "retry": Retry(NoBackoff(), COMMAND_RETRIES)},
        )

    def _in_order(self) -> list[Address]:
        """Every node we know: those of the cluster, then those of the URL, the one just lost last."""
        # At random, so that many relays spread over the nodes.
        nodes = random.sample(self._nodes, len(self._nodes))
        return sorted(dict.fromkeys((*nodes, *self._seeds)), key=lambda node: node == self._used)

    async def _open(self, address: Address, timeout_seconds: float) -> Link:
        connection = connection_to(address, self._options)
        link, (slots, nodes) = await take(connection, timeout_seconds, _SLOTS, _NODES)
        if is_cut_off(nodes.decode()):
            await link.close()
            raise UpstreamError("is cut off from the cluster: see its CLUSTER NODES")
        self._nodes = list(_addresses(slots, address.host))
        self._used = address
        self._seen = masters_seen(nodes.decode())
        return link


class _Pipeline(ClusterPipeline):
    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> Any:
        answers = await super().execute(raise_on_error, allow_redirections)
        # redis-py looks again for who holds which keys after a single command that failed, but not
        # after one in a pipeline; the keys of a frozen node would stay out of reach.
        if any(isinstance(each, RedisConnectionError | RedisTimeoutError) for each in answers):
            await self.cluster_client.aclose()
        return answers


class _Client(RedisCluster):
    async def initialize(self, *args: Any, **more: Any) -> RedisCluster:
        try:
            return await super().initialize(*args, **more)
        except RedisClusterException as error:
            # redis-py forgets the nodes that it was given for those it found. They may be gone all at
            # once, with the given names pointing to their successors.
            given = {node.name: node for node in self.startup_nodes}
            self.nodes_manager.startup_nodes.update(given)
            # Not a RedisError, which is what whoever uses a client is prepared for.
            raise RedisConnectionError(str(error)) from error

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        return _Pipeline(self, transaction)  # type: ignore[abstract]  # only for a type checker


def is_cut_off(nodes: str) -> bool:
    """Whether the node that gave this answer to CLUSTER NODES sees too few masters to be in touch.

    A line is: id, address, flags, master, ping, pong, epoch, link state, and slots if it has any.
    """
    lines = [line.split(" ") for line in nodes.splitlines()]
    flags = [line[2].split(",") for line in lines if len(line) > 8]
    masters = [each for each in flags if "master" in each]
    seen = [each for each in masters if "fail" not in each and "fail?" not in each]
    return len(seen) <= len(masters) // 2


def masters_seen(nodes: str) -> tuple[frozenset[str], bool]:
    """The masters that hold slots, by id, in an answer to CLUSTER NODES; and whether the node that gave it
    is in touch with each of them."""
    lines = [line.split(" ") for line in nodes.splitlines()]
    masters = [line for line in lines if len(line) > 8 and "master" in line[2].split(",")]
    calm = all(
        line[7] == "connected" and not {"fail", "fail?"} & set(line[2].split(","))
        for line in masters
    )
    return frozenset(line[0] for line in masters), calm


def _addresses(slots: Sequence[Any], asked_host: str) -> Iterator[Address]:
    """The nodes in an answer to CLUSTER SLOTS, each once."""
    found = {}
    for _, _, *nodes in slots:
        for host, port, *_ in nodes:
            # Empty: reach it as you reached me. "?": the node itself does not know.
            name = host.decode() if host and host != b"?" else asked_host
            found[Address(name, int(port))] = True
    return iter(found)
