"""The demo as its user has it, and its page in a real Chromium.

Invariants: one demo serves all tests of the page, so each begins with everything mended and nothing at work; what the
page writes to its console as an error, or throws, fails its test.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from relay.demo import jobs
from relay.demo.outages import OUTAGES_PATH
from tests.client.conftest import Tab, browser
from tests.e2e.conftest import ROOT, SOON_SECONDS, Daemon, Launcher
from tests.tools import require_tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from playwright.async_api import Browser, Locator

__all__ = ["browser"]  # a fixture

AXE = ROOT / ".cache" / "npm" / "node_modules" / "axe-core" / "axe.min.js"

_POST = """async ([path, document]) => {
  const headers = { 'Content-Type': 'application/json' };
  const response = await fetch(path, { method: 'POST', headers, body: JSON.stringify(document) });
  return response.status;
}"""


def axe_script() -> Path:
    """axe-core's script, or the test ends as for any tool that is missing."""
    if not AXE.exists():
        require_tool(
            AXE.name, hint="npm install --prefix .cache/npm axe-core@4.14.1", folder=AXE.parent
        )
    return AXE


class Lab(Tab):
    """The Lab in a page."""

    async def until(self, condition: str, *, seconds: float = SOON_SECONDS) -> None:
        # The browser would have to evaluate text by itself, which the page's policy forbids.
        async with asyncio.timeout(seconds):
            while not await self.run(condition):  # noqa: ASYNC110  another process
                await asyncio.sleep(0.02)

    async def post(self, path: str, document: object = None) -> int:
        """What the page's own origin answers to a POST: its status."""
        status: int = await self.run(_POST, [path, document])
        return status

    async def quiet(self) -> None:
        """Mend what is broken and cancel what is at work."""
        await self.post(OUTAGES_PATH, {"line": "open", "redis": "running"})
        await self.shows("#transport", "Real-time over WebSocket")
        for job_id in await self.run(
            f"fetch('/jobs?queueName={jobs.QUEUE_NAME}').then(async answer => Object.values("
            "(await answer.json()).jobs).filter(job => !['completed', 'failed', 'cancelled']"
            ".includes(job.status)).map(job => job.jobId))"
        ):
            await self.post(f"/analyses/similarity/{job_id}/cancel")
        await self.until("document.querySelector('#tally').textContent.includes('in all')")

    async def generate(self, wallets: int) -> None:
        """Put made-up wallets into the form."""
        await self.until("document.querySelector('#wallets').value !== ''")
        await self.run(
            "count => { const box = document.querySelector('#wallets');"
            " box.value = box.value.split('\\n').slice(0, count).join('\\n');"
            " box.dispatchEvent(new Event('input')); }",
            wallets,
        )

    async def submit(self) -> Locator:
        """Submit the form; the new analysis' card."""
        cards = await self.page.locator(".job").count()
        await self.page.click("#submission [type=submit]")
        await self.until(f"document.querySelectorAll('.job').length > {cards}")
        job_id = await self.page.locator(".job .name").first.inner_text()
        return self.card(job_id)

    def card(self, job_id: str) -> Locator:
        return self.page.locator(".job").filter(has_text=job_id)

    async def shows(self, selector: str, text: str) -> None:
        """Wait until an element's text has `text` in it."""
        await self.page.locator(selector).filter(has_text=re.compile(re.escape(text))).wait_for()

    async def reaches(self, card: Locator, state: str) -> None:
        """Wait until an analysis is in this state."""
        await card.locator(f"xpath=self::*[@data-state='{state}']").wait_for()

    async def break_line(self, passage: str) -> None:
        await self.page.check(f"#outages [value={passage}]")

    async def violations(self) -> list[Any]:
        """What axe-core finds fault with."""
        await self.page.evaluate(
            axe_script().read_text()
        )  # the page's policy allows no foreign script
        passed, found = await self.run(
            "axe.run().then(({ passes, violations }) => [passes.length, violations.map("
            "({ id, nodes }) => [id, nodes.map(node => node.html)])])"
        )
        assert passed > 10, "axe-core has looked at nothing"
        return list(found)


@pytest.fixture(scope="session")
def demo_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    launcher = Launcher(tmp_path_factory.mktemp("demo"))
    yield launcher.launch(["demo", "--port", "0", "--admin-port", "0"])
    launcher.end()


@pytest_asyncio.fixture(loop_scope="session")
async def lab(browser: Browser, demo_daemon: Daemon) -> AsyncIterator[Lab]:
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    lab = Lab(await context.new_page())
    await lab.page.goto(demo_daemon.public)
    await lab.quiet()
    yield lab
    await context.close()
    assert lab.errors == []
