"""The fuzzer from the command line; exit code 0 if the daemon stood it, 1 if not."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import run

_SHOWN_FAULTS = 20


def main() -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="keep the daemon's log here; empty or new")
    arguments = parser.parse_args()
    folder: Path | None = arguments.folder
    _say(f"fuzz: seed {arguments.seed}, {arguments.inputs:,} inputs")
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-fuzz-")))
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(run(arguments.inputs, arguments.seed, folder, _say))
    for fault in report.faults[:_SHOWN_FAULTS]:
        _say(f"    {fault}")
    _say(str(report))
    return 0 if report.is_good else 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
