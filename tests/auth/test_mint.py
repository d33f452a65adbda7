"""A minted token is one that a relay with the same settings believes, and allows what was asked for."""

import time
from typing import Any

import pytest
from pydantic import SecretStr

from relay.auth.mint import mint
from relay.auth.revocations import Revocations
from relay.auth.tokens import TokenError, make_authenticator
from relay.core.grants import Grants
from relay.settings import AuthConfig, ConfigError
from tests.auth.issuing import SECRET, auth_config


def minted(auth: AuthConfig, **changed: Any) -> str:
    asked: dict[str, Any] = {
        "jobs": ["a-*"], "queues": ["q"], "subject": "dev", "ttl_seconds": 60, "now": time.time()
    }  # fmt: skip
    return mint(auth, **asked | changed)


def verified(token: str, auth: AuthConfig) -> Grants:
    judge = make_authenticator(
        auth, clock_ms=lambda: int(time.time() * 1000), revocations=Revocations()
    )
    grants = judge.verify(token)
    assert isinstance(grants, Grants)
    return grants


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"algorithms": ("RS256", "HS512")},
        {"audience": "relay", "issuer": "https://id.example"},
        {"jobs_claim": "watch", "queues_claim": "https://example.org/queues"},
        {"jwt_secret": SecretStr("s" * 32)},
    ],
)
async def test_token_is_believed_by_a_relay_of_the_same_settings(settings: dict[str, Any]) -> None:
    auth = auth_config(**settings)

    grants = verified(minted(auth), auth)

    assert grants.principal == "dev"
    assert grants.may_watch_job("a-1", None)
    assert not grants.may_watch_job("b-1", None)
    assert grants.may_watch_queue("q")
    assert not grants.may_watch_queue("r")


async def test_token_ends_after_the_time_asked_for() -> None:
    auth = auth_config(leeway_seconds=0)
    token = minted(auth, now=time.time() - 61)

    with pytest.raises(TokenError) as caught:
        verified(token, auth)
    assert caught.value.reason == "expired"


async def test_each_token_can_be_revoked_alone() -> None:
    auth = auth_config()

    first, second = (verified(minted(auth), auth) for _ in range(2))

    assert first.token_id
    assert first.token_id != second.token_id


def test_secret_is_enough_whatever_the_mode() -> None:
    assert minted(AuthConfig(jwt_secret=SecretStr(SECRET)))


@pytest.mark.parametrize(
    ("auth", "fault"),
    [
        (AuthConfig(), 'for example: jwt_secret = "'),
        (AuthConfig(jwks_url="https://id.example/keys"), "auth.jwks_url can only verify"),
        (AuthConfig(jwt_public_key_file="/k.pem"), "auth.jwt_public_key_file can only verify"),
        (AuthConfig(jwt_secret=SecretStr("short")), "has 5 bytes, should have 32"),
        (auth_config(algorithms=("RS256",)), "none of which is in auth.algorithms"),
    ],
)
def test_without_a_secret_to_sign_with_it_says_what_to_do(auth: AuthConfig, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        minted(auth)

    (line,) = caught.value.faults
    assert line.startswith("auth.jwt_secret: ")
    assert fault in line


def test_suggested_secret_is_good_and_new_each_time() -> None:
    suggested = []
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            minted(AuthConfig())
        suggested.append(caught.value.faults[0].split('"')[-2])

    assert suggested[0] != suggested[1]
    assert minted(AuthConfig(jwt_secret=SecretStr(suggested[0])))


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"subject": ""}, 'claim "sub"'),
        ({"jobs": ["a" * 300 + "*"]}, 'claim "jobs": should have globs of at most 256'),
        ({"queues": ["q" * 200] * 50}, "more than 8192 bytes"),
    ],
)
def test_token_that_nobody_would_believe_is_not_made(changed: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        minted(auth_config(), **changed)
