"""The benchmark from the command line; exit code 0 if all that was asked for was measured.

make bench                                            everything that is installed, some 20 minutes
make bench ARGS="--quick"                             a look, some 4 minutes
make bench ARGS="--subjects relay,floor --workloads paced,each --repetitions 9"
make bench ARGS="--document"                          also writes docs/performance.md
"""

import argparse
import json
import sys
from pathlib import Path

from tests.bench import report
from tests.bench.run import Options, run
from tests.bench.stage import StageError
from tests.bench.subjects import CACHE, SUBJECTS, find
from tests.bench.workloads import WORKLOADS

_QUICK_REPETITIONS = 1
_REPETITIONS = 5


def main() -> int:
    """Run or render; returns the exit code."""
    if sys.platform != "linux":
        sys.stderr.write("bench: needs Linux: CPU time is read from /proc, the clients use epoll\n")
        return 2
    arguments = _parser().parse_args()
    source: Path | None = arguments.render
    if source is None:
        source = CACHE / "last.json"
        try:
            results = run(_options(arguments))
        except StageError as error:
            sys.stderr.write(f"bench: {error}\n")
            return 2
        command = ["make bench", f'ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else ""]
        text = json.dumps(
            results.as_json() | {"command": " ".join(filter(None, command))}, indent=1
        )
        source.write_text(text + "\n")
    numbers = json.loads(source.read_text())
    profile = report.read_profile()
    if arguments.document:
        report.FOLDER.mkdir(exist_ok=True)
        report.RESULTS.write_text(source.read_text())
        report.write_documents(numbers, profile)
        sys.stdout.write("Written: docs/performance.md and its plots.\n")
    else:
        page = report.render(numbers, report.TEMPLATE.read_text(), profile)
        sys.stdout.write(f"\n{page}\nThe numbers are in {source}.\n")
    return 1 if numbers["failures"] else 0


def _options(arguments: argparse.Namespace) -> Options:
    names = arguments.subjects or [subject.name for subject in SUBJECTS]
    workloads = tuple(
        each
        for each in WORKLOADS
        if not arguments.workloads or any(each.name.startswith(n) for n in arguments.workloads)
    )
    return Options(
        subjects=tuple(find(name) for name in names),
        workloads=workloads,
        repetitions=arguments.repetitions
        or (_QUICK_REPETITIONS if arguments.quick else _REPETITIONS),
        effort=arguments.effort,
        is_quick=arguments.quick,
    )


def _parser() -> argparse.ArgumentParser:
    subjects = [subject.name for subject in SUBJECTS]
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument(
        "--subjects",
        type=lambda text: [_known(name, subjects) for name in text.split(",")],
        help=f"who, by commas: {', '.join(subjects)}",
    )
    parser.add_argument(
        "--workloads",
        type=_workload_names,
        help="what, by commas, by how the name begins: "
        + ", ".join(workload.name for workload in WORKLOADS),
    )
    parser.add_argument("--repetitions", type=int, help=f"of each; default {_REPETITIONS}")
    parser.add_argument(
        "--quick", action="store_true", help="one repetition, least and greatest sizes alone"
    )
    parser.add_argument(
        "--effort", type=float, default=1.0, help="share of the events and connections; for trying"
    )
    parser.add_argument("--document", action="store_true", help="write docs/performance.md")
    parser.add_argument("--render", type=Path, help="measure nothing: render this file of numbers")
    return parser


def _workload_names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if not any(workload.name.startswith(name) for workload in WORKLOADS):
            raise argparse.ArgumentTypeError(f"no workload's name begins with {name!r}")
    return names


def _known(name: str, known: list[str]) -> str:
    if name not in known:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return name


if __name__ == "__main__":
    sys.exit(main())
