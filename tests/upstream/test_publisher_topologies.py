"""Publishers behind sentinels and in a cluster: what they send arrives, and a failover costs no key."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from click.testing import CliRunner
from redis.crc import key_slot
from redis.exceptions import RedisError

from relay.cli import main
from relay.upstream.publisher import Publisher, Receipt, SyncPublisher
from tests.upstream.cluster import MASTERS, ClusterOfSix
from tests.upstream.conftest import redis_settings
from tests.upstream.listening import SOON_SECONDS, Ear
from tests.upstream.sentinel import SentinelTrio
from tests.upstream.settling import settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from relay.demo.embedded import EmbeddedRedis

Servers: TypeAlias = SentinelTrio | ClusterOfSix
PREFIX = "relay:history:"
# A publisher that does not ask stays on the old master for 10 s and more.
MOVED_SECONDS = 5.0
_AGAIN_SECONDS = 0.1


class InThreads:
    """A `SyncPublisher` that can be awaited."""

    def __init__(self, publisher: SyncPublisher) -> None:
        self._publisher = publisher

    async def progress(self, *arguments: Any, **more: Any) -> Receipt:
        return await asyncio.to_thread(self._publisher.progress, *arguments, **more)

    async def completed(self, *arguments: Any, **more: Any) -> Receipt:
        return await asyncio.to_thread(self._publisher.completed, *arguments, **more)


Opened: TypeAlias = Publisher | InThreads
Kind: TypeAlias = type[Publisher] | type[SyncPublisher]


@asynccontextmanager
async def opened(kind: Kind, url: str, **more: Any) -> AsyncIterator[Opened]:
    async with AsyncExitStack() as stack:
        if kind is Publisher:
            yield await stack.enter_async_context(Publisher(url, **more))
        else:
            yield InThreads(stack.enter_context(SyncPublisher(url, **more)))


@pytest.fixture(params=[Publisher, SyncPublisher])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Both publishers in turn."""
    found: Kind = request.param
    return found


def started(name: str, folder: Path) -> Servers:
    return SentinelTrio(folder) if name == "sentinel" else ClusterOfSix()


@pytest.fixture(scope="module", params=["sentinel", "cluster"])
def calm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """Servers that nobody touches."""
    with started(request.param, tmp_path_factory.mktemp("calm")) as servers:
        yield servers


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[SentinelTrio]:
    with SentinelTrio(tmp_path) as trio:
        yield trio


@pytest.fixture
def cluster() -> Iterator[ClusterOfSix]:
    with ClusterOfSix() as cluster:
        yield cluster


def node_of(servers: Servers, key: str) -> EmbeddedRedis:
    """The node that holds the key while nothing has failed."""
    if isinstance(servers, SentinelTrio):
        return servers.nodes[0]
    share = -(-16_384 // MASTERS)
    return servers.nodes[key_slot(key.encode()) // share]


def kept(servers: Servers, node: EmbeddedRedis, job: str) -> list[tuple[str, str]]:
    """The id and the key of each event that is held of the job."""
    entries = servers.ask(node, "XRANGE", f"{PREFIX}{job}", "-", "+")
    return [(entry_id.decode(), fields[b"key"].decode()) for entry_id, fields in entries]


async def until_told(tell: Callable[[], Awaitable[Receipt]]) -> Receipt:
    """As documented: again and again with the same key, until it succeeds."""
    async with asyncio.timeout(SOON_SECONDS):
        while True:
            with suppress(RedisError):
                return await tell()
            await asyncio.sleep(_AGAIN_SECONDS)


# --- while all is well -----------------------------------------------------------------------------


async def test_events_reach_the_relay(calm: Servers, kind: Kind) -> None:
    payload = {"jobId": kind.__name__, "queueName": "q", "ts": 1}
    message = SyncPublisher(calm.url).compose(payload)

    async with Ear.on(redis_settings(calm.url)) as ear, AsyncExitStack() as stack:
        if kind is Publisher:
            await (await stack.enter_async_context(Publisher(calm.url))).publish(payload)
        else:
            stack.enter_context(SyncPublisher(calm.url)).publish(payload)

        await ear.hears(message.payload)


async def test_events_are_kept_and_their_queue_noted(calm: Servers, kind: Kind) -> None:
    jobs = [f"{kind.__name__}-{number}" for number in range(6)]
    queue = f"queue of {kind.__name__}"

    async with opened(kind, calm.url, history=True) as publisher:
        receipts = [await publisher.progress(job, 1, queue=queue, key="k") for job in jobs]

    held = [kept(calm, node_of(calm, f"{PREFIX}{job}"), job) for job in jobs]
    assert held == [[(receipt.event_id, "k")] for receipt in receipts]
    noted = f"{PREFIX}queue:{queue}"
    members = calm.ask(node_of(calm, noted), "ZRANGE", noted, "0", "-1")
    assert {member.decode() for member in members} == set(jobs)


async def test_event_is_kept_though_its_queue_cannot_be_noted(
    calm: Servers, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    job, noted = f"unnoted {kind.__name__}", f"{PREFIX}queue:no sorted set"
    calm.ask(node_of(calm, noted), "SET", noted, "text")

    async with opened(kind, calm.url, history=True) as publisher:
        await publisher.progress(job, 1, queue="no sorted set", key="1")
        await publisher.progress(job, 2, queue="no sorted set", key="2")

    held = kept(calm, node_of(calm, f"{PREFIX}{job}"), job)
    assert [key for _, key in held] == ["1", "2"]
    assert [record.name for record in caplog.records] == ["relay.upstream.sending"]


@pytest.mark.parametrize("backend", ["memory", "redis"])
def test_relay_publish_takes_the_url(
    calm: Servers, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RELAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RELAY_REDIS__URL", calm.url)
    monkeypatch.setenv("RELAY_HISTORY__BACKEND", backend)

    result = CliRunner().invoke(main, ["publish", f"cli-{backend}", "--result", '{"n": 1}'])

    assert result.exit_code == 0, result.output
    assert "Published on jobs:default:cli-" in result.stdout
    held = kept(calm, node_of(calm, f"{PREFIX}cli-{backend}"), f"cli-{backend}")
    assert all(f"as event {event_id}" in result.stdout for event_id, _ in held)
    assert len(held) == (backend == "redis")


# --- a failover ------------------------------------------------------------------------------------


def promoted(trio: SentinelTrio) -> EmbeddedRedis:
    """The node that took over from the first one, once it has."""

    def is_master(node: EmbeddedRedis) -> bool:
        return bool(trio.ask(node, "ROLE")[0] == b"master")

    settled(lambda: any(map(is_master, trio.nodes[1:])), "new master")
    return next(node for node in trio.nodes[1:] if is_master(node))


async def test_key_is_told_once_though_the_master_died(trio: SentinelTrio, kind: Kind) -> None:
    async with opened(kind, trio.url, history=True, timeout_seconds=1.0) as publisher:
        before = await publisher.completed("a", 1, queue="q", key="1:end")
        trio.ask(trio.nodes[0], "WAIT", "2", "900")
        trio.nodes[0].kill()

        during = await until_told(lambda: publisher.progress("b", 1, queue="q", key="2:start"))
        retried = await until_told(lambda: publisher.completed("a", 1, queue="q", key="1:end"))

    master = await asyncio.to_thread(promoted, trio)
    assert retried == before
    assert kept(trio, master, "a") == [(before.event_id, "1:end")]
    assert kept(trio, master, "b") == [(during.event_id, "2:start")]


async def test_events_reach_the_relay_again_after_a_planned_failover(
    trio: SentinelTrio, kind: Kind
) -> None:
    async with (
        Ear.on(redis_settings(trio.url)) as ear,
        opened(kind, trio.url, timeout_seconds=1.0) as publisher,
    ):
        loop = asyncio.get_running_loop()

        def tell(_: bytes) -> None:
            with suppress(RedisError):
                asyncio.run_coroutine_threadsafe(publisher.progress("1", 1), loop).result()

        await ear.hears_again(tell)
        trio.fail_over()
        await asyncio.to_thread(promoted, trio)
        async with asyncio.timeout(MOVED_SECONDS):
            await ear.is_up(2)
            await ear.hears_again(tell)


async def test_key_is_told_once_though_its_node_died(cluster: ClusterOfSix, kind: Kind) -> None:
    lost = node_of(cluster, f"{PREFIX}a")
    successor = cluster.nodes[cluster.nodes.index(lost) + MASTERS]
    async with opened(kind, cluster.url, history=True, timeout_seconds=1.0) as publisher:
        before = await publisher.completed("a", 1, queue="q", key="1:end")
        cluster.ask(lost, "WAIT", "1", "900")
        lost.kill()

        retried = await until_told(lambda: publisher.completed("a", 1, queue="q", key="1:end"))
        after = await until_told(lambda: publisher.progress("a", 1, queue="q", key="2:start"))

    assert retried == before
    held = kept(cluster, successor, "a")
    assert held == [(before.event_id, "1:end"), (after.event_id, "2:start")]


# --- what is wrong is said -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis+sentinel://a:1,b:2", "/SERVICE/DB"),
        ("redis+sentinel://a/main?sentinel_pasword=x", "sentinel_password"),
        ("redis+cluster://a:1,b:2/1", "no databases"),
        ("redis+cluster://a:1,b:x", "HOST:PORT,HOST:PORT"),
    ],
)
def test_url_at_fault_is_refused_with_what_is_right(url: str, fault: str, kind: Kind) -> None:
    with pytest.raises(ValueError, match=fault):
        kind(url)


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize(
    "url", ["redis+sentinel://127.0.0.1:1/main", "redis+cluster://127.0.0.1:1,127.0.0.1:2"]
)
async def test_servers_that_are_away_are_told_to_the_caller(
    url: str, kind: Kind, *, history: bool
) -> None:
    async with opened(kind, url, history=history) as publisher:
        with pytest.raises(RedisError, match=r"127\.0\.0\.1:[12]"):
            await publisher.progress("a", 1)


async def test_nodes_and_sentinels_each_get_their_own_password(tmp_path: Path) -> None:
    with SentinelTrio(tmp_path, node_password="inner", sentinel_password="outer") as trio:
        url = f"{trio.url}?sentinel_password=outer"
        with SyncPublisher(url, password="inner") as publisher:
            receipt = publisher.progress("a", 1)
        with (
            SyncPublisher(trio.url, password="inner") as publisher,
            pytest.raises(RedisError, match="sentinel_password"),
        ):
            publisher.progress("a", 1)

    assert receipt == Receipt(receivers=0)
