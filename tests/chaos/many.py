"""Redis behind sentinels, and a Redis Cluster: their masters fail over every few seconds.

A master acknowledges before its replicas have the event, so a failover may lose what was acknowledged. No
proxies here: who asks for a master is told the server's own address.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException

from relay.demo.embedded import EmbeddedRedis
from relay.upstream import durable
from relay.upstream.connection import Client, RedisSettings, make_client
from relay.upstream.durable import DurableHistory
from relay.upstream.payloads import DEFAULT_CHANNEL, compose, parse_template
from relay.upstream.publisher import Receipt
from tests.chaos.faults import Fault
from tests.chaos.stage import PUBLISH_TIMEOUT_SECONDS, PUBLISHERS, read_streams
from tests.chaos.workload import Publishes
from tests.upstream.cluster import MASTERS, ClusterOfSix
from tests.upstream.sentinel import SERVICE, SentinelTrio

FAILED_OVER_SECONDS = 20.0
POLL_SECONDS = 0.1


class RecipePublisher:
    """Publishes with the script alone, over a client that follows the masters, as any language could."""

    def __init__(self, client: Client, history: DurableHistory | None) -> None:
        self._client: Any = client
        # A client that finds a master gone closes the connections of all who use it meanwhile.
        self._lock = asyncio.Lock()
        self._history = history
        self._template = parse_template(DEFAULT_CHANNEL)

    async def publish(self, payload: Mapping[str, Any], *, key: str | None = None) -> Receipt:
        """See `relay.Publisher.publish`."""
        message = compose(self._template, payload, keep_event_id=self._history is None)
        try:
            async with self._lock:
                if self._history is None:
                    told = ("PUBLISH", message.channel, message.payload)
                    return Receipt(receivers=await self._client.execute_command(*told))
                now_ms = time.time_ns() // 1_000_000
                for command in durable.queue_commands(self._history, message, now_ms):
                    await self._client.execute_command(*command)
                arguments = durable.append_arguments(self._history, message, key)
                event_id = await self._client.eval(durable.APPEND_SCRIPT, 1, *arguments)
        except redis.RedisError:
            # A master that refuses may be one no more: ask again who is.
            if isinstance(self._client, redis.asyncio.Redis):
                await self._client.connection_pool.disconnect()
            raise
        except (RedisClusterException, OSError) as error:
            raise RedisConnectionError(str(error)) from error
        return Receipt(event_id=event_id.decode())


class Clients:
    """Clients of one URL, closed together."""

    def __init__(self, url: str) -> None:
        self._settings = RedisSettings(
            url=url, username="", password="", tls_ca_file="", connect_timeout_seconds=1.0
        )
        self._clients: list[Client] = []

    def make(self) -> Client:
        """One that finds the master of each key by itself."""
        self._clients.append(make_client(self._settings, PUBLISH_TIMEOUT_SECONDS))
        return self._clients[-1]

    def publishers(self, history: DurableHistory | None) -> Sequence[Publishes]:
        """Publishers with a connection each."""
        return [RecipePublisher(self.make(), history) for _ in range(PUBLISHERS)]

    async def aclose(self) -> None:
        """Close them all."""
        for client in self._clients:
            await client.aclose()


class SentinelStage:
    """One service behind sentinels; use it as an async context manager."""

    def __init__(self, folder: Path, *, relays: int, durable: bool, choose: random.Random) -> None:
        (folder / "sentinels").mkdir()
        self._trio = SentinelTrio(folder / "sentinels")
        self._relays = relays
        self._history = DurableHistory() if durable else None
        self._choose = choose
        self._clients: Clients

    @property
    def urls(self) -> list[str]:
        """See `Stage`."""
        return [self._trio.url] * self._relays

    async def publishers(self) -> Sequence[Publishes]:
        """See `Stage`."""
        return self._clients.publishers(self._history)

    def faults(self) -> list[Fault]:
        """See `Stage`."""
        ordered = Fault("failover ordered", "redis", self._ordered)
        killed = Fault("master killed", "redis", self._killed)
        return [*[ordered, killed] * 5, Fault("master frozen", "redis", self._frozen)]

    async def held(self, job_ids: list[str]) -> dict[str, list[str]]:
        """See `Stage`."""
        return await read_streams(self._clients.make(), job_ids)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._trio.__enter__)
        for node in self._trio.nodes:
            await asyncio.to_thread(self._bound_loss, node)
        self._clients = Clients(self._trio.url)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._clients.aclose()
        await asyncio.to_thread(self._trio.__exit__, kind, error, traceback)

    async def _ordered(self) -> None:
        master = await self._master()
        # Refused while the sentinels think that the last one is too recent.
        await _until(self._accept, "failover that the sentinels accept")
        await self._left(master)
        await _until(self._is_in_step, "replicas in step")

    async def _killed(self) -> None:
        master = await self._master()
        await asyncio.to_thread(master.kill)
        await self._left(master)
        await asyncio.to_thread(self._start_as_replica, master)
        await _until(self._is_in_step, "replicas in step")

    async def _frozen(self) -> None:
        master = await self._master()
        master.freeze()
        try:
            await self._left(master)
        finally:
            # It goes on as a master until the sentinels correct it.
            master.resume()
        await _until(self._is_in_step, "replicas in step")

    async def _master(self) -> EmbeddedRedis:
        return (await asyncio.to_thread(self._named))[0]

    async def _left(self, old: EmbeddedRedis) -> None:
        """Wait until all sentinels name another master, and the same one."""
        await _until(
            lambda: len(set(self._named())) == 1 and self._named()[0] is not old, "failover"
        )

    def _accept(self) -> bool:
        self._trio.fail_over()
        return True

    def _start_as_replica(self, node: EmbeddedRedis) -> None:
        """It comes back empty: were it a master for seconds, who writes to it would lose what he wrote."""
        node.start()
        self._bound_loss(node)
        self._trio.ask(node, "REPLICAOF", "127.0.0.1", str(self._named()[0].port))

    def _bound_loss(self, node: EmbeddedRedis) -> None:
        """Have it refuse writes once its replicas have left it, as every guide to sentinels advises."""
        for name in ("min-replicas-to-write", "min-replicas-max-lag"):
            self._trio.ask(node, "CONFIG", "SET", name, "1")

    def _named(self) -> list[EmbeddedRedis]:
        """The master that each sentinel names."""
        found = []
        for sentinel in self._trio.sentinels:
            _, port = self._trio.ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            found.append(self._trio.node(int(port)))
        return found

    def _is_in_step(self) -> bool:
        """Whether all follow one master and have its data: only then may it fail."""
        named = set(self._named())
        master = next(iter(named))
        states = [self._trio.ask(node, "ROLE") for node in self._trio.nodes if node is not master]
        return len(named) == 1 and all(
            state[0] == b"slave" and state[2] == master.port and state[3] == b"connected"
            for state in states
        )


class ClusterStage:
    """A cluster of three masters with a replica each; use it as an async context manager."""

    def __init__(self, folder: Path, *, relays: int, durable: bool, choose: random.Random) -> None:
        self._cluster = ClusterOfSix()
        self._relays = relays
        self._history = DurableHistory() if durable else None
        self._choose = choose
        self._clients: Clients

    @property
    def urls(self) -> list[str]:
        """See `Stage`."""
        return [self._cluster.url] * self._relays

    async def publishers(self) -> Sequence[Publishes]:
        """See `Stage`."""
        return self._clients.publishers(self._history)

    def faults(self) -> list[Fault]:
        """See `Stage`."""
        ordered = Fault("failover ordered", "redis", self._ordered)
        killed = Fault("master killed", "redis", self._killed)
        return [*[ordered, killed] * 5, Fault("master frozen", "redis", self._frozen)]

    async def held(self, job_ids: list[str]) -> dict[str, list[str]]:
        """See `Stage`."""
        return await read_streams(self._clients.make(), job_ids)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._cluster.__enter__)
        self._clients = Clients(self._cluster.url)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._clients.aclose()
        await asyncio.to_thread(self._cluster.__exit__, kind, error, traceback)

    async def _ordered(self) -> None:
        roles = await asyncio.to_thread(self._roles)
        replica = self._choose.choice([node for node, role in roles if role == b"slave"])
        await asyncio.to_thread(self._cluster.ask, replica, "CLUSTER", "FAILOVER")
        await _until(lambda: self._role(replica) == b"master", "failover")
        await _until(self._is_in_step, "cluster in step")

    async def _killed(self) -> None:
        master = await self._some_master()
        await asyncio.to_thread(master.kill)
        await self._replaced(master)
        await asyncio.to_thread(master.start)
        await _until(self._is_in_step, "cluster in step")

    async def _frozen(self) -> None:
        master = await self._some_master()
        master.freeze()
        try:
            await self._replaced(master)
        finally:
            master.resume()
        await _until(self._is_in_step, "cluster in step")

    async def _some_master(self) -> EmbeddedRedis:
        roles = await asyncio.to_thread(self._roles)
        return self._choose.choice([node for node, role in roles if role == b"master"])

    async def _replaced(self, old: EmbeddedRedis) -> None:
        def is_so() -> bool:
            others = [node for node in self._cluster.nodes if node is not old]
            return sum(self._role(node) == b"master" for node in others) == MASTERS

        await _until(is_so, "failover")

    def _is_in_step(self) -> bool:
        nodes = self._cluster.nodes
        states = [self._cluster.ask(node, "ROLE") for node in nodes]
        replicas = [state for state in states if state[0] == b"slave"]
        return len(replicas) == len(nodes) - MASTERS and all(
            state[3] == b"connected" for state in replicas
        )

    def _roles(self) -> list[tuple[EmbeddedRedis, bytes]]:
        return [(node, self._role(node)) for node in self._cluster.nodes]

    def _role(self, node: EmbeddedRedis) -> bytes:
        role: bytes = self._cluster.ask(node, "ROLE")[0]
        return role


async def _until(is_so: Callable[[], bool], what: str) -> None:
    """Ask servers, in a thread, until it is so; that one of them is away means not yet."""

    def is_so_now() -> bool:
        try:
            return is_so()
        except redis.RedisError:
            return False

    deadline = time.monotonic() + FAILED_OVER_SECONDS
    while not await asyncio.to_thread(is_so_now):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {FAILED_OVER_SECONDS:g} s")
        await asyncio.sleep(POLL_SECONDS)
