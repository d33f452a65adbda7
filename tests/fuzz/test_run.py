"""The fuzzer itself, on a small scale: that the daemon stands it, and that it would notice if not."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.fuzz import inputs
from tests.fuzz.run import SHARES, Report, run

if TYPE_CHECKING:
    from pathlib import Path

INPUTS = 5000
SEED = 1


async def test_daemon_stands_some_thousands_of_inputs(tmp_path: Path) -> None:
    report = await run(INPUTS, SEED, tmp_path, lambda _: None)

    assert report.faults == []
    assert report.alive
    assert report.counts.total() == INPUTS
    assert report.counts.keys() == SHARES.keys()


@pytest.mark.parametrize(
    "make", [inputs.message, inputs.sound_frames, inputs.sound_head, inputs.broken_admin]
)
def test_same_seed_makes_the_same_inputs(make: object) -> None:
    assert callable(make)
    first, second = Random(SEED), Random(SEED)

    # Frames are masked with a key of the system's; their lengths tell as much.
    made = [[len(make(random)) for _ in range(100)] for random in (first, second)]

    assert made[0] == made[1]
    assert len(set(made[0])) > 10


def test_report_with_a_fault_is_not_good() -> None:
    good, bad = Report(SEED, INPUTS, alive=True), Report(SEED, INPUTS, alive=True, faults=["one"])

    assert good.is_good
    assert "passed" in str(good)
    assert not bad.is_good
    assert "FAILED" in str(bad)
