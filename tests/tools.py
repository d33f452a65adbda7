"""Programs that PyPI does not have: found, or asked for by name.

A pytest plugin. A test that needs such a program is marked `tool` and calls `require_tool` first.
Without the program the test is skipped, and a section at the end of the run lists what was not
checked and how to get what was missing, so that a green run does not hide it.

`RELAY_TEST_REQUIRE_TOOLS=1` makes a missing program a failure: that is how a machine which is meant
to check everything says so. `RELAY_TEST_OPTIONAL_TOOLS=a,b` names the programs that even such a
machine cannot have; they are skipped and listed as ever.
"""

import os
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

_PREFIX = "tool not found: "

# Where daemons are installed; Debian leaves these out of an ordinary user's PATH.
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def require_tool(name: str, *, hint: str, folder: Path | None = None) -> Path:
    """Return the path of a program, or end the test that cannot do without it.

    Args:
        name: what the program is called.
        hint: the command that installs it, as a user would type it.
        folder: the one place to look in; `None` means the PATH and where daemons are installed.

    Raises:
        Skipped: the program is not there.
        Failed: the program is not there and must be (see the head of this file).
    """
    folders = [str(folder)] if folder else [os.environ.get("PATH", ""), *_SYSTEM_FOLDERS]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is not None:
        return Path(found)
    reason = f"{_PREFIX}{name}; get it with: {hint}"
    optional = os.environ.get("RELAY_TEST_OPTIONAL_TOOLS", "").split(",")
    if os.environ.get("RELAY_TEST_REQUIRE_TOOLS") == "1" and name not in optional:
        pytest.fail(f"{reason} (RELAY_TEST_REQUIRE_TOOLS=1 allows no skip)", pytrace=False)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the checks that were skipped for want of a tool, grouped by the tool."""
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        _, _, reason = report.longrepr
        _, found, tool = reason.partition(_PREFIX)
        if found:
            skipped[tool].append(report.nodeid)
    if not skipped:
        return
    terminalreporter.section("not checked, for want of a tool")
    for tool, checks in sorted(skipped.items()):
        terminalreporter.write_line(tool)
        for check in checks:
            terminalreporter.write_line(f"    {check}")
