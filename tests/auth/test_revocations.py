"""What is revoked stays so until its end, and never grows beyond the bound."""

from hypothesis import given
from hypothesis import strategies as st

from relay.auth.revocations import Revocations
from relay.core.grants import EVERYTHING, Grants, grants_of

ANN = grants_of({"sub": "ann", "jti": "t1"})
BOB = grants_of({"sub": "bob", "jti": "t2"})


def test_nothing_is_revoked_at_first() -> None:
    assert not Revocations().is_revoked(ANN, 0)


def test_principal_is_revoked_with_every_token() -> None:
    revocations = Revocations()

    revocations.revoke(principal="ann", until_ms=100, now_ms=0)

    assert revocations.is_revoked(ANN, 99)
    assert revocations.is_revoked(grants_of({"sub": "ann"}), 99)
    assert not revocations.is_revoked(BOB, 99)


def test_token_is_revoked_alone() -> None:
    revocations = Revocations()

    revocations.revoke(token_id="t1", until_ms=100, now_ms=0)

    assert revocations.is_revoked(ANN, 99)
    assert not revocations.is_revoked(grants_of({"sub": "ann", "jti": "t3"}), 99)


def test_principal_of_the_same_text_as_a_token_id_is_another_thing() -> None:
    revocations = Revocations()

    revocations.revoke(token_id="ann", until_ms=100, now_ms=0)

    assert not revocations.is_revoked(ANN, 0)


def test_who_has_no_name_is_not_revoked_with_others() -> None:
    revocations = Revocations()

    revocations.revoke(until_ms=100, now_ms=0)
    revocations.revoke(principal="ann", until_ms=100, now_ms=0)

    assert not revocations.is_revoked(EVERYTHING, 0)


def test_revocation_ends() -> None:
    revocations = Revocations()

    revocations.revoke(principal="ann", until_ms=100, now_ms=0)

    assert not revocations.is_revoked(ANN, 100)


def test_later_end_counts_and_an_earlier_one_does_not_shorten_it() -> None:
    revocations = Revocations()
    for until_ms in (100, 200, 50):
        revocations.revoke(principal="ann", until_ms=until_ms, now_ms=0)

    assert revocations.is_revoked(ANN, 199)
    assert not revocations.is_revoked(ANN, 200)


def test_what_has_ended_makes_room_first() -> None:
    revocations = Revocations(max_entries=2)
    revocations.revoke(principal="old", until_ms=10, now_ms=0)
    revocations.revoke(principal="ann", until_ms=100, now_ms=0)

    revocations.revoke(token_id="t2", until_ms=100, now_ms=50)

    assert revocations.is_revoked(ANN, 50)
    assert revocations.is_revoked(BOB, 50)


def test_beyond_the_bound_what_ends_soonest_goes() -> None:
    revocations = Revocations(max_entries=2)
    revocations.revoke(principal="ann", until_ms=100, now_ms=0)
    revocations.revoke(token_id="t2", until_ms=300, now_ms=0)

    revocations.revoke(principal="eve", until_ms=200, now_ms=0)

    assert not revocations.is_revoked(ANN, 0)
    assert revocations.is_revoked(BOB, 0)


NAMES = st.sampled_from(["a", "b", "c", "d", "e"])


@given(st.lists(st.tuples(NAMES, st.booleans(), st.integers(0, 50)), max_size=40))
def test_never_more_than_the_bound_is_kept(steps: list[tuple[str, bool, int]]) -> None:
    revocations = Revocations(max_entries=3)

    for now_ms, (name, is_token, seconds) in enumerate(steps):
        named = {"token_id": name} if is_token else {"principal": name}
        revocations.revoke(**named, until_ms=now_ms + seconds, now_ms=now_ms)

    assert revocations.entries <= 3


def test_grants_of_another_session_of_the_same_principal_are_refused_too() -> None:
    revocations = Revocations()
    revocations.revoke(principal="ann", until_ms=100, now_ms=0)
    later: Grants = grants_of({"sub": "ann", "jti": "made-later"})

    assert revocations.is_revoked(later, 50)
