"""Who may connect, how, and what an operator is told when it does not work."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from relay.core.errors import UpstreamError
from relay.demo.embedded import EmbeddedRedis
from relay.upstream.connection import RedisSettings, make_client, open_link
from relay.upstream.link import is_refusal
from tests.proxy import Proxy
from tests.upstream.conftest import redis_settings as settings

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_SECONDS = 5.0


def with_credentials(url: str, credentials: str) -> str:
    return url.replace("redis://", f"redis://{credentials}@")


@pytest.fixture(scope="module")
def guarded() -> Iterator[EmbeddedRedis]:
    """A server that asks for a password, and knows the user `app`."""
    with EmbeddedRedis(
        ("--requirepass", "secret", "--user", "app", "on", ">word", "~*", "&*", "+@all")
    ) as server:
        yield server


async def identity(settings: RedisSettings) -> str:
    """Who the server says we are, over a link and over a client alike."""
    link = await open_link(settings)
    await link.close()
    async with make_client(settings, TIMEOUT_SECONDS) as client:
        return str(await client.execute_command("ACL", "WHOAMI"), "utf-8")


# --- ways to Redis ---------------------------------------------------------------------------------


async def test_unix_url_connects(shared_redis: EmbeddedRedis) -> None:
    assert await identity(settings(f"unix://{shared_redis.unix_path}")) == "default"


@pytest.mark.parametrize(
    ("credentials", "more", "user"),
    [
        (":secret", {}, "default"),
        ("app:word", {}, "app"),
        ("", {"password": "secret"}, "default"),
        ("", {"username": "app", "password": "word"}, "app"),
        ("app", {"password": "word"}, "app"),
    ],
)
async def test_credentials_may_stand_in_the_url_or_beside_it(
    guarded: EmbeddedRedis, credentials: str, more: dict[str, str], user: str
) -> None:
    url = with_credentials(guarded.url, credentials) if credentials else guarded.url

    assert await identity(settings(url, **more)) == user


# --- refusals --------------------------------------------------------------------------------------


async def test_missing_password_is_asked_for_by_the_settings_name(guarded: EmbeddedRedis) -> None:
    with pytest.raises(UpstreamError, match=r"redis\.password"):
        await open_link(settings(guarded.url))


async def test_wrong_password_names_the_settings_and_not_the_password(
    guarded: EmbeddedRedis,
) -> None:
    with pytest.raises(UpstreamError, match=r"redis\.password") as refusal:
        await open_link(settings(guarded.url, username="app", password="sesame"))

    assert "sesame" not in str(refusal.value)


async def test_nobody_there_is_said_with_the_address(own_redis: EmbeddedRedis) -> None:
    own_redis.kill()

    with pytest.raises(UpstreamError, match=str(own_redis.port)):
        await open_link(settings(own_redis.url))


async def test_server_that_accepts_and_says_nothing_is_given_up_and_let_go(
    shared_redis: EmbeddedRedis,
) -> None:
    impatient = replace(settings(""), connect_timeout_seconds=0.2)
    async with Proxy(shared_redis.port) as proxy:
        proxy.swallowing = True

        with pytest.raises(UpstreamError, match=r"no answer within 0\.2 s"):
            await open_link(replace(impatient, url=proxy.url))
        await asyncio.wait_for(proxy.left_alone(), TIMEOUT_SECONDS)


async def test_attempt_that_is_cancelled_leaves_no_connection_behind(
    shared_redis: EmbeddedRedis,
) -> None:
    async with Proxy(shared_redis.port) as proxy:
        proxy.swallowing = True
        attempt = asyncio.create_task(open_link(settings(proxy.url)))
        await proxy.used()

        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await asyncio.wait_for(proxy.left_alone(), TIMEOUT_SECONDS)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:6379", "redis://127.0.0.1:6379?socket_type=x&db=x"]
)
async def test_url_that_redis_does_not_know_is_an_upstream_error(url: str) -> None:
    with pytest.raises(UpstreamError):
        await open_link(settings(url))


# --- TLS -------------------------------------------------------------------------------------------


@pytest.mark.tool
async def test_rediss_url_connects_over_tls(tls_redis: RedisSettings) -> None:
    assert await identity(tls_redis) == "default"


@pytest.mark.tool
async def test_certificate_that_nobody_vouches_for_is_refused(tls_redis: RedisSettings) -> None:
    with pytest.raises(UpstreamError, match="certificate"):
        await open_link(replace(tls_redis, tls_ca_file=""))


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (NoPermissionError("NOPERM"), True),
        (ResponseError("WRONGTYPE"), True),
        (ClusterDownError("CLUSTERDOWN Hash slot not served"), False),
        (MasterDownError("MASTERDOWN"), False),
        (MovedError("3999 127.0.0.1:6381"), False),
        (TryAgainError("TRYAGAIN"), False),
        (RedisConnectionError("gone"), False),
        (BusyLoadingError("LOADING"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_refusal_is_what_redis_would_say_again(error: Exception, *, lasting: bool) -> None:
    assert is_refusal(error) is lasting
