"""A whole run: every subject on every workload, in turn, again and again; the numbers as they came.

Workload by workload, all subjects one right after another, and that repetition by repetition: so whatever else
the machine does meets all subjects alike, and ratios are of what was measured within seconds. Those whose turn
it is not are idle meanwhile. What fails is noted and the run goes on.
"""

import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.bench.environment import machine, versions
from tests.bench.stage import Numbers, Stage, StageError
from tests.bench.subjects import CACHE, Subject
from tests.bench.workloads import AUTH, WORKLOADS, Workload, token

_SOURCES = Path(__file__).parent
# For Redis, listeners, logs and the like.
_DESCRIPTORS_BESIDE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is run. `effort` is the share of events and connections; below 1 the figures mean little."""

    subjects: tuple[Subject, ...]
    workloads: tuple[Workload, ...] = WORKLOADS
    repetitions: int = 5
    effort: float = 1.0
    is_quick: bool = False


@dataclass(slots=True, kw_only=True)
class Results:
    """The numbers of each run, and what they were measured on."""

    machine: dict[str, Any]
    versions: dict[str, str]
    repetitions: int
    effort: float
    has_auth: bool
    missing: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def compile_tools() -> None:
    """Compile the load generator and the floor, where that is due.

    Raises:
        StageError: there is no C compiler, or it refuses.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in ("load", "floor"):
        source, target = _SOURCES / f"{name}.c", CACHE / name
        if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
            continue
        try:
            subprocess.run(["cc", "-O2", "-o", str(target), str(source)], check=True)
        except FileNotFoundError:
            raise StageError(
                "no C compiler (cc): install gcc or clang, and libc's headers"
            ) from None
        except subprocess.CalledProcessError as error:
            raise StageError(f"{name}.c does not compile, see above") from error


def takes_part(subject: Subject, workload: Workload) -> bool:
    """Whether a subject is measured by a workload."""
    if workload.only:
        return subject.name in workload.only
    if subject.name in workload.also:
        return True
    return subject.is_peer or subject.name in ("relay", "floor")


def run(options: Options) -> Results:
    """Run everything; says on standard output how far it is."""
    compile_tools()
    bearer = token()
    present = [subject for subject in options.subjects if subject.missing is None]
    results = Results(
        machine=machine(),
        versions=versions(present),
        repetitions=options.repetitions,
        effort=options.effort,
        has_auth=bool(bearer),
        missing={each.title: each.missing for each in options.subjects if each.missing},
    )
    room = raise_descriptor_limit() - _DESCRIPTORS_BESIDE
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        for repetition in range(options.repetitions):
            with contextlib.ExitStack() as stack:
                turns = [
                    stack.enter_context(
                        _Turn(subject, Path(folder) / f"{repetition}-{subject.name}", bearer)
                    )
                    for subject in present
                ]
                for workload, size in _plan(options, room, results):
                    for turn in turns:
                        if takes_part(turn.subject, workload):
                            _say(f"{repetition + 1}/{options.repetitions}  ")
                            turn.add(results, workload, size, repetition)
    return results


class _Turn:
    """One subject in one repetition: its process is kept as long as the next workload allows."""

    def __init__(self, subject: Subject, folder: Path, bearer: str) -> None:
        self.subject = subject
        self._folder = folder
        self._bearer = bearer
        self._stage: Stage | None = None
        self._environ: dict[str, str] = {}

    def add(self, results: Results, workload: Workload, size: int, repetition: int) -> None:
        """Run one workload at one size, and add what came of it to `results`."""
        label = f"{workload.name}{f' at {size:,}' if size else ''}"
        _say(f"{label:<36}{self.subject.title:<26}")
        begun_at = time.monotonic()
        try:
            numbers = self._measure(workload, size, results.effort)
        except (StageError, OSError) as error:
            self.end()
            results.failures.append(f"{self.subject.title}, {label}: {error}")
            _say(f"failed: {error}\n")
            return
        took_seconds = time.monotonic() - begun_at
        _say(f"{numbers['cpu_us']:9.2f} µs CPU a unit {took_seconds:6.1f} s\n")
        what = {"workload": workload.name, "subject": self.subject.name, "size": size}
        results.runs.append(
            {**what, "repetition": repetition, "took_seconds": took_seconds, **numbers}
        )

    def end(self) -> None:
        """End the process; idempotent."""
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.__exit__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _measure(self, workload: Workload, size: int, effort: float) -> Numbers:
        environ, watch = dict(workload.environ), []
        if workload.asks_for_tokens and self._bearer:
            environ |= AUTH
            watch = ["--header", f"Authorization: Bearer {self._bearer}"]
        if self._stage is not None and (environ != self._environ or workload.is_fresh):
            self.end()
        if self._stage is None:
            self._stage = Stage(self.subject, self._folder, environ, watch).__enter__()
            self._environ = environ
        self._stage.use_new_jobs()
        return workload.measure(self._stage, size, effort * self.subject.effort)


def _plan(options: Options, room: int, results: Results) -> Iterator[tuple[Workload, int]]:
    for workload in options.workloads:
        if options.is_quick and workload.is_long:
            continue
        sizes: Sequence[int] = workload.sizes
        for size in sizes[:: len(sizes) - 1 or 1] if options.is_quick else sizes:
            if workload.connections_at(size) <= room:
                yield workload, size
                continue
            line = f"{workload.name}: {workload.connections_at(size)} connections"
            if line not in results.skipped:
                results.skipped.append(line)


def raise_descriptor_limit() -> int:
    """As high as may be; what is started inherits it. Returns it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
