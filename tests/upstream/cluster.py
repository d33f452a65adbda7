"""A cluster of three masters with a replica each, on free ports."""

import os
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from relay.demo.embedded import EmbeddedRedis
from tests.upstream.settling import settled

MASTERS: Final = 3

_BINARY = os.environ.get("RELAY_TEST_REDIS_SERVER")
_SLOTS: Final = 16_384
_ARGUMENTS: Final = (
    "--cluster-enabled", "yes", "--cluster-node-timeout", "1000",
    "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
)  # fmt: skip


class ClusterOfSix:
    """A context manager that returns when the cluster serves, and leaves nothing behind.

    Attributes:
        nodes: the first three are masters at the start, the others their replicas, in that order.
    """

    def __init__(self) -> None:
        self.nodes: list[EmbeddedRedis] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            for _ in range(2 * MASTERS):
                node = EmbeddedRedis(_ARGUMENTS, binary=_BINARY)
                self.nodes.append(self._stack.enter_context(node))
            self._join()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """All nodes as `redis.url`."""
        return self.url_of(*self.nodes)

    @staticmethod
    def url_of(*nodes: EmbeddedRedis) -> str:
        """These nodes as `redis.url`."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)

    def node(self, port: int) -> EmbeddedRedis:
        """The node on that port."""
        return next(node for node in self.nodes if node.port == port)

    def ask(self, node: EmbeddedRedis, *command: str | bytes) -> Any:
        """The answer of a node."""
        with redis.Redis(
            port=node.port, protocol=2, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)
        ) as client:
            return client.execute_command(*command)

    def _join(self) -> None:
        first, *others = self.nodes
        masters, replicas = self.nodes[:MASTERS], self.nodes[MASTERS:]
        share = -(-_SLOTS // MASTERS)
        for number, node in enumerate(masters):
            bounds = (number * share, min((number + 1) * share, _SLOTS) - 1)
            self.ask(node, "CLUSTER", "ADDSLOTSRANGE", *map(str, bounds))
        for number, node in enumerate(self.nodes, start=1):
            self.ask(node, "CLUSTER", "SET-CONFIG-EPOCH", str(number))
        for node in others:
            self.ask(first, "CLUSTER", "MEET", "127.0.0.1", str(node.port))
        settled(lambda: all(map(self._knows_all, self.nodes)), "cluster in which all know all")
        for master, replica in zip(masters, replicas, strict=True):
            self.ask(replica, "CLUSTER", "REPLICATE", self.ask(master, "CLUSTER", "MYID"))
        settled(lambda: all(map(self._serves, self.nodes)), "cluster that serves")
        settled(lambda: all(map(self._has_the_data, replicas)), "replicas in step")

    def _knows_all(self, node: EmbeddedRedis) -> bool:
        lines: list[bytes] = self.ask(node, "CLUSTER", "NODES").splitlines()
        return len(lines) == len(self.nodes) and all(b" connected" in line for line in lines)

    def _has_the_data(self, replica: EmbeddedRedis) -> bool:
        return bool(self.ask(replica, "ROLE")[3] == b"connected")

    def _serves(self, node: EmbeddedRedis) -> bool:
        lines: list[bytes] = self.ask(node, "CLUSTER", "NODES").splitlines()
        replicas = sum(b"slave" in line.split()[2] for line in lines)
        info = self.ask(node, "CLUSTER", "INFO")
        return replicas == MASTERS and b"cluster_state:ok" in info
