"""A master, two replicas and three sentinels on free ports, which fail over within a second or two."""

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from relay.demo.embedded import EmbeddedRedis
from tests.upstream.settling import settled

SERVICE: Final = "main"
NODES: Final = 3

_BINARY = os.environ.get("RELAY_TEST_REDIS_SERVER")
_DOWN_AFTER_MS = 500
_FAILOVER_TIMEOUT_MS = 3000


class SentinelTrio:
    """A context manager that returns when all know of one another, and leaves nothing behind.

    Attributes:
        nodes: the data nodes; the first one is the master at the start.
        sentinels: all three know the service under `SERVICE`.
    """

    def __init__(
        self, folder: Path, *, node_password: str = "", sentinel_password: str = ""
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: an empty one, for the sentinels' state.
            node_password: of the data nodes. sentinel_password: of the sentinels. Empty: none.
        """
        self.nodes: list[EmbeddedRedis] = []
        self.sentinels: list[EmbeddedRedis] = []
        self._folder = folder
        self._node_password = node_password
        self._sentinel_password = sentinel_password
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._start_nodes()
            for number in range(NODES):
                file = self._configuration(number)
                sentinel = EmbeddedRedis(["--sentinel"], binary=_BINARY, config_file=file)
                self.sentinels.append(self._stack.enter_context(sentinel))
            settled(lambda: all(map(self._knows_all, self.sentinels)), "sentinels that know all")
            settled(lambda: all(map(self._has_the_data, self.nodes[1:])), "replicas in step")
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
        """The trio as `redis.url`, without credentials."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    def node(self, port: int) -> EmbeddedRedis:
        """The data node on that port."""
        return next(node for node in self.nodes if node.port == port)

    def fail_over(self) -> None:
        """Order a failover, as for maintenance; does not wait for it."""
        self.ask(self.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)

    def ask(self, server: EmbeddedRedis, *command: str | bytes) -> Any:
        """The answer of a node or a sentinel."""
        is_node = server in self.nodes
        password = self._node_password if is_node else self._sentinel_password
        with redis.Redis(
            port=server.port,
            password=password or None,
            protocol=2,
            socket_timeout=1.0,
            # A node that is promoted or demoted closes what is connected to it.
            retry=Retry(ConstantBackoff(0.05), 3),
        ) as client:
            return client.execute_command(*command)

    def _start_nodes(self) -> None:
        # A replica that is asked to be quick does not wait for others before it takes the data over.
        arguments = ["--repl-diskless-sync-delay", "0"]
        if self._node_password:
            password = self._node_password
            arguments += ["--requirepass", password, "--masterauth", password]
        for _ in range(NODES):
            node = self._stack.enter_context(EmbeddedRedis(arguments, binary=_BINARY))
            if not self.nodes:
                arguments = [*arguments, "--replicaof", "127.0.0.1", str(node.port)]
            self.nodes.append(node)

    def _configuration(self, number: int) -> Path:
        lines = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.nodes[0].port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} {_FAILOVER_TIMEOUT_MS}",
        ]
        if self._node_password:
            lines.append(f"sentinel auth-pass {SERVICE} {self._node_password}")
        if self._sentinel_password:
            lines.append(f"requirepass {self._sentinel_password}")
        file = self._folder / f"sentinel-{number}.conf"
        file.write_text("\n".join(lines) + "\n")
        return file

    def _has_the_data(self, replica: EmbeddedRedis) -> bool:
        return bool(self.ask(replica, "ROLE")[3] == b"connected")

    def _knows_all(self, sentinel: EmbeddedRedis) -> bool:
        reply = self.ask(sentinel, "SENTINEL", "MASTER", SERVICE)
        facts = dict(zip(reply[::2], reply[1::2], strict=True))
        others = (int(facts[b"num-slaves"]), int(facts[b"num-other-sentinels"]))
        return others == (NODES - 1, NODES - 1) and facts[b"flags"] == b"master"
