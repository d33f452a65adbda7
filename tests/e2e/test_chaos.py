"""A short chaos run with a fixed seed; `make chaos` is the long one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.run import Options, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

SECONDS = 15.0


async def test_clients_learn_how_every_job_ended_whatever_breaks(tmp_path: Path) -> None:
    options = Options(
        seed=7, seconds=SECONDS, clients=60, events_per_second=30, fault_every_seconds=0.8
    )

    report = await run(options, tmp_path)

    assert report.verdict.failures == []
    assert report.complaints == []
    # Else nothing was put to the test.
    assert report.faults.total() >= SECONDS / 2
    assert report.verdict.owed > 0
    assert report.connections > options.clients
