"""Probes and metrics for the admin listener: live fails slowly, ready fails fast.

Restarting a relay because Redis is away would only add a reconnect storm, so `/livez` says no more than
that the event loop turns.
"""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from relay.web.responses import plain_json

Render = Callable[[str], tuple[bytes, str]]  # an Accept header → body, content type


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the relay can serve now, and what stands in the way."""

    redis_up: bool
    draining: bool

    @property
    def ok(self) -> bool:
        """Subscribed to Redis and not on the way out."""
        return self.redis_up and not self.draining


class Admin:
    """The handlers. `readiness` tells the state of now, `render` the metrics."""

    def __init__(self, readiness: Callable[[], Readiness], render: Render) -> None:
        self._readiness = readiness
        self._render = render

    async def live(self, _: web.Request) -> web.Response:
        """`GET /livez`: 200 while the event loop turns."""
        return plain_json({"status": "ok"})

    async def ready(self, _: web.Request) -> web.Response:
        """`GET /readyz`: 200 when subscribed to Redis and not draining, else 503."""
        state = self._readiness()
        body = {
            "status": "ok" if state.ok else "unavailable",
            "redis": "connected" if state.redis_up else "disconnected",
            "draining": state.draining,
        }
        if not state.ok:
            body["reason"] = "draining" if state.draining else "not subscribed to Redis"
        return plain_json(body, 200 if state.ok else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        """`GET /metrics`: Prometheus text, or OpenMetrics where `Accept` asks for it."""
        body, content_type = self._render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})
