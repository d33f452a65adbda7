"""Everybody is pinged once an interval, spread evenly; who is silent for too long is gone."""

from hypothesis import given
from hypothesis import strategies as st

from relay.core.heartbeat import SLOTS, Heartbeat

INTERVAL_SECONDS = 25.0
TIMEOUT_SECONDS = 10.0
PATIENCE_SECONDS = INTERVAL_SECONDS + TIMEOUT_SECONDS


class Connection:
    def __init__(self, last_seen_at: float = 0.0) -> None:
        self.last_seen_at = last_seen_at


def wheel_with(*members: Connection) -> Heartbeat[Connection]:
    wheel: Heartbeat[Connection] = Heartbeat(INTERVAL_SECONDS, TIMEOUT_SECONDS)
    for member in members:
        wheel.add(member)
    return wheel


def pinged_in_one_interval(
    wheel: Heartbeat[Connection], now: float = 0.0
) -> list[list[Connection]]:
    return [wheel.turn(now)[0] for _ in range(SLOTS)]


def test_turns_of_one_interval_make_up_the_interval() -> None:
    assert wheel_with().tick_seconds * SLOTS == INTERVAL_SECONDS


def test_member_is_due_exactly_every_interval() -> None:
    member = Connection()
    wheel = wheel_with(Connection(), member)

    turns = [number for number in range(3 * SLOTS) if member in wheel.turn(0.0)[0]]

    assert [later - turns[0] for later in turns] == [0, SLOTS, 2 * SLOTS]


@given(st.integers(0, 200))
def test_load_of_a_burst_of_connections_is_even(count: int) -> None:
    members = [Connection() for _ in range(count)]

    turns = pinged_in_one_interval(wheel_with(*members))

    sizes = [len(due) for due in turns]
    assert max(sizes) - min(sizes) <= 1
    assert {member for due in turns for member in due} == set(members)
    assert sum(sizes) == count


def test_silent_member_is_gone_after_interval_and_timeout_and_no_longer_pinged() -> None:
    member = Connection(last_seen_at=100.0)
    wheel = wheel_with(member)

    turns = [wheel.turn(100.0 + PATIENCE_SECONDS) for _ in range(SLOTS)]

    assert turns == [([], [member])] * SLOTS


def test_silent_member_is_not_gone_a_moment_earlier() -> None:
    wheel = wheel_with(Connection(last_seen_at=100.0))

    _, gone = wheel.turn(100.0 + PATIENCE_SECONDS - 0.001)

    assert gone == []


def test_any_sign_of_life_keeps_a_member() -> None:
    silent, alive = Connection(last_seen_at=0.0), Connection(last_seen_at=0.0)
    wheel = wheel_with(silent, alive)

    alive.last_seen_at = 30.0
    _, gone = wheel.turn(40.0)

    assert gone == [silent]


def test_removed_member_is_neither_due_nor_gone() -> None:
    member = Connection()
    wheel = wheel_with(member)

    wheel.remove(member)

    assert len(wheel) == 0
    assert [wheel.turn(1000.0) for _ in range(SLOTS)] == [([], [])] * SLOTS


def test_removing_twice_or_a_stranger_changes_nothing() -> None:
    member, kept = Connection(), Connection()
    wheel = wheel_with(member, kept)

    wheel.remove(member)
    wheel.remove(member)
    wheel.remove(Connection())

    assert len(wheel) == 1
    assert [due for due in pinged_in_one_interval(wheel) if due] == [[kept]]
