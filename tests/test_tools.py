"""What a missing program does to a test run, seen from outside through pytest's own harness."""

import pytest

pytest_plugins = ["pytester"]

_CHECK = """
from pathlib import Path
from tests.tools import require_tool

def test_that_needs_it():
    require_tool("no-such-tool", hint="apt-get install no-such-tool")

def test_that_needs_another():
    require_tool("tool", hint="unused", folder=Path(__file__).parent)
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder with two checks: one lacks its tool, the other has it in its own folder."""
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(_CHECK)
    tool = pytester.path / "tool"
    tool.touch(mode=0o755)
    return pytester


def test_missing_tool_skips_its_check_alone_and_is_listed(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RELAY_TEST_REQUIRE_TOOLS", raising=False)

    result = run.runpytest("-p", "tests.tools")

    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*not checked, for want of a tool*",
            "no-such-tool; get it with: apt-get install no-such-tool",
            "    *::test_that_needs_it",
        ]
    )


def test_missing_tool_fails_where_every_tool_is_required(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_TEST_REQUIRE_TOOLS", "1")
    monkeypatch.delenv("RELAY_TEST_OPTIONAL_TOOLS", raising=False)

    result = run.runpytest("-p", "tests.tools")

    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*get it with: apt-get install no-such-tool*"])


def test_tool_named_as_optional_may_be_missing_even_then(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_TEST_REQUIRE_TOOLS", "1")
    monkeypatch.setenv("RELAY_TEST_OPTIONAL_TOOLS", "other,no-such-tool")

    result = run.runpytest("-p", "tests.tools")

    result.assert_outcomes(skipped=1, passed=1)


def test_run_with_every_tool_lists_nothing(run: pytest.Pytester) -> None:
    result = run.runpytest("-p", "tests.tools", "-k", "needs_another")

    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.no_fnmatch_line("*for want of a tool*")
