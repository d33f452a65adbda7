"""All sessions' connections: opening, counting, heartbeats, telling all of them, draining.

WebSockets and event streams are connections; a long poll is a guest without one: it ends in a drain like
them, and what counts for its address is the HTTP connection that it came on. What is decided about one session is decided in `core`; this is the edge
that holds many of them.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

import structlog

from relay.core.closing import CloseReason
from relay.core.grants import Grants
from relay.core.heartbeat import Heartbeat
from relay.core.outbox import Verdict
from relay.core.rights import Proof
from relay.core.session import Hub, Lookup, Session
from relay.web.flusher import Flusher
from relay.web.handshake import Load, Refusal, judge_load
from relay.web.shares import Shares, Spare
from relay.web.websocket import CLOSE_TIMEOUT_SECONDS, WebSocket

# Clients come back this long after the drain's end at the earliest: a restart takes about as long.
RETURN_MARGIN_MS: Final = 500
_DRAIN_TICK_SECONDS: Final = 0.02  # closes that are due within it go together
_EXPIRY_TICK_SECONDS: Final = 0.5  # how late a token's end may be noticed
_CLOSES_AT_ONCE: Final = 100  # some 3 ms; then others have their turn

LookUp = Callable[[Lookup, Callable[[], None]], None]
Prove = Callable[[Proof, Callable[[], None]], None]


class Guest(Protocol):
    """Whoever has a session here. `reason` is set when its end has begun; `remote` is its address,
    `opened_at` loop time."""

    transport_name: str
    session: Session
    reason: CloseReason | None
    remote: str
    opened_at: float

    def close(self, reason: CloseReason) -> None:
        """Begin the end; idempotent."""


class Connection(Guest, Protocol):
    """A guest that owns its transport. `last_seen_at` is when it last gave a sign of life (loop time)."""

    last_seen_at: float
    messages_received: int
    sent_bytes: int

    def start(self, response: bytes) -> None:
        """Send the answer to the request, and what the session already has to say."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    def cut_off(self) -> None:
        """End the connection at once."""


class Gateway:
    """The connections of one relay.

    Args:
        hub: what all sessions share. look_up: asks Redis about jobs, then calls back.
        prove: verifies a token, then calls back. clock_ms: the time, Unix milliseconds.
        other_connections: how many connections others hold, for the limit on all of them.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        flusher: Flusher,
        look_up: LookUp,
        prove: Prove,
        clock_ms: Callable[[], int],
        other_connections: Callable[[], int],
        epoch: str,
        interval_seconds: float,
        timeout_seconds: float,
        max_message_bytes: int,
        max_connections: int,
        max_connections_per_address: int,
        handshake_timeout_seconds: float,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.log = structlog.stdlib.get_logger()
        self.hub = hub
        self.flusher = flusher
        self.stats = hub.stats
        self.look_up = look_up
        self.prove = prove
        self.clock_ms = clock_ms
        self.max_message_bytes = max_message_bytes
        self.max_connections = max_connections
        self.max_connections_per_address = max_connections_per_address
        self.handshake_timeout_seconds = handshake_timeout_seconds
        self.redis_up = False
        self.draining = False
        self._other_connections = other_connections
        self._epoch = epoch
        self._opened = 0
        self.patience_seconds = interval_seconds + timeout_seconds
        self._heartbeat: Heartbeat[Connection] = Heartbeat(interval_seconds, timeout_seconds)
        self._connections: dict[Connection, None] = {}
        self._guests: dict[Guest, None] = {}  # those that are no connections
        self.shares = Shares()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._connections)

    def load(self, address: str) -> Load:
        """How full the relay is, seen from a connection of `address` that is counted for it already."""
        return Load(
            draining=self.draining,
            connections=len(self._connections) + self._other_connections(),
            max_connections=self.max_connections,
            of_address=max(0, self.shares.count(address) - 1),
            max_of_address=self.max_connections_per_address,
        )

    def make_room(self, address: str, asker: Spare) -> None:
        """Let go of what an address with more than its share can spare, for a connection of its own."""
        if self.max_connections_per_address:
            self.shares.make_room(address, self.max_connections_per_address, asker)

    def judge_request(self, address: str) -> Refusal | None:
        """Why a request from `address` may not stay, or None. The connection that it came on is counted
        already."""
        load = self.load(address)
        return judge_load(replace(load, connections=load.connections - 1))

    def count_rejected(self, label: str) -> None:
        """Count a connection or request that was refused."""
        self.stats.handshakes_rejected[label] += 1

    def rejected(self, refusal: Refusal, remote: str, event: str = "handshake_rejected") -> None:
        """Count a refusal and say so in the log. What an operator may have to put right is a warning."""
        self.count_rejected(refusal.label)
        if refusal.refused is not None:
            self.log.warning(
                event, remote=remote, reason=refusal.label,
                value=refusal.refused.value, expected=refusal.refused.expected,
            )  # fmt: skip
        elif refusal.detail is not None:
            self.log.info(event, remote=remote, reason=refusal.label, detail=refusal.detail)
        else:
            self.log.debug(event, remote=remote, reason=refusal.label)

    def new_id(self) -> str:
        """The id of a new session."""
        self._opened += 1
        return f"{self._epoch}.{self._opened}"

    def open(
        self, transport: asyncio.Transport, address: str, response: bytes, grants: Grants | None
    ) -> WebSocket:
        """Take an upgraded transport over; `response` is what answers its handshake. Without `grants` it has
        yet to authenticate."""
        connection = WebSocket(self, transport, self.new_id(), address, grants)
        transport.set_protocol(connection)
        self.adopt(connection, transport, response)
        return connection

    def adopt(self, connection: Connection, transport: asyncio.Transport, response: bytes) -> None:
        """Begin to care for a connection that has its transport now, and let it start."""
        session, stats = connection.session, self.stats
        kind = connection.transport_name
        self._connections[connection] = None
        self._heartbeat.add(connection)
        self.shares.add(connection.remote)
        self._empty.clear()
        stats.connections[kind] += 1
        stats.connections_opened[kind] += 1
        transport.set_write_buffer_limits(self.hub.high_water_bytes)
        session.tell_status(redis_up=self.redis_up)
        connection.start(response)
        self.log.info(
            "session_opened",
            connection_id=session.connection_id,
            transport=kind,
            remote=connection.remote,
            principal=_principal(connection),
        )

    def enter(self, guest: Guest) -> None:
        """Care for a guest, and close it when the relay drains."""
        self._guests[guest] = None

    def leave(self, guest: Guest) -> None:
        """Forget a guest."""
        del self._guests[guest]

    def closed(self, connection: Connection) -> None:
        """Forget a connection; called once, when its transport is gone."""
        del self._connections[connection]
        self._heartbeat.remove(connection)
        self.shares.remove(connection.remote)
        if not self._connections:
            self._empty.set()
        reason = connection.reason or CloseReason.CONNECTION_LOST
        stats = self.stats
        kind = connection.transport_name
        stats.connections[kind] -= 1
        stats.connections_closed[reason.label] += 1
        if reason is CloseReason.SLOW_CONSUMER:
            stats.slow_consumers_closed += 1
        self.log.info(
            "session_closed",
            connection_id=connection.session.connection_id,
            transport=kind,
            remote=connection.remote,
            principal=_principal(connection),
            reason=reason.label,
            code=reason.code,
            duration_seconds=round(self.loop.time() - connection.opened_at, 3),
            messages_received=connection.messages_received,
            sent_bytes=connection.sent_bytes,
        )

    def cut_off(self) -> None:
        """End every connection at once, without a farewell."""
        for connection in list(self._connections):
            connection.cut_off()

    def overflowed(self, session: Session) -> None:
        """Close a session whose outbox is full."""
        session.link.close(CloseReason.SLOW_CONSUMER)

    def tell_all(self, *, redis_up: bool, gap: Callable[[Session], bool] | None = None) -> None:
        """Send `relay-status` to everybody; `gap` says who may have missed something."""
        self.redis_up = redis_up
        for connection in list(self._connections):
            if connection.reason is None:
                session = connection.session
                verdict = session.tell_status(
                    redis_up=redis_up, gap=gap is not None and gap(session)
                )
                if verdict is Verdict.OVERFLOW:
                    connection.close(CloseReason.SLOW_CONSUMER)

    async def beat(self) -> None:
        """Ping and bury, for ever."""
        heartbeat = self._heartbeat
        next_at = self.loop.time()
        while True:
            next_at += heartbeat.tick_seconds
            await asyncio.sleep(next_at - self.loop.time())
            due, gone = heartbeat.turn(self.loop.time())
            for connection in gone:
                connection.close(CloseReason.HEARTBEAT_TIMEOUT)
            for connection in due:
                connection.ping()

    async def expire(self) -> None:
        """Close whoever's token has expired, or did not come in time, for ever.

        One look at every guest twice a second, some 0.1 µs each, spares each of them a timer.
        """
        while True:
            await asyncio.sleep(_EXPIRY_TICK_SECONDS)
            now, now_ms = self.loop.time(), self.clock_ms()
            late_at = now - self.handshake_timeout_seconds
            due: list[tuple[Guest, CloseReason]] = []
            for guest in self.guests():
                grants = guest.session.grants
                if grants is None:
                    if guest.opened_at <= late_at:
                        due.append((guest, CloseReason.TOKEN_MISSING))
                elif grants.expires_at_ms is not None and grants.expires_at_ms <= now_ms:
                    due.append((guest, CloseReason.TOKEN_EXPIRED))
            for start in range(0, len(due), _CLOSES_AT_ONCE):
                for guest, reason in due[start : start + _CLOSES_AT_ONCE]:
                    guest.close(reason)
                await asyncio.sleep(0)

    async def close_all(self, which: Callable[[Guest], bool], reason: CloseReason) -> int:
        """Begin the end of all guests that `which` picks. Returns how many they were."""
        closed = 0
        for guest in [guest for guest in self.guests() if guest.reason is None and which(guest)]:
            guest.close(reason)
            closed += 1
            if closed % _CLOSES_AT_ONCE == 0:
                await asyncio.sleep(0)
        return closed

    def guests(self) -> list[Guest]:
        """Everybody who has a session now."""
        return [*self._connections, *self._guests]

    async def drain(self, seconds: float) -> None:
        """Tell every client when to come back and close it, spread evenly over `seconds`.

        Returns when all are gone, or have had their time to answer the close frame.
        """
        self.draining = True
        started_at = self.loop.time()
        guests = self.guests()
        random.shuffle(guests)
        for place, guest in enumerate(guests):
            due_at = started_at + seconds * place / len(guests)
            wait = due_at - self.loop.time()
            if wait > _DRAIN_TICK_SECONDS:
                await asyncio.sleep(wait)
            if guest.reason is not None:
                continue
            left_ms = max(0.0, started_at + seconds - self.loop.time()) * 1000
            back_ms = int(left_ms + RETURN_MARGIN_MS + random.uniform(0, seconds * 1000))
            guest.session.tell_status(redis_up=self.redis_up, retry_after_ms=back_ms)
            guest.close(CloseReason.RESTARTING)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS + 1):
                await self._empty.wait()
        except TimeoutError:
            self.log.warning("drain_incomplete", connections=len(self._connections))


def _principal(guest: Guest) -> str | None:
    grants = guest.session.grants
    return None if grants is None else grants.principal
