"""Blocking clients for commands, on the layouts of Redis that `redis.url` can name; see `connection`.

URLs, credentials and which sentinel to believe are as for the relay itself: what it can reach, code
without an event loop can reach by the same URL. Making a client connects to nothing; a cluster's does
with its first command, since redis-py's own would at once.

Redis: SENTINEL GET-MASTER-ADDR-BY-NAME, SENTINEL MASTER.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import AuthenticationError, RedisClusterException, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, SentinelConnectionPool

from relay.upstream import cluster, sentinel
from relay.upstream.connection import make_topology
from relay.upstream.link import Address, ManyHosts, RedisSettings, credentials, options

# As for the relay: a sentinel that takes longer is as good as down, and the others wait for it.
ASK_SECONDS: Final = sentinel.POLL_SECONDS


class LazyCluster:
    """A client of a cluster that is made with the first command, and again once it is of no use."""

    __slots__ = ("_client", "_options", "_seeds")

    def __init__(self, seeds: Sequence[Address], more: dict[str, Any]) -> None:
        """Nothing is connected yet. seeds: some nodes. more: redis-py's options."""
        self._seeds = seeds
        self._options = more
        self._client: RedisCluster | None = None

    def execute(self, *command: str | bytes | int) -> Any:
        """The answer of the node that holds the command's key.

        Raises:
            redis.RedisError: the node refuses, or none can be had.
        """
        try:
            return self._made().execute_command(*command)  # type: ignore[no-untyped-call]
        except RedisClusterException as error:
            raise self._lost(error) from error

    def execute_all(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        """Their answers, an exception in the place of one that was refused; raises as `execute`."""
        try:
            pipeline: Any
            with self._made().pipeline() as pipeline:  # type: ignore[no-untyped-call]
                for command in commands:
                    pipeline.execute_command(*command)
                answers: list[Any] = pipeline.execute(raise_on_error=False)
        except RedisClusterException as error:
            raise self._lost(error) from error
        return answers

    def close(self) -> None:
        """Close every connection; idempotent."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _made(self) -> RedisCluster:
        if self._client is None:
            nodes = [
                ClusterNode(host, port)  # type: ignore[no-untyped-call]
                for host, port in self._seeds
            ]
            self._client = RedisCluster(startup_nodes=nodes, **self._options)
        return self._client

    def _lost(self, error: RedisClusterException) -> RedisConnectionError:
        # redis-py has forgotten the nodes of the URL for those it found. They may be gone all at once,
        # with the names of the URL pointing to their successors: begin there again.
        self.close()
        # Not a RedisError, which is what whoever publishes is prepared for.
        return RedisConnectionError(str(error))


SyncClient: TypeAlias = redis.Redis | LazyCluster


def make_sync_client(settings: RedisSettings, timeout_seconds: float, retry: Retry) -> SyncClient:
    """A client for commands; a node is given up after `timeout_seconds`.

    Args:
        retry: what to try again, and how often; of a cluster the number alone counts.

    Raises:
        ValueError: the URL is at fault.
    """
    make_topology(settings)  # one place judges URLs of several hosts
    more = {**options(settings), "socket_timeout": timeout_seconds, "retry": retry}
    scheme = settings.url.partition("://")[0]
    if scheme == "redis+sentinel":
        return _behind_sentinels(settings, more)
    if scheme == "redis+cluster":
        url = ManyHosts.parse(settings.url, default_port=cluster.DEFAULT_PORT)
        return LazyCluster(url.hosts, {**more, **credentials(settings, url)})
    return redis.Redis.from_url(settings.url, **more)


def _behind_sentinels(settings: RedisSettings, more: dict[str, Any]) -> redis.Redis:
    url = ManyHosts.parse(
        settings.url, default_port=sentinel.DEFAULT_PORT, parameters=sentinel.PARAMETERS
    )
    service, *database = url.path
    ask_seconds = min(ASK_SECONDS, settings.connect_timeout_seconds)
    # The data nodes' credentials never go to a sentinel.
    sentinels = _Sentinels(
        url.hosts,
        {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,
            "username": url.query.get("sentinel_username"),
            "password": url.query.get("sentinel_password"),
            "socket_connect_timeout": ask_seconds,
            "socket_timeout": ask_seconds,
        },
    )
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
        service,
        sentinels,
        **{**more, **credentials(settings, url), "db": int("".join(database) or 0)},
    )
    return redis.Redis.from_pool(pool)


class _Sentinels:
    """Asks all sentinels for the master, each time a connection is made; the newest word counts.

    redis-py's own takes the first word, and so may publish on a master that was demoted, where nobody
    listens and nothing fails.
    """

    __slots__ = ("_hosts", "_options")

    def __init__(self, hosts: Sequence[Address], more: dict[str, Any]) -> None:
        self._hosts = hosts
        self._options = more

    def discover_master(self, service: str) -> Address:
        """What redis-py's pool asks of a sentinel client. Raises redis-py's own exception."""
        words, complaints = [], []
        for host in self._hosts:
            try:
                words.append(self._ask(host, service))
            except (LookupError, TypeError, ValueError):
                complaints.append(f"{host}: knows no master named {service!r}, or is no sentinel")
            except AuthenticationError as error:
                advice = "see sentinel_username and sentinel_password in redis.url"
                complaints.append(f"{host}: refuses us: {error}; {advice}")
            except RedisError as error:
                complaints.append(f"{host}: {error}")
        if not words:
            raise MasterNotFoundError(f"no sentinel names a master: {'; '.join(complaints)}")
        return max(words, key=lambda word: word[0])[1]

    def _ask(self, host: Address, service: str) -> tuple[int, Address]:
        """The epoch and the address that a sentinel tells."""
        client: Any
        with redis.Redis(host=host.host, port=host.port, **self._options) as client:
            # The address of the second answer is the old master's until a failover has ended.
            name, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
            reply = client.execute_command("SENTINEL", "MASTER", service)
        facts = dict(zip(reply[::2], reply[1::2], strict=True))
        return int(facts[b"config-epoch"]), Address(str(name, "utf-8"), int(port))
