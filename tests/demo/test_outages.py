"""What the demo breaks on demand, for whom, and that it mends itself."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis
from aiohttp import web
from aiohttp.test_utils import TestClient

from relay.demo import worker
from relay.demo.embedded import EmbeddedRedis
from relay.demo.line import Line, Passage
from relay.demo.outages import MEND_SECONDS, OUTAGES_PATH, Outages

Client = TestClient[web.Request, web.Application]
MakeClient = Callable[[web.Application], Awaitable[Client]]
Post = Callable[..., Awaitable[tuple[int, Any]]]


def answers(server: EmbeddedRedis) -> bool:
    with redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None) as connection:
        try:
            return bool(connection.ping())
        except redis.TimeoutError:
            return False


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def post(own_redis: EmbeddedRedis, line: Line, aiohttp_client: MakeClient) -> Post:
    """Posts as the Lab's page does; `mend_seconds` and headers may be others."""

    async def post(
        document: object, *, mend_seconds: float = 30, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        application = web.Application()
        application.add_routes(Outages(own_redis, line, mend_seconds=mend_seconds).routes())
        client = await aiohttp_client(application)
        own = {"Origin": str(client.make_url("/").origin()), "Sec-Fetch-Site": "same-origin"}
        response = await client.post(OUTAGES_PATH, json=document, headers=own | (headers or {}))
        is_json = response.content_type == "application/json"
        return response.status, await (response.json() if is_json else response.text())

    return post


async def test_redis_is_frozen_and_mends_itself(own_redis: EmbeddedRedis, post: Post) -> None:
    status, said = await post({"redis": "frozen"}, mend_seconds=0.5)
    was_frozen = not answers(own_redis)
    async with asyncio.timeout(10):
        while not answers(own_redis):  # noqa: ASYNC110  another process
            await asyncio.sleep(0.02)

    assert (status, said["redis"]) == (200, "frozen")
    assert 0 < said["mendsInSeconds"] <= 0.5
    assert was_frozen


async def test_line_is_closed_and_opened_again(line: Line, post: Post) -> None:
    _, said = await post({"line": "closed"})
    assert (line.passage, said["line"]) == (Passage.CLOSED, "closed")
    assert said["mendsInSeconds"] > 0

    _, said = await post({"line": "open"})

    assert (line.passage, said["mendsInSeconds"]) == (Passage.OPEN, None)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Forwarded-For": "192.0.2.1"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
)
async def test_nobody_but_the_page_itself_may_break_anything(
    own_redis: EmbeddedRedis, line: Line, post: Post, headers: dict[str, str]
) -> None:
    status, _ = await post({"redis": "frozen", "line": "closed"}, headers=headers)

    assert status in (403, 415)
    assert answers(own_redis)
    assert line.passage is Passage.OPEN


@pytest.mark.parametrize("document", [[], "frozen", {"line": "shut"}, {"redis": 1}, {"line": None}])
async def test_faulty_wish_is_told_what_would_be_right(
    line: Line, post: Post, document: object
) -> None:
    status, said = await post(document)

    assert status == 400
    assert "no-websocket" in said
    assert line.passage is Passage.OPEN


async def test_server_that_is_gone_cannot_be_frozen(own_redis: EmbeddedRedis, post: Post) -> None:
    own_redis.kill()

    status, said = await post({"redis": "frozen"})

    assert status == 503
    assert "does not run" in said


def test_outage_is_shorter_than_the_patience_of_the_worker() -> None:
    assert MEND_SECONDS < worker._SOCKET_TIMEOUT_SECONDS
