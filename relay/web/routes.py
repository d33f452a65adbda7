"""The whole HTTP surface on one page: the URL tables of both listeners, and what every answer goes through.

The first request of a connection does not come here where it is a WebSocket upgrade on `server.path` (see
`front.py`); every other request to that path does.
"""

from collections.abc import Callable, Sequence
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from relay.core.errors import CommandError, ErrorCode
from relay.web.admin import Admin
from relay.web.assets import client_modules, is_public
from relay.web.jobs import Jobs
from relay.web.origin import OriginPolicy, may_name_admin
from relay.web.responses import NOT_FOUND, error_response
from relay.web.sse import EventStreams

SOCKET_IO: Final = (
    "This is not a Socket.IO server, and socket.io-client does not connect to it. "
    "Use a plain WebSocket: new WebSocket(url) with JSON messages {event, data}."
)
PUBLIC_PROBES: Final = ("/livez", "/readyz")
_CODES: Final = {
    400: ErrorCode.BAD_REQUEST.value,
    401: ErrorCode.UNAUTHORIZED.value,
    403: ErrorCode.FORBIDDEN.value,
    404: NOT_FOUND,
    405: "method-not-allowed",
    413: "too-large",
}
_PREFLIGHT_SECONDS: Final = 600

log = structlog.stdlib.get_logger()


def public_app(
    jobs: Jobs,
    streams: EventStreams,
    *,
    path: str,
    upgrade: Handler,
    policy: Callable[[], OriginPolicy],
    on_rejected: Callable[[str], None],
    admin: Admin | None,
    extra: Sequence[web.AbstractRouteDef] = (),
) -> web.Application:
    """What browsers reach. `admin` is given where the probes are public too."""
    app = web.Application(middlewares=[_guard(policy, on_rejected), errors_as_json])
    app.add_routes(
        [
            web.get("/jobs", jobs.many),
            web.get("/jobs/{jobId}", jobs.one),
            web.get("/jobs/{jobId}/history", jobs.history),
            web.get("/jobs/{jobId}/events", streams.one, allow_head=False),
            web.get("/events", streams.many, allow_head=False),
            client_modules(),
            web.get(path, upgrade, allow_head=False),
            web.route("*", "/socket.io/", _socket_io),
            *extra,
        ]
    )
    if admin is not None:
        handlers = (admin.live, admin.ready)
        app.add_routes(map(web.get, PUBLIC_PROBES, handlers))
    return app


def admin_app(admin: Admin, allowed_hosts: Sequence[str]) -> web.Application:
    """What operators and Prometheus reach; under an address, `localhost` or one of `allowed_hosts`."""
    app = web.Application(middlewares=[_admin_guard(allowed_hosts), errors_as_json])
    app.add_routes(
        [
            web.get("/livez", admin.live),
            web.get("/readyz", admin.ready),
            web.get("/healthz", admin.ready),
            web.get("/metrics", admin.metrics),
        ]
    )
    return app


async def _socket_io(_: web.Request) -> web.Response:
    return error_response(400, ErrorCode.BAD_REQUEST, SOCKET_IO)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong is answered as `{"error": {"code", "message"}}`."""
    try:
        return await handler(request)
    except CommandError as error:
        return error_response(400, error.code, error.message)
    except web.HTTPException as error:
        if error.status < 400 or error.content_type == "application/json":
            raise
        response = error_response(
            error.status, _CODES.get(error.status, "error"), error.text or error.reason
        )
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:  # a bug of ours costs this request and no other
        log.exception("request_failed", path=request.path)
        return error_response(500, "internal", "internal error")


def _guard(policy: Callable[[], OriginPolicy], on_rejected: Callable[[str], None]) -> Middleware:
    """Origin and Host checks for every request, and CORS answers for those that pass."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = policy().judge(request.remote or "", _only(request))
        if refused is not None and not is_public(request):
            on_rejected(refused.what)
            log.warning(
                "request_rejected", remote=request.remote, reason=refused.what,
                value=refused.value, expected=refused.expected,
            )  # fmt: skip
            return error_response(403, ErrorCode.FORBIDDEN, f"see server.allowed_{refused.what}s")
        origin = request.headers.get("Origin")
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response: web.StreamResponse = _preflight(request)
        else:
            response = await handler(request)
        if origin is not None and not response.prepared:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "ETag, Retry-After"
            response.headers.add("Vary", "Origin")
        return response

    return guard


def _admin_guard(allowed_hosts: Sequence[str]) -> Middleware:
    """Refuses pages: a foreign Origin, and a Host that DNS rebinding could have named."""
    own_origin_only = OriginPolicy(
        allowed_origins=(), allowed_hosts=(), trusted_proxies=(), loopback=False
    )

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        get = _only(request)
        if not may_name_admin(get("host") or "", allowed_hosts):
            return error_response(403, ErrorCode.FORBIDDEN, "see admin.allowed_hosts")
        if own_origin_only.judge("", get) is not None:
            return error_response(403, ErrorCode.FORBIDDEN, "pages of other origins may not ask")
        return await handler(request)

    return guard


def _only(request: web.Request) -> Callable[[str], str | None]:
    def get(name: str) -> str | None:
        values = request.headers.getall(name, [])
        return values[0] if len(values) == 1 else None

    return get


def _preflight(request: web.Request) -> web.Response:
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
    }
    if wanted:
        headers["Access-Control-Allow-Headers"] = wanted
    return web.Response(status=204, headers=headers)
