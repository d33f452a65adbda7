"""python-socketio on aiohttp, a room a job; Redis is read as in `naive`.

Without its AsyncRedisManager, by which every event would cross Redis a second time.
"""

import asyncio
import importlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import redis.asyncio
from aiohttp import web

NAMESPACE = "/job-progress"

# Installed for the benchmark alone, so type checkers do not see it.
socketio: Any = importlib.import_module("socketio")
server: Any = socketio.AsyncServer(async_mode="aiohttp", transports=["websocket"])


async def connect(sid: str, environ: dict[str, Any]) -> None:
    """Everybody is welcome."""


async def subscribe(sid: str, data: dict[str, Any]) -> None:
    """Enter the room of a job."""
    await server.enter_room(sid, f"job:{data['jobId']}", namespace=NAMESPACE)
    await server.emit("subscribed", data, to=sid, namespace=NAMESPACE)


async def forward() -> None:
    """Every message to the room of its job."""
    client = redis.asyncio.Redis(port=int(os.environ["REDIS_PORT"]))
    subscription = client.pubsub()
    await subscription.psubscribe("jobs:*")
    async for message in subscription.listen():
        if message["type"] == "pmessage":
            room = "job:" + message["channel"].decode().removeprefix("jobs:")
            data = json.loads(message["data"])
            await server.emit("job-progress", data, room=room, namespace=NAMESPACE)


async def reading(app: web.Application) -> AsyncIterator[None]:
    """Read Redis while the application runs."""
    task = asyncio.create_task(forward())
    yield
    task.cancel()


def main() -> None:
    """Serve until terminated."""
    server.on("connect", connect, namespace=NAMESPACE)
    server.on("subscribe-to-job", subscribe, namespace=NAMESPACE)
    app = web.Application()
    server.attach(app)
    app.cleanup_ctx.append(reading)
    port = int(os.environ["PORT"])
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, backlog=4096)


if __name__ == "__main__":
    main()
