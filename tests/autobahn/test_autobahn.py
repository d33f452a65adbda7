"""The relay's framing before an independent judge of RFC 6455, and the judge's judge."""

import pytest

from tests.autobahn.run import INSTALL_HINT, SECTIONS, TOOL, TOOL_FOLDER, judge, run
from tests.tools import require_tool


@pytest.mark.tool
def test_framing_passes_every_case_of_sections_1_to_7() -> None:
    wstest = require_tool(TOOL, hint=INSTALL_HINT, folder=TOOL_FOLDER)

    verdict = run(wstest, cases=SECTIONS)

    assert verdict.is_good, str(verdict)


@pytest.mark.parametrize(
    ("behavior", "close", "passes"),
    [
        ("OK", "OK", True),
        ("NON-STRICT", "OK", True),
        ("INFORMATIONAL", "INFORMATIONAL", True),
        ("FAILED", "OK", False),
        ("UNIMPLEMENTED", "OK", False),
        ("OK", "UNCLEAN", False),
        ("OK", "WRONG CODE", False),
    ],
)
def test_case_is_judged_by_its_behavior_and_by_its_close(
    behavior: str, close: str, passes: bool
) -> None:
    verdict = judge({"1.1.1": {"behavior": behavior, "behaviorClose": close}})

    assert verdict.is_good is passes


def test_report_without_cases_does_not_pass() -> None:
    assert not judge({}).is_good
