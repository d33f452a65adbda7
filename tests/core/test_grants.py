"""Grants allow what the claims list and nothing else, and no glob makes deciding slow."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.grants import EVERYTHING, MAX_GLOBS, MAX_STATES, Globs, Grants, grants_of

# Few characters, so that globs and texts often fit; `.` is what a regular expression makes special.
TEXTS = st.text(alphabet="ab.\n", max_size=8)
GLOBS = st.lists(st.text(alphabet="ab.**??", max_size=8), max_size=3)


def naive(glob: str, text: str) -> bool:
    """What the words say: `*` any run, `?` one character, all else itself."""
    pattern = "".join({"*": ".*", "?": "."}.get(each, re.escape(each)) for each in glob)
    return re.fullmatch(pattern, text, re.DOTALL) is not None


class Counted(str):
    """A text that counts how many of its characters are looked at."""

    __slots__ = ("steps",)
    steps: int

    def __iter__(self) -> Iterator[str]:
        self.steps = 0
        for character in str(self):
            self.steps += 1
            yield character


# --- globs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "text", "fits"),
    [
        ("*", "anything:at/all\n", True),
        ("tenant-a-*", "tenant-a-7", True),
        ("tenant-a-*", "tenant-a-", True),
        ("tenant-a-*", "tenant-b-7", False),
        ("tenant-a-*", "x-tenant-a-7", False),
        ("*-7", "job-7", True),
        ("*-7", "job-77", False),
        ("a*b*c", "a--b--c", True),
        ("a*b*c", "a--c--b", False),
        ("job-?", "job-1", True),
        ("job-?", "job-", False),
        ("job-?", "job-12", False),
        ("a?", "aa", True),
        ("??", "é🚀", True),
        ("*ab", "aab", True),
        ("*a?b*", "aaxbb", True),
        ("**", "x", True),
        ("a**b", "ab", True),
        ("?*", "", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        (r"a\*", "a*", False),
        (r"a\*", r"a\z", True),
        ("a.c", "abc", False),
        ("Job", "job", False),
    ],
)
def test_glob_fits_the_whole_text_and_only_star_and_question_mark_are_special(
    glob: str, text: str, fits: bool
) -> None:
    assert Globs((glob,)).match(text) is fits


@settings(max_examples=500)
@given(globs=GLOBS, text=TEXTS)
def test_globs_fit_what_one_of_them_would_fit_alone(globs: list[str], text: str) -> None:
    assert Globs(tuple(globs)).match(text) is any(naive(glob, text) for glob in globs)


@pytest.mark.parametrize(
    "bomb",
    [
        ("a*" * 255 + "b",),
        ("*a" * 255 + "*b",),
        ("?*" * 255 + "b",),
        ("*" * 100_000 + "b",),
        ("*" + "a" * 254 + "b",),
        tuple(f"{'*a' * 20}*{n}" for n in range(80)),
    ],
)
def test_glob_bomb_costs_one_step_a_character_over_a_bounded_state(bomb: tuple[str, ...]) -> None:
    globs = Globs(bomb)
    text = Counted("a" * 256)

    fits = globs.match(text)

    assert fits is False
    assert text.steps <= 256
    assert globs.states <= MAX_STATES


def test_what_fits_whatever_follows_is_not_read_to_its_end() -> None:
    text = Counted("tenant-a-" + "x" * 247)

    assert Globs(("tenant-a-*",)).match(text)

    assert text.steps <= len("tenant-a-") + 1


def test_stars_in_a_row_are_one() -> None:
    assert Globs(("a***b",)).states == Globs(("a*b",)).states


# --- what the claims must be -----------------------------------------------------------------------


def test_absent_claims_allow_nothing() -> None:
    grants = grants_of({})

    assert not grants.may_watch_job("job", None)
    assert not grants.may_watch_job("job", "queue")
    assert not grants.may_watch_queue("queue")
    assert (grants.principal, grants.token_id, grants.expires_at_ms) == (None, None, None)


def test_empty_lists_allow_nothing() -> None:
    grants = grants_of({"jobs": [], "queues": []})

    assert not grants.may_watch_job("job", "queue")


def test_principal_token_and_end_are_kept() -> None:
    grants = grants_of({"sub": "ann", "jti": "t1"}, expires_at_ms=5)

    assert (grants.principal, grants.token_id, grants.expires_at_ms) == ("ann", "t1", 5)


def test_claims_may_have_other_names() -> None:
    claims = {"https://example.org/jobs": ["a"], "q": ["b"], "jobs": ["x"], "queues": ["y"]}

    grants = grants_of(claims, jobs_claim="https://example.org/jobs", queues_claim="q")

    assert grants.may_watch_job("a", None)
    assert grants.may_watch_queue("b")
    assert not grants.may_watch_job("x", "y")


@pytest.mark.parametrize("claim", ["jobs", "queues"])
@pytest.mark.parametrize("value", [None, True, 1, 1.5, {}, {"*": 1}, [1], ["a", None], [["a"]]])
def test_claim_that_is_no_list_of_strings_is_refused(claim: str, value: object) -> None:
    with pytest.raises(ValueError, match=f'claim "{claim}": should be a list of strings'):
        grants_of({claim: value})


def test_text_in_place_of_a_list_is_refused_with_what_would_be_right() -> None:
    with pytest.raises(ValueError, match=r'claim "jobs": is text, should be a list of strings'):
        grants_of({"jobs": "secret-*"})


@pytest.mark.parametrize(
    "globs",
    [
        [f"job-{n}" for n in range(MAX_GLOBS + 1)],
        ["a" * 257 + "*"],
        [f"{'a' * 200}{n}*" for n in range(11)],
    ],
)
def test_too_many_or_too_long_globs_are_refused(globs: list[str]) -> None:
    with pytest.raises(ValueError, match='claim "queues": should '):
        grants_of({"queues": globs})


def test_as_many_names_as_are_allowed_are_each_allowed() -> None:
    names = [f"job-{n}" for n in range(MAX_GLOBS)]

    grants = grants_of({"jobs": names})

    assert all(grants.may_watch_job(name, None) for name in names)
    assert not grants.may_watch_job(f"job-{MAX_GLOBS}", None)


@pytest.mark.parametrize("claim", ["sub", "jti"])
@pytest.mark.parametrize("value", [None, 7, "", "a\nb", "\ud800", "x" * 257, ["ann"]])
def test_name_that_cannot_be_logged_or_revoked_is_refused(claim: str, value: object) -> None:
    with pytest.raises(ValueError, match=f'claim "{claim}": should be text') as caught:
        grants_of({claim: value})

    assert "xxx" not in str(caught.value)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["sub", "jti", "jobs", "queues", "x"]), JSON))
def test_any_claims_become_grants_or_a_value_error(claims: dict[str, object]) -> None:
    try:
        grants = grants_of(claims)
    except ValueError:
        return

    assert isinstance(grants, Grants)


# --- what they allow -------------------------------------------------------------------------------


def test_right_to_jobs_holds_with_and_without_a_queue() -> None:
    grants = grants_of({"jobs": ["thumbs-*"]})

    assert grants.may_watch_job("thumbs-7", None)
    assert grants.may_watch_job("thumbs-7", "images")
    assert not grants.may_watch_job("other-7", "images")


def test_right_to_a_queue_holds_only_for_requests_that_name_it() -> None:
    grants = grants_of({"queues": ["images"]})

    assert grants.may_watch_queue("images")
    assert grants.may_watch_job("thumbs-7", "images")
    assert not grants.may_watch_job("thumbs-7", None)
    assert not grants.may_watch_job("thumbs-7", "videos")
    assert not grants.may_watch_job("images", None)


def test_right_to_all_jobs_is_no_right_to_a_queue() -> None:
    assert not grants_of({"jobs": ["*"]}).may_watch_queue("images")


def test_everything_is_allowed_without_end() -> None:
    assert EVERYTHING.may_watch_job("job", None)
    assert EVERYTHING.may_watch_queue("queue")
    assert EVERYTHING.expires_at_ms is None


def test_globs_stay_out_of_the_text_form() -> None:
    assert "secret" not in repr(grants_of({"jobs": ["secret-*"]}))
