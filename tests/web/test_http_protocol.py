"""What every HTTP answer is without, what it has, and that no head takes longer or more room than it may."""

import json

import pytest
import structlog

from relay.web.handshake import MAX_HEAD_BYTES
from tests.web.conftest import PATH, Answer, RawClient, Running, Serve, upgrade
from tests.web.tokens import JWT, bearing, token

EVERY_LOOP = True

GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def connected(relay: Running, listener: str) -> RawClient:
    client = await RawClient.connect(getattr(relay, listener))
    relay.closing.callback(client.socket.close)
    return client


async def asked(relay: Running, request: bytes, listener: str = "public") -> Answer:
    client = await connected(relay, listener)
    await client.send(request)
    return await client.answer()


FAULTS = {
    "unknown job": GET % b"/jobs/job",
    "unknown path": GET % b"/nothing/here",
    "bad method": b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "bad header": b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
    "two lengths": b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "long URL": GET % (b"/" + b"a" * 9000),
    "large head": GET % (b"/" + b"a" * 20_000),
    "foreign host": b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "no upgrade": GET % PATH.encode(),
    "socket.io": GET % b"/socket.io/",
    "handshake fault": upgrade(without="Sec-WebSocket-Key"),
}
OTHERS = {
    "stream": GET % b"/jobs/job/events",
    "expectation": b"GET / HTTP/1.1\r\nHost: localhost\r\nExpect: tea\r\n\r\n",
    "probe": GET % b"/livez",
    "metrics": GET % b"/metrics",
}


@pytest.mark.parametrize("listener", ["public", "admin"])
@pytest.mark.parametrize("what", [*FAULTS, *OTHERS])
async def test_no_answer_names_the_software(serve: Serve, what: str, listener: str) -> None:
    answer = await asked(await serve(), (FAULTS | OTHERS)[what], listener)

    assert "server" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


async def test_granted_handshake_does_not_name_it_either(serve: Serve) -> None:
    answer = await asked(await serve(), upgrade())

    assert (answer.status, "server" in answer.headers) == (101, False)


@pytest.mark.parametrize("listener", ["public", "admin"])
@pytest.mark.parametrize("what", FAULTS)
async def test_every_fault_is_answered_in_json_and_kept_by_nobody(
    serve: Serve, what: str, listener: str
) -> None:
    answer = await asked(await serve(), FAULTS[what], listener)

    assert answer.status >= 400
    assert answer.error["message"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


async def test_pages_may_run_nothing_but_what_comes_with_them(serve: Serve) -> None:
    answer = await asked(await serve(), GET % b"/jobs/job")

    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /jobs/job?token=TOKEN HTTP/1.1\r\nHost: localhost\r\nBad Header: TOKEN\r\n\r\n",
        b"GE T /jobs/job?token=TOKEN HTTP/1.1\r\n\r\n",
        b"GET /jobs/job?token=TOKEN HTTP/1.1\r\nAuthorization Bearer TOKEN\r\n\r\n",
        b"TOKEN\r\n\r\n",
        upgrade(PATH + "?token=TOKEN", Authorization="Bearer TOKEN"),
        upgrade(PATH + "?token=TOKEN", without="Host"),
        upgrade(PATH + "?token=TOKEN", Sec_WebSocket_Protocol="bearer, TOKEN"),
        upgrade(PATH, Cookie="session=TOKEN"),
        GET.replace(b"localhost", b"localhost\r\nAuthorization: Bearer TOKEN")
        % b"/jobs/job?token=TOKEN",
        GET % b"/jobs/%ff?wait=x&token=TOKEN",
        GET.replace(b"localhost", b"localhost\r\nCookie: session=TOKEN") % b"/jobs/job/events",
    ],
)
@pytest.mark.parametrize("listener", ["public", "admin"])
async def test_no_token_reaches_the_log_or_the_answer(
    serve: Serve,
    request_: bytes,
    listener: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    relay = await serve(JWT | {"auth.allow_query_token": True, "auth.cookie": "session"})
    held = token("*", secret="x" * 32)

    with structlog.testing.capture_logs() as lines:
        answer = await asked(relay, request_.replace(b"TOKEN", held.encode()), listener)

    assert answer.status in range(400, 500)
    assert held not in json.dumps(lines) + caplog.text
    assert held.encode() not in answer.body


async def test_token_that_is_believed_reaches_no_log_either(serve: Serve) -> None:
    relay = await serve(JWT | {"auth.allow_query_token": True})
    held = token("*", sub="alice")
    client = await relay.raw()

    with structlog.testing.capture_logs() as lines:
        await client.upgrade(upgrade(f"{PATH}?token={held}", **bearing(held)))
        client.reset()
        await relay.metric_reaches(1, "relay_connections_closed_total", reason="connection_lost")

    opened = [line for line in lines if line["event"] in ("session_opened", "session_closed")]
    assert [line["principal"] for line in opened] == ["alice", "alice"]
    assert held not in json.dumps(lines)


# Bounds


@pytest.mark.parametrize("listener", ["public", "admin"])
async def test_head_that_does_not_end_in_time_is_cut_off(serve: Serve, listener: str) -> None:
    relay = await serve({"limits.handshake_timeout_seconds": 0.5})
    client = await connected(relay, listener)

    await client.send(b"GET / HTTP/1.1\r\nHost: loc")
    answer = await client.answer()
    await client.ended()

    assert answer.status == 408
    assert await relay.metric("relay_handshakes_rejected_total", reason="timeout") == 1


@pytest.mark.parametrize("listener", ["public", "admin"])
async def test_connection_that_says_nothing_is_cut_off(serve: Serve, listener: str) -> None:
    relay = await serve({"limits.handshake_timeout_seconds": 0.5})
    client = await connected(relay, listener)

    await client.ended()

    assert client._unread == b""


@pytest.mark.parametrize("listener", ["public", "admin"])
async def test_next_head_on_a_connection_has_no_more_time_than_the_first(
    serve: Serve, listener: str
) -> None:
    relay = await serve({"limits.handshake_timeout_seconds": 0.5})
    client = await connected(relay, listener)
    await client.send(GET % b"/livez")
    first = await client.answer()

    await client.send(b"GET / HTTP/1.1\r\n")
    second = await client.answer()

    assert first.status in (200, 404)
    assert second.status == 408


async def test_connection_is_kept_while_it_is_idle_between_requests(serve: Serve) -> None:
    relay = await serve({"limits.handshake_timeout_seconds": 0.5})
    idle, silent = await connected(relay, "public"), await connected(relay, "public")
    await idle.send(GET % b"/livez")
    await idle.answer()

    await silent.ended()  # as long as a head may take, and longer
    await idle.send(GET % b"/livez")

    assert (await idle.answer()).status == 404


@pytest.mark.parametrize("listener", ["public", "admin"])
async def test_next_head_on_a_connection_has_no_more_room_than_the_first(
    serve: Serve, listener: str
) -> None:
    relay = await serve()
    client = await connected(relay, listener)
    await client.send(GET % b"/livez")
    await client.answer()

    await client.send(b"GET / HTTP/1.1\r\n")
    for number in range(MAX_HEAD_BYTES // 1500 + 1):
        await client.send(b"X-%04d: %b\r\n" % (number, b"x" * 1490))
        await relay.metric("relay_redis_up")  # by then it has been read
    answer = await client.answer()

    assert answer.status == 431
    assert await relay.metric("relay_handshakes_rejected_total", reason="too_large") == 1


async def test_no_more_wait_at_the_door_than_may_come_in(serve: Serve) -> None:
    relay = await serve({"limits.max_connections": 2})
    waiting = [await relay.raw() for _ in range(2)]
    for client in waiting:
        await client.send(b"GET")
    await relay.metric_reaches(0, "relay_connections", transport="websocket")

    third = await relay.raw()
    await third.ended()

    assert await relay.metric("relay_handshakes_rejected_total", reason="max_connections") == 1
