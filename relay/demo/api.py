"""The demo's API, such as an application with background jobs has: submit an analysis, ask for it, cancel it.

Accepting a job means telling of it (`job-queued`) and putting it on the worker's list, in one Redis
transaction. Bounded: the body in bytes, the wallets and the ids asked for in number. A page of another
origin gets nothing done here: the relay answers its requests 403 before they come this far.
"""

from typing import Any

import orjson
import redis.asyncio
import redis.exceptions
from aiohttp import web
from aiohttp.typedefs import Handler

from relay.demo import jobs, page
from relay.demo.similarity import (
    MAX_ADDRESS_CHARACTERS,
    MAX_WALLETS,
    Request,
    RequestError,
    example_wallets,
    parse_request,
)

STATES_PATH = "/analyses/similarity"
SUBMIT_PATH = "/analyses/similarity/queue"
EXAMPLE_PATH = "/analyses/similarity/example"
CANCEL_PATH = "/analyses/similarity/{jobId}/cancel"

# A body that is right needs four bytes around each address and a few fields; twice that allows for spaces.
_MAX_BODY_BYTES = 2 * MAX_WALLETS * (MAX_ADDRESS_CHARACTERS + 4)
_MAX_IDS = 100
_EXAMPLE_WALLETS = 200
_ENDED = ("job-completed", "job-failed")


def connect(url: str) -> redis.asyncio.Redis:
    """A Redis connection for `routes`; the caller closes it.

    It gives up after two seconds: a client is told 503 rather than kept waiting.
    """
    return redis.asyncio.Redis.from_url(
        url, socket_timeout=2.0, socket_connect_timeout=2.0, retry=None
    )


def routes(connection: redis.asyncio.Redis) -> list[web.AbstractRouteDef]:
    """The demo's routes, its page among them, to be served beside the relay's own."""

    async def submit_analysis(request: web.Request) -> web.Response:
        try:
            analysis = parse_request(await _read_json(request))
        except RequestError as error:
            return _error(400, "bad-request", str(error))
        job_id = await submit(connection, analysis)
        return web.json_response({"jobId": job_id, "queueName": jobs.QUEUE_NAME}, status=202)

    async def states(request: web.Request) -> web.Response:
        job_ids = [job_id for job_id in request.query.get("ids", "").split(",") if job_id]
        if not 0 < len(job_ids) <= _MAX_IDS:
            return _error(400, "bad-request", f"name 1 to {_MAX_IDS} jobs: ?ids=a,b,c")
        keys = [jobs.state_key(job_id) for job_id in job_ids]
        found: list[Any] = await connection.mget(keys)
        # Put together from what is JSON already: a result may be large, and nothing in it is looked at.
        members = [
            orjson.dumps(job_id) + b":" + state
            for job_id, state in zip(job_ids, found, strict=True)
            if state is not None
        ]
        return web.Response(
            body=b'{"jobs":{' + b",".join(members) + b"}}",
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def cancel_analysis(request: web.Request) -> web.Response:
        job_id = request.match_info["jobId"]
        state = await connection.get(jobs.state_key(job_id))
        if state is None:
            return _error(404, "not-found", f"there is no job {job_id}: it may have ended long ago")
        if orjson.loads(state)["event"] in _ENDED:
            return _error(409, "ended", f"the job {job_id} has ended already")
        await cancel(connection, job_id)
        return web.json_response({"jobId": job_id}, status=202)

    return [
        web.post(SUBMIT_PATH, _needs_redis(submit_analysis)),
        web.get(EXAMPLE_PATH, _example),
        web.get(STATES_PATH, _needs_redis(states)),
        web.post(CANCEL_PATH, _needs_redis(cancel_analysis)),
        *page.routes(),
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
        # Told first, so that it is never told after the worker's first progress. What these return is the
        # pipeline itself, though redis-py's annotations have it otherwise.
        _ = transaction.set(jobs.state_key(job_id), waiting, ex=jobs.KEEP_SECONDS)
        _ = transaction.publish(jobs.channel(job_id), waiting)
        _ = transaction.rpush(
            jobs.WAITING_LIST, orjson.dumps({"jobId": job_id, "request": analysis.as_json()})
        )
        await transaction.execute()
    return job_id


async def cancel(connection: redis.asyncio.Redis, job_id: str) -> None:
    """End a job that waits, or have the worker end it at its next progress; idempotent.

    Raises:
        redis.RedisError: Redis is away.
    """
    # Wished for first: should the worker take the job meanwhile, it finds the wish.
    await connection.set(jobs.cancel_key(job_id), b"1", ex=jobs.KEEP_SECONDS)
    # The rest of a document is the request, which need not be parsed.
    begins = b'{"jobId":' + orjson.dumps(job_id)
    waiting: list[Any] = await connection.lrange(jobs.WAITING_LIST, 0, -1)
    for document in waiting:
        if document.startswith(begins) and await connection.lrem(jobs.WAITING_LIST, 1, document):
            cancelled = jobs.payload(
                "job-failed", job_id,
                status="cancelled", error="cancelled", failedReason="cancelled on request",
            )  # fmt: skip
            async with connection.pipeline(transaction=True) as transaction:
                _ = transaction.set(jobs.state_key(job_id), cancelled, ex=jobs.KEEP_SECONDS)
                _ = transaction.publish(jobs.channel(job_id), cancelled)
                await transaction.execute()


def _needs_redis(handler: Handler) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (redis.exceptions.RedisError, OSError):
            return _error(
                503, "unavailable", "Redis is away: try again in a second", {"Retry-After": "1"}
            )

    return handle


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
