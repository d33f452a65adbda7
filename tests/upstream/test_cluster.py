"""A cluster: one subscription on any node hears all, and moves when its node is of no more use."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from relay.core.errors import UpstreamError
from relay.upstream.cluster import CHECK_SECONDS, is_cut_off, masters_seen
from relay.upstream.connection import make_client, make_topology, open_link
from tests.upstream.cluster import MASTERS, ClusterOfSix
from tests.upstream.conftest import redis_settings
from tests.upstream.listening import CHANNEL, SOON_SECONDS, Ear, read_keys, read_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from relay.demo.embedded import EmbeddedRedis

# No failover is waited for: another node is there at once.
MOVED_SECONDS = 5.0
KEYS = [b"key-%d" % number for number in range(40)]


@pytest.fixture(scope="module")
def calm() -> Iterator[ClusterOfSix]:
    """A cluster that nobody touches."""
    with ClusterOfSix() as cluster:
        yield cluster


@pytest.fixture
def cluster() -> Iterator[ClusterOfSix]:
    """A cluster for one test."""
    with ClusterOfSix() as cluster:
        yield cluster


def used_node(cluster: ClusterOfSix) -> EmbeddedRedis:
    """The one that the relay is subscribed at."""
    (node,) = (n for n in cluster.nodes if b"name=relay " in cluster.ask(n, "CLIENT", "LIST"))
    return node


# --- what it hears ---------------------------------------------------------------------------------


async def test_what_any_node_is_given_is_heard(calm: ClusterOfSix) -> None:
    async with Ear.on(redis_settings(calm.url)) as ear:
        for number, node in enumerate(calm.nodes):
            calm.ask(node, "PUBLISH", CHANNEL, b"from %d" % number)

        for number in range(len(calm.nodes)):
            await ear.hears(b"from %d" % number)


# --- its node goes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(lambda _, node: node.kill(), "closed|lost", id="killed"),
        pytest.param(lambda _, node: node.freeze(), "no answer to PING", id="frozen"),
        pytest.param(
            lambda cluster, node: cluster.ask(node, "CLUSTER", "RESET"), "cut off", id="cut-off"
        ),
    ],
)
async def test_subscription_moves_to_another_node(
    cluster: ClusterOfSix,
    fault: Callable[[ClusterOfSix, EmbeddedRedis], None],
    reason: str,
) -> None:
    async with Ear.on(redis_settings(cluster.url), health_check_seconds=1.0) as ear:
        node = used_node(cluster)
        other = next(each for each in cluster.nodes if each is not node)

        fault(cluster, node)
        async with asyncio.timeout(MOVED_SECONDS):
            await ear.is_up(2)
            await ear.hears_again(lambda payload: cluster.ask(other, "PUBLISH", CHANNEL, payload))

        (said,) = ear.reasons
        assert re.search(reason, said)


async def test_node_that_the_url_does_not_name_serves_when_the_named_one_is_gone(
    cluster: ClusterOfSix,
) -> None:
    named = cluster.nodes[0]
    topology = make_topology(redis_settings(cluster.url_of(named)))
    link = await topology.open_link()
    await link.close()
    named.kill()

    link = await topology.open_link()

    assert link.transport.get_extra_info("peername")[1] != named.port
    await link.close()


async def test_frozen_node_leaves_the_others_time_to_answer(cluster: ClusterOfSix) -> None:
    frozen, other = cluster.nodes[0], cluster.nodes[1]
    frozen.freeze()
    settings = redis_settings(cluster.url_of(frozen, other), connect_timeout_seconds=2.0)

    link = await open_link(settings)

    assert link.transport.get_extra_info("peername")[1] == other.port
    await link.close()


async def test_no_node_to_be_had_is_said_with_the_reason_of_each() -> None:
    url = "redis+cluster://127.0.0.1:1,127.0.0.1:2"

    with pytest.raises(UpstreamError, match=r"127\.0\.0\.1:1: .*127\.0\.0\.1:2: "):
        await open_link(redis_settings(url))


async def test_server_that_is_no_cluster_is_refused(shared_redis: EmbeddedRedis) -> None:
    with pytest.raises(UpstreamError, match="cluster support disabled"):
        await open_link(redis_settings(f"redis+cluster://127.0.0.1:{shared_redis.port}"))


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis+cluster://a:1,b:2/1", "no databases"),
        ("redis+cluster://a:1,b:x", "HOST:PORT,HOST:PORT"),
        ("redis+cluster://a?db=1", "'db'"),
    ],
)
async def test_url_at_fault_is_refused_with_what_is_right(url: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make_topology(redis_settings(url))


# --- who is in touch -------------------------------------------------------------------------------


def nodes_seen(*flags: str) -> str:
    return "".join(
        f"id{number} 10.0.0.{number}:6379@16379 {flag} - 0 0 1 connected{slots}\n"
        for number, (flag, slots) in enumerate(
            (flag, " 0-99" if "master" in flag else "") for flag in flags
        )
    )


@pytest.mark.parametrize(
    ("flags", "cut_off"),
    [
        (("myself,master", "master", "master"), False),
        (("myself,master", "master", "master,fail"), False),
        (("myself,master", "master,fail?", "master,fail"), True),
        (("myself,slave", "master", "master", "master,fail"), False),
        (("myself,slave", "master", "master,fail?", "master,fail"), True),
        (("myself,slave", "slave"), True),
        (("myself,master", "master,fail?"), True),
    ],
)
def test_node_is_cut_off_without_most_masters(flags: tuple[str, ...], cut_off: bool) -> None:
    assert is_cut_off(nodes_seen(*flags)) is cut_off


def test_masters_without_slots_do_not_count() -> None:
    fresh = "id9 10.0.0.9:6379@16379 master - 0 0 1 connected\n"

    assert not is_cut_off(nodes_seen("myself,master") + fresh)
    assert is_cut_off(fresh)


@pytest.mark.parametrize(
    ("flags", "masters", "calm"),
    [
        (("myself,master", "master", "slave"), {"id0", "id1"}, True),
        (("myself,slave", "master", "master,fail?"), {"id1", "id2"}, False),
        (("myself,master", "master,fail", "slave,fail"), {"id0", "id1"}, False),
        (("myself,master", "slave,fail"), {"id0"}, True),
    ],
)
def test_node_is_calm_while_it_is_in_touch_with_every_master(
    flags: tuple[str, ...], masters: set[str], calm: bool
) -> None:
    assert masters_seen(nodes_seen(*flags)) == (frozenset(masters), calm)


def test_node_whose_link_to_a_master_is_down_is_not_calm() -> None:
    nodes = nodes_seen("myself,master", "master")
    nodes = nodes.replace("connected", "disconnected").replace("disconnected", "connected", 1)

    assert masters_seen(nodes)[1] is False


async def test_link_is_left_once_when_another_master_was_lost_and_all_is_calm_again(
    cluster: ClusterOfSix,
) -> None:
    used, other = cluster.nodes[0], cluster.nodes[1]
    topology = make_topology(redis_settings(cluster.url_of(used)))
    link = await topology.open_link()
    leaving = asyncio.ensure_future(topology.left(link))

    killed_at = time.monotonic()
    other.kill()
    reason, doubt_seconds, _ = await asyncio.wait_for(leaving, 3 * SOON_SECONDS)
    passed_seconds = time.monotonic() - killed_at
    await link.close()

    assert "out of touch" in reason
    assert doubt_seconds >= passed_seconds - CHECK_SECONDS


# --- commands --------------------------------------------------------------------------------------


async def test_keys_are_read_from_whichever_nodes_hold_them(calm: ClusterOfSix) -> None:
    async with make_client(redis_settings(calm.url_of(calm.nodes[0])), 1.0) as client:
        await asyncio.gather(*(client.set(key, key) for key in KEYS))

        values = await read_keys(client, [*KEYS, b"none"])

    assert values == [*KEYS, None]


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_keys_are_read_again_once_a_replica_took_over(
    cluster: ClusterOfSix, fault: str
) -> None:
    async with make_client(redis_settings(cluster.url), 0.5) as client:
        await asyncio.gather(*(client.set(key, key) for key in KEYS))
        for master in cluster.nodes[:MASTERS]:
            cluster.ask(master, "WAIT", "1", "900")
        await read_keys(client, KEYS)

        getattr(cluster.nodes[0], fault)()
        async with asyncio.timeout(SOON_SECONDS):
            await read_until(client, KEYS, KEYS)


async def test_nodes_that_are_all_away_are_a_redis_error(cluster: ClusterOfSix) -> None:
    client = make_client(redis_settings(cluster.url), 0.5)
    for node in cluster.nodes:
        node.kill()

    with pytest.raises(RedisConnectionError):
        await read_keys(client, KEYS)
    await client.aclose()
