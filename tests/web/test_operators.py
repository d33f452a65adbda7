"""What operators may do, and that nobody else may."""

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from tests.web.conftest import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    Json,
    RawClient,
    Running,
    Serve,
    frame,
    upgrade,
)
from tests.web.test_sse import listen
from tests.web.tokens import JWT, PROXY, bearing, proxied, token

ADMIN_TOKEN = "only-operators-know"
OPERATOR = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
JSON = {"Content-Type": "application/json"}
GUARDED = [
    ("GET", "/admin/connections"),
    ("POST", "/admin/disconnect"),
    ("POST", "/admin/revoke"),
    ("GET", "/"),
    ("GET", "/unknown"),
]


def now_ms() -> int:
    return int(time.time() * 1000)


async def ask(
    relay: Running, method: str, path: str, body: object = None, headers: Mapping[str, str] = JSON
) -> tuple[int, Json]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{relay.admin}{path}"
    async with relay.http.request(method, url, data=data, headers=headers) as answer:
        return answer.status, await answer.json()


async def post(relay: Running, path: str, **body: object) -> Json:
    status, answer = await ask(relay, "POST", path, body)
    assert status == 200, answer
    return answer


async def connections(relay: Running, search: str = "") -> list[Json]:
    status, answer = await ask(relay, "GET", f"/admin/connections?search={search}")
    assert status == 200
    listed: list[Json] = answer["connections"]
    assert answer["total"] == len(listed)
    return listed


async def entered(relay: Running, held: str) -> RawClient:
    client = await relay.raw()
    await client.upgrade(upgrade(**bearing(held)))
    await client.until("relay-status", redis="connected")
    return client


async def is_let_in(relay: Running, held: str) -> bool:
    client = await relay.raw()
    await client.send(upgrade(**bearing(held)))
    return (await client.answer()).status == 101


# Who is an operator


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer guess"},
        {"Authorization": f"Bearer {ADMIN_TOKEN}x"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {ADMIN_TOKEN}"},
        {"Authorization": "Bearer \udcff"},
        {"Cookie": f"token={ADMIN_TOKEN}"},
    ],
)
async def test_without_the_token_nothing_is_told(
    serve: Serve, method: str, path: str, headers: dict[str, str]
) -> None:
    relay = await serve({"admin.token": ADMIN_TOKEN})
    client = await RawClient.connect(relay.admin)
    relay.closing.callback(client.socket.close)
    lines = [f"{method} {path}?token={ADMIN_TOKEN} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]

    await client.send("\r\n".join([*lines, "", ""]).encode(errors="surrogateescape"))
    answer = await client.answer()

    assert (answer.status, answer.error["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_token_opens_what_operators_have(serve: Serve) -> None:
    relay = await serve({"admin.token": ADMIN_TOKEN})

    listed = await ask(relay, "GET", "/admin/connections", headers=OPERATOR)
    unknown = await ask(relay, "GET", "/unknown", headers=OPERATOR)

    assert listed == (200, {"total": 0, "connections": []})
    assert unknown[0] == 404


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics"])
async def test_probes_and_metrics_are_open_to_all(serve: Serve, path: str) -> None:
    relay = await serve({"admin.token": ADMIN_TOKEN})
    await relay.metric_reaches(1, "relay_redis_up")

    async with relay.http.get(f"{relay.admin}{path}") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 200), ("0.0.0.0", 401), ("::", 401)])
async def test_without_a_token_set_a_loopback_listener_alone_is_open(
    serve: Serve, host: str, status: int
) -> None:
    relay = await serve({"admin.host": host})

    assert (await ask(relay, "GET", "/admin/connections"))[0] == status


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "Via", "x-forwarded-host"])
async def test_without_a_token_set_a_proxy_brings_nobody_in(serve: Serve, name: str) -> None:
    relay = await serve()

    status, body = await ask(relay, "GET", "/admin/connections", headers={name: "203.0.113.9"})

    assert status == 401
    assert "admin.token" in body["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        (JSON | {"Origin": "https://evil.example"}, 403),
        (JSON | {"Origin": "null"}, 403),
        (JSON | {"Host": "evil.example:9301"}, 403),
    ],
)
async def test_pages_cannot_act_as_operators(
    serve: Serve, headers: dict[str, str], status: int
) -> None:
    relay = await serve()
    client = await relay.websocket()

    answer = await ask(relay, "POST", "/admin/disconnect", {"connectionId": "x"}, headers)

    assert answer[0] == status
    await client.send(frame(CLOSE))
    assert await client.close_code() is None


@pytest.mark.parametrize("path", ["/admin/connections", "/admin/disconnect", "/admin/revoke"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nothing_of_it_is_on_the_public_listener(
    serve: Serve, method: str, path: str
) -> None:
    relay = await serve({"admin.public_health": True})

    async with relay.http.request(method, f"{relay.public}{path}", headers=OPERATOR) as answer:
        assert answer.status == 404


# What they see


async def test_connections_are_listed_with_what_tells_them_apart(serve: Serve) -> None:
    relay = await serve(JWT | {"auth.leeway_seconds": 5})
    client = await entered(relay, token("*", sub="alice", exp=4_000_000_000))
    await client.send(frame(TEXT, b'{"event":"subscribe-to-job","data":{"jobId":"job"}}'))
    await client.until_event("subscribed")

    async with listen(relay, "/events?jobs=a,b", bearing(token("*", sub="bob"))) as listener:
        await listener.subscribed()
        stream, websocket = await connections(relay)

    assert abs(websocket.pop("openedAt") - now_ms()) < 60_000
    assert websocket == {
        "connectionId": websocket["connectionId"],
        "transport": "websocket",
        "remote": "127.0.0.1",
        "principal": "alice",
        "authenticated": True,
        "expiresAt": 4_000_000_000_000,
        "subscriptions": 1,
        "pendingBytes": 0,
    }
    assert (stream["transport"], stream["principal"], stream["subscriptions"]) == ("sse", "bob", 2)


async def test_connections_are_found_by_a_part_of_what_is_known_of_them(serve: Serve) -> None:
    relay = await serve(JWT)
    for sub in ("alice@example", "bob@example"):
        await entered(relay, token("*", sub=sub))
    anonymous = await relay.raw()
    await anonymous.upgrade()
    await anonymous.message()

    found = {search: await connections(relay, search) for search in ("ALICE", "@example", "127.0")}

    assert [len(rows) for rows in found.values()] == [1, 2, 3]
    newest = found["127.0"][0]
    assert (newest["principal"], newest["authenticated"]) == (None, False)
    assert await connections(relay, newest["connectionId"]) == [newest]
    assert await connections(relay, "nobody") == []


# What they do


async def test_connection_is_disconnected_by_its_id(serve: Serve) -> None:
    relay = await serve()
    client, other = await relay.websocket(), await relay.websocket()
    (_, first) = await connections(relay)

    answer = await post(relay, "/admin/disconnect", connectionId=first["connectionId"])

    assert answer == {"closed": 1}
    assert await client.close_code() == 1008
    client.reset()
    await relay.metric_reaches(1, "relay_connections_closed_total", reason="operator")
    await other.send(frame(PING))
    assert (await other.frame())[0] == PONG


async def test_every_connection_of_a_principal_is_disconnected_and_may_return(
    serve: Serve,
) -> None:
    relay = await serve(JWT)
    alices = [await entered(relay, token("*", sub="alice")) for _ in range(2)]
    await entered(relay, token("*", sub="bob"))

    answer = await post(relay, "/admin/disconnect", principal="alice")

    assert answer == {"closed": 2}
    assert [await client.close_code() for client in alices] == [1008, 1008]
    assert await is_let_in(relay, token("*", sub="alice"))


@pytest.mark.parametrize(
    ("body", "revoked", "spared"),
    [
        ({"principal": "alice"}, {"sub": "alice", "jti": "2"}, {"sub": "bob", "jti": "1"}),
        ({"jti": "1"}, {"sub": "bob", "jti": "1"}, {"sub": "alice", "jti": "2"}),
    ],
)
async def test_what_is_revoked_is_closed_and_stays_out(
    serve: Serve, body: dict[str, str], revoked: dict[str, Any], spared: dict[str, Any]
) -> None:
    relay = await serve(JWT)
    client = await entered(relay, token("*", sub="alice", jti="1"))
    other = await entered(relay, token("*", **spared))

    answer = await post(relay, "/admin/revoke", **body)

    assert answer == {"closed": 1}
    assert await client.close_code() == 3000
    assert not await is_let_in(relay, token("*", **revoked))
    assert await relay.metric("relay_tokens_refused_total", reason="revoked") == 1
    await other.send(frame(PING))
    assert (await other.frame())[0] == PONG


async def test_revoked_principal_is_not_let_in_by_the_proxy_either(serve: Serve) -> None:
    relay = await serve(PROXY)
    await post(relay, "/admin/revoke", principal="alice")
    client = await relay.raw()

    await client.send(upgrade(**proxied("*", sub="alice")))

    assert (await client.answer()).status == 401


async def test_stream_and_long_poll_are_ended_like_connections(serve: Serve) -> None:
    relay = await serve(JWT)
    headers = bearing(token("*", sub="alice"))
    async with listen(relay, "/jobs/job/events", headers) as listener:
        await listener.subscribed()
        answer = await post(relay, "/admin/revoke", principal="alice")
        farewell = await listener.until("relay-close")

    assert answer == {"closed": 1}
    assert farewell.body["code"] == 3000


async def test_revocation_is_forgotten_at_its_end(serve: Serve) -> None:
    relay = await serve(JWT)
    soon_ms = now_ms() + 300

    await post(relay, "/admin/revoke", principal="alice", until=soon_ms)
    refused = await is_let_in(relay, token("*"))
    while now_ms() <= soon_ms:
        await relay.metric("relay_redis_up")

    assert not refused
    assert await is_let_in(relay, token("*"))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'"alice"', 400),
        (b"{}", 400),
        (b'{"principal":7}', 400),
        (b'{"principal":""}', 400),
        (b'{"principal":"a","jti":"b"}', 400),
        (b'{"principal":"a","until":1}', 400),
        (b'{"principal":"a","until":"soon"}', 400),
        (b'{"principal":"%b"}' % (b"x" * 300), 400),
        (b'{"principal":"%b"}' % (b"x" * 20_000), 413),
    ],
)
async def test_fault_in_what_operators_send_is_told_and_does_nothing(
    serve: Serve, body: bytes, status: int
) -> None:
    relay = await serve()

    answer = await ask(relay, "POST", "/admin/revoke", body)

    assert answer[0] == status
    assert answer[1]["error"]["message"]
