"""What is remembered of channels is bounded, whatever they are called."""

from relay.core.event import Identity
from relay.core.remembered import Remembered
from tests.fakes import identity


def channel_of(name: bytes) -> Identity:
    told = identity("job")
    told.channel = name
    return told


def test_a_channel_is_remembered() -> None:
    remembered = Remembered(10)
    told = channel_of(b"a")

    remembered.keep(told)

    assert remembered.get(b"a") is told


def test_a_flood_of_channels_is_not_remembered_without_bound() -> None:
    remembered = Remembered(10)

    for number in range(10_001):
        remembered.keep(channel_of(b"%d" % number))

    assert len(remembered) <= 10
    assert b"10000" in remembered


def test_a_very_long_channel_is_not_remembered() -> None:
    remembered = Remembered(10)

    remembered.keep(channel_of(b"x" * 5000))

    assert len(remembered) == 0
