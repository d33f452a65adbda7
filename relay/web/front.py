"""The first protocol of every public connection: reads one request head, bounded in bytes and time.

A WebSocket upgrade on our path is answered here and its transport goes to the gateway; any other
request, and whatever is malformed, goes to aiohttp with its bytes. So an upgrade costs no HTTP machinery,
and a connection that never finishes its head costs a timer.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Final, cast

import structlog

from relay.web.gateway import Gateway
from relay.web.handshake import Refusal, decide, is_upgrade, judge_load
from relay.web.origin import OriginPolicy
from relay.web.request import parse_head

MAX_HEAD_BYTES: Final = 16 * 1024
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_TIMEOUT: Final = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

log = structlog.stdlib.get_logger()


class Door:
    """What all `Front` protocols of a listener share, and the connections still at the door.

    Requests for `probes` are let in even when the relay is full or draining: whoever asks is to learn that
    from the answer, and a full relay must not look like a dead one.
    """

    __slots__ = ("gateway", "http", "path", "policy", "probes", "timeout_seconds", "waiting")

    def __init__(
        self,
        gateway: Gateway,
        *,
        http: Callable[[], asyncio.Protocol],
        path: str,
        policy: OriginPolicy,
        timeout_seconds: float,
        probes: Collection[str] = (),
    ) -> None:
        self.gateway = gateway
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
        self._door.waiting.add(self)
        self._timer = self._door.gateway.loop.call_later(self._door.timeout_seconds, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if (len(self._buffer) if end < 0 else end) > MAX_HEAD_BYTES:
            self._door.gateway.hub.stats.handshakes_rejected["too_large"] += 1
            self._answer(_TOO_LARGE)
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
        rest = self._buffer[end + 4 :]
        self._leave()
        connection = gateway.open(self._transport, address, decision.response)
        if rest:
            connection.data_received(rest)

    def cut_off(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def _hand_over(self) -> None:
        buffer, self._buffer = self._buffer, b""
        self._leave()
        handler = self._door.http()
        self._transport.set_protocol(handler)
        handler.connection_made(self._transport)
        handler.data_received(buffer)

    def _refuse(self, refusal: Refusal, address: str) -> None:
        self._door.gateway.hub.stats.handshakes_rejected[refusal.label] += 1
        if refusal.refused is not None:
            log.warning(
                "handshake_rejected", remote=address, reason=refusal.label,
                value=refusal.refused.value, expected=refusal.refused.expected,
            )  # fmt: skip
        else:
            log.debug("handshake_rejected", remote=address, reason=refusal.label)
        self._answer(refusal.response)

    def _too_late(self) -> None:
        self._door.gateway.hub.stats.handshakes_rejected["timeout"] += 1
        if self._buffer:
            self._answer(_TIMEOUT)
        else:
            self._transport.abort()  # a browser's spare connection: nobody waits for an answer

    def _answer(self, response: bytes) -> None:
        self._buffer = b""
        self._transport.write(response)
        self._transport.close()

    def _leave(self) -> None:
        self._door.waiting.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _peer(self) -> str:
        """The peer's address; empty for a unix socket."""
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""
