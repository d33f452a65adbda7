"""The Lab's line to the relay, before a server that answers in the relay's place."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from relay.demo.line import LINE_PATH, Line, Passage

Client = TestClient[web.Request, web.Application]
MakeClient = Callable[[web.Application], Awaitable[Client]]
MakeServer = Callable[[web.Application], Awaitable[TestServer]]

# More than aiohttp takes by itself; results may be large.
BIG = 5_000_000


async def _jobs(request: web.Request) -> web.Response:
    return web.json_response({"path": request.raw_path}, status=404, headers={"ETag": '"e"'})


async def _events(request: web.Request) -> web.StreamResponse:
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await stream.prepare(request)
    await stream.write(b"data: 1\n\n")
    await asyncio.Event().wait()
    raise AssertionError


async def _echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.data == "go":
            await socket.close(code=1012)
        else:
            await socket.send_str(message.data * BIG)
    return socket


@pytest.fixture
async def line(aiohttp_server: MakeServer) -> AsyncIterator[Line]:
    relay = web.Application()
    relay.add_routes(
        [
            web.get("/job-progress", _echo),
            web.get("/events", _events),
            web.get("/jobs{rest:.*}", _jobs),
        ]
    )
    server = await aiohttp_server(relay)
    async with Line() as line:
        line.target = str(server.make_url("")).rstrip("/")
        yield line


@pytest.fixture
async def client(line: Line, aiohttp_client: MakeClient) -> Client:
    application = web.Application()
    application.add_routes(line.routes())
    return await aiohttp_client(application)


async def test_answer_comes_through_as_it_is_and_the_path_as_it_was_written(client: Client) -> None:
    response = await client.get(f"{LINE_PATH}/jobs/a%2Fb?since=1%202", allow_redirects=False)

    assert response.status == 404
    assert response.headers["ETag"] == '"e"'
    assert await response.json() == {"path": "/jobs/a%2Fb?since=1%202"}


async def test_messages_and_the_close_code_come_through(client: Client) -> None:
    socket = await client.ws_connect(f"{LINE_PATH}/job-progress", max_msg_size=0)

    await socket.send_str("a")
    told = await socket.receive_str()
    await socket.send_str("go")
    await socket.receive()

    assert told == "a" * BIG
    assert socket.close_code == 1012


@pytest.mark.parametrize(
    ("passage", "websocket", "stream", "held", "short"),
    [
        (Passage.NO_WEBSOCKET, False, True, True, True),
        (Passage.SHORT, False, False, False, True),
        (Passage.CLOSED, False, False, False, False),
    ],
)
async def test_passage_lets_through_what_it_says(
    client: Client,
    line: Line,
    passage: Passage,
    websocket: bool,
    stream: bool,
    held: bool,
    short: bool,
) -> None:
    line.passage = passage

    assert await _gets_through(client, "job-progress", websocket=True) is websocket
    assert await _gets_through(client, "events") is stream
    assert await _gets_through(client, "jobs/a?wait=25") is held
    assert await _gets_through(client, "jobs/a?wait=0") is short


async def test_what_is_open_and_no_longer_allowed_is_cut(client: Client, line: Line) -> None:
    socket = await client.ws_connect(f"{LINE_PATH}/job-progress")
    stream = await client.get(f"{LINE_PATH}/events")
    assert await stream.content.readline() == b"data: 1\n"

    line.passage = Passage.NO_WEBSOCKET
    ended = await asyncio.wait_for(socket.receive(), 5)
    line.passage = Passage.SHORT

    assert ended.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    assert socket.close_code == 1006
    with pytest.raises(aiohttp.ClientPayloadError):
        await asyncio.wait_for(stream.read(), 5)


async def test_relay_that_is_away_is_answered_502(client: Client, line: Line) -> None:
    line.target = "http://127.0.0.1:1"

    response = await client.get(f"{LINE_PATH}/jobs")

    assert response.status == 502


async def _gets_through(client: Client, path: str, *, websocket: bool = False) -> bool:
    try:
        if websocket:
            await (await client.ws_connect(f"{LINE_PATH}/{path}")).close()
            return True
        async with client.get(f"{LINE_PATH}/{path}") as response:
            return response.status != 403
    except (aiohttp.WSServerHandshakeError, aiohttp.ServerDisconnectedError):
        return False
