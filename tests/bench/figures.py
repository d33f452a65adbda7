"""From the numbers of single runs to figures: median, least and greatest over the repetitions."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Run = dict[str, Any]


class Figure(NamedTuple):
    """What the repetitions came to."""

    median: float
    low: float
    high: float
    repetitions: int


def figure(
    runs: Sequence[Run], workload: str, subject: str, key: str, size: int = 0
) -> Figure | None:
    """One number over all repetitions; None where it was never measured."""
    found = [
        float(run[key])
        for run in runs
        if (run["workload"], run["subject"], run["size"]) == (workload, subject, size)
    ]
    if not found:
        return None
    return Figure(statistics.median(found), min(found), max(found), len(found))


def by_repetition(
    runs: Sequence[Run], workload: str, subject: str, key: str, size: int = 0
) -> dict[int, float]:
    """One number of each repetition in which it was measured."""
    return {
        run["repetition"]: float(run[key])
        for run in runs
        if (run["workload"], run["subject"], run["size"]) == (workload, subject, size)
    }


def ratio(over: Mapping[int, float], under: Mapping[int, float]) -> float | None:
    """The median over the repetitions of `over` ÷ `under`: what slows the machine down for a minute slows both."""
    found = [over[each] / under[each] for each in over.keys() & under.keys() if under[each]]
    return statistics.median(found) if found else None


def sizes(runs: Sequence[Run], workload: str) -> list[int]:
    """The sizes at which a workload was run, ascending."""
    return sorted({run["size"] for run in runs if run["workload"] == workload})


def subjects(runs: Sequence[Run], workload: str) -> list[str]:
    """Who took part in a workload, in the order of the first run."""
    return list(dict.fromkeys(run["subject"] for run in runs if run["workload"] == workload))


def number(value: float) -> str:
    """As many digits as mean something, thousands set apart; counts are whole."""
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def text(found: Figure | None, *, spread: bool = False) -> str:
    """The median, and with `spread` the least and the greatest."""
    if found is None:
        return "–"
    if not spread or found.repetitions == 1:
        return number(found.median)
    return f"{number(found.median)} ({number(found.low)}–{number(found.high)})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [" | ".join(head), "|".join(["---"] + ["---:"] * (len(head) - 1))]
    lines += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)
