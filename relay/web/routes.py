"""The whole HTTP surface on one page: the URL tables of both listeners, and what every answer goes through.

The first request of a connection does not come here where it is a WebSocket upgrade on `server.path` (see
`front.py`); every other request to that path does.
"""

import hmac
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from relay.core.errors import CommandError, ErrorCode
from relay.web.admin import Admin
from relay.web.assets import client_modules, is_public
from relay.web.credentials import bearer
from relay.web.dashboard import FILES_ROUTE, Dashboard
from relay.web.handshake import Refusal, foreign
from relay.web.jobs import Jobs
from relay.web.operators import MAX_BODY_BYTES, Operators
from relay.web.origin import OriginPolicy, may_name_admin
from relay.web.responses import NOT_FOUND, error_response, harden, refusal_response
from relay.web.sse import EventStreams
from relay.web.visit import RequestRefused

SOCKET_IO: Final = (
    "This is not a Socket.IO server, and socket.io-client does not connect to it. "
    "Use a plain WebSocket: new WebSocket(url) with JSON messages {event, data}."
)
PUBLIC_PROBES: Final = ("/livez", "/readyz")
# What of the admin listener is open to whoever reaches it.
_OPEN_TO_ALL: Final = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
_PROXIED: Final = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-host"})
_CODES: Final = {
    400: ErrorCode.BAD_REQUEST.value,
    401: ErrorCode.UNAUTHORIZED.value,
    403: ErrorCode.FORBIDDEN.value,
    404: NOT_FOUND,
    405: "method-not-allowed",
    413: "too-large",
}
_STATUSES: Final = {ErrorCode.FORBIDDEN: 403}
_PREFLIGHT_SECONDS: Final = 600

log = structlog.stdlib.get_logger()


def public_app(
    jobs: Jobs,
    streams: EventStreams,
    *,
    path: str,
    upgrade: Handler,
    policy: Callable[[], OriginPolicy],
    on_rejected: Callable[[Refusal, str], None],
    admin: Admin | None,
    takes_cookies: Callable[[], bool],
    extra: Sequence[web.AbstractRouteDef] = (),
) -> web.Application:
    """What browsers reach. `admin` is given where the probes are public too; `takes_cookies` tells whether
    tokens may come as one: then pages of allowed origins may have their browser send it."""
    app = web.Application(
        middlewares=[
            _guard(policy, on_rejected, takes_cookies, jobs.reception.count),
            errors_as_json,
        ]
    )
    app.on_response_prepare.append(harden)
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


def admin_app(
    admin: Admin,
    operators: Operators,
    dashboard: Dashboard,
    allowed_hosts: Sequence[str],
    *,
    token: str,
    loopback: bool,
) -> web.Application:
    """What operators and Prometheus reach; under an address, `localhost` or one of `allowed_hosts`.

    All but probes, metrics and the dashboard's code wants `token`; where that is empty, what asks must come from
    this machine: the listener is `loopback`.
    """
    app = web.Application(
        middlewares=[
            errors_as_json,
            _admin_guard(allowed_hosts),
            _token_guard(token, loopback, dashboard.shell),
        ],
        client_max_size=MAX_BODY_BYTES,
    )
    app.on_response_prepare.append(harden)
    app.on_shutdown.append(dashboard.end)
    app.add_routes(
        [
            web.get("/", dashboard.page),
            web.get("/dashboard/{name}", dashboard.file, name=FILES_ROUTE),
            web.get("/livez", admin.live),
            web.get("/readyz", admin.ready),
            web.get("/healthz", admin.ready),
            web.get("/metrics", admin.metrics),
            web.get("/admin/connections", operators.connections),
            web.get("/admin/events", dashboard.events, allow_head=False),
            web.get("/admin/history", dashboard.history),
            web.post("/admin/disconnect", operators.disconnect),
            web.post("/admin/revoke", operators.revoke),
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
    except RequestRefused as error:
        return refusal_response(error.refusal)
    except CommandError as error:
        return error_response(_STATUSES.get(error.code, 400), error.code, error.message)
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


def _guard(
    policy: Callable[[], OriginPolicy],
    on_rejected: Callable[[Refusal, str], None],
    takes_cookies: Callable[[], bool],
    count: Callable[[web.Request], None],
) -> Middleware:
    """Origin and Host checks for every request, and CORS answers for those that pass; each is told to `count`."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        count(request)
        refused = policy().judge(request.remote or "", _only(request))
        if refused is not None and not is_public(request):
            refusal = foreign(refused)
            on_rejected(refusal, request.remote or "")
            return refusal_response(refusal)
        origin = request.headers.get("Origin")
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response: web.StreamResponse = _preflight(request)
        else:
            response = await handler(request)
        if origin is not None and not response.prepared:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "ETag, Retry-After"
            if takes_cookies():
                response.headers["Access-Control-Allow-Credentials"] = "true"
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


def _token_guard(
    token: str, loopback: bool, shell: Callable[[web.Request, int], web.Response]
) -> Middleware:
    """Lets nobody but operators to what is not open to all, whether it exists or not.

    A browser that navigates to the dashboard cannot bring the token: the 401 is the page itself (`shell`), which
    asks for it.
    """
    expected = token.encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _OPEN_TO_ALL or request.match_info.route.name == FILES_ROUTE:
            return await handler(request)
        if expected:
            tokens = [*bearer(request.headers.getall("Authorization", []))]
            given = tokens[0].encode(errors="surrogateescape") if len(tokens) == 1 else b""
            is_operator = hmac.compare_digest(given, expected)
            advice = "send Authorization: Bearer with admin.token"
        else:
            # A proxy on this machine would bring the whole world here.
            is_operator = loopback and _PROXIED.isdisjoint(map(str.lower, request.headers))
            advice = "set admin.token to reach this from elsewhere than this machine"
        if not is_operator:
            if expected and _is_navigation(request):
                response = shell(request, 401)
            else:
                log.warning("request_rejected", remote=request.remote, reason="admin_token")
                response = error_response(401, ErrorCode.UNAUTHORIZED, advice)
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        return await handler(request)

    return guard


def _is_navigation(request: web.Request) -> bool:
    """Whether a browser asks for the dashboard's page, and has no token to send."""
    return (
        request.method == "GET"
        and request.path == "/"
        and "text/html" in request.headers.get("Accept", "")
        and "Authorization" not in request.headers
    )


def _only(request: web.Request) -> Callable[[str], str | None]:
    def get(name: str) -> str | None:
        values = request.headers.getall(name, [])
        if name == "origin" and values:
            return ", ".join(
                values
            )  # of several together none is allowed, and that is not to have none
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
