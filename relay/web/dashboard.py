"""The dashboard: its page, `GET /admin/events` (what the page shows, once a second) and `GET /admin/history`.

For the admin listener alone, behind its token (see `routes.py`). The page and its files hold no secret and no data:
a browser cannot send a token by navigating, so the page is also the body of the 401, asks for the token itself
and then fetches everything else with it.

Invariants: one look a second, however many look on, and none while nobody does; a page that does not keep up
misses snapshots and delays nobody; whoever comes is told what was plotted in the last five minutes, as far as
somebody looked on.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from relay.core.errors import CommandError, ErrorCode
from relay.core.event import is_name
from relay.core.wire import EVENT_STREAM
from relay.web.assets import read_folder, respond
from relay.web.handshake import RETRY_AFTER_SECONDS
from relay.web.jobs import Jobs, told
from relay.web.overview import Overview
from relay.web.responses import NOT_FOUND, error_response, plain_json
from relay.web.visit import queue_of

FOLDER: Final = Path(__file__).parent / "dashboard"
FILES_ROUTE: Final = "dashboard"
MAX_LOOKERS: Final = 16
LOOK_SECONDS: Final = 1.0
PAST_MS: Final = 5 * 60 * 1000
# A page that takes nothing for so long is gone.
_WRITE_SECONDS: Final = 10.0
_PAGE: Final = "index.html"
_CONTENT_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_PLOTTED: Final = ("at", "connections", "rates", "latency", "slow")
_FILE_HEADERS: Final = {
    # Yesterday's page would not understand what today's relay says.
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Accept, Accept-Encoding, Authorization",
}
_STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


class Dashboard:
    """The handlers, and in `run` the one who looks. `jobs` reads histories."""

    def __init__(self, overview: Overview, jobs: Jobs) -> None:
        self._overview = overview
        self._jobs = jobs
        self._files = read_folder(FOLDER, _CONTENT_TYPES)
        self._lookers = 0
        self._wanted = asyncio.Event()
        self._ended = False
        self._past: deque[dict[str, Any]] = deque(maxlen=int(PAST_MS / 1000 / LOOK_SECONDS))
        self._newest = b""  # the last snapshot as bytes, while somebody looks on
        self._news = asyncio.Event()  # set, and replaced, with every snapshot

    async def run(self) -> None:
        """Look once a second while anybody looks on, for ever."""
        while True:
            await self._wanted.wait()
            self._overview.forget()
            while self._wanted.is_set():
                self._look()
                await asyncio.sleep(LOOK_SECONDS)

    async def end(self, _: web.Application) -> None:
        """End all streams: a stop must not wait for them."""
        self._ended = True
        self._tell(b"")

    def shell(self, request: web.Request, status: int = 200) -> web.Response:
        """The page, as the body of whatever status."""
        return respond(request, self._files[_PAGE], _FILE_HEADERS, status)

    async def page(self, request: web.Request) -> web.StreamResponse:
        """`GET /`."""
        return self.shell(request)

    async def file(self, request: web.Request) -> web.StreamResponse:
        """`GET /dashboard/{name}`: what the page consists of; open to whoever reaches the listener."""
        found = self._files.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound(text="the dashboard has no such file")
        return respond(request, found, _FILE_HEADERS)

    async def history(self, request: web.Request) -> web.StreamResponse:
        """`GET /admin/history?jobId=`: what history holds of a job, with the time of each event.

        `queueName=` narrows it. An operator may see every job.
        """
        job_id, queue = request.query.get("jobId", ""), queue_of(request)
        if not is_name(job_id):
            raise CommandError(
                ErrorCode.INVALID_JOB_ID, "send jobId: 1 to 256 characters, none of them a control"
            )
        events = await self._jobs.events_of(job_id, queue)
        if not events:
            return error_response(404, NOT_FOUND, "nothing is known of this job")
        rows = [told(event) | {"at": event.at_ms, "queueName": event.queue} for event in events]
        return plain_json({"jobId": job_id, "events": rows})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """`GET /admin/events`: `past` once, then a `snapshot` a second (Server-Sent Events)."""
        if self._lookers >= MAX_LOOKERS:
            message = f"{MAX_LOOKERS} dashboards are open, which is as many as may be; close one"
            response: web.StreamResponse = error_response(503, ErrorCode.UNAVAILABLE, message)
            response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
            return response
        with self._looking_on():
            response = web.StreamResponse(headers=_STREAM_HEADERS)
            await response.prepare(request)
            try:
                await self._stream(response)
            except (ConnectionError, TimeoutError):
                if request.transport is not None:
                    request.transport.abort()
        return response

    async def _stream(self, response: web.StreamResponse) -> None:
        await _write(response, EVENT_STREAM.reply("past", list(self._past)))
        sent = b""
        while not self._ended:
            newest, news = self._newest, self._news
            if newest and newest is not sent:
                await _write(response, newest)
                sent = newest
            else:
                await news.wait()

    @contextmanager
    def _looking_on(self) -> Iterator[None]:
        self._lookers += 1
        self._wanted.set()
        try:
            yield
        finally:
            self._lookers -= 1
            if not self._lookers:
                self._wanted.clear()
                self._newest = b""  # whoever comes next is not to be told what once was

    def _look(self) -> None:
        snapshot = self._overview.look()
        self._past.append({name: snapshot[name] for name in _PLOTTED})
        while self._past[0]["at"] < snapshot["at"] - PAST_MS:
            self._past.popleft()
        self._tell(EVENT_STREAM.reply("snapshot", snapshot))

    def _tell(self, newest: bytes) -> None:
        self._newest = newest
        news, self._news = self._news, asyncio.Event()
        news.set()


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(_WRITE_SECONDS):
        await response.write(data)
