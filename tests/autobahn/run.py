"""Judges a WebSocket echo server with Autobahn's fuzzing client, sections 1 to 7.

    python -m tests.autobahn.run [--case 7.*]... [--server COMMAND]

The server is a process of its own that prints its URL as the first line and echoes every message;
by default `tests.autobahn.echo`, which is built on the relay's framing. Autobahn's exit code says
nothing, so its report is read: a case passes if its behaviour is OK, NON-STRICT or INFORMATIONAL
and the way it closed is OK or INFORMATIONAL. Exit code 0 if every case passes, 1 if not.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Where install.sh leaves the program.
TOOL_FOLDER = ROOT / ".cache" / "autobahn"
TOOL = "wstest"
INSTALL_HINT = "tests/autobahn/install.sh (needs Python 2.7 with pip and a C compiler)"

# Framing, pings, reserved bits, opcodes, fragmentation, UTF-8, closing. 9 is speed and size, 12
# and 13 are compression, which the relay does not offer.
SECTIONS = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*")
ECHO_SERVER = (sys.executable, "-m", "tests.autobahn.echo")

_AGENT = "server"
_TIMEOUT_SECONDS = 150
_GOOD_BEHAVIOR = {"OK", "NON-STRICT", "INFORMATIONAL"}
_GOOD_CLOSE = {"OK", "INFORMATIONAL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What Autobahn found out."""

    behaviors: Counter[str]
    """How many cases ended in which behaviour, as Autobahn names it."""
    failures: list[str]
    """One line for each case that does not pass."""

    @property
    def is_good(self) -> bool:
        """Whether there was a case at all, and none failed."""
        return bool(self.behaviors) and not self.failures

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.behaviors.items()))
        return "\n".join([f"{self.behaviors.total()} cases: {counts or 'none'}", *self.failures])


def judge(index: dict[str, dict[str, str]]) -> Verdict:
    """Read one agent's part of Autobahn's `index.json`."""
    failures = [
        f"case {case}: behavior {result['behavior']}, close {result['behaviorClose']}"
        for case, result in index.items()
        if result["behavior"] not in _GOOD_BEHAVIOR or result["behaviorClose"] not in _GOOD_CLOSE
    ]
    return Verdict(
        behaviors=Counter(result["behavior"] for result in index.values()), failures=failures
    )


def run(wstest: Path, *, server: Sequence[str] = ECHO_SERVER, cases: Sequence[str]) -> Verdict:
    """Start the server, let Autobahn loose on it, stop it, and judge.

    Args:
        wstest: Autobahn's program.
        server: the command that starts the server under test.
        cases: which cases, with `*` at the end of a section.

    Raises:
        RuntimeError: the server did not say where it listens, or Autobahn wrote no report.
        subprocess.TimeoutExpired: Autobahn did not come to an end.
    """
    with tempfile.TemporaryDirectory(prefix="autobahn-") as folder, _running(server) as url:
        spec = Path(folder) / "spec.json"
        report = Path(folder) / "report"
        spec.write_text(
            json.dumps(
                {
                    "outdir": str(report),
                    "servers": [{"agent": _AGENT, "url": url}],
                    "cases": list(cases),
                    "exclude-cases": [],
                    "exclude-agent-cases": {},
                }
            )
        )
        finished = subprocess.run(
            [wstest, "-m", "fuzzingclient", "-s", spec],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        index = report / "index.json"
        if not index.exists():
            raise RuntimeError(f"Autobahn wrote no report; it said:\n{finished.stdout}")
        return judge(json.loads(index.read_text())[_AGENT])


@contextmanager
def _running(server: Sequence[str]) -> Iterator[str]:
    with subprocess.Popen(server, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url.startswith("ws://"):
                raise RuntimeError(
                    f"{shlex.join(server)} printed {url!r} in place of its ws:// URL"
                )
            yield url
        finally:
            process.terminate()


def main() -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.autobahn.run")
    parser.add_argument("--case", action="append", help="a case such as 7.9.5 or 7.*, repeatable")
    parser.add_argument("--server", help="command that starts another server to judge")
    arguments = parser.parse_args()
    wstest = TOOL_FOLDER / TOOL
    if not wstest.exists():
        sys.stderr.write(f"{TOOL} is not installed; get it with: {INSTALL_HINT}\n")
        return 1
    server = shlex.split(arguments.server) if arguments.server else ECHO_SERVER
    try:
        verdict = run(wstest, server=server, cases=arguments.case or SECTIONS)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"no verdict: {error}\n")
        return 1
    sys.stdout.write(f"{verdict}\n")
    return 0 if verdict.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
