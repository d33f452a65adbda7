"""A service behind sentinels: whatever becomes of its master, the subscription is on the next one soon."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import hiredis
import pytest

from relay.core.errors import UpstreamError
from relay.upstream.connection import make_client, make_topology, open_link
from tests.upstream.conftest import redis_settings
from tests.upstream.listening import CHANNEL, SOON_SECONDS, Ear, read_keys, read_until
from tests.upstream.sentinel import SERVICE, SentinelTrio
from tests.upstream.settling import settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from relay.demo.embedded import EmbeddedRedis
    from relay.upstream.connection import Link, Topology

# Sentinels and their master take 1 to 3 s for a failover here; a subscriber that is left alone stays deaf
# for 10 s and more.
MOVED_SECONDS = 5.0


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelTrio]:
    """A trio whose master nobody touches."""
    with SentinelTrio(tmp_path_factory.mktemp("calm")) as trio:
        yield trio


@pytest.fixture
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelTrio]:
    """A trio for one test."""
    with SentinelTrio(tmp_path_factory.mktemp("trio")) as trio:
        yield trio


def port_of(link: Link) -> int:
    port: int = link.transport.get_extra_info("peername")[1]
    return port


async def left_with_a_loss(topology: Topology, link: Link) -> None:
    """Stay on the master until it is left for what is lost. Sentinels of a busy machine may take a master
    for dead that is not: then it is left before, and for no other reason than that another one took over."""
    while not (leaving := await topology.left(link)).is_loss:
        assert "moved to" in leaving.reason
        assert str(port_of(link)) not in leaving.reason
        await link.close()
        while True:
            try:
                link = await topology.open_link()
                break
            except UpstreamError:
                await topology.rest(0.1)
    await link.close()


def promoted(trio: SentinelTrio) -> EmbeddedRedis:
    """The node that took over from the first one, once it has."""

    def is_master(node: EmbeddedRedis) -> bool:
        return bool(trio.ask(node, "ROLE")[0] == b"master")

    settled(lambda: any(map(is_master, trio.nodes[1:])), "new master")
    return next(node for node in trio.nodes[1:] if is_master(node))


@asynccontextmanager
async def liar(port: int, epoch: int) -> AsyncIterator[str]:
    """The address of a sentinel that gives that port for the master's."""
    writers = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        commands = hiredis.Reader()
        address = b"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n%d\r\n" % port
        state = b"*2\r\n$12\r\nconfig-epoch\r\n$%d\r\n%d\r\n" % (len(str(epoch)), epoch)
        answers = {b"GET-MASTER-ADDR-BY-NAME": address, b"MASTER": state}
        while data := await reader.read(4096):
            commands.feed(data)
            while command := commands.gets():
                writer.write(answers.get(command[1], b"-ERR no\r\n"))

    server = await asyncio.start_server(answer, "127.0.0.1")
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()


# --- the master goes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(SentinelTrio.fail_over, id="planned"),
        pytest.param(lambda trio: trio.nodes[0].freeze(), id="frozen"),
        pytest.param(lambda trio: trio.nodes[0].kill(), id="killed"),
    ],
)
async def test_subscription_follows_the_master(
    trio: SentinelTrio, fault: Callable[[SentinelTrio], None]
) -> None:
    async with Ear.on(redis_settings(trio.url)) as ear:
        await ear.hears_again(lambda payload: trio.ask(trio.nodes[0], "PUBLISH", CHANNEL, payload))

        await asyncio.to_thread(fault, trio)
        master = await asyncio.to_thread(promoted, trio)
        async with asyncio.timeout(MOVED_SECONDS):
            await ear.is_up(2)
            await ear.hears_again(lambda payload: trio.ask(master, "PUBLISH", CHANNEL, payload))

        assert len(ear.reasons) == 1


async def test_client_reads_from_whoever_is_master(trio: SentinelTrio) -> None:
    async with make_client(redis_settings(trio.url), 1.0) as client:
        trio.ask(trio.nodes[0], "SET", "key", "old")
        trio.ask(trio.nodes[0], "WAIT", "2", "900")
        before = await read_keys(client, [b"key"])

        trio.nodes[0].kill()
        trio.ask(await asyncio.to_thread(promoted, trio), "SET", "key", "new")
        async with asyncio.timeout(SOON_SECONDS):
            await read_until(client, [b"key"], [b"new"])

    assert before == [b"old"]


async def test_rest_ends_when_there_is_a_new_master_to_try(trio: SentinelTrio) -> None:
    topology = make_topology(redis_settings(trio.url))
    link = await topology.open_link()
    await link.close()
    trio.nodes[0].kill()

    async with asyncio.timeout(SOON_SECONDS):
        await topology.rest(10 * SOON_SECONDS)
        link = await topology.open_link()

    assert port_of(link) == promoted(trio).port
    await link.close()


async def test_waiting_for_a_new_master_ends_whenever_it_is_cancelled(calm: SentinelTrio) -> None:
    # redis-py swallows a cancellation that comes while it connects.
    topology = make_topology(redis_settings(calm.url))
    link = await topology.open_link()

    for moment in range(200):
        waiting = asyncio.create_task(topology.left(link))
        await asyncio.wait({waiting}, timeout=moment * 0.0001)
        waiting.cancel()
        done, _ = await asyncio.wait({waiting}, timeout=SOON_SECONDS)
        assert done, f"still waits after a cancellation {moment / 10} ms from its start"

    await link.close()


async def test_link_is_left_once_more_when_the_former_master_is_a_replica(
    trio: SentinelTrio,
) -> None:
    former = trio.nodes[0]
    topology = make_topology(redis_settings(trio.url))
    link = await topology.open_link()
    former.kill()
    moved = await asyncio.wait_for(topology.left(link), SOON_SECONDS)
    await link.close()
    link = await topology.open_link()
    leaving = asyncio.ensure_future(left_with_a_loss(topology, link))

    # It comes back as a master, takes what clients of old send it, and loses that when it is corrected.
    former.start()
    trio.ask(former, "SET", "told", "too late")
    trio.ask(former, "REPLICAOF", "127.0.0.1", str(port_of(link)))

    assert not moved.is_loss
    await asyncio.wait_for(leaving, SOON_SECONDS)


# --- sentinels that are of no use ------------------------------------------------------------------


async def test_sentinels_that_are_away_or_frozen_are_done_without(trio: SentinelTrio) -> None:
    trio.sentinels[0].kill()
    trio.sentinels[1].freeze()

    link = await open_link(redis_settings(trio.url))

    assert port_of(link) == trio.nodes[0].port
    await link.close()


async def test_no_sentinel_that_answers_is_said_with_the_address_of_each(
    trio: SentinelTrio,
) -> None:
    for sentinel in trio.sentinels:
        sentinel.kill()

    with pytest.raises(UpstreamError, match="no sentinel names a master") as refusal:
        await open_link(redis_settings(trio.url))

    assert all(str(sentinel.port) in str(refusal.value) for sentinel in trio.sentinels)


async def test_service_that_nobody_knows_is_named(calm: SentinelTrio) -> None:
    url = calm.url.replace(f"/{SERVICE}/", "/mian/")

    with pytest.raises(UpstreamError, match="knows no master named 'mian'"):
        await open_link(redis_settings(url))


async def test_server_that_is_no_sentinel_is_said_to_be_none(calm: SentinelTrio) -> None:
    url = f"redis+sentinel://127.0.0.1:{calm.nodes[0].port}/{SERVICE}"

    with pytest.raises(UpstreamError, match="is it a sentinel"):
        await open_link(redis_settings(url))


async def test_sentinel_that_gives_a_replica_for_the_master_is_not_believed(
    calm: SentinelTrio,
) -> None:
    async with liar(calm.nodes[1].port, epoch=9999) as host:
        url = calm.url.replace("://", f"://{host},")
        topology = make_topology(redis_settings(url))
        link = await topology.open_link()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(topology.left(link), 2.5)

    assert port_of(link) == calm.nodes[0].port
    await link.close()


async def test_replica_that_the_only_sentinel_names_is_refused_by_its_role(
    calm: SentinelTrio,
) -> None:
    async with liar(calm.nodes[1].port, epoch=1) as host:
        with pytest.raises(UpstreamError, match="its role is slave, not master"):
            await open_link(redis_settings(f"redis+sentinel://{host}/{SERVICE}"))


# --- credentials -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelTrio]:
    """A trio with one password on the data nodes, and another on the sentinels."""
    folder = tmp_path_factory.mktemp("guarded")
    with SentinelTrio(folder, node_password="inner", sentinel_password="outer") as trio:
        yield trio


async def test_nodes_and_sentinels_each_get_their_own_password(guarded: SentinelTrio) -> None:
    url = guarded.url.replace("://", "://:inner@") + "?sentinel_password=outer"

    link = await open_link(redis_settings(url))
    async with make_client(redis_settings(url), 1.0) as client:
        values = await read_keys(client, [b"none"])

    assert port_of(link) == guarded.nodes[0].port
    assert values == [None]
    await link.close()


async def test_password_that_sentinels_miss_is_asked_for_by_its_parameter(
    guarded: SentinelTrio,
) -> None:
    with pytest.raises(UpstreamError, match="sentinel_password"):
        await open_link(redis_settings(guarded.url, password="inner"))


async def test_password_that_nodes_miss_is_asked_for_by_the_settings_name(
    guarded: SentinelTrio,
) -> None:
    with pytest.raises(UpstreamError, match=r"redis\.password"):
        await open_link(redis_settings(guarded.url + "?sentinel_password=outer"))


# --- the URL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis+sentinel://a:1,b:2", "/SERVICE/DB"),
        ("redis+sentinel://a:1/main/x", "a number"),
        ("redis+sentinel://a:1,,b/main", "HOST:PORT,HOST:PORT"),
        ("redis+sentinel://a/main?sentinel_pasword=x", "sentinel_password"),
    ],
)
async def test_url_at_fault_is_refused_with_what_is_right(url: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make_topology(redis_settings(url))
