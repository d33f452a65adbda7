"""Finds the master that the sentinels agree on, and tells at once when it is another.

All sentinels are asked at the same time and the newest word counts, by its configuration epoch: one
that is down, cut off or out of date neither delays nor misleads. A node is used only if it says itself
that it is the master. A connection to an old master is not closed by anybody for seconds, or never if
it is frozen; so while there is one, the sentinels are listened to and asked every second.

A master that was replaced takes writes until a sentinel makes it a replica, which may be seconds later, and loses
them then. So it is asked until it is one, and the link is left once more: who watches is to hear of it.

Redis: SENTINEL GET-MASTER-ADDR-BY-NAME, SENTINEL MASTER, SENTINEL REPLICAS, the channel +switch-master,
ROLE. The data nodes' credentials never go to a sentinel.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NoReturn

import redis.asyncio
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool
from redis.exceptions import AuthenticationError, RedisError, ResponseError

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

POLL_SECONDS: Final = 1.0
# Until a new master is noticed at the latest: one pause, one question, one look at the master itself.
NOTICED_SECONDS: Final = 3 * POLL_SECONDS
DEFAULT_PORT: Final = 26_379
PARAMETERS: Final = ("sentinel_username", "sentinel_password")

Sentinels = list[redis.asyncio.Redis]


class SentinelTopology:
    """One service behind sentinels: `redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB`.

    Raises:
        ValueError: the URL is at fault.
    """

    def __init__(self, settings: RedisSettings) -> None:
        url = ManyHosts.parse(settings.url, default_port=DEFAULT_PORT, parameters=PARAMETERS)
        if not url.path or not "".join(url.path[1:] or "0").isdigit():
            raise ValueError("redis.url: should end in /SERVICE or /SERVICE/DB, DB a number")
        self._service = url.path[0]
        self._hosts = url.hosts
        self._timeout_seconds = settings.connect_timeout_seconds
        # A sentinel answers from memory: who takes longer than this is as good as down, and while
        # we wait for it the others' word grows old.
        self._ask_seconds = min(POLL_SECONDS, settings.connect_timeout_seconds)
        common = options(settings)
        self._node_options = {**common, **credentials(settings, url)}
        self._node_options["db"] = int(url.path[1]) if len(url.path) > 1 else 0
        self._sentinel_options: dict[str, Any] = {
            "protocol": 2,
            "retry": common["retry"],
            "driver_info": common["driver_info"],
            "username": url.query.get("sentinel_username"),
            "password": url.query.get("sentinel_password"),
            "socket_connect_timeout": self._ask_seconds,
            "socket_timeout": self._ask_seconds,
        }
        # Where we are connected, or last tried to be.
        self._master: Address | None = None
        self._linked: Address | None = None  # where the last link led to
        self._replaced: set[Address] = set()  # former masters that were not seen as replicas since

    async def open_link(self) -> Link:
        """Connect to the master.

        Raises:
            UpstreamError: no sentinel knows it, or it cannot be used; says which and why.
        """
        complaints = []
        async with self._sentinels() as sentinels:
            for address in await self._masters(sentinels):
                self._master = address
                try:
                    # A frozen master would hold us here while the sentinels replace it.
                    async with self._until_moved(sentinels, address):
                        link = await self._open(address)
                    self._note_linked(address)
                    return link
                except UpstreamError as error:
                    complaints.append(f"{address}: {error}")
        raise UpstreamError(f"no master to be had for {self._service!r}: {'; '.join(complaints)}")

    async def left(self, _: Link) -> Leaving:
        """Return, with the reason, once the link that was opened last should be left."""
        loop = asyncio.get_running_loop()
        linked_at = loop.time()
        async with self._sentinels() as sentinels:
            moved = asyncio.create_task(self._moved(sentinels))
            demoted = asyncio.create_task(self._demoted(sentinels))
            try:
                await asyncio.wait({moved, demoted}, return_when=asyncio.FIRST_COMPLETED)
                if moved.done():
                    return Leaving(f"the master moved to {await moved}", NOTICED_SECONDS)
                await demoted
                reason = "former masters are replicas now: what they took meanwhile is lost"
                doubt_seconds = loop.time() - linked_at + NOTICED_SECONDS
                return Leaving(reason, doubt_seconds, is_loss=True)
            finally:
                moved.cancel()
                demoted.cancel()
                await asyncio.wait({moved, demoted})

    async def rest(self, seconds: float) -> None:
        """Wait before the next attempt, no longer than until there is another master to try."""
        if seconds < POLL_SECONDS:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._sentinels() as sentinels:
                await self._moved(sentinels)

    def make_client(self, timeout_seconds: float) -> redis.asyncio.Redis:
        """A client that asks for the master whenever it connects."""
        pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            self._service, self, socket_timeout=timeout_seconds, **self._node_options
        )
        return redis.asyncio.Redis.from_pool(pool)

    async def discover_master(self, _: str) -> Address:
        """What redis-py's pool asks of a sentinel client. Raises redis-py's own exception."""
        try:
            async with self._sentinels() as sentinels:
                return (await self._masters(sentinels))[0]
        except UpstreamError as error:
            raise MasterNotFoundError(str(error)) from error

    @asynccontextmanager
    async def _sentinels(self) -> AsyncIterator[Sentinels]:
        """A client for each sentinel, open only while it is needed."""
        clients = [
            redis.asyncio.Redis(host=host, port=port, **self._sentinel_options)
            for host, port in self._hosts
        ]
        try:
            yield clients
        finally:
            for client in clients:
                await client.aclose()

    async def _masters(self, sentinels: Sentinels) -> list[Address]:
        """The masters that the sentinels name, each once, the newest word first.

        Raises:
            UpstreamError: none names any.
        """
        answers = await asyncio.gather(*map(self._ask, sentinels))
        words = [answer for answer in answers if not isinstance(answer, str)]
        if not words:
            complaints = (
                f"{host}: {answer}" for host, answer in zip(self._hosts, answers, strict=True)
            )
            raise UpstreamError(f"no sentinel names a master: {'; '.join(map(str, complaints))}")
        words.sort(key=lambda word: word[0], reverse=True)
        return list(dict.fromkeys(address for _, address in words))

    async def _ask(self, sentinel: redis.asyncio.Redis) -> tuple[int, Address] | str:
        """The epoch and the address that a sentinel tells; or why it tells none."""
        try:
            async with asyncio.timeout(self._ask_seconds):
                # The address of the second answer is the old master's until a failover has ended; the
                # first gives the new one as soon as it was promoted.
                address = await sentinel.execute_command(  # type: ignore[no-untyped-call]
                    "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service
                )
                if not address:
                    return f"knows no master named {self._service!r}: see its sentinel monitor"
                reply = await sentinel.execute_command(  # type: ignore[no-untyped-call]
                    "SENTINEL", "MASTER", self._service
                )
            facts = dict(zip(reply[::2], reply[1::2], strict=True))
            return int(facts[b"config-epoch"]), Address(str(address[0], "utf-8"), int(address[1]))
        except TimeoutError:
            return f"no answer within {self._ask_seconds:g} s"
        except AuthenticationError as error:
            return f"refuses us: {error}; see sentinel_username and sentinel_password in redis.url"
        except ResponseError as error:
            return f"refuses us: {error}; is it a sentinel?"
        except (RedisError, OSError) as error:
            return str(error) or type(error).__name__
        except (KeyError, TypeError, ValueError):
            return "answers what no sentinel does; is it one?"

    async def _open(self, address: Address) -> Link:
        connection = connection_to(address, self._node_options)
        link, (role,) = await take(connection, self._timeout_seconds, ["ROLE"])
        if role[0] != b"master":
            await link.close()
            raise UpstreamError(f"its role is {role[0].decode()}, not master: a failover goes on")
        return link

    def _note_linked(self, address: Address) -> None:
        if self._linked not in (None, address):
            self._replaced.add(self._linked)
        self._replaced.discard(address)
        self._linked = address

    async def _demoted(self, sentinels: Sentinels) -> None:
        """Return once every former master says that it is a replica; never, where there is none."""
        # We may have been started while a failover went on.
        for address in await self._replicas(sentinels):
            with suppress(UpstreamError):
                if address != self._linked and await self._role(address) == b"master":
                    self._replaced.add(address)
        if not self._replaced:
            await asyncio.get_running_loop().create_future()
        while self._replaced:
            await asyncio.sleep(POLL_SECONDS)
            for address in list(self._replaced):
                # One that is down or frozen may come back and take writes: it is asked until it does.
                with suppress(UpstreamError):
                    if await self._role(address) == b"slave":
                        self._replaced.discard(address)

    async def _replicas(self, sentinels: Sentinels) -> set[Address]:
        """The replicas that the sentinels name, all of them together."""
        named: set[Address] = set()
        for sentinel in sentinels:
            with suppress(RedisError, OSError):
                replicas = await sentinel.execute_command(  # type: ignore[no-untyped-call]
                    "SENTINEL", "REPLICAS", self._service
                )
                for fields in replicas:
                    facts = dict(zip(fields[::2], fields[1::2], strict=True))
                    named.add(Address(str(facts[b"ip"], "utf-8"), int(facts[b"port"])))
            heed_cancellation()
        return named

    async def _role(self, address: Address) -> bytes:
        """What the node says it is. Raises UpstreamError."""
        connection = connection_to(address, self._node_options)
        link, (role,) = await take(connection, self._ask_seconds, ["ROLE"])
        await link.close()
        heed_cancellation()
        kind: bytes = role[0]
        return kind

    @asynccontextmanager
    async def _until_moved(self, sentinels: Sentinels, address: Address) -> AsyncIterator[None]:
        """Break off what is done inside once there is another master than `address`."""

        async def watch(limit: asyncio.Timeout) -> None:
            await self._moved(sentinels)
            limit.reschedule(0)

        try:
            async with asyncio.timeout(None) as limit:
                watching = asyncio.create_task(watch(limit))
                try:
                    yield
                finally:
                    watching.cancel()
                    await asyncio.wait({watching})
        except TimeoutError:
            raise UpstreamError(f"{address} gave no answer, and another master took over") from None

    async def _moved(self, sentinels: Sentinels) -> Address:
        """Return the new master once there is one, which takes it on itself to be that."""
        news = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(self._follow(each, news)) for each in sentinels]
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await news.wait()
                news.clear()
                with suppress(UpstreamError):
                    newest = (await self._masters(sentinels))[0]
                    if newest != self._master:
                        await (await self._open(newest)).close()
                        break
            for task in following:
                task.cancel()
        return newest

    async def _follow(self, sentinel: redis.asyncio.Redis, news: asyncio.Event) -> NoReturn:
        """Set `news` whenever this sentinel says that a master was replaced, any of those it knows."""
        while True:
            try:
                async with sentinel.pubsub(ignore_subscribe_messages=True) as events:
                    await events.subscribe("+switch-master")
                    while True:
                        heed_cancellation()
                        if await events.get_message(timeout=POLL_SECONDS) is not None:
                            news.set()
            except (RedisError, OSError):
                heed_cancellation()
                await asyncio.sleep(POLL_SECONDS)  # down: there are others, and we ask, too
