"""Guesses at the operators' token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.hostile.conftest import request

if TYPE_CHECKING:
    from tests.hostile.conftest import Target

TOKEN = "a-token-that-only-operators-know"
SETTINGS = {"admin": {"token": TOKEN}, "log": {"level": "debug"}}
PATH = "/admin/connections"
GUESSES = {
    "none": (),
    "empty": ("Authorization: Bearer ",),
    "half": (f"Authorization: Bearer {TOKEN[:-1]}",),
    "more": (f"Authorization: Bearer {TOKEN}x",),
    "other case": (f"Authorization: Bearer {TOKEN.upper()}",),
    "other scheme": (f"Authorization: Basic {TOKEN}",),
    "no scheme": (f"Authorization: {TOKEN}",),
    "two": (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer x"),
    "not ASCII": ("Authorization: Bearer \xff\xfe",),
    "cookie": (f"Cookie: token={TOKEN}",),
    "other header": (f"X-Admin-Token: {TOKEN}",),
}


@pytest.mark.parametrize("headers", GUESSES.values(), ids=GUESSES)
async def test_guess_opens_nothing(target: Target, headers: tuple[str, ...]) -> None:
    """A neighbour who reaches the admin listener guesses the token."""
    answer = await target.ask(request(PATH, *headers), admin=True)

    assert answer.status == 401
    assert TOKEN not in target.daemon.log_text()


async def test_query_is_no_place_for_the_token(target: Target) -> None:
    """A link with the token in it, which a log or a referrer gave away, is tried."""
    answer = await target.ask(request(f"{PATH}?token={TOKEN}"), admin=True)

    assert answer.status == 401


async def test_what_exists_is_told_to_operators_alone(target: Target) -> None:
    """A neighbour looks which paths there are."""
    paths = [PATH, "/admin/nothing", "/", "/dashboard", "/.git/config"]

    answers = [await target.ask(request(path), admin=True) for path in paths]

    assert [answer.status for answer in answers] == [401] * len(paths)
    assert len({answer.body for answer in answers}) == 1


async def test_token_opens(target: Target) -> None:
    """No attack: were every token refused, the tests above would prove nothing."""
    answer = await target.ask(request(PATH, f"Authorization: Bearer {TOKEN}"), admin=True)

    assert answer.status == 200
