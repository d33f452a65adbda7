"""The chaos run from the command line; exit code 0 if nothing was lost, 1 if something was.

The relay's clients are under test, not its log: `--folder` keeps that.
"""

import argparse
import asyncio
import contextlib
import logging
import random
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import SECONDS, Options, Report, run

SHOWN_FAILURES = 20


def main() -> int:
    """Run; returns the exit code."""
    arguments = _parser().parse_args()
    folder: Path | None = arguments.folder
    del arguments.folder
    options = Options(**vars(arguments))
    sys.stdout.write(
        f"chaos: seed {options.seed}, {options.topology}, history {options.history},"
        f" {options.seconds:g} s\n"
    )
    sys.stdout.flush()
    # That Redis refuses is what is meant to happen; the publishers would say so in the midst of it.
    logging.getLogger("relay.upstream").setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-chaos-")))
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(_until_terminated(options, folder))
    if not report.is_good:
        _tell_failures(report)
    sys.stdout.write(f"{report}\n")
    return 0 if report.is_good else 1


async def _until_terminated(options: Options, folder: Path) -> Report:
    # SIGTERM is to clean up as Ctrl-C does.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(options, folder)


def _tell_failures(report: Report) -> None:
    for title, lines in (
        ("faults, in their order", report.timeline),
        ("failures", report.verdict.failures[:SHOWN_FAILURES]),
        ("relays crashed", report.complaints),
    ):
        sys.stdout.write(f"{title}:\n")
        sys.stdout.writelines(f"    {line}\n" for line in lines)
    unshown = len(report.verdict.failures) - SHOWN_FAILURES
    if unshown > 0:
        sys.stdout.write(f"    and {unshown} more\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long faults go on")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--history", choices=("redis", "memory"), default="redis")
    parser.add_argument("--topology", choices=("single", "sentinel", "cluster"), default="single")
    parser.add_argument("--empty", action="store_true", help="Redis loses its data now and then")
    parser.add_argument("--relays", type=int, default=3)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--events-per-second", type=float, default=50)
    parser.add_argument("--fault-every-seconds", type=float, default=1.1)
    parser.add_argument("--folder", type=Path, help="keep data and logs here; empty or new")
    return parser


if __name__ == "__main__":
    sys.exit(main())
