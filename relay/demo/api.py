"""The demo's HTTP surface: the page at `/`, and `POST /analyses/similarity/queue`.

Accepting a job means telling of it (`job-queued`) and putting it on the worker's list, in one Redis
transaction. Bounded: the body in bytes, the wallets in number. Whoever asks must send JSON as JSON:
a foreign web page cannot do that without a preflight, which the relay answers to its own origins alone.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import redis.asyncio
import redis.exceptions
from aiohttp import web

from relay.demo import jobs
from relay.demo.similarity import (
    MAX_ADDRESS_CHARACTERS,
    MAX_WALLETS,
    Request,
    RequestError,
    example_wallets,
    parse_request,
)

SUBMIT_PATH = "/analyses/similarity/queue"
EXAMPLE_PATH = "/analyses/similarity/example"

# A body that is right needs four bytes around each address and a few fields; twice that allows for spaces.
_MAX_BODY_BYTES = 2 * MAX_WALLETS * (MAX_ADDRESS_CHARACTERS + 4)
_EXAMPLE_WALLETS = 200
_ASSETS = {
    "/": ("page.html", "text/html"),
    "/demo/page.css": ("page.css", "text/css"),
    "/demo/page.js": ("page.js", "text/javascript"),
    "/demo/page.svg": ("page.svg", "image/svg+xml"),
}
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def connect(url: str) -> redis.asyncio.Redis:
    """A Redis connection for `routes`; the caller closes it.

    It gives up after two seconds: a client is told 503 rather than kept waiting.
    """
    return redis.asyncio.Redis.from_url(
        url, socket_timeout=2.0, socket_connect_timeout=2.0, retry=None
    )


def routes(connection: redis.asyncio.Redis) -> list[web.AbstractRouteDef]:
    """The demo's routes, to be served beside the relay's own."""

    async def submit_analysis(request: web.Request) -> web.Response:
        try:
            analysis = parse_request(await _read_json(request))
        except RequestError as error:
            return _error(400, "bad-request", str(error))
        try:
            job_id = await submit(connection, analysis)
        except (redis.exceptions.RedisError, OSError):
            return _error(
                503, "unavailable", "Redis is away: try again in a second", {"Retry-After": "1"}
            )
        return web.json_response({"jobId": job_id, "queueName": jobs.QUEUE_NAME}, status=202)

    return [
        web.post(SUBMIT_PATH, submit_analysis),
        web.get(EXAMPLE_PATH, _example),
        *(web.get(path, _asset(*asset)) for path, asset in _ASSETS.items()),
    ]


async def submit(connection: redis.asyncio.Redis, analysis: Request) -> str:
    """Put an analysis on the worker's list and tell that it waits there.

    Returns:
        the new job's id.

    Raises:
        redis.RedisError: Redis is away; nothing was submitted.
    """
    job_id = jobs.new_job_id()
    waiting = jobs.payload("job-queued", job_id, progress=0, status="waiting")
    async with connection.pipeline(transaction=True) as transaction:
        # Told first, so that it is never told after the worker's first progress. What the two return is the
        # pipeline itself, though redis-py's annotations have it otherwise.
        _ = transaction.publish(jobs.channel(job_id), waiting)
        _ = transaction.rpush(
            jobs.WAITING_LIST, orjson.dumps({"jobId": job_id, "request": analysis.as_json()})
        )
        await transaction.execute()
    return job_id


async def _read_json(request: web.Request) -> object:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise RequestError(
                f"the body is larger than {_MAX_BODY_BYTES} bytes: name at most {MAX_WALLETS} wallets"
            )
    try:
        document: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    return document


def _error(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> web.Response:
    document = {"error": {"code": code, "message": message}}
    return web.json_response(document, status=status, headers=headers)


async def _example(_: web.Request) -> web.Response:
    # Other wallets for each who asks, in the form that the queue takes: a request to try out.
    analysis = Request(wallets=example_wallets(_EXAMPLE_WALLETS, seed=jobs.new_job_id()))
    return web.json_response(analysis.as_json(), headers={"Cache-Control": "no-store"})


def _asset(name: str, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")

    async def handler(_: web.Request) -> web.Response:
        return web.Response(
            text=text, content_type=content_type, charset="utf-8", headers=_PAGE_HEADERS
        )

    return handler
