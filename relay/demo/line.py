"""The Lab's own line to the relay: a small proxy for HTTP and WebSocket that can be told to let less through.

It stands for what lies between a browser and a relay in the wild: a company's proxy that knows no WebSockets,
one that also holds back whatever streams, or nothing that works at all. Nobody but the Lab uses it; every
other client of the demo reaches the relay itself.

Invariant: what a `Passage` forbids is neither let in nor left open. Bodies and messages are passed on as they
are; a close code, too (RFC 6455 §7.4).
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final, Self

import aiohttp
from aiohttp import web
from yarl import URL

LINE_PATH: Final = "/demo/line"
_CONNECT_SECONDS: Final = 5.0
_PING_SECONDS: Final = 20.0
_CHUNK_BYTES: Final = 65536
_PASSED_ON: Final = ("Content-Type", "Content-Length", "Cache-Control", "ETag", "Retry-After")

_Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class Passage(StrEnum):
    """What gets through."""

    OPEN = "open"
    NO_WEBSOCKET = "no-websocket"
    SHORT = "short"  # neither WebSockets nor answers that go on: Server-Sent Events, long polls
    CLOSED = "closed"


class Kind(StrEnum):
    """What a request is for."""

    WEBSOCKET = "websocket"
    HELD = "held"
    SHORT = "short"


_ALLOWED: Final = {
    Passage.OPEN: frozenset(Kind),
    Passage.NO_WEBSOCKET: frozenset({Kind.HELD, Kind.SHORT}),
    Passage.SHORT: frozenset({Kind.SHORT}),
    Passage.CLOSED: frozenset[Kind](),
}


class Line:
    """One line, open at first. An async context manager: at its end nothing of it is open."""

    def __init__(self) -> None:
        self.target = ""  # the relay's public address, known once it listens
        self._passage = Passage.OPEN
        self._open: dict[asyncio.Task[None], Kind] = {}
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS),
            headers={"Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    @property
    def passage(self) -> Passage:
        """What gets through now."""
        return self._passage

    @passage.setter
    def passage(self, passage: Passage) -> None:
        self._passage = passage
        for task, kind in list(self._open.items()):
            if kind not in _ALLOWED[passage]:
                task.cancel()

    def routes(self) -> list[web.AbstractRouteDef]:
        """The relay's public paths, under `LINE_PATH`."""
        return [
            web.get(
                LINE_PATH + "/{path:job-progress|events|jobs.*}", self._pass_on, allow_head=False
            )
        ]

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        kind = _kind_of(request)
        if kind not in _ALLOWED[self._passage]:
            if self._passage is Passage.CLOSED:
                _hang_up(request)
            raise web.HTTPForbidden(text="the demo's proxy does not let this through: mend it")
        try:
            with self._listed(kind):
                if kind is Kind.WEBSOCKET:
                    return await self._pass_messages(request)
                return await self._pass_answer(request)
        except aiohttp.ClientError:
            raise web.HTTPBadGateway(text="the relay does not answer: try again") from None

    @contextmanager
    def _listed(self, kind: Kind) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = kind
        try:
            yield
        finally:
            del self._open[task]

    def _address(self, request: web.Request) -> URL:
        # As the client wrote it: an id may hold what must stay quoted.
        return URL(self.target + request.raw_path.removeprefix(LINE_PATH), encoded=True)

    async def _pass_answer(self, request: web.Request) -> web.StreamResponse:
        async with self._http.get(self._address(request)) as answer:
            passed = web.StreamResponse(status=answer.status)
            for name in _PASSED_ON:
                if name in answer.headers:
                    passed.headers[name] = answer.headers[name]
            await passed.prepare(request)
            async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                await passed.write(chunk)
            await passed.write_eof()
            return passed

    async def _pass_messages(self, request: web.Request) -> web.StreamResponse:
        # The relay's pings end here, so the browser gets others.
        browser = web.WebSocketResponse(heartbeat=_PING_SECONDS)
        async with self._http.ws_connect(self._address(request), max_msg_size=0) as relay:
            await browser.prepare(request)
            pumps = {
                asyncio.create_task(_pump(relay, browser)),
                asyncio.create_task(_pump(browser, relay)),
            }
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
        return browser


async def _pump(source: _Socket, target: _Socket) -> None:
    """Pass on text until one side has closed, and then how it did."""
    try:
        async for message in source:
            if message.type is aiohttp.WSMsgType.TEXT:
                await target.send_str(message.data)
        await target.close(code=source.close_code or aiohttp.WSCloseCode.GOING_AWAY)
    except ConnectionError:
        pass  # the other side is gone, which ends both


def _kind_of(request: web.Request) -> Kind:
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return Kind.WEBSOCKET
    path = request.match_info["path"]
    is_held = path.endswith("events") or request.query.get("wait", "0") != "0"
    return Kind.HELD if is_held else Kind.SHORT


def _hang_up(request: web.Request) -> None:
    """Cut the connection, as if nobody were there; what is answered afterwards reaches nobody."""
    if request.transport is not None:
        request.transport.abort()
