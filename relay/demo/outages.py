"""The demo's faults on demand: freeze Redis, or close the Lab's line to the relay, and mend both.

What is broken mends itself after `MEND_SECONDS`, so that nobody finds a broken demo without knowing why.
Only a browser on this machine, on a page of this very origin, may break anything: the request must come from
a loopback address, through no proxy, as JSON (which no other page can send without being asked, WHATWG Fetch
§4.8), and with the `Origin` of its `Host`.
"""

import asyncio
import ipaddress
from typing import Final

import orjson
from aiohttp import web
from yarl import URL

from relay.demo.embedded import EmbeddedRedis, EmbeddedRedisError
from relay.demo.line import Line, Passage

OUTAGES_PATH: Final = "/demo/outages"
MEND_SECONDS: Final = 30.0
_REDIS: Final = ("running", "frozen")
_PROXIED: Final = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host")


class Outages:
    """What is broken now, and the routes that change it."""

    def __init__(
        self, server: EmbeddedRedis, line: Line, *, mend_seconds: float = MEND_SECONDS
    ) -> None:
        self._server = server
        self._line = line
        self._mend_seconds = mend_seconds
        self._redis_frozen = False
        self._mending: asyncio.TimerHandle | None = None

    def routes(self) -> list[web.AbstractRouteDef]:
        """`GET` tells what is broken, `POST` breaks and mends."""
        return [web.get(OUTAGES_PATH, self._tell), web.post(OUTAGES_PATH, self._change)]

    def mend(self) -> None:
        """Have everything work again; idempotent."""
        self._set_redis(frozen=False)
        self._line.passage = Passage.OPEN
        if self._mending is not None:
            self._mending.cancel()
            self._mending = None

    async def _tell(self, _: web.Request) -> web.Response:
        left = None
        if self._mending is not None:
            left = max(0.0, self._mending.when() - asyncio.get_running_loop().time())
        document = {
            "line": self._line.passage.value,
            "redis": _REDIS[self._redis_frozen],
            "mendsInSeconds": left,
        }
        return web.json_response(document, headers={"Cache-Control": "no-store"})

    async def _change(self, request: web.Request) -> web.Response:
        if not _is_own_page(request):
            raise web.HTTPForbidden(text="only the Lab's own page on this machine may break things")
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send application/json")
        try:
            wanted = orjson.loads(await request.read())
            passage = Passage(wanted.get("line", self._line.passage))
            frozen = bool(_REDIS.index(wanted.get("redis", _REDIS[self._redis_frozen])))
        except (orjson.JSONDecodeError, AttributeError, ValueError):
            lines = ", ".join(each.value for each in Passage)
            raise web.HTTPBadRequest(
                text=f"send a JSON object: line is one of {lines}; redis one of {', '.join(_REDIS)}"
            ) from None
        try:
            self._set_redis(frozen=frozen)
        except EmbeddedRedisError as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from None
        self._line.passage = passage
        self._mend_later()
        return await self._tell(request)

    def _set_redis(self, *, frozen: bool) -> None:
        if frozen == self._redis_frozen:
            return
        if frozen:
            self._server.freeze()
        else:
            self._server.resume()
        self._redis_frozen = frozen

    def _mend_later(self) -> None:
        if self._mending is not None:
            self._mending.cancel()
            self._mending = None
        if self._redis_frozen or self._line.passage is not Passage.OPEN:
            loop = asyncio.get_running_loop()
            self._mending = loop.call_later(self._mend_seconds, self.mend)


def _is_own_page(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    return (
        request.remote is not None
        and ipaddress.ip_address(request.remote).is_loopback
        and not any(name in request.headers for name in _PROXIED)
        and request.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
        # A browser names one with every POST.
        and origin is not None
        and URL(origin).authority == request.host
    )
