"""`python -m tests.demo.screenshots`: the pictures of the Lab in docs/, taken from a demo at work.

Needs Chromium and pngquant. They differ from run to run in ids and times; what they show is the same: one analysis that is
completed, one that failed, one at work, one that waits.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.async_api import async_playwright

from tests.e2e.conftest import ROOT, Launcher
from tests.tools import require_tool

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

FOLDER = ROOT / "docs"
MOST_BYTES = 150 * 1024
# As high as the analyses and the heat map need.
SIZES = {"1280": (1280, 1190), "390": (390, 1870)}


async def take_all(url: str, browser: Browser) -> None:
    """Take each picture with an analysis at work in it."""
    for width, (pixels, height) in SIZES.items():
        for scheme in ("light", "dark"):
            page = await browser.new_page(
                viewport={"width": pixels, "height": height},
                color_scheme="dark" if scheme == "dark" else "light",
            )
            await page.goto(url)
            await page.locator("#transport[data-mode=real-time]").wait_for()
            await _fill(page)
            path = FOLDER / f"lab-{width}-{scheme}.png"
            await page.screenshot(path=path)
            command = ["pngquant", "--force", "--ext", ".png", "--speed", "1", "--strip", str(path)]
            subprocess.run(command, check=True)
            size = path.stat().st_size
            assert size < MOST_BYTES, f"{path.name} has {size} bytes: show less"
            print(f"docs/{path.name}: {size // 1024} KiB")  # noqa: T201
            await _cancel(page)
            await page.close()


async def _fill(page: Page) -> None:
    """One analysis of each kind."""
    await page.select_option("#amount", "60")
    await page.click("#spoil")
    await page.click("#submission [type=submit]")
    await page.locator(".job[data-state=failed]").first.wait_for()
    await page.click("#generate")
    await page.locator("#wallet-count:not(.wrong)").wait_for()
    await page.click("#submission [type=submit]")
    await page.locator(".job[data-shown]").filter(has_text="· 60 wallets").wait_for()
    await page.check("[name=method][value=behavior]")
    await page.select_option("#amount", "120")
    await page.locator("#wallet-count").get_by_text("120").wait_for()
    await page.click("#submission [type=submit]")
    await page.check("[name=method][value=binary]")
    await page.click("#submission [type=submit]")
    at_work = page.locator(".job[data-state=active] .percent")
    while int((await at_work.first.inner_text()).split()[0]) < 40:  # noqa: ASYNC110  another process
        await asyncio.sleep(0.05)
    await page.evaluate("scrollTo(0, 0)")


async def _cancel(page: Page) -> None:
    """Leave nothing at work for the next picture."""
    for state in ("waiting", "active"):
        jobs = page.locator(f".job[data-state={state}]")
        while await jobs.count():
            await jobs.first.get_by_role("button").click()
            await jobs.nth(await jobs.count() - 1).wait_for(state="detached")


async def main() -> None:
    path = require_tool("chromium", hint="apt-get install chromium")
    require_tool("pngquant", hint="apt-get install pngquant")
    with tempfile.TemporaryDirectory() as folder:
        launcher = Launcher(Path(folder))
        try:
            demo = launcher.launch(["demo", "--port", "0", "--admin-port", "0"])
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(
                    executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
                )
                await take_all(demo.public, browser)
                await browser.close()
        finally:
            launcher.end()


if __name__ == "__main__":
    asyncio.run(main())
