"""Who is let in, by which carrier, for how long; over WebSocket, and by a proxy's word."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from tests.web.conftest import (
    PATH,
    Answer,
    Json,
    RawClient,
    Running,
    Serve,
    command,
    upgrade,
)
from tests.web.tokens import (
    JWT,
    OTHER_SECRET,
    PROXY,
    PROXY_SECRET,
    bearing,
    proxied,
    token,
)

EVERY_LOOP = True


async def handshake(relay: Running, request: bytes) -> tuple[Answer, RawClient]:
    client = await relay.raw()
    await client.send(request)
    return await client.answer(), client


async def entered(relay: Running, **headers: str) -> RawClient:
    """A client that was let in with these headers."""
    client = await relay.raw()
    await client.upgrade(upgrade(**headers))
    await client.until("relay-status", redis="connected")
    return client


async def asked(client: RawClient, event: str, data: object) -> Json:
    """The next answer to this, whatever it is."""
    await client.send(command(event, data, ref="asked"))
    while (message := await client.message()).get("ref") != "asked":
        pass
    return message


async def subscribe(client: RawClient, job_id: str, **more: str) -> str:
    """What came of it: `subscribed`, or the code of the error."""
    answer = await asked(client, "subscribe-to-job", {"jobId": job_id, **more})
    code: str = answer["data"].get("code", answer["event"])
    return code


# Carriers


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (PATH, {"Authorization": "Bearer TOKEN"}),
        (PATH, {"Sec_WebSocket_Protocol": "bearer, TOKEN"}),
        (PATH, {"Cookie": "session=TOKEN"}),
        (PATH + "?token=TOKEN", {}),
    ],
)
async def test_token_of_a_handshake_says_what_may_be_watched(
    serve: Serve, path: str, headers: dict[str, str]
) -> None:
    relay = await serve(JWT | {"auth.cookie": "session", "auth.allow_query_token": True})
    held = token("mine")
    headers = {name: value.replace("TOKEN", held) for name, value in headers.items()}

    answer, client = await handshake(relay, upgrade(path.replace("TOKEN", held), **headers))

    assert answer.status == 101
    offered = "Sec_WebSocket_Protocol" in headers
    assert answer.headers.get("sec-websocket-protocol") == ("bearer" if offered else None)
    assert await subscribe(client, "mine") == "subscribed"
    assert await subscribe(client, "other") == "forbidden"


async def test_token_in_the_query_is_not_looked_at_unless_that_is_allowed(serve: Serve) -> None:
    relay = await serve(JWT)

    answer, client = await handshake(relay, upgrade(f"{PATH}?token={token('*')}"))

    assert answer.status == 101
    assert await subscribe(client, "job") == "unauthorized"


BAD = {
    "expired": token("*", seconds=-1),
    "signature": token("*", secret=OTHER_SECRET),
    "malformed": "junk",
    "algorithm": jwt.encode({"exp": 9e9}, "", algorithm="none"),
    "claims": token("*", queues=("q",), jti=7),
}


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize("first", [True, False])
async def test_bad_token_is_refused_before_the_upgrade(
    serve: Serve, reason: str, first: bool
) -> None:
    relay = await serve(JWT)
    client = await relay.raw()
    if not first:  # a connection that has served HTTP is aiohttp's
        await client.send(b"GET /unknown HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await client.answer()).status == 404

    await client.send(upgrade(**bearing(BAD[reason])))
    answer = await client.answer()

    assert (answer.status, answer.error["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert BAD[reason] not in answer.error["message"]
    assert await relay.metric("relay_tokens_refused_total", reason=reason) == 1
    assert await relay.metric("relay_handshakes_rejected_total", reason="token") == 1


async def test_two_tokens_that_differ_are_refused(serve: Serve) -> None:
    relay = await serve(JWT)
    headers = bearing(token("a")) | {"Sec_WebSocket_Protocol": f"bearer, {token('b')}"}

    answer, _ = await handshake(relay, upgrade(**headers))

    assert answer.status == 401
    assert "one token" in answer.error["message"]


async def test_tokens_are_not_looked_at_in_mode_none(serve: Serve) -> None:
    relay = await serve()

    client = await entered(relay, Authorization="Bearer junk")

    assert await subscribe(client, "job") == "subscribed"


async def test_upgrade_on_a_connection_that_served_http_is_judged_alike(serve: Serve) -> None:
    relay = await serve(JWT)
    client = await relay.raw()
    await client.send(b"GET /unknown HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await client.answer()

    await client.upgrade(upgrade(**bearing(token("mine"))))

    assert await subscribe(client, "mine") == "subscribed"
    assert await subscribe(client, "other") == "forbidden"


# Without a token at first


async def test_websocket_without_a_token_may_authenticate(serve: Serve) -> None:
    relay = await serve(JWT)
    client = await entered(relay)

    before = await subscribe(client, "mine")
    pong = await asked(client, "ping", 7)
    answer = await asked(client, "authenticate", {"token": token("mine", exp=4_000_000_000)})
    after = await subscribe(client, "mine")

    assert (before, pong["event"], after) == ("unauthorized", "pong", "subscribed")
    assert answer["event"] == "authenticated"
    assert answer["data"] == {"expiresAt": 4_000_000_000_000}


async def test_websocket_that_does_not_authenticate_in_time_is_closed(serve: Serve) -> None:
    relay = await serve(JWT | {"limits.handshake_timeout_seconds": 0.5})

    client = await entered(relay)

    assert await client.close_code() == 3000
    client.reset()
    await relay.metric_reaches(1, "relay_connections_closed_total", reason="token_missing")


async def test_websocket_without_a_token_counts_for_the_limits(serve: Serve) -> None:
    relay = await serve(JWT | {"limits.max_connections_per_address": 1})
    await entered(relay)

    answer, _ = await handshake(relay, upgrade(**bearing(token("*"))))

    assert answer.status == 429


async def test_bad_token_in_a_message_leaves_the_connection_open(serve: Serve) -> None:
    relay = await serve(JWT)
    client = await entered(relay, **bearing(token("mine")))

    answer = await asked(client, "authenticate", {"token": BAD["signature"]})

    assert (answer["event"], answer["data"]["code"]) == ("error", "unauthorized")
    assert await subscribe(client, "mine") == "subscribed"


async def test_messages_behind_authenticate_wait_for_its_answer(serve: Serve) -> None:
    relay = await serve(JWT)
    client = await entered(relay)

    await client.send(
        command("authenticate", {"token": token("mine")})
        + command("subscribe-to-job", {"jobId": "mine"})
        + command("ping", 1)
    )

    answers = [(await client.message())["event"] for _ in range(3)]
    assert answers == ["authenticated", "subscribed", "pong"]


# The end of a token


async def test_token_that_expires_closes_the_connection(serve: Serve) -> None:
    relay = await serve(JWT)

    client = await entered(relay, **bearing(token("*", seconds=1.5)))

    assert await client.close_code() == 3000
    client.reset()
    await relay.metric_reaches(1, "relay_connections_closed_total", reason="token_expired")


async def test_newer_token_keeps_the_connection_open(serve: Serve) -> None:
    relay = await serve(JWT)
    short = bearing(token("*", seconds=2.5))
    kept, closed = await entered(relay, **short), await entered(relay, **short)

    await asked(kept, "authenticate", {"token": token("*")})

    assert await closed.close_code() == 3000
    assert (await asked(kept, "ping", 1))["event"] == "pong"


async def test_shorter_token_shortens_the_connection(serve: Serve) -> None:
    relay = await serve(JWT)
    client = await entered(relay, **bearing(token("*")))

    await asked(client, "authenticate", {"token": token("*", seconds=0.3)})

    assert await client.close_code() == 3000


async def test_nothing_of_what_a_newer_token_forbids_comes_after_its_answer(serve: Serve) -> None:
    relay = await serve(JWT)
    client = await entered(relay, **bearing(token("*")))
    for job_id in ("kept", "lost"):
        assert await subscribe(client, job_id) == "subscribed"

    await asked(client, "authenticate", {"token": token("kept")})
    await relay.publish("lost", event="job-completed")
    await relay.publish("kept", event="job-completed")
    told = [await client.message(), await client.message()]

    assert told[0]["event"] == "unsubscribed"
    assert told[0]["data"] == {"jobIds": ["lost"], "reason": "forbidden"}
    assert (told[1]["event"], told[1]["data"]["jobId"]) == ("job-completed", "kept")
    assert await relay.metric("relay_subscriptions", kind="job") == 1


async def test_token_of_somebody_else_is_refused_on_an_open_connection(serve: Serve) -> None:
    relay = await serve(JWT)
    client = await entered(relay, **bearing(token("a", sub="alice")))

    answer = await asked(client, "authenticate", {"token": token("*", sub="mallory")})

    assert answer["data"]["code"] == "unauthorized"
    assert await subscribe(client, "b") == "forbidden"


# Keys that must be fetched


class Issuer:
    """Publishes its key set when it is allowed to, and signs."""

    def __init__(self) -> None:
        self.url = ""
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.keys: list[Any] = []

    def new_key(self, key_id: str) -> str:
        """Publish one more key; a token that it signed."""
        key = Ed25519PrivateKey.generate()
        jwk = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
        self.keys.append(jwk | {"kid": key_id, "alg": "EdDSA", "use": "sig"})
        claims = {"sub": "alice", "jobs": ["mine"], "exp": 4_000_000_000}
        return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": key_id})

    async def handle(self, _: web.Request) -> web.Response:
        keys = list(self.keys)
        self.asked.set()
        await self.answers.wait()
        return web.json_response({"keys": keys})


@asynccontextmanager
async def issuing() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    app = web.Application()
    app.router.add_get("/keys", issuer.handle)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    try:
        yield issuer
    finally:
        issuer.answers.set()
        await runner.cleanup()


def fetching(issuer: Issuer) -> dict[str, object]:
    return {"auth.mode": "jwt", "auth.jwks_url": issuer.url}


async def test_handshake_waits_for_the_key_and_keeps_what_came_behind_it(serve: Serve) -> None:
    async with issuing() as issuer:
        held = issuer.new_key("new")
        relay = await serve(fetching(issuer))
        await issuer.asked.wait()
        client = await relay.raw()
        await client.send(upgrade(**bearing(held)) + command("subscribe-to-job", {"jobId": "mine"}))
        issuer.answers.set()

        assert (await client.answer()).status == 101
        assert (await client.until_event("subscribed"))["data"]["jobId"] == "mine"


async def test_authenticate_and_http_wait_for_the_key(serve: Serve) -> None:
    async with issuing() as issuer:
        held = issuer.new_key("new")
        relay = await serve(fetching(issuer))
        await issuer.asked.wait()
        client = await entered(relay)
        await client.send(command("authenticate", {"token": held}) + command("ping", 1))
        request = relay.http.get(f"{relay.public}/jobs/mine", headers=bearing(held))
        async with asyncio.TaskGroup() as tasks:
            polled = tasks.create_task(request.__aenter__())
            issuer.answers.set()

        assert [(await client.message())["event"] for _ in range(2)] == ["authenticated", "pong"]
        assert polled.result().status == 404


async def test_client_that_leaves_while_its_token_waits_harms_nothing(serve: Serve) -> None:
    async with issuing() as issuer:
        held = issuer.new_key("new")
        relay = await serve(fetching(issuer))
        await issuer.asked.wait()
        gone, authenticating = await relay.raw(), await entered(relay)
        await gone.send(upgrade(**bearing(held)))
        await authenticating.send(command("authenticate", {"token": held}))
        gone.reset()
        authenticating.reset()
        issuer.answers.set()
        await relay.metric_reaches(0, "relay_connections", transport="websocket")

        client = await entered(relay, **bearing(held))

        assert await subscribe(client, "mine") == "subscribed"


async def test_keys_that_cannot_be_had_are_no_fault_of_the_token(serve: Serve) -> None:
    relay = await serve({"auth.mode": "jwt", "auth.jwks_url": "http://127.0.0.1:9/keys"})
    held = Issuer().new_key("unknown")

    answer, _ = await handshake(relay, upgrade(**bearing(held)))
    client = await entered(relay)
    refused = await asked(client, "authenticate", {"token": held})
    async with relay.http.get(f"{relay.public}/jobs/mine", headers=bearing(held)) as polled:
        status = polled.status

    assert (answer.status, status) == (503, 503)
    assert int(answer.headers["retry-after"]) > 0
    assert (refused["data"]["code"], refused["data"]["temporary"]) == ("unavailable", True)


# Claims from a proxy


async def test_claims_of_the_proxy_say_what_may_be_watched(serve: Serve) -> None:
    relay = await serve(PROXY)

    client = await entered(relay, **proxied("mine"))

    assert await subscribe(client, "mine") == "subscribed"
    assert await subscribe(client, "other") == "forbidden"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"X-Relay-Proxy-Secret": PROXY_SECRET}, "missing"),
        (proxied("*") | {"X-Relay-Proxy-Secret": "guess"}, "proxy-secret"),
        ({"X-Relay-Claims": proxied("*")["X-Relay-Claims"]}, "proxy-secret"),
        (proxied("*") | {"X-Relay-Claims": "?"}, "malformed"),
        (proxied("*", seconds=-1), "expired"),
        (bearing(token("*")), "proxy-secret"),
    ],
)
async def test_what_the_proxy_did_not_say_is_refused(
    serve: Serve, headers: dict[str, str], reason: str
) -> None:
    relay = await serve(PROXY)

    answer, _ = await handshake(relay, upgrade(**headers))
    async with relay.http.get(f"{relay.public}/jobs/job", headers=headers) as polled:
        status = polled.status

    assert (answer.status, status) == (401, 401)
    assert "www-authenticate" in answer.headers
    assert await relay.metric("relay_tokens_refused_total", reason=reason) == 2


async def test_claims_that_stand_there_twice_are_refused(serve: Serve) -> None:
    relay = await serve(PROXY)
    headers = proxied("mine")
    twice = upgrade(**headers).replace(
        b"\r\n\r\n", f"\r\nx-relay-claims: {proxied('*')['X-Relay-Claims']}\r\n\r\n".encode()
    )

    answer, _ = await handshake(relay, twice)

    assert answer.status == 401


async def test_claims_of_whoever_is_no_trusted_proxy_are_refused(serve: Serve) -> None:
    relay = await serve(PROXY | {"server.trusted_proxies": ["10.0.0.0/8"]})

    answer, _ = await handshake(relay, upgrade(**proxied("*")))

    assert answer.status == 401
    assert await relay.metric("relay_tokens_refused_total", reason="untrusted") == 1


async def test_claims_that_expire_close_the_connection(serve: Serve) -> None:
    relay = await serve(PROXY)

    client = await entered(relay, **proxied("*", seconds=1.5))

    assert await client.close_code() == 3000


async def test_authenticate_is_not_for_clients_of_a_proxy(serve: Serve) -> None:
    relay = await serve(PROXY)
    client = await entered(relay, **proxied("mine"))

    answer = await asked(client, "authenticate", {"token": token("*")})

    assert answer["data"]["code"] == "unauthorized"
    assert await subscribe(client, "mine") == "subscribed"


async def test_unix_socket_needs_no_secret_of_the_proxy(serve: Serve, tmp_path: Path) -> None:
    path = str(tmp_path / "relay.sock")
    await serve({"auth.mode": "proxy", "server.unix_socket": path})
    headers = {"X-Relay-Claims": proxied("mine")["X-Relay-Claims"]}

    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as http:
        async with http.get("http://relay/jobs/mine", headers=headers) as unknown:
            statuses = [unknown.status]
        async with http.get("http://relay/jobs/other", headers=headers) as forbidden:
            statuses.append(forbidden.status)
        async with http.get("http://relay/jobs/mine") as unproven:
            statuses.append(unproven.status)

    assert statuses == [404, 403, 401]
