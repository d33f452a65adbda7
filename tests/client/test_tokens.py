"""The client in Chromium before a relay that asks for tokens, and one that closes for good: both are played here."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest_asyncio
from websockets.asyncio.server import ServerConnection, serve

from tests.client.conftest import in_browser
from tests.e2e.conftest import SOON_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from websockets.typing import Subprotocol

    from tests.client.conftest import Tab
    from tests.e2e.conftest import StartDaemon

pytestmark = in_browser

STATUS = {
    "protocol": 1, "connectionId": "x.1", "heartbeatSeconds": 25, "redis": "connected",
    "gap": False, "draining": False,
}  # fmt: skip


class GuardedRelay:
    """Greets, answers `authenticate`, and closes when told to.

    Attributes:
        valid_seconds: how long it says that a token is valid.
        handshakes: the subprotocols that each connection offered.
        tokens: those it was sent in messages.
    """

    def __init__(self) -> None:
        self.url = ""
        self.valid_seconds = 3600.0
        self.handshakes: list[str | None] = []
        self.tokens: list[str] = []
        self._connections: list[ServerConnection] = []
        self._news = asyncio.Condition()

    async def serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self._connections.append(connection)
        self.handshakes.append(connection.request.headers.get("Sec-WebSocket-Protocol"))
        await self._say(connection, "relay-status", STATUS)
        await self._tell()
        async for text in connection:
            message = json.loads(text)
            if message["event"] != "authenticate":
                continue
            self.tokens.append(message["data"]["token"])
            expires_at = int(1000 * (time.time() + self.valid_seconds))
            await self._say(connection, "authenticated", {"expiresAt": expires_at}, message["ref"])
            await self._tell()

    async def close(self, code: int, reason: str) -> None:
        await self._connections[-1].close(code, reason)

    async def until(self, handshakes: int, tokens: int) -> None:
        """Wait for that many of them."""
        async with asyncio.timeout(SOON_SECONDS), self._news:
            await self._news.wait_for(
                lambda: len(self.handshakes) >= handshakes and len(self.tokens) >= tokens
            )

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _say(
        self, connection: ServerConnection, event: str, data: object, ref: object = None
    ) -> None:
        message = {"event": event, "data": data} | ({} if ref is None else {"ref": ref})
        await connection.send(json.dumps(message))


def select(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return offered[0] if offered else None


@pytest_asyncio.fixture(loop_scope="session")
async def guarded() -> AsyncIterator[GuardedRelay]:
    relay = GuardedRelay()
    async with serve(relay.serve, "127.0.0.1", 0, select_subprotocol=select) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        relay.url = f"ws://127.0.0.1:{port}/job-progress"
        yield relay


async def connect(tab: Tab, daemon: StartDaemon, url: str, token: str) -> None:
    """A client whose option `token` is this JavaScript; its modules come from a real relay."""
    relay = daemon(subscribed=False)
    await tab.run(
        f"""async ([modules, url]) => {{
          const {{ JobProgressClient }} = await import(modules);
          window.given = [];
          window.client = new JobProgressClient({{ url, token: {token}, transports: ['websocket'] }});
        }}""",
        [f"{relay.public}/client/client.js", url],
    )


FRESH = "() => { given.push('t' + (given.length + 1)); return given.at(-1); }"


async def test_token_is_offered_in_the_handshake(
    daemon: StartDaemon, tab: Tab, guarded: GuardedRelay
) -> None:
    await connect(tab, daemon, guarded.url, "'abc.def'")
    await tab.live()

    assert guarded.handshakes == ["bearer, abc.def"]
    assert guarded.tokens == []


async def test_token_that_fits_no_header_is_the_first_message(
    daemon: StartDaemon, tab: Tab, guarded: GuardedRelay
) -> None:
    await connect(tab, daemon, guarded.url, "'a/b=='")
    await guarded.until(handshakes=1, tokens=1)

    assert (guarded.handshakes, guarded.tokens) == ([None], ["a/b=="])


async def test_token_is_renewed_before_it_expires_on_the_same_connection(
    daemon: StartDaemon, tab: Tab, guarded: GuardedRelay
) -> None:
    guarded.valid_seconds = 6.5
    await connect(tab, daemon, guarded.url, FRESH)
    await guarded.until(handshakes=1, tokens=1)
    guarded.valid_seconds = 3600
    begun_at = time.monotonic()

    await guarded.until(handshakes=1, tokens=2)

    assert time.monotonic() - begun_at < 6.5
    assert guarded.handshakes == ["bearer, t1"]
    assert guarded.tokens == ["t1", "t2"]


async def test_refused_token_is_replaced_by_a_fresh_one(
    daemon: StartDaemon, tab: Tab, guarded: GuardedRelay
) -> None:
    await connect(tab, daemon, guarded.url, FRESH)
    await guarded.until(handshakes=1, tokens=1)

    await guarded.close(3000, "token expired")

    await guarded.until(handshakes=2, tokens=2)
    await tab.live()
    assert guarded.handshakes == ["bearer, t1", "bearer, t2"]


async def test_refused_token_that_is_a_string_ends_it_until_there_is_another(
    daemon: StartDaemon, tab: Tab, guarded: GuardedRelay
) -> None:
    await connect(tab, daemon, guarded.url, "'old'")
    await tab.live()

    await guarded.close(3000, "token expired")
    await tab.until("client.state === 'closed'")
    error: dict[str, Any] = await tab.run("client.error")
    await tab.run("client.authenticate('new')")
    await tab.live()

    assert error["code"] == "unauthorized"
    assert guarded.handshakes == ["bearer, old", "bearer, new"]
    assert await tab.run("client.error") is None


async def test_close_for_good_is_an_end_that_says_why(
    daemon: StartDaemon, tab: Tab, guarded: GuardedRelay
) -> None:
    await connect(tab, daemon, guarded.url, "undefined")
    await tab.live()

    await guarded.close(1008, "disconnected by an operator")
    await tab.until("client.state === 'closed'")

    error = await tab.run("client.error")
    assert error["code"] == "closed"
    assert "disconnected by an operator" in error["message"]
