"""The relay that one writes in an afternoon: aiohttp, redis.asyncio, and `send_json` in a loop.

The default event loop, one `json.loads` a message, one `await` a client.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator

import redis.asyncio
from aiohttp import WSMsgType, web

watchers: dict[str, set[web.WebSocketResponse]] = {}


async def job_progress(request: web.Request) -> web.WebSocketResponse:
    """One client, from its handshake to its end."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    watched: set[str] = set()
    async for message in socket:
        if message.type is not WSMsgType.TEXT:
            continue
        job_id = str(json.loads(message.data)["data"]["jobId"])
        watched.add(job_id)
        watchers.setdefault(job_id, set()).add(socket)
        await socket.send_json({"event": "subscribed", "data": {"jobId": job_id}})
    for job_id in watched:
        watchers[job_id].discard(socket)
    return socket


async def forward() -> None:
    """Every message to every client that watches its job, one after the other."""
    client = redis.asyncio.Redis(port=int(os.environ["REDIS_PORT"]))
    subscription = client.pubsub()
    await subscription.psubscribe("jobs:*")
    async for message in subscription.listen():
        if message["type"] != "pmessage":
            continue
        job_id = message["channel"].decode().removeprefix("jobs:")
        data = json.loads(message["data"])
        for socket in list(watchers.get(job_id, ())):
            with contextlib.suppress(ConnectionError):
                await socket.send_json({"event": "job-progress", "data": data})


async def reading(app: web.Application) -> AsyncIterator[None]:
    """Read Redis while the application runs."""
    task = asyncio.create_task(forward())
    yield
    task.cancel()


def main() -> None:
    """Serve until terminated."""
    app = web.Application()
    app.router.add_get("/job-progress", job_progress)
    app.cleanup_ctx.append(reading)
    port = int(os.environ["PORT"])
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, backlog=4096)


if __name__ == "__main__":
    main()
