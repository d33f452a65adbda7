"""Sockets are written to once a batch, in slices of time."""

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from relay.web import flusher
from relay.web.flusher import SLICE_SECONDS, Flusher

if TYPE_CHECKING:
    from relay.core.session import Session

EVERY_LOOP = True
pytestmark = pytest.mark.uncompiled


class Clock:
    """Time passes only when a socket is written to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Sender:
    """A session and its link in one, which takes its time to be flushed."""

    def __init__(self, flushed: list["Sender"], clock: Clock, seconds: float = 0.0) -> None:
        self.link = self
        self.woken = False
        self._flushed = flushed
        self._clock = clock
        self._seconds = seconds

    def flush(self) -> None:
        assert not self.woken, "it may wake the flusher again from now on"
        self._flushed.append(self)
        self._clock.now += self._seconds


class Recording:
    """The part of a loop that a flusher may use."""

    def __init__(self, callbacks: list[object]) -> None:
        self._callbacks = callbacks

    def call_soon(self, callback: object) -> None:
        self._callbacks.append(callback)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(flusher, "perf_counter", clock)
    return clock


def wake(by: Flusher, senders: list[Sender]) -> None:
    for sender in senders:
        sender.woken = True
        by.wake(cast("Session", cast("Any", sender)))


async def test_flush_writes_to_all_who_woke_it_in_order(clock: Clock) -> None:
    flushed: list[Sender] = []
    tested = Flusher(asyncio.get_running_loop(), lambda: None)
    senders = [Sender(flushed, clock) for _ in range(100)]
    wake(tested, senders)

    assert tested.flush()

    assert flushed == senders
    assert tested.flush(), "and nothing is left"
    assert flushed == senders


async def test_who_woke_it_is_written_to_in_the_next_turn_without_being_asked(
    clock: Clock,
) -> None:
    flushed: list[Sender] = []
    done = asyncio.Event()
    tested = Flusher(asyncio.get_running_loop(), done.set)
    senders = [Sender(flushed, clock) for _ in range(3)]

    wake(tested, senders)
    before = list(flushed)
    await done.wait()

    assert before == []
    assert flushed == senders


async def test_batch_that_is_gathered_costs_no_callback(clock: Clock) -> None:
    flushed: list[Sender] = []
    callbacks: list[object] = []
    tested = Flusher(cast("Any", Recording(callbacks)), lambda: None)
    senders = [Sender(flushed, clock) for _ in range(3)]

    tested.gather()
    wake(tested, senders)
    tested.flush()

    assert flushed == senders
    assert callbacks == []


async def test_who_wakes_it_after_the_flush_of_a_batch_is_written_to_in_the_next_turn(
    clock: Clock,
) -> None:
    flushed: list[Sender] = []
    done = asyncio.Event()
    tested = Flusher(asyncio.get_running_loop(), done.set)
    late = Sender(flushed, clock)

    tested.gather()
    tested.flush()
    wake(tested, [late])
    await done.wait()

    assert flushed == [late]


async def test_rest_of_a_batch_is_written_in_the_next_turns_and_then_it_is_told(
    clock: Clock,
) -> None:
    flushed: list[Sender] = []
    done = asyncio.Event()
    tested = Flusher(asyncio.get_running_loop(), done.set)
    senders = [Sender(flushed, clock, SLICE_SECONDS / 20) for _ in range(100)]

    tested.gather()
    wake(tested, senders)
    is_done = tested.flush()
    await done.wait()

    assert not is_done
    assert flushed == senders


async def test_flush_to_many_sockets_gives_the_loop_a_turn_after_its_slice(clock: Clock) -> None:
    flushed: list[Sender] = []
    done = asyncio.Event()
    tested = Flusher(asyncio.get_running_loop(), done.set)
    senders = [Sender(flushed, clock, SLICE_SECONDS / 20) for _ in range(100)]
    wake(tested, senders)
    loop = asyncio.get_running_loop()
    at_turns: list[int] = []

    def turn() -> None:
        at_turns.append(len(flushed))
        if not done.is_set():
            loop.call_soon(turn)

    is_done = tested.flush()
    loop.call_soon(turn)
    await done.wait()

    assert not is_done
    assert at_turns[0] < 100
    assert len(set(at_turns)) > 2, "the loop had turns in between"
    assert flushed == senders


async def test_who_is_woken_while_others_are_written_to_is_written_to_as_well(
    clock: Clock,
) -> None:
    flushed: list[Sender] = []
    tested = Flusher(asyncio.get_running_loop(), lambda: None)
    late = Sender(flushed, clock)

    class Waking(Sender):
        def flush(self) -> None:
            super().flush()
            wake(tested, [late])

    first = Waking(flushed, clock)
    wake(tested, [first])

    assert tested.flush()

    assert flushed == [first, late]
