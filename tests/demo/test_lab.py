"""The Similarity Lab in Chromium, on a whole demo: what its user sees when all is well, and when it is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from relay.demo.line import Passage
from tests.client.conftest import in_browser

if TYPE_CHECKING:
    from tests.demo.conftest import Lab

pytestmark = in_browser

# Enough for a second or two of work.
SOME = 40
FEW = 10
MORE = 90

_NOTE_PROGRESS = """jobId => {
  window.percents = [];
  const card = [...document.querySelectorAll('.job')].find(each => each.textContent.includes(jobId));
  const bar = card.querySelector('progress');
  const note = () => percents.at(-1) !== bar.value && percents.push(bar.value);
  window.watching = setInterval(note, 10);
}"""
_PIXELS = """() => {
  const canvas = document.querySelector('#heat canvas');
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const at = (row, column) => [...data.slice(4 * (row * canvas.width + column)).slice(0, 4)].join();
  const all = Array.from({ length: canvas.width }, (_, row) =>
    Array.from({ length: canvas.width }, (_, column) => at(row, column)));
  return all;
}"""


async def test_analysis_moves_in_real_time_and_ends_in_a_heat_map(lab: Lab) -> None:
    await lab.generate(SOME)

    card = await lab.submit()
    job_id = await card.locator(".name").inner_text()
    await lab.run(_NOTE_PROGRESS, job_id)
    await lab.reaches(card, "active")
    await lab.shows("#jobs", "left")
    await lab.reaches(card, "completed")

    percents = await lab.run("percents")
    assert percents == sorted(percents)
    assert len([each for each in percents if 0 < each < 100]) >= 3
    assert "780 pairs" in await card.inner_text()
    assert await lab.page.inner_text("#result-title") == "Capital · 40 wallets"
    pixels = await lab.run(_PIXELS)
    assert len(pixels) == SOME
    assert all(pixels[at][at] == "0,0,0,0" for at in range(SOME))
    assert all(pixels[row][column] == pixels[column][row] for row, column in [(0, 1), (5, 30)])
    assert len({pixel for row in pixels for pixel in row}) > 20


async def test_heat_map_is_brightest_where_the_table_says_that_wallets_are_most_alike(
    lab: Lab,
) -> None:
    await lab.generate(SOME)
    await lab.reaches(await lab.submit(), "completed")
    await lab.page.select_option("#order", "given")

    pixels = await lab.run(_PIXELS)
    wallets = (await lab.page.input_value("#wallets")).split("\n")
    one, other, value = (
        await lab.page.locator(".top tbody tr").first.locator("td").all_inner_texts()
    )

    row, column = (
        next(at for at, wallet in enumerate(wallets) if wallet.startswith(name.split("…")[0]))
        for name in (one, other)
    )
    assert pixels[row][column] == "253,231,37,255"
    assert value in await lab.page.inner_text("#readout")


async def test_heat_map_can_be_read_by_keyboard_and_as_a_table(lab: Lab) -> None:
    await lab.generate(SOME)
    await lab.reaches(await lab.submit(), "completed")

    await lab.page.focus("#heat")
    await lab.page.keyboard.press("ArrowDown")
    await lab.page.keyboard.press("End")
    await lab.page.click("#values summary")
    told = await lab.page.locator("#readout strong").inner_text()
    cells = await lab.page.locator("#values tbody tr").nth(1).locator("td").all_inner_texts()

    assert len(cells) == SOME
    assert told == cells[-1]
    assert cells[1] == "1.000"


async def test_several_analyses_are_followed_at_once_and_each_can_be_shown(lab: Lab) -> None:
    await lab.generate(SOME)

    await lab.page.click("#all-methods")
    await lab.shows("#tally", "3 to do")
    await lab.until("document.querySelector('#tally').textContent.includes('in all')")

    titles = (await lab.page.locator(".job .method").all_inner_texts())[:3]
    assert titles == [f"{name} · 40 wallets" for name in ("Binary", "Behavior", "Capital")]
    await lab.page.locator(".job").nth(1).get_by_role("button").click()
    assert await lab.page.inner_text("#result-title") == "Behavior · 40 wallets"


async def test_failure_says_what_was_wrong_and_can_be_avoided(lab: Lab) -> None:
    await lab.generate(SOME)
    await lab.page.click("#spoil")
    assert await lab.page.inner_text("#wallet-count") == "41, 1 of them invalid"

    failed = await lab.submit()
    await lab.reaches(failed, "failed")
    await lab.page.select_option("#threshold", "0.05")
    completed = await lab.submit()
    await lab.reaches(completed, "completed")

    assert "1 of 41 wallet addresses are invalid" in await failed.inner_text()
    assert "not-a-wallet-0OIl" in await failed.inner_text()
    assert await failed.get_by_role("button").inner_text() == "Try again"
    assert "1 invalid left out" in await completed.inner_text()


async def test_request_that_is_refused_is_told_why_beside_the_form(lab: Lab) -> None:
    await lab.generate(1)

    await lab.page.click("#submission [type=submit]")

    await lab.shows("#refusal", "2 to 500 different wallets, not 1")


async def test_analysis_is_cancelled_at_work_and_while_it_waits(lab: Lab) -> None:
    await lab.generate(MORE)
    at_work = await lab.submit()
    waiting = await lab.submit()
    await lab.reaches(at_work, "active")

    await waiting.get_by_role("button").click()
    await lab.reaches(waiting, "cancelled")
    assert await at_work.get_attribute("data-state") == "active"
    await at_work.get_by_role("button").click()
    await lab.reaches(at_work, "cancelled")

    assert await at_work.get_by_role("button").inner_text() == "Try again"


@pytest.mark.parametrize(
    ("passage", "mode", "connection"),
    [
        (Passage.NO_WEBSOCKET, "Real-time over an event stream", "Live"),
        (Passage.SHORT, "Polling every 3 s", "Using polling"),
        (Passage.CLOSED, "Polling every 3 s", "Using polling"),
    ],
)
async def test_bars_go_on_over_what_is_left_and_the_websocket_is_back_when_it_can_be(
    lab: Lab, passage: Passage, mode: str, connection: str
) -> None:
    await lab.generate(MORE)
    first = await lab.submit()
    second = await lab.submit()
    await lab.reaches(first, "active")

    await lab.break_line(passage)
    await lab.shows("#transport", mode)
    await lab.shows("#connection", connection)
    await lab.shows("#mending", "Mends itself")
    await lab.reaches(first, "completed")
    assert await lab.page.inner_text("#transport .mode") == mode.split()[0]
    await lab.break_line("open")
    await lab.shows("#transport", "Real-time over WebSocket")

    await lab.reaches(second, "completed")
    assert await lab.page.inner_text("#mending") == ""


async def test_frozen_redis_is_shown_and_nothing_is_lost_once_it_goes_on(lab: Lab) -> None:
    await lab.generate(MORE)
    card = await lab.submit()
    await lab.reaches(card, "active")

    await lab.page.click("#freeze")
    await lab.shows("#connection", "The relay has lost Redis")
    await lab.page.click("#submission [type=submit]")
    await lab.shows("#refusal", "Redis is away")
    await lab.page.click("#freeze")

    await lab.shows("#transport", "Real-time over WebSocket")
    await lab.reaches(card, "completed")


async def test_analysis_of_another_tab_is_seen_too(lab: Lab) -> None:
    other = await lab.page.context.new_page()
    await other.goto(lab.page.url)
    await other.locator("#transport[data-mode=real-time]").wait_for()
    await lab.generate(SOME)

    card = await lab.submit()
    job_id = await card.locator(".name").inner_text()

    await other.locator(".job[data-state=completed]").filter(has_text=re.compile(job_id)).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_page_fits_and_axe_finds_nothing(lab: Lab, scheme: str) -> None:
    await lab.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    await lab.generate(FEW)
    await lab.reaches(await lab.submit(), "completed")
    await lab.page.click("#spoil")
    await lab.reaches(await lab.submit(), "failed")
    await lab.page.click("#values summary")
    await lab.page.select_option("#amount", "200")
    await lab.until("document.querySelector('#wallet-count').textContent === '200'")
    await lab.reaches(await lab.submit(), "active")

    for width in (320, 768, 1280, 390):
        await lab.page.set_viewport_size({"width": width, "height": 844})
        assert await lab.run("document.documentElement.scrollWidth") == width
    assert await lab.violations() == []
