"""A handshake on a connection that has served HTTP: the transport is taken over from aiohttp.

A proxy keeps its connections to us open and sends an upgrade on any of them, so the front protocol does not
see every handshake. aiohttp is told that the connection is lost, and its transport goes on without it.
RFC 9110 §7.8.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from aiohttp import web

from relay.web.gatekeeper import Gatekeeper
from relay.web.gateway import Gateway
from relay.web.handshake import Refusal, decide, is_upgrade
from relay.web.origin import OriginPolicy
from relay.web.request import head_of
from relay.web.responses import error_response, refusal_response


class _Tail:
    """Takes what aiohttp has read behind the request's head; one of its payload parsers by shape."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """The connection is lost as far as aiohttp knows; nothing is."""


class Takeover:
    """The handler of `server.path`: a WebSocket where one is asked for, else 426."""

    def __init__(
        self,
        gateway: Gateway,
        gatekeeper: Gatekeeper,
        *,
        path: str,
        policy: Callable[[], OriginPolicy],
    ) -> None:
        self._gateway = gateway
        self._gatekeeper = gatekeeper
        self._path = path
        self._policy = policy

    async def upgrade(self, request: web.Request) -> web.StreamResponse:
        """Answer a request on the path; `request`'s connection is aiohttp's no more where it is granted."""
        head = head_of(request)
        if not is_upgrade(head, self._path) or request.transport is None:
            response = error_response(426, "bad-request", "this path speaks WebSocket")
            response.headers["Upgrade"] = "websocket"
            return response
        peer, policy, gateway = request.remote or "", self._policy(), self._gateway
        address = policy.client_address(peer, head.all("x-forwarded-for"))
        load = gateway.load(address)
        # This connection has its place already: it only changes hands.
        decision = decide(head, peer, policy, replace(load, connections=load.connections - 1))
        if isinstance(decision, Refusal):
            return self._refuse(decision, address)
        outcome = await self._gatekeeper.admit(head, peer, policy, websocket=True)
        # That may have taken a while.
        outcome = gateway.judge_request(address) or outcome
        if isinstance(outcome, Refusal):
            return self._refuse(outcome, address)
        transport, tail = _take(request)
        connection = gateway.open(transport, address, decision.response, outcome)
        if tail:
            connection.data_received(tail)
        return web.Response()  # goes nowhere: aiohttp has no transport to write it to

    def _refuse(self, refusal: Refusal, address: str) -> web.Response:
        self._gateway.rejected(refusal, address)
        return refusal_response(refusal)


def _take(request: web.Request) -> tuple[asyncio.Transport, bytes]:
    """The request's transport and what was read behind its head."""
    tail = _Tail()
    request.protocol.set_parser(cast("Any", tail))
    transport = release(request)
    assert transport is not None
    return transport, tail.data


def release(request: web.BaseRequest) -> asyncio.Transport | None:
    """The request's transport, which aiohttp forgets; None where the client has gone.

    As far as aiohttp knows the connection is lost; without a transport it cannot close it.
    """
    protocol, transport = request.protocol, request.transport
    if transport is not None:
        protocol.transport = None
        protocol.connection_lost(None)
        transport.resume_reading()  # it may have had enough; else the end might go unseen
    return transport
