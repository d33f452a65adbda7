"""The whole HTTP surface on one page: the URL tables of both listeners, and what every answer goes through.

WebSocket upgrades on `server.path` do not come here (see `front.py`); a plain request to it does, and is told
how to ask.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from relay.core.errors import CommandError, ErrorCode
from relay.web.admin import Admin
from relay.web.jobs import Jobs
from relay.web.origin import OriginPolicy
from relay.web.responses import NOT_FOUND, error_response

SOCKET_IO: Final = (
    "This is not a Socket.IO server, and socket.io-client does not connect to it. "
    "Use a plain WebSocket: new WebSocket(url) with JSON messages {event, data}."
)
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
Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


def public_app(
    jobs: Jobs,
    *,
    path: str,
    policy: Callable[[], OriginPolicy],
    on_rejected: Callable[[str], None],
    admin: Admin | None,
    extra: Sequence[web.AbstractRouteDef] = (),
) -> web.Application:
    """What browsers reach. `admin` is given where the probes are public too."""
    app = web.Application(middlewares=[_guard(policy, on_rejected), errors_as_json])
    app.add_routes(
        [
            web.get("/jobs/{jobId}", jobs.one),
            web.get("/jobs", jobs.many),
            web.get(path, _upgrade_required),
            web.route("*", "/socket.io/", _socket_io),
            *extra,
        ]
    )
    if admin is not None:
        app.add_routes([web.get("/livez", admin.live), web.get("/readyz", admin.ready)])
    return app


def admin_app(admin: Admin) -> web.Application:
    """What operators and Prometheus reach."""
    app = web.Application(middlewares=[errors_as_json])
    app.add_routes(
        [
            web.get("/livez", admin.live),
            web.get("/readyz", admin.ready),
            web.get("/healthz", admin.ready),
            web.get("/metrics", admin.metrics),
        ]
    )
    return app


async def _upgrade_required(_: web.Request) -> web.Response:
    response = error_response(426, ErrorCode.BAD_REQUEST, "this path speaks WebSocket")
    response.headers["Upgrade"] = "websocket"
    return response


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
        if refused is not None:
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
