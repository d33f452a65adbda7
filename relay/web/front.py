"""The first protocol of every public connection: reads one request head, bounded in bytes and time.

A WebSocket upgrade on our path is answered here and its transport goes to the gateway; any other
request, and whatever is malformed, goes to aiohttp with its bytes. So an upgrade costs no HTTP machinery,
and a connection that never finishes its head costs a timer. No more wait at the door than there may be inside.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import cast

from relay.web.gatekeeper import Gatekeeper, Outcome
from relay.web.gateway import Gateway
from relay.web.handshake import (
    MAX_HEAD_BYTES,
    TIMEOUT,
    TOO_LARGE,
    Refusal,
    decide,
    is_upgrade,
    judge_load,
)
from relay.web.origin import OriginPolicy
from relay.web.request import parse_head


class Door:
    """What all `Front` protocols of a listener share, and the connections still at the door.

    Requests for `probes` are let in even when the relay is full or draining: whoever asks is to learn that
    from the answer, and a full relay must not look like a dead one.
    """

    __slots__ = (
        "gatekeeper", "gateway", "http", "path", "policy", "probes", "timeout_seconds", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        gateway: Gateway,
        gatekeeper: Gatekeeper,
        *,
        http: Callable[[], asyncio.Protocol],
        path: str,
        policy: OriginPolicy,
        timeout_seconds: float,
        probes: Collection[str] = (),
    ) -> None:
        self.gateway = gateway
        self.gatekeeper = gatekeeper
        self.http = http
        self.path = path
        self.policy = policy
        self.timeout_seconds = timeout_seconds
        self.probes = probes
        self.waiting: set[Front] = set()

    def close(self) -> None:
        """Cut off whoever has not finished a request head."""
        for front in list(self.waiting):
            front.cut_off()


class Front(asyncio.Protocol):
    """A connection until its first request head is there."""

    __slots__ = ("_buffer", "_door", "_timer", "_transport")

    def __init__(self, door: Door) -> None:
        self._door = door
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        if len(self._door.waiting) >= self._door.gateway.max_connections:
            self._door.gateway.count_rejected("max_connections")
            self._transport.abort()
            return
        self._door.waiting.add(self)
        self._timer = self._door.gateway.loop.call_later(self._door.timeout_seconds, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if (len(self._buffer) if end < 0 else end) > MAX_HEAD_BYTES:
            self._refuse(TOO_LARGE, self._peer())
            return
        if end < 0:
            return
        head = parse_head(self._buffer[:end])
        peer = self._peer()
        gateway, policy = self._door.gateway, self._door.policy
        forwarded = head.all("x-forwarded-for") if head is not None else ()
        address = policy.client_address(peer, forwarded)
        if head is None or not is_upgrade(head, self._door.path):
            is_probe = head is not None and head.path in self._door.probes
            refusal = None if is_probe else judge_load(gateway.load(address))
            if refusal is None:
                self._hand_over()
            else:
                self._refuse(refusal, address)
            return
        decision = decide(head, peer, policy, gateway.load(address))
        if isinstance(decision, Refusal):
            self._refuse(decision, address)
            return
        outcome = self._door.gatekeeper.judge(head, peer, policy, websocket=True)
        enter = partial(self._enter, address, decision.response, end + 4)
        if isinstance(outcome, Coroutine):
            self._transport.pause_reading()
            self._door.gatekeeper.later(outcome, partial(self._come_back, enter, address))
        else:
            enter(outcome)

    def cut_off(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def _come_back(self, enter: Callable[[Outcome], None], address: str, outcome: Outcome) -> None:
        """Go on with a handshake whose token had to wait for a key."""
        if self._transport.is_closing():
            return
        self._transport.resume_reading()
        full = judge_load(self._door.gateway.load(address))  # it may have become so meanwhile
        enter(full or outcome)

    def _enter(self, address: str, response: bytes, end: int, outcome: Outcome) -> None:
        """Open the session, or turn the client away. `end` is where the request's head ends."""
        if isinstance(outcome, Refusal):
            self._refuse(outcome, address)
            return
        rest = self._buffer[end:]
        self._leave()
        connection = self._door.gateway.open(self._transport, address, response, outcome)
        if rest:
            connection.data_received(rest)

    def _hand_over(self) -> None:
        buffer, self._buffer = self._buffer, b""
        self._leave()
        handler = self._door.http()
        self._transport.set_protocol(handler)
        handler.connection_made(self._transport)
        handler.data_received(buffer)

    def _refuse(self, refusal: Refusal, address: str) -> None:
        self._door.gateway.rejected(refusal, address)
        self._buffer = b""
        self._transport.write(refusal.response)
        self._transport.close()

    def _too_late(self) -> None:
        if self._buffer:
            self._refuse(TIMEOUT, self._peer())
        else:
            self._door.gateway.count_rejected(TIMEOUT.label)
            self._transport.abort()  # a browser's spare connection: nobody waits for an answer

    def _leave(self) -> None:
        self._door.waiting.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _peer(self) -> str:
        """The peer's address; empty for a unix socket."""
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""
