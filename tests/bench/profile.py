"""Where the relay's CPU time goes while events travel: the layers, and its Python functions.

make bench-profile          writes docs/performance/profile.json, profile.svg and the page's section

The workloads are those of the benchmark, made long enough to be sampled. They are run once for each recorder,
as two at once would see each other. A recorder is at work only while there is something published, so neither
start nor handshakes count.

perf samples by CPU time and sees the kernel. py-spy samples by the clock and sees Python's functions alone: what
one of them spends in C or in the kernel counts as its own.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from tests.bench import report
from tests.bench.environment import machine, said, versions
from tests.bench.run import compile_tools, raise_descriptor_limit
from tests.bench.stage import Numbers, Stage, StageError
from tests.bench.subjects import CACHE, find
from tests.bench.workloads import WORKLOADS

_WORKLOADS = tuple(each for each in WORKLOADS if each.name in ("paced", "each"))
# Of the benchmark's events, which last two seconds: long enough for a thousand samples.
_EFFORT = 4.0
# perf's is a prime, so that it never keeps step with what is published.
_PERF_HERTZ, _PY_SPY_HERTZ = 997, 500
_STOP_SECONDS = 30.0
_SAID_CHARACTERS = 400
_FUNCTIONS = 12
_PY_SPY_FOLDER = CACHE / "py-spy" / "bin"


class Shares(NamedTuple):
    """What the samples were of, as shares of all of them."""

    samples: int
    shares: dict[str, float]


# --- perf: the layers ------------------------------------------------------------------------------

_NETWORK = "kernel: TCP/IP"
_WAKING = "kernel: waking and scheduling"
_KERNEL = "kernel: the rest"
_INTERPRETER = "Python interpreter"
_LOOP = "event loop"
_CODECS = "parsers and encoders"
_REST = "C library and the rest"
LAYERS = (_NETWORK, _WAKING, _KERNEL, _INTERPRETER, _LOOP, _CODECS, _REST)

# A kernel function alone does not tell its purpose: a timer interrupt is let in where a lock is released, so many
# samples lie in the unlocking. Its innermost caller of these does.
_WAKERS = "schedule|try_to_wake_up|wake_up|sock_def_readable|ep_poll_callback"
_PROTOCOLS = "(tcp|ip|inet|sock|net_rx)_"
_IS_WAKER = re.compile(f"_*({_WAKERS})")
_IS_PROTOCOL = re.compile(f"_*{_PROTOCOLS}")
_IS_INTERPRETER = re.compile(r"(lib)?python[\d.]*(\.so[\d.]*)?")
_LAYER_OF_MODULE = {"loop": _LOOP, "_asyncio": _LOOP, "hiredis": _CODECS, "orjson": _CODECS}
_SEPARATOR = "|"


def parse_layers(text: str) -> Shares:
    """The layers of a `perf report` of samples, library, symbol and innermost known caller.

    Raises:
        StageError: it saw nothing of the kernel's network code, without which nothing is sent.
    """
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(_SEPARATOR)]
        if len(fields) == 4:
            counts[_layer(*fields[1:])] += int(fields[0])
    if not counts[_NETWORK]:
        raise StageError(
            "perf saw nothing of the kernel: run this as root,"
            " or sysctl kernel.perf_event_paranoid=1 kernel.kptr_restrict=0"
        )
    return Shares(counts.total(), {layer: counts[layer] / counts.total() for layer in LAYERS})


def _layer(library: str, symbol: str, caller: str) -> str:
    if symbol.startswith("[k]"):
        if _IS_WAKER.match(caller):
            return _WAKING
        return _NETWORK if _IS_PROTOCOL.match(caller) else _KERNEL
    if _IS_INTERPRETER.fullmatch(library):
        return _INTERPRETER
    return _LAYER_OF_MODULE.get(library.partition(".")[0], _REST)


def _perf_command(perf: str, pid: int, target: Path) -> list[str]:
    # By the CPU's clock, as a virtual machine has no other; and no copies of libraries in the user's home.
    how = "--event", "cpu-clock", "--freq", str(_PERF_HERTZ), "-g", "--no-buildid-cache"
    return [perf, "record", *how, "--pid", str(pid), "--output", str(target)]


def _perf_shares(perf: str, target: Path) -> Shares:
    what = "--fields", "sample,dso,sym,parent", "--parent", f"^_*({_WAKERS}|{_PROTOCOLS})"
    how = "--stdio", "--quiet", "--no-children", "-g", "none", "--field-separator", _SEPARATOR
    command = [perf, "report", "--input", str(target), *how, *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError(f"perf report ended: {_end_of(done.stderr)}")
    return parse_layers(done.stdout)


# --- py-spy: the functions -------------------------------------------------------------------------

# Whence uvloop is entered. No Python runs there, and by the clock it would be charged with most of the wait for a core.
_LOOP_FUNCTION = "asyncio.runners.Runner.run"
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(:\d+)?\)")


def parse_functions(text: str) -> Shares:
    """The functions with the most self time in py-spy's raw form; the loop's own time is left out.

    Raises:
        StageError: there is not one sample.
    """
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, samples = line.rpartition(" ")
        counts[_function(stack.rpartition(";")[2])] += int(samples)
    del counts[_LOOP_FUNCTION]
    if not counts:
        raise StageError("py-spy saw no Python function at work")
    total = counts.total()
    return Shares(total, {name: count / total for name, count in counts.most_common(_FUNCTIONS)})


def _function(frame: str) -> str:
    found = _FRAME.fullmatch(frame)
    if found is None:
        return frame
    if found["file"].startswith("<"):  # compiled from a string, as a dataclass's methods are
        return found["function"]
    path = PurePath(found["file"].removesuffix(".py"))
    # py-spy shortens what is on sys.path. The rest of a path would tell of the machine.
    parts = path.parts[-1:] if path.is_absolute() else path.parts
    return ".".join([*(part for part in parts if part != "__init__"), found["function"]])


def _py_spy_command(py_spy: str, pid: int, target: Path) -> list[str]:
    how = "--rate", str(_PY_SPY_HERTZ), "--format", "raw"
    return [py_spy, "record", *how, "--pid", str(pid), "--output", str(target)]


def _py_spy_shares(_: str, target: Path) -> Shares:
    return parse_functions(target.read_text())


# --- recording -------------------------------------------------------------------------------------


class Recorder(NamedTuple):
    """A program that samples a process.

    Args:
        makes: the name of what it makes, in the file of numbers.
        command: program, process id and file to the command line that samples until SIGINT.
        shares: program and that file to what was sampled.
        folder: where to look before the PATH.
        advice: how to get it.
    """

    name: str
    makes: str
    command: Callable[[str, int, Path], list[str]]
    shares: Callable[[str, Path], Shares]
    advice: str
    folder: Path | None = None

    @property
    def program(self) -> str | None:
        """Its path; None where it is not installed."""
        own = shutil.which(self.name, path=str(self.folder)) if self.folder else None
        return own or shutil.which(self.name)


RECORDERS = (
    Recorder(
        name="perf",
        makes="layers",
        command=_perf_command,
        shares=_perf_shares,
        advice="apt-get install linux-perf (on Ubuntu linux-tools-generic)",
    ),
    Recorder(
        name="py-spy",
        makes="functions",
        command=_py_spy_command,
        shares=_py_spy_shares,
        advice="make bench-peers",
        folder=_PY_SPY_FOLDER,
    ),
)


class RecordedStage(Stage):
    """A stage whose subject is recorded while it is published to, and at no other time."""

    command: Sequence[str] = ()

    def publish(self, *arguments: object) -> Numbers:
        """Publish as ever, with `command` at work.

        Raises:
            StageError: the publisher or the recorder ended on its own; the text says what it said.
        """
        with recording(self.command, self._folder / "recorder.log"):
            return super().publish(*arguments)


@contextmanager
def recording(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A recorder at work within the block; SIGINT ends it, at which it writes its file.

    What happens before it has begun goes unseen, so it is not awaited.

    Raises:
        StageError: it did not last to the end of the block; the text says what it said.
    """
    with log.open("wb") as said_here:
        recorder = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said_here, stderr=said_here
        )
        try:
            yield recorder
            lasted = recorder.poll() is None
        finally:
            recorder.send_signal(signal.SIGINT)
            try:
                recorder.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                recorder.kill()
                recorder.wait()
    if not lasted:
        raise StageError(f"{Path(command[0]).name} ended: {_end_of(log.read_text())}")


def _end_of(text: str) -> str:
    return " ".join(text[-_SAID_CHARACTERS:].split()) or "it said nothing"


def record(programs: dict[str, str]) -> dict[str, Any]:
    """Run the workloads under each recorder; the profile, as it is kept in a file.

    Args:
        programs: the path of each recorder that is installed, by its name.

    Raises:
        StageError: the relay, a recorder or the load did not do what is needed.
    """
    compile_tools()
    raise_descriptor_limit()
    made: dict[str, Any] = {
        "command": "make bench-profile",
        "machine": machine(),
        "versions": versions([])
        | {name: said([path, "--version"], r"\d[\d.]*\d") for name, path in programs.items()},
        "missing": {each.makes: each.advice for each in RECORDERS if each.name not in programs},
        "workloads": {workload.name: {} for workload in _WORKLOADS},
    }
    with tempfile.TemporaryDirectory(prefix="relay-profile-") as name:
        folder = Path(name)
        with RecordedStage(find("relay"), folder) as stage:
            for recorder in RECORDERS:
                if recorder.name not in programs:
                    continue
                program, target = programs[recorder.name], folder / recorder.name
                for workload in _WORKLOADS:
                    stage.use_new_jobs()
                    stage.command = recorder.command(program, stage.pids[0], target)
                    workload.measure(stage, 0, _EFFORT)
                    shares = recorder.shares(program, target)
                    made["workloads"][workload.name][recorder.makes] = shares._asdict()
                    sys.stdout.write(
                        f"{recorder.name}, {workload.name}: {shares.samples} samples\n"
                    )
    return made


def main() -> int:
    """Record and write; returns the exit code."""
    if sys.platform != "linux":
        sys.stderr.write("bench-profile: needs Linux: perf and the load generator are for it\n")
        return 2
    programs = {each.name: each.program for each in RECORDERS}
    present = {name: program for name, program in programs.items() if program is not None}
    if not present:
        either = "; or ".join(f"{each.name}: {each.advice}" for each in RECORDERS)
        sys.stderr.write(f"bench-profile: nothing to record with. Install {either}\n")
        return 2
    try:
        profile = record(present)
    except (StageError, OSError) as error:
        sys.stderr.write(f"bench-profile: {error}\n")
        return 2
    report.PROFILE.write_text(json.dumps(profile, indent=1) + "\n")
    report.write_documents(json.loads(report.RESULTS.read_text()), profile)
    sys.stdout.write(
        "Written: docs/performance/profile.json, profile.svg and docs/performance.md.\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
