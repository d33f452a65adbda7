"""The door: whose head is read, whom it goes to, and who is turned away."""

import asyncio
import json
import logging

import pytest
import structlog
from aiohttp import web

from relay.web.handshake import MAX_HEAD_BYTES
from tests.web.conftest import (
    PATH,
    SOON_SECONDS,
    Answer,
    RawClient,
    Running,
    Serve,
    command,
    upgrade,
)

EVERY_LOOP = True

GET_JOB = b"GET /jobs/unknown HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def asked(client: RawClient, data: bytes) -> Answer:
    await client.send(data)
    return await client.answer()


def http_connections(relay: Running) -> int:
    """How many connections aiohttp believes it has."""
    server = relay.relay._public.server
    assert server is not None
    return len(server.connections)


async def no_http_connections(relay: Running) -> None:
    """Wait until aiohttp was told that all its connections are gone."""
    async with asyncio.timeout(SOON_SECONDS):
        while http_connections(relay):
            await relay.metric("relay_redis_up")


async def test_handshake_may_come_byte_by_byte(serve: Serve) -> None:
    relay = await serve()
    client = await relay.raw()

    for byte in upgrade():
        await client.send(bytes([byte]))
        await asyncio.sleep(0)  # a turn for the relay
    answer = await client.answer()

    assert answer.status == 101
    assert (await client.message())["event"] == "relay-status"


async def test_bytes_behind_the_handshake_are_read(serve: Serve) -> None:
    relay = await serve()
    client = await relay.raw()
    message = command("ping", "early")

    await client.send(upgrade() + message[:3])
    answer = await client.answer()
    await client.send(message[3:])

    assert answer.status == 101
    assert (await client.until_event("pong"))["data"] == "early"


async def test_subprotocol_of_a_token_is_selected_over_the_wire(serve: Serve) -> None:
    client = await (await serve()).raw()

    answer = await client.upgrade(upgrade(Sec_WebSocket_Protocol="bearer, token"))

    assert answer.headers["sec-websocket-protocol"] == "bearer"


async def test_slow_sender_of_a_head_is_told_and_cut_off(serve: Serve) -> None:
    relay = await serve({"limits.handshake_timeout_seconds": 0.1})
    client = await relay.raw()

    answer = await asked(client, upgrade()[:-2])

    assert answer.status == 408
    await client.ended()
    await relay.metric_reaches(1, "relay_handshakes_rejected_total", reason="timeout")


async def test_slow_sender_cannot_buy_time_byte_by_byte(serve: Serve) -> None:
    relay = await serve({"limits.handshake_timeout_seconds": 0.1})
    client = await relay.raw()
    began_at = asyncio.get_running_loop().time()

    async def trickle() -> None:
        while True:
            await client.send(b"x")
            await asyncio.sleep(0.01)

    sending = asyncio.create_task(trickle())
    await client.ended()
    sending.cancel()

    assert asyncio.get_running_loop().time() - began_at < 2


async def test_connection_that_says_nothing_is_cut_off(serve: Serve) -> None:
    relay = await serve({"limits.handshake_timeout_seconds": 0.1})
    client = await relay.raw()

    await client.ended()

    await relay.metric_reaches(1, "relay_handshakes_rejected_total", reason="timeout")


async def test_timeout_ends_with_the_head(serve: Serve) -> None:
    relay = await serve({"limits.handshake_timeout_seconds": 0.1})
    client = await relay.websocket()
    late = await relay.raw()

    await late.ended()
    await client.send(command("ping"))

    assert (await client.message())["event"] == "pong"


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
async def test_head_that_is_too_large_is_refused(serve: Serve, end: bytes) -> None:
    relay = await serve()
    client = await relay.raw()
    head = upgrade(X_Padding="x" * MAX_HEAD_BYTES).removesuffix(b"\r\n\r\n")

    answer = await asked(client, head + end)

    assert answer.status == 431
    await client.ended()
    await relay.metric_reaches(1, "relay_handshakes_rejected_total", reason="too_large")


async def test_head_below_the_limit_is_read(serve: Serve) -> None:
    client = await (await serve()).raw()

    answer = await asked(client, upgrade(X_Padding="x" * (MAX_HEAD_BYTES - 500)))

    assert answer.status == 101


async def test_upgrade_on_another_path_goes_to_http(serve: Serve) -> None:
    client = await (await serve()).raw()

    answer = await asked(client, upgrade("/elsewhere"))

    assert answer.status == 404
    assert answer.error["code"] == "not-found"


async def test_plain_request_on_the_path_is_told_to_upgrade(serve: Serve) -> None:
    client = await (await serve()).raw()

    answer = await asked(client, f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    assert answer.status == 426
    assert answer.headers["upgrade"] == "websocket"
    assert answer.error["code"] == "bad-request"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: localhost\r\n\r\n",
        upgrade("/socket.io/?EIO=4&transport=websocket"),
    ],
)
async def test_socket_io_client_is_told_that_it_does_not_connect(serve: Serve, data: bytes) -> None:
    client = await (await serve()).raw()

    answer = await asked(client, data)

    assert answer.status == 400
    assert "socket.io-client does not connect" in answer.error["message"]


@pytest.mark.parametrize("data", [b"junk\r\n\r\n", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"])
async def test_malformed_request_is_a_bad_request_and_ends(serve: Serve, data: bytes) -> None:
    client = await (await serve()).raw()

    answer = await asked(client, data)

    assert answer.status == 400
    await client.ended()


async def test_http_connection_is_kept_for_further_requests(serve: Serve) -> None:
    client = await (await serve()).raw()

    statuses = [(await asked(client, GET_JOB)).status for _ in range(3)]

    assert statuses == [404] * 3


async def test_body_that_comes_with_and_after_the_head_is_whole(serve: Serve) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    relay = await serve(routes=[web.post("/echo", echo)])
    client = await relay.raw()
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\n"

    await client.send(head + b"abc")
    answer = await asked(client, b"def")

    assert answer.body == b"abcdef"


async def test_http_server_is_told_of_a_lost_connection(serve: Serve) -> None:
    relay = await serve()
    client = await relay.raw()
    await asked(client, GET_JOB)
    held = http_connections(relay)

    client.reset()
    other = await relay.raw()
    await no_http_connections(relay)

    assert held == 1
    assert (await asked(other, GET_JOB)).status == 404


async def test_http_connections_count_for_the_limit_and_who_is_one_too_many_may_come_later(
    serve: Serve,
) -> None:
    relay = await serve({"limits.max_connections": 2})
    kept = await relay.websocket()
    http = await relay.raw()
    await asked(http, GET_JOB)
    refused, also_refused = await relay.raw(), await relay.raw()

    answers = [await asked(refused, upgrade()), await asked(also_refused, GET_JOB)]
    http.reset()
    await no_http_connections(relay)
    taken = await relay.raw()

    assert [answer.status for answer in answers] == [503, 503]
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    assert [answer.error["code"] for answer in answers] == ["unavailable"] * 2
    assert (await taken.upgrade()).status == 101
    await kept.send(command("ping"))
    assert (await kept.message())["event"] == "pong"
    assert await relay.metric("relay_handshakes_rejected_total", reason="max_connections") == 2


async def test_addresses_have_a_limit_of_their_own_by_what_a_trusted_proxy_tells(
    serve: Serve,
) -> None:
    relay = await serve({"limits.max_connections_per_address": 1})
    first, second, other = [await relay.raw() for _ in range(3)]

    answers = [
        await asked(first, upgrade(X_Forwarded_For="198.51.100.1")),
        await asked(second, upgrade(X_Forwarded_For="198.51.100.1")),
        await asked(other, upgrade(X_Forwarded_For="198.51.100.2")),
    ]

    assert [answer.status for answer in answers] == [101, 429, 101]
    assert answers[1].error["code"] == "rate-limited"


async def test_draining_relay_refuses_new_connections(serve: Serve) -> None:
    relay = await serve({"server.drain_seconds": 0})
    await relay.relay.drain()
    websocket, http = await relay.raw(), await relay.raw()

    answers = [await asked(websocket, upgrade()), await asked(http, GET_JOB)]

    assert [answer.status for answer in answers] == [503, 503]
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)


async def test_refused_origin_is_forbidden_counted_and_logged_with_both_values(
    serve: Serve,
) -> None:
    relay = await serve()
    client = await relay.raw()

    with structlog.testing.capture_logs() as lines:
        answer = await asked(client, upgrade(Origin="https://evil.example"))

    assert (answer.status, answer.error["code"]) == (403, "forbidden")
    (line,) = (line for line in lines if line["event"] == "handshake_rejected")
    assert (line["value"], line["expected"]) == ("https://evil.example", "localhost")
    assert line["log_level"] == logging.getLevelName(logging.WARNING).lower()
    assert await relay.metric("relay_handshakes_rejected_total", reason="origin") == 1


async def test_host_that_dns_rebinding_named_is_forbidden(serve: Serve) -> None:
    relay = await serve()
    websocket, http = await relay.raw(), await relay.raw()

    answers = [
        await asked(websocket, upgrade(host="evil.example")),
        await asked(http, GET_JOB.replace(b"localhost", b"evil.example")),
    ]

    assert [answer.status for answer in answers] == [403, 403]
    assert await relay.metric("relay_handshakes_rejected_total", reason="host") == 2


async def test_whoever_is_at_the_door_is_let_go_at_the_end(serve: Serve) -> None:
    relay = await serve()
    client = await relay.raw()
    await client.send(upgrade()[:10])
    await relay.subscribed()

    await relay.relay.stop()

    await client.ended()


async def test_upgrade_is_answered_as_json_where_it_is_refused(serve: Serve) -> None:
    client = await (await serve()).raw()

    answer = await asked(client, upgrade(without="Sec-WebSocket-Key"))

    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body)["error"]["code"] == "bad-request"
    await client.ended()


async def test_upgrade_on_a_connection_that_served_http_before_is_granted(serve: Serve) -> None:
    # A proxy that keeps its connections to us open sends an upgrade on any of them.
    relay = await serve()
    client = await relay.raw()
    await asked(client, GET_JOB)

    await client.send(upgrade())
    answer = await client.answer()

    assert answer.status == 101
    assert (await client.until("relay-status"))["data"]["protocol"] == 1
    await client.send(command("ping", 1))
    assert (await client.until_event("pong"))["data"] == 1
    assert http_connections(relay) == 0


async def test_bytes_behind_a_later_handshake_are_read(serve: Serve) -> None:
    relay = await serve()
    client = await relay.raw()
    message = command("ping", "early")

    await client.send(GET_JOB + upgrade() + message[:5])
    statuses = [(await client.answer()).status for _ in range(2)]
    await client.send(message[5:])

    assert statuses == [404, 101]
    assert (await client.until_event("pong"))["data"] == "early"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (upgrade(Origin="https://evil.example"), 403),
        (upgrade(without="Sec-WebSocket-Key"), 400),
        (upgrade(Sec_WebSocket_Version="8"), 426),
    ],
)
async def test_later_handshake_is_judged_like_a_first_one(
    serve: Serve, data: bytes, status: int
) -> None:
    relay = await serve()
    client = await relay.raw()
    await asked(client, GET_JOB)

    answer = await asked(client, data)

    assert answer.status == status
    assert answer.error["message"]
    assert await relay.metric("relay_connections_opened_total", transport="websocket") == 0


async def test_later_handshake_takes_no_second_place_where_places_are_few(serve: Serve) -> None:
    relay = await serve({"limits.max_connections": 1})
    client = await relay.raw()
    await asked(client, GET_JOB)

    await client.upgrade()
    client.reset()
    await relay.metric_reaches(0, "relay_connections", transport="websocket")

    assert await relay.metric("relay_connections_closed_total", reason="connection_lost") == 1


@pytest.mark.parametrize(("host", "status"), [("evil.example:{}", 403), ("evil.example", 404)])
async def test_page_that_dns_rebinding_led_here_cannot_pass_for_a_proxy(
    serve: Serve, host: str, status: int
) -> None:
    relay = await serve()
    named = host.format(relay.public.rpartition(":")[2])
    request = f"GET /jobs/job HTTP/1.1\r\nHost: {named}\r\nX-Forwarded-Host: {named}\r\n\r\n"

    answer = await asked(await relay.raw(), request.encode())

    assert answer.status == status
