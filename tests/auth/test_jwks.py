"""Keys are fetched rarely, whoever asks for them, and stay good while their provider is away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs
from structlog.typing import EventDict

from relay.auth.jwks import MAX_BYTES, KeySet
from relay.auth.revocations import Revocations
from relay.auth.tokens import JwtAuthenticator, TokenError
from relay.core.grants import Grants
from tests.auth.issuing import (
    NOW_MS,
    auth_config,
    claims,
    hmac_signed,
    jwk,
    key_set,
    public_pem,
    signed,
)

SOON_SECONDS = 10
RSA_SET = key_set(jwk("RSA", kid="k1"))


class Provider:
    """Publishes a key set; counts who asks, and can keep them waiting."""

    def __init__(self) -> None:
        self.document = RSA_SET
        self.status = 200
        self.headers: dict[str, str] = {"Content-Type": "application/json"}
        self.hits = 0
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.server = TestServer(self._app())

    @property
    def url(self) -> str:
        return str(self.server.make_url("/keys"))

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/keys", self._serve)
        return app

    async def _serve(self, _: web.Request) -> web.Response:
        self.hits += 1
        self.asked.set()
        await self.answers.wait()
        return web.Response(body=self.document, status=self.status, headers=self.headers)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    await provider.server.start_server()
    yield provider
    provider.answers.set()
    await provider.server.close()


class Log:
    """The lines that are logged, to wait for."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[EventDict] = asyncio.Queue()

    def take(self, _: Any, level: str, line: EventDict) -> EventDict:
        self._lines.put_nowait({**line, "level": level})
        return line

    async def fetched(self) -> EventDict:
        """The next line that tells of other keys than before."""
        return await self._next("jwks_changed")

    async def failed(self) -> EventDict:
        """The next line that tells of a fetch that failed."""
        return await self._next("jwks_refresh_failed")

    async def _next(self, event: str) -> EventDict:
        async with asyncio.timeout(SOON_SECONDS):
            while (line := await self._lines.get())["event"] != event:
                pass
        return line


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    with capture_logs(processors=[log.take]):
        yield log


@asynccontextmanager
async def running(part: KeySet | JwtAuthenticator) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(part.run())
        yield
        task.cancel()


def judge_of(provider: Provider, **settings: Any) -> JwtAuthenticator:
    return JwtAuthenticator(
        auth_config(jwks_url=provider.url, **settings),
        clock_ms=lambda: NOW_MS,
        revocations=Revocations(),
    )


async def outcome(judge: JwtAuthenticator, token: str) -> str:
    """Whom the token names, or why it is refused."""
    try:
        found = judge.verify(token)
        grants = found if isinstance(found, Grants) else await found
    except TokenError as error:
        return error.reason
    return grants.principal or ""


# --- fetching --------------------------------------------------------------------------------------


async def test_token_is_verified_with_the_key_that_it_names(provider: Provider, log: Log) -> None:
    provider.document = key_set(
        jwk("RSA", kid="k1"), jwk("RSA-2", kid="k2"), jwk("P-256", kid="k3")
    )
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()

        assert await outcome(judge, signed("RSA-2", kid="k2")) == "ann"
        assert await outcome(judge, signed("P-256", kid="k3")) == "ann"
        assert await outcome(judge, signed("RSA-2", kid="k1")) == "signature"
        assert await outcome(judge, signed("RSA", kid="k3")) == "algorithm"

    assert provider.hits == 1


async def test_first_token_waits_for_the_first_fetch(provider: Provider) -> None:
    provider.answers.clear()
    judge = judge_of(provider)
    async with running(judge):
        await provider.asked.wait()
        waiting = judge.verify(signed("RSA", kid="k1"))
        assert isinstance(waiting, Awaitable)

        provider.answers.set()

        assert (await waiting).principal == "ann"
    assert provider.hits == 1


async def test_known_key_never_waits(provider: Provider, log: Log) -> None:
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()

        assert isinstance(judge.verify(signed("RSA", kid="k1")), Grants)


async def test_new_key_is_fetched_when_its_first_token_comes(provider: Provider, log: Log) -> None:
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()
        provider.document = key_set(jwk("RSA-2", kid="k2"))

        assert await outcome(judge, signed("RSA-2", kid="k2")) == "ann"
        assert await outcome(judge, signed("RSA", kid="k1")) == "unknown-key"

    assert provider.hits == 2


async def test_keys_are_renewed_without_anybody_asking(provider: Provider, log: Log) -> None:
    keys = KeySet(provider.url, refresh_seconds=0.01)
    async with running(keys):
        await log.fetched()
        provider.document = key_set(jwk("RSA-2", kid="k2"))
        await log.fetched()

        assert keys.find("k1") == []
        assert keys.find("k2")


async def test_reload_fetches_at_once_and_keeps_the_keys_meanwhile(
    provider: Provider, log: Log
) -> None:
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()
        provider.asked.clear()

        judge.reload(auth_config(jwks_url=provider.url))

        assert await outcome(judge, signed("RSA", kid="k1")) == "ann"
        async with asyncio.timeout(SOON_SECONDS):
            await provider.asked.wait()


@pytest.fixture
async def other() -> AsyncIterator[Provider]:
    """A second provider, with another key; it keeps those who ask waiting."""
    other = Provider()
    other.document = key_set(jwk("RSA-2", kid="k2"))
    other.answers.clear()
    await other.server.start_server()
    yield other
    other.answers.set()
    await other.server.close()


async def test_reload_to_another_url_forgets_the_keys_of_the_old_one(
    provider: Provider, other: Provider, log: Log
) -> None:
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()

        judge.reload(auth_config(jwks_url=other.url))
        waiting = judge.verify(signed("RSA", kid="k1"))
        other.answers.set()

        assert isinstance(waiting, Awaitable)
        with pytest.raises(TokenError):
            await waiting
        assert await outcome(judge, signed("RSA-2", kid="k2")) == "ann"


async def test_answer_of_the_old_url_that_comes_after_a_reload_is_not_used(
    provider: Provider, other: Provider, log: Log
) -> None:
    provider.answers.clear()
    judge = judge_of(provider)
    async with running(judge):
        await provider.asked.wait()

        judge.reload(auth_config(jwks_url=other.url))
        provider.answers.set()
        await other.asked.wait()

        assert not judge.key_set.is_loaded
        other.answers.set()
        await log.fetched()
        assert await outcome(judge, signed("RSA-2", kid="k2")) == "ann"


async def test_reload_may_turn_from_a_secret_to_a_key_set(provider: Provider, log: Log) -> None:
    judge = JwtAuthenticator(auth_config(), clock_ms=lambda: NOW_MS, revocations=Revocations())
    async with running(judge):
        judge.reload(auth_config(jwks_url=provider.url))
        await log.fetched()

        assert await outcome(judge, signed("RSA", kid="k1")) == "ann"


# --- storms ----------------------------------------------------------------------------------------


async def test_storm_of_unknown_keys_causes_one_fetch(provider: Provider, log: Log) -> None:
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()

        storm = [outcome(judge, signed("P-256", kid=f"made-up-{n}")) for n in range(300)]
        refused = await asyncio.gather(*storm)
        late = await outcome(judge, signed("P-256", kid="made-up-300"))

    assert set(refused) == {"unknown-key"}
    assert late == "unknown-key"
    assert provider.hits == 2


async def test_those_who_wait_share_one_fetch(provider: Provider, log: Log) -> None:
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()
        provider.document = key_set(jwk("RSA-2", kid="k2"))
        provider.answers.clear()
        provider.asked.clear()
        token = signed("RSA-2", kid="k2")
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(outcome(judge, token)) for _ in range(100)]
            await provider.asked.wait()

            waiting[0].cancel()
            provider.answers.set()

    assert {task.result() for task in waiting[1:]} == {"ann"}
    assert provider.hits == 2


async def test_unknown_keys_are_asked_for_again_after_a_while(provider: Provider, log: Log) -> None:
    keys = KeySet(provider.url, refetch_seconds=0)
    async with running(keys):
        await log.fetched()
        for _ in range(2):
            asked = keys.refetch()
            assert asked is not None
            await asked

    assert provider.hits == 3


async def test_token_of_a_key_at_hand_is_judged_while_others_wait(
    provider: Provider, log: Log
) -> None:
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()
        provider.answers.clear()
        waiting = judge.verify(signed("RSA-2", kid="k2"))
        assert isinstance(waiting, Awaitable)

        assert isinstance(judge.verify(signed("RSA", kid="k1")), Grants)

        provider.answers.set()
        with pytest.raises(TokenError):
            await waiting


# --- outages ---------------------------------------------------------------------------------------


async def test_without_keys_from_the_start_tokens_are_refused_for_now(
    provider: Provider, log: Log
) -> None:
    provider.status = 503
    judge = judge_of(provider)
    async with running(judge):
        line = await log.failed()

        assert await outcome(judge, signed("RSA", kid="k1")) == "keys-unavailable"
        assert await outcome(judge, signed("RSA", kid="k1")) == "keys-unavailable"
        provider.status = 200
        await log.fetched()

        assert await outcome(judge, signed("RSA", kid="k1")) == "ann"
    assert line["level"] == "warning"
    assert line["reason"].startswith("answered 503")
    assert line["keys_in_use"] == 0


async def test_keys_stay_in_use_while_the_provider_is_away(provider: Provider, log: Log) -> None:
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()
        await provider.server.close()
        assert await outcome(judge, signed("RSA-2", kid="new")) == "keys-unavailable"

        assert await outcome(judge, signed("RSA", kid="k1")) == "ann"

    assert judge.key_set.failures == 1


async def test_provider_that_cannot_be_reached_is_tried_again(log: Log) -> None:
    keys = KeySet("http://127.0.0.1:1/keys?secret=hidden", refresh_seconds=0.01)
    async with running(keys):
        lines = [await log.failed() for _ in range(3)]

    assert {line["url"] for line in lines} == {"http://127.0.0.1:1/keys"}
    assert all("Cannot connect" in line["reason"] for line in lines)
    assert "hidden" not in str(lines)


BAD_ANSWERS: list[tuple[int, bytes, str]] = [
    (404, RSA_SET, "answered 404"),
    (500, RSA_SET, "answered 500"),
    (200, b"<!doctype html>", "is not JSON"),
    (200, b"[]", "is not a key set"),
    (200, b"", "is not JSON"),
    (200, key_set(), "has no key"),
    (200, key_set({"kty": "oct", "k": "c2VjcmV0"}), "has no key"),
    (200, b" " * (MAX_BYTES + 1) + RSA_SET, f"has more than {MAX_BYTES} bytes"),
]


@pytest.mark.parametrize(("status", "document", "reason"), BAD_ANSWERS)
async def test_answer_that_is_no_key_set_leaves_the_keys_as_they_are(
    provider: Provider, log: Log, status: int, document: bytes, reason: str
) -> None:
    keys = KeySet(provider.url)
    async with running(keys):
        await log.fetched()
        provider.status, provider.document = status, document

        keys.point_to(provider.url)
        line = await log.failed()

    assert [key.key_id for key in keys.find("k1")] == ["k1"]
    assert not keys.is_current
    assert line["reason"].startswith(reason)


async def test_large_answer_is_not_read_to_its_end(provider: Provider, log: Log) -> None:
    provider.document = b"\x00" * (MAX_BYTES * 100)
    provider.headers["Content-Encoding"] = "deflate-that-is-none"
    keys = KeySet(provider.url)
    async with running(keys):
        line = await log.failed()

    assert line["reason"] == f"has more than {MAX_BYTES} bytes"


async def test_redirect_is_not_followed(provider: Provider, log: Log) -> None:
    provider.status = 302
    provider.headers["Location"] = "/elsewhere"
    keys = KeySet(provider.url)
    async with running(keys):
        line = await log.failed()

    assert line["reason"].startswith("answered 302")
    assert provider.hits == 1


async def test_provider_that_does_not_answer_is_given_up(provider: Provider, log: Log) -> None:
    provider.answers.clear()
    keys = KeySet(provider.url, timeout_seconds=0.05)
    async with running(keys):
        line = await log.failed()
        provider.answers.set()

    assert "0.05 s" in line["reason"]


async def test_end_of_the_relay_lets_go_of_those_who_wait(provider: Provider) -> None:
    provider.answers.clear()
    judge = judge_of(provider)
    async with running(judge):
        await provider.asked.wait()
        waiting = judge.verify(signed("RSA", kid="k1"))
        assert isinstance(waiting, Awaitable)

    async with asyncio.timeout(SOON_SECONDS / 4):
        with pytest.raises(TokenError) as caught:
            await waiting
    assert caught.value.reason == "keys-unavailable"


async def test_without_a_url_nothing_is_fetched_and_nobody_waits() -> None:
    keys = KeySet("")
    async with running(keys):
        await asyncio.sleep(0)

        assert keys.refetch() is None


# --- which key -------------------------------------------------------------------------------------


async def test_token_without_a_key_id_is_verified_where_one_key_fits(
    provider: Provider, log: Log
) -> None:
    provider.document = key_set(jwk("RSA", kid="k1"), jwk("P-256", kid="k2"))
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()

        assert await outcome(judge, signed("RSA")) == "ann"
        assert await outcome(judge, signed("P-256")) == "ann"
        assert await outcome(judge, signed("P-384")) == "algorithm"


async def test_token_without_a_key_id_is_refused_where_several_keys_fit(
    provider: Provider, log: Log
) -> None:
    provider.document = key_set(jwk("RSA", kid="k1"), jwk("RSA-2", kid="k2"))
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()

        assert await outcome(judge, signed("RSA")) == "unknown-key"


async def test_published_key_is_never_used_as_a_secret(provider: Provider, log: Log) -> None:
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()
        forged = hmac_signed({"alg": "HS256", "kid": "k1"}, claims(), secret=public_pem("RSA"))

        assert await outcome(judge, forged) == "algorithm"


async def test_published_secret_is_never_used(provider: Provider, log: Log) -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "s"}
    provider.document = key_set(secret, jwk("RSA", kid="k1"))
    judge = judge_of(provider)
    async with running(judge):
        await log.fetched()
        forged = hmac_signed(
            {"alg": "HS256", "kid": "s"}, claims(), secret="secretsecretsecretsecretsecret"
        )

        assert await outcome(judge, forged) == "unknown-key"


async def test_algorithms_of_the_settings_narrow_those_of_the_set(
    provider: Provider, log: Log
) -> None:
    judge = judge_of(provider, algorithms=("PS256",))
    async with running(judge):
        await log.fetched()

        assert await outcome(judge, signed("RSA", "RS256", kid="k1")) == "algorithm"
        assert await outcome(judge, signed("RSA", "PS256", kid="k1")) == "ann"
