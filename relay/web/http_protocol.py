"""aiohttp's protocol of one HTTP connection, with our bounds and our answer to what it cannot read.

Every request head has a time and a size, also those after the first on a connection that is kept open
(RFC 9112 §9.5). What is no HTTP request is answered like any other fault, in JSON, and its bytes go into no
log: they may hold a token.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import structlog
from aiohttp import web

from relay.web.handshake import MAX_HEAD_BYTES, TIMEOUT, TOO_LARGE, UNREADABLE, Refusal

# For how long an idle connection is kept: longer than nginx keeps one (60 s), or a request could meet its end.
KEEP_ALIVE_SECONDS: Final = 75.0

log = structlog.stdlib.get_logger()


class HttpProtocol(web.RequestHandler):
    """See the module's promise.

    Args:
        timeout_seconds: from the connection, or the first byte of a further request, to the end of its head.
        on_rejected: told the reason (a metric's label) of each refusal here.
    """

    __slots__ = ("_head_bytes", "_head_timer", "_on_rejected", "_timeout_seconds")

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        timeout_seconds: float,
        on_rejected: Callable[[str], None],
    ) -> None:
        super().__init__(
            server, loop=loop, access_log=cast("Any", None), keepalive_timeout=KEEP_ALIVE_SECONDS
        )
        self._timeout_seconds = timeout_seconds
        self._on_rejected = on_rejected
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._expect_the_rest()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiter = self._waiter
        waits = waiter is not None and not waiter.done()
        # Before its task has run for the first time, aiohttp waits without saying so.
        if not waits and self._request_count:
            self._head_is_there()
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(TOO_LARGE)
        elif self._head_timer is None:
            self._expect_the_rest()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what aiohttp could not read as a request."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        log.debug("handshake_rejected", remote=request.remote, reason=UNREADABLE.label)
        self._on_rejected(UNREADABLE.label)
        return _Whole(UNREADABLE)

    def _expect_the_rest(self) -> None:
        self._head_timer = self._loop.call_later(self._timeout_seconds, self._too_late)

    def _head_is_there(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_late(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(TIMEOUT)
        else:
            self._on_rejected(TIMEOUT.label)
            self.force_close()

    def _refuse(self, refusal: Refusal) -> None:
        self._head_is_there()
        self._on_rejected(refusal.label)
        if self.transport is not None:
            self.transport.write(refusal.response)
        self.force_close()


class _Whole(web.StreamResponse):
    """An answer that is written as it stands: aiohttp would add a header that names it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(status=refusal.status)
        self._bytes = refusal.response
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        if request.transport is not None:
            request.transport.write(self._bytes)

    async def write_eof(self, data: bytes = b"") -> None:
        """All is written."""
