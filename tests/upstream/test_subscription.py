"""The one subscription against a real server that is killed, frozen, cut off and grudging."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Self

import hiredis
import pytest
import redis
from structlog.testing import capture_logs

from relay.demo.embedded import EmbeddedRedis
from relay.upstream.reader import MAX_TURN_BYTES, Reader
from relay.upstream.subscription import BACKOFF_BASE_SECONDS, Subscription
from tests.proxy import Proxy
from tests.upstream.conftest import redis_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from relay.upstream.connection import RedisSettings

# Far above what anything takes on a busy machine, far below what a human waits for.
SOON_SECONDS = 15.0
HEALTH_CHECK_SECONDS = 1.0
# What one read of a socket brings at most, on either loop.
MAX_READ_BYTES = 256 * 1024

Batch = list[list[bytes]]


class Listener:
    """A running subscription, and what it told."""

    def __init__(
        self,
        settings: RedisSettings,
        patterns: Sequence[str] = ("jobs:*",),
        *,
        health_check_seconds: float = 60.0,
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self.batches: list[Batch] = []
        self.changes: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.subscription = Subscription(
            settings,
            patterns,
            health_check_seconds=health_check_seconds,
            backoff_max_seconds=0.2,
            on_batch=self._take,
            on_up=lambda: self.changes.put_nowait(("up", "")),
            on_down=lambda leaving: self.changes.put_nowait(("down", leaving.reason)),
        )
        self._on_batch = on_batch
        self._news = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def of(cls, settings: RedisSettings, **options: Any) -> AsyncIterator[Self]:
        """Running until the end of the block."""
        listener = cls(settings, **options)
        running = asyncio.create_task(listener.subscription.run())
        try:
            yield listener
        finally:
            running.cancel()
            await asyncio.wait({running})

    @property
    def payloads(self) -> list[bytes]:
        return [message[3] for batch in self.batches for message in batch]

    async def up(self) -> None:
        """The next change is that it is subscribed."""
        assert await self._change() == ("up", "")

    async def down(self) -> str:
        """The next change is that the link is lost; why."""
        change, reason = await self._change()
        assert change == "down"
        return reason

    async def heard(self, count: int) -> list[bytes]:
        """The payloads, once there are so many."""
        async with asyncio.timeout(SOON_SECONDS):
            while sum(map(len, self.batches)) < count:
                self._news.clear()
                await self._news.wait()
        return self.payloads

    async def _change(self) -> tuple[str, str]:
        async with asyncio.timeout(SOON_SECONDS):
            return await self.changes.get()

    def _take(self, batch: Batch) -> None:
        self.batches.append(batch)
        self._news.set()
        self._on_batch(batch)


class Log:
    """What is logged meanwhile."""

    def __init__(self) -> None:
        self._entries: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    @classmethod
    @contextmanager
    def captured(cls) -> Iterator[Self]:
        log = cls()
        with capture_logs(processors=[log._take]):
            yield log

    def _take(self, logger: Any, method: str, entry: Any) -> Any:
        self._entries.put_nowait(dict(entry))
        return entry

    async def next(self, event: str) -> dict[str, Any]:
        """The next line of this event."""
        async with asyncio.timeout(SOON_SECONDS):
            while (entry := await self._entries.get())["event"] != event:
                pass
        return entry


def publish(server: EmbeddedRedis, *payloads: bytes, channel: str = "jobs:q:1") -> None:
    with redis.Redis.from_url(server.url) as client, client.pipeline(transaction=False) as pipeline:
        for payload in payloads:
            pipeline.publish(channel, payload)
        pipeline.execute()


def command(server: EmbeddedRedis, *words: str) -> Any:
    with redis.Redis.from_url(server.url) as client:
        return client.execute_command(*words)


# --- what it brings --------------------------------------------------------------------------------


async def test_messages_arrive_in_order_with_their_pattern_and_channel(
    shared_redis: EmbeddedRedis,
) -> None:
    sent = [b"%d" % number for number in range(2000)]
    async with Listener.of(redis_settings(shared_redis.url)) as listener:
        await listener.up()

        publish(shared_redis, *sent)
        heard = await listener.heard(len(sent))

    assert heard == sent
    assert listener.batches[0][0] == [b"pmessage", b"jobs:*", b"jobs:q:1", b"0"]
    assert len(listener.batches) < len(sent) / 10


async def test_every_pattern_is_subscribed_before_it_says_that_it_is_up(
    shared_redis: EmbeddedRedis,
) -> None:
    patterns = ["jobs:*", "tasks-*"]
    async with Listener.of(redis_settings(shared_redis.url), patterns=patterns) as listener:
        await listener.up()

        publish(shared_redis, b"of the first")
        publish(shared_redis, b"of the second", channel="tasks-1")
        heard = await listener.heard(2)

    assert heard == [b"of the first", b"of the second"]


async def test_unix_socket_brings_messages(shared_redis: EmbeddedRedis) -> None:
    async with Listener.of(redis_settings(f"unix://{shared_redis.unix_path}")) as listener:
        await listener.up()

        publish(shared_redis, b"over a unix socket")

        assert await listener.heard(1) == [b"over a unix socket"]


@pytest.mark.tool
async def test_tls_brings_floods_of_messages_in_order(tls_redis: RedisSettings) -> None:
    sent = [b"%d " % number + bytes(10_000) for number in range(300)]
    async with Listener.of(tls_redis) as listener:
        await listener.up()
        with redis.Redis.from_url(tls_redis.url, ssl_ca_certs=tls_redis.tls_ca_file) as client:
            for payload in sent:
                client.publish("jobs:q:1", payload)

        assert await listener.heard(len(sent)) == sent


async def test_barrier_waits_for_what_was_published_before_it(shared_redis: EmbeddedRedis) -> None:
    async with Listener.of(redis_settings(shared_redis.url)) as listener:
        await listener.up()

        publish(shared_redis, b"before")
        await listener.subscription.barrier()

        assert listener.payloads == [b"before"]


async def test_name_is_shown_in_the_servers_list_of_clients(own_redis: EmbeddedRedis) -> None:
    async with Listener.of(redis_settings(own_redis.url)) as listener:
        await listener.up()

        with redis.Redis.from_url(own_redis.url) as client:
            names = [entry["name"] for entry in client.client_list()]

    assert "relay" in names


async def test_bug_of_who_takes_the_batches_ends_the_subscription(
    shared_redis: EmbeddedRedis,
) -> None:
    def fail(batch: Batch) -> None:
        raise ZeroDivisionError

    listener = Listener(redis_settings(shared_redis.url), on_batch=fail)
    running = asyncio.create_task(listener.subscription.run())
    await listener.up()

    publish(shared_redis, b"any")

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(running, SOON_SECONDS)


# --- Redis goes and comes --------------------------------------------------------------------------


async def test_killed_server_is_noticed_and_subscribed_to_again_when_it_is_back(
    own_redis: EmbeddedRedis,
) -> None:
    async with Listener.of(redis_settings(own_redis.url)) as listener:
        await listener.up()

        own_redis.kill()
        killed_at = time.monotonic()
        await listener.down()
        noticed_after = time.monotonic() - killed_at
        own_redis.start()
        await listener.up()
        publish(own_redis, b"after")

        assert await listener.heard(1) == [b"after"]
    assert noticed_after < 1.0


async def test_server_that_is_away_at_the_start_is_waited_for(own_redis: EmbeddedRedis) -> None:
    own_redis.kill()
    with Log.captured() as log:
        async with Listener.of(redis_settings(own_redis.url)) as listener:
            first = await log.next("redis_connect_failed")
            second = await log.next("redis_connect_failed")
            own_redis.start()

            await listener.up()

    assert str(own_redis.port) in first["error"]
    assert (first["attempt"], second["attempt"]) == (1, 2)


async def test_frozen_server_is_noticed_within_the_health_check(own_redis: EmbeddedRedis) -> None:
    settings = redis_settings(own_redis.url, connect_timeout_seconds=0.5)
    async with Listener.of(settings, health_check_seconds=HEALTH_CHECK_SECONDS) as listener:
        await listener.up()

        own_redis.freeze()
        frozen_at = time.monotonic()
        reason = await listener.down()
        noticed_after = time.monotonic() - frozen_at
        own_redis.resume()
        await listener.up()
        publish(own_redis, b"after")

        assert await listener.heard(1) == [b"after"]
    assert noticed_after <= 2 * HEALTH_CHECK_SECONDS
    assert "PING" in reason


async def test_half_open_link_is_noticed_within_the_health_check(
    shared_redis: EmbeddedRedis,
) -> None:
    async with Proxy(shared_redis.port) as proxy:
        settings = redis_settings(proxy.url, connect_timeout_seconds=0.5)
        async with Listener.of(settings, health_check_seconds=HEALTH_CHECK_SECONDS) as listener:
            await listener.up()

            proxy.swallowing = True
            swallowed_at = time.monotonic()
            await listener.down()
            noticed_after = time.monotonic() - swallowed_at
            proxy.swallowing = False
            await listener.up()
            publish(shared_redis, b"after")

            assert await listener.heard(1) == [b"after"]
    assert noticed_after <= 2 * HEALTH_CHECK_SECONDS


async def test_slow_link_is_not_taken_for_a_lost_one(shared_redis: EmbeddedRedis) -> None:
    async with (
        Proxy(shared_redis.port) as proxy,
        Listener.of(redis_settings(proxy.url), health_check_seconds=0.6) as listener,
    ):
        await listener.up()

        proxy.delay_seconds = 0.1
        await asyncio.sleep(2 * 0.6)  # no event tells that nothing happens
        publish(shared_redis, b"late")

        assert await listener.heard(1) == [b"late"]
        assert listener.changes.empty()


async def test_connection_that_redis_closes_is_made_again(own_redis: EmbeddedRedis) -> None:
    async with Listener.of(redis_settings(own_redis.url)) as listener:
        await listener.up()

        command(own_redis, "CLIENT", "KILL", "TYPE", "pubsub")
        reason = await listener.down()
        await listener.up()
        publish(own_redis, b"after")

        assert await listener.heard(1) == [b"after"]
    assert reason == "closed by Redis"


async def test_connection_that_the_network_resets_is_made_again(
    shared_redis: EmbeddedRedis,
) -> None:
    async with (
        Proxy(shared_redis.port) as proxy,
        Listener.of(redis_settings(proxy.url)) as listener,
    ):
        await listener.up()

        proxy.reset()
        await listener.down()
        await listener.up()

        assert proxy.accepted == 2


# --- refusals --------------------------------------------------------------------------------------


async def test_missing_password_is_told_and_is_no_matter_once_it_is_not_asked_for() -> None:
    with EmbeddedRedis(("--requirepass", "secret")) as server, Log.captured() as log:
        async with Listener.of(redis_settings(server.url)) as listener:
            refusal = await log.next("redis_connect_failed")
            with redis.Redis.from_url(server.url, password="secret") as client:
                client.config_set("requirepass", "")

            await listener.up()

    assert "redis.password" in refusal["error"]


@pytest.mark.parametrize(
    "rights", [[], ["+psubscribe", "&jobs:*"], ["+ping", "&jobs:*"], ["+psubscribe", "+ping"]]
)
async def test_rights_that_a_refusal_asks_for_are_all_that_is_needed(
    own_redis: EmbeddedRedis, rights: list[str]
) -> None:
    command(own_redis, "ACL", "SETUSER", "watcher", "on", ">word", "resetchannels", *rights)
    settings = redis_settings(own_redis.url, username="watcher", password="word")
    with Log.captured() as log:
        async with Listener.of(settings) as listener:
            refusal = await log.next("redis_connect_failed")
            _, _, asked_for = refusal["error"].partition("the ACL user needs ")
            command(own_redis, "ACL", "SETUSER", "watcher", *asked_for.split())

            await listener.up()
            publish(own_redis, b"granted")

            assert await listener.heard(1) == [b"granted"]
            assert listener.changes.empty()


async def test_right_that_is_taken_away_is_a_lost_link_that_says_so(
    own_redis: EmbeddedRedis,
) -> None:
    rights = ["on", ">word", "resetchannels", "&jobs:*", "+psubscribe", "+ping"]
    command(own_redis, "ACL", "SETUSER", "watcher", *rights)
    settings = redis_settings(own_redis.url, username="watcher", password="word")
    async with Listener.of(settings, health_check_seconds=0.2) as listener:
        await listener.up()

        command(own_redis, "ACL", "SETUSER", "watcher", "-ping")

        assert "NOPERM" in await listener.down()


# --- keeping up ------------------------------------------------------------------------------------


def unread_bytes(server: EmbeddedRedis) -> int:
    """What the server could not write to the subscription's socket."""
    with redis.Redis.from_url(server.url) as client:
        return sum(int(entry["omem"]) for entry in client.client_list(_type="pubsub"))


async def test_paused_it_takes_nothing_off_the_socket_and_loses_nothing(
    own_redis: EmbeddedRedis,
) -> None:
    sent = [b"%d " % number + bytes(100_000) for number in range(250)]
    async with Listener.of(redis_settings(own_redis.url), health_check_seconds=0.2) as listener:
        await listener.up()
        publish(own_redis, b"first")
        await listener.heard(1)

        listener.subscription.pause()
        publish(own_redis, *sent)
        await asyncio.sleep(0.5)  # no event tells that nothing happens
        heard_meanwhile, left_at_redis = listener.payloads, unread_bytes(own_redis)
        listener.subscription.resume()
        heard = await listener.heard(1 + len(sent))

        assert heard_meanwhile == [b"first"]
        assert left_at_redis > 0
        assert heard[1:] == sent
        assert listener.changes.empty()


CONFIRMATION = b"*3\r\n$10\r\npsubscribe\r\n$6\r\njobs:*\r\n:1\r\n"
MESSAGE = b"*4\r\n$8\r\npmessage\r\n$6\r\njobs:*\r\n$6\r\njobs:1\r\n$2\r\n{}\r\n"


async def test_messages_that_come_with_the_confirmation_can_be_paused_too() -> None:
    first_is_there = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A Redis whose confirmation and first message come in one piece, and one more later."""
        commands = hiredis.Reader()
        while CONFIRMATION not in (answer := answers(commands, await reader.read(65536))):
            writer.write(answer)
        writer.write(answer + MESSAGE)
        await first_is_there.wait()
        writer.write(MESSAGE)
        await reader.read()
        writer.close()

    def pause_once(batch: Batch) -> None:
        if not first_is_there.is_set():
            listener.subscription.pause()
            first_is_there.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        settings = redis_settings(f"redis://127.0.0.1:{port}")
        async with Listener.of(settings, on_batch=pause_once) as listener:
            await listener.up()
            await asyncio.sleep(0.1)  # no event tells that nothing happens
            heard_meanwhile = listener.payloads
            listener.subscription.resume()

            await listener.heard(2)

    assert heard_meanwhile == [b"{}"]


def answers(commands: hiredis.Reader, data: bytes) -> bytes:
    """What a server says to the commands in `data`."""
    commands.feed(data)
    said = b""
    while (words := commands.gets()) is not False:
        said += CONFIRMATION if words[0] == b"PSUBSCRIBE" else b"+OK\r\n"
    return said


async def test_pausing_and_resuming_without_a_link_does_nothing(own_redis: EmbeddedRedis) -> None:
    listener = Listener(redis_settings(own_redis.url))

    listener.subscription.pause()
    listener.subscription.resume()
    await listener.subscription.barrier()


@pytest.mark.uncompiled
async def test_stalled_event_loop_is_not_taken_for_a_lost_redis(
    shared_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stall while the loop reads sockets, as a busy client makes it, is the one after which a loop may
    # look at its timers before it looks at Redis again.
    loop = asyncio.get_running_loop()
    stalled_enough = asyncio.Event()
    stalls = iter(range(3))
    here, there = socket.socketpair()
    ping = Reader._ping

    def ping_and_stall(reader: Reader) -> None:
        ping(reader)
        there.send(b"!")

    def stall() -> None:
        here.recv(1)
        if next(stalls, None) is None:
            stalled_enough.set()
        else:
            time.sleep(0.5)

    loop.add_reader(here, stall)
    monkeypatch.setattr(Reader, "_ping", ping_and_stall)
    async with Listener.of(redis_settings(shared_redis.url), health_check_seconds=0.4) as listener:
        await listener.up()
        await asyncio.wait_for(stalled_enough.wait(), SOON_SECONDS)
        publish(shared_redis, b"after")

        assert await listener.heard(1) == [b"after"]
        assert listener.changes.empty()
    loop.remove_reader(here)
    here.close()
    there.close()


async def test_flood_lets_others_have_their_turn(own_redis: EmbeddedRedis) -> None:
    bytes_of_turn = [0]
    loop = asyncio.get_running_loop()

    def count(batch: Batch) -> None:
        bytes_of_turn[-1] += sum(len(message[3]) for message in batch)

    def next_turn() -> None:
        bytes_of_turn.append(0)
        turns[0] = loop.call_soon(next_turn)

    async with Listener.of(redis_settings(own_redis.url), on_batch=count) as listener:
        await listener.up()
        sent = [bytes(20_000)] * 400
        publish(own_redis, *sent)
        turns = [loop.call_soon(next_turn)]

        await listener.heard(len(sent))
        turns[0].cancel()

    assert sum(bytes_of_turn) == 400 * 20_000
    assert max(bytes_of_turn) <= MAX_TURN_BYTES + MAX_READ_BYTES


# --- backoff ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempt", "ceiling"),
    [(1, 2 * BACKOFF_BASE_SECONDS), (3, 8 * BACKOFF_BASE_SECONDS), (20, 10.0), (1_000_000, 10.0)],
)
async def test_backoff_is_anything_up_to_a_ceiling_that_doubles(
    attempt: int, ceiling: float
) -> None:
    backing_off = Subscription(
        redis_settings("redis://127.0.0.1:1"),
        ["jobs:*"],
        health_check_seconds=5,
        backoff_max_seconds=10.0,
        on_batch=lambda _: None,
        on_up=lambda: None,
        on_down=lambda _: None,
    )

    drawn = [backing_off._backoff_seconds(attempt) for _ in range(500)]

    assert min(drawn) >= 0
    assert max(drawn) <= ceiling
    # Full jitter, not a band at the top: all of the range is used.
    assert min(drawn) < 0.1 * ceiling
    assert max(drawn) > 0.9 * ceiling
