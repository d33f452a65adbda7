"""From the numbers of a run, and of a profile where there is one, to `docs/performance.md` and its plots.

The prose stands in `performance.md.in`; each `{{name}}` in it is replaced by what `_parts` makes of the
numbers. Nothing else is written by hand, so the page never says what was not measured.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench import svg
from tests.bench.figures import (
    Figure,
    Run,
    by_repetition,
    figure,
    number,
    ratio,
    sizes,
    subjects,
    table,
    text,
)
from tests.bench.subjects import ROOT, SUBJECTS

TEMPLATE = Path(__file__).with_name("performance.md.in")
PAGE = ROOT / "docs" / "performance.md"
FOLDER = ROOT / "docs" / "performance"
RESULTS = FOLDER / "results.json"
PROFILE = FOLDER / "profile.json"
_TITLES = {subject.name: subject.title for subject in SUBJECTS}
_PEERS = {subject.name for subject in SUBJECTS if subject.is_peer}
# Not by Redis, so what it takes is not what theirs take.
_NOT_BY_REDIS = {"nchan"}


class Column(NamedTuple):
    """A heading, the key of its number, and what it is multiplied by."""

    head: str
    key: str
    spread: bool = False
    factor: float = 1.0


_CPU = Column("CPU µs", "cpu_us", spread=True)
_KERNEL = Column("of it kernel, %", "kernel_share", factor=100)
_LATENCY = (
    Column("p50 µs", "p50_us", spread=True),
    Column("p99 µs", "p99_us", spread=True),
    Column("p99.9 µs", "p999_us"),
)
_COLUMNS = {
    "burst-1000": (_CPU, _KERNEL, Column("deliveries/s", "per_second")),
    "burst-5000": (_CPU, _KERNEL, Column("deliveries/s", "per_second")),
    "paced": (_CPU, _KERNEL, *_LATENCY),
    "each": (_CPU, _KERNEL, *_LATENCY),
    "sparse": (
        _CPU,
        Column("events/s", "per_second"),
        Column("lost, %", "lost_share", factor=100),
        Column("cut off by Redis", "cut_off"),
        Column("Redis CPU µs", "redis_cpu_us"),
    ),
    "handshakes": (
        _CPU,
        Column("handshakes/s", "per_second"),
        Column("KiB a connection", "kib", spread=True),
        Column("empty, MiB", "empty_kib", factor=1 / 1024),
    ),
    "idle": (_CPU, Column("connections", "ready"), Column("KiB a connection", "kib", spread=True)),
}
_PANELS = (
    ("paced", "cpu_us", "Paced: CPU µs a delivery"),
    ("burst-5000", "cpu_us", "Burst to 5,000: CPU µs a delivery"),
    ("each", "cpu_us", "Each his own: CPU µs a delivery"),
    ("each", "p50_us", "Each his own: p50 µs from PUBLISH to client"),
    ("each", "p99_us", "Each his own: p99 µs from PUBLISH to client"),
    ("sparse", "cpu_us", "Sparse: CPU µs an event"),
    ("handshakes", "kib", "Idle: KiB a connection"),
    ("handshakes", "cpu_us", "Storm: CPU µs a handshake with subscribe"),
)
_GROWTH = {
    "growth-paced-connections": "paced, beside idle connections",
    "growth-paced-subscriptions": "paced, beside subscriptions",
    "growth-sparse-connections": "sparse, beside idle connections",
    "growth-sparse-jobs": "sparse, over jobs",
}


def render(results: dict[str, Any], template: str, profile: dict[str, Any] | None = None) -> str:
    """The page; without a profile it says how to make one.

    Raises:
        KeyError: the template has a name that is not made here.
    """
    parts = _parts(results) | _profile_parts(profile)
    page = re.sub(r"\{\{([\w-]+)\}\}", lambda found: parts[found[1]], template)
    return re.sub(r"\n{3,}", "\n\n", page)


def read_profile() -> dict[str, Any] | None:
    """The profile that `make bench-profile` left; None where it never ran."""
    if not PROFILE.exists():
        return None
    profile: dict[str, Any] = json.loads(PROFILE.read_text())
    return profile


def write_documents(results: dict[str, Any], profile: dict[str, Any] | None) -> None:
    """Write the page and its plots."""
    PAGE.write_text(render(results, TEMPLATE.read_text(), profile))
    for name, plot in plots(results["runs"], profile).items():
        (FOLDER / name).write_text(plot)


def plots(runs: Sequence[Run], profile: dict[str, Any] | None = None) -> dict[str, str]:
    """The plots by file name, as far as there are numbers for them."""
    panels = [svg.Panel(title, _bars(runs, *what)) for *what, title in _PANELS]
    panels = [panel for panel in panels if panel.bars]
    made = {"peers.svg": svg.bars(panels)} if panels else {}
    for kind in ("paced", "sparse"):
        series = [
            svg.Line(title, [(size, found.median) for size, found in _growth(runs, workload)])
            for workload, title in _GROWTH.items()
            if title.startswith(kind) and sizes(runs, workload)
        ]
        if series:
            unit = "delivery" if kind == "paced" else "event"
            title = (
                f"CPU µs a{'n' if unit == 'event' else ''} {unit}, beside what it does not concern"
            )
            made[f"growth-{kind}.svg"] = svg.lines(title, "how many", series)
    stacks = [
        svg.Stack(name, layers["shares"]) for name, layers in _profiled(profile, "layers").items()
    ]
    if stacks:
        made["profile.svg"] = svg.stacks("Where the relay's CPU time goes, %", stacks)
    return made


def _bars(runs: Sequence[Run], workload: str, key: str) -> list[svg.Bar]:
    made = []
    for name in subjects(runs, workload):
        found = figure(runs, workload, name, key)
        if found is not None and found.median > 0:
            kind = "peer" if name in _PEERS else "floor" if name == "floor" else "own"
            made.append(svg.Bar(_TITLES[name], found.median, kind))
    return made


def _growth(runs: Sequence[Run], workload: str) -> list[tuple[int, Figure]]:
    found = [
        (size, figure(runs, workload, "relay", "cpu_us", size)) for size in sizes(runs, workload)
    ]
    return [(size, one) for size, one in found if one is not None]


def _parts(results: dict[str, Any]) -> dict[str, str]:
    runs: list[Run] = results["runs"]
    parts = {workload: _table(runs, workload) for workload in _COLUMNS}
    parts["bounds"] = _bounds(runs)
    parts["growth"] = _growth_table(runs)
    parts["all-on"] = _all_on(runs)
    parts["auth"] = "JWT authentication, " if results["has_auth"] else ""
    parts["no-auth"] = (
        "" if results["has_auth"] else "\nThis relay has no authentication yet, so none was on.\n"
    )
    machine = results["machine"]
    parts["machine"] = (
        f"{machine['cpu']}, {machine['cores']} cores{' of a virtual machine' if machine['virtual'] else ''},"
        f" {machine['memory_gib']} GiB, Linux {machine['kernel']}; load before the run {machine['load_before']:.1f}"
    )
    parts["versions"] = ", ".join(
        f"{name} {version}" for name, version in results["versions"].items()
    )
    parts["command"] = results["command"]
    parts["repetitions"] = _repetitions(results["repetitions"])
    parts["left-out"] = _left_out(results)
    return parts


def _repetitions(count: int) -> str:
    if count == 1:
        return "**Each was measured once, so these figures are a look and no more.**"
    return (
        f"All figures are medians of {count} repetitions,\nwith the subjects taking turns;"
        " least and greatest in brackets."
    )


def _table(runs: Sequence[Run], workload: str) -> str:
    columns = _COLUMNS[workload]
    rows = []
    for name in subjects(runs, workload):
        found = [figure(runs, workload, name, column.key) for column in columns]
        scaled = [_scaled(one, column.factor) for one, column in zip(found, columns, strict=True)]
        cells = [text(one, spread=c.spread) for one, c in zip(scaled, columns, strict=True)]
        rows.append((found[0].median if found[0] else 0, [_TITLES[name], *cells]))
    if not rows:
        return "*Not part of this run.*"
    rows.sort(key=lambda row: row[0])
    return table(["", *(column.head for column in columns)], [row for _, row in rows])


def _scaled(found: Figure | None, factor: float) -> Figure | None:
    if found is None:
        return None
    return Figure(found.median * factor, found.low * factor, found.high * factor, found.repetitions)


def _growth_table(runs: Sequence[Run]) -> str:
    rows = []
    for workload, title in _GROWTH.items():
        found = _growth(runs, workload)
        if found:
            cells = " · ".join(f"{size:,}: {number(one.median)}" for size, one in found)
            rows.append([title, cells, number(found[-1][1].median / found[0][1].median)])
    return (
        table(["", "how many: CPU µs", "last ÷ first"], rows) if rows else "*Not part of this run.*"
    )


def _all_on(runs: Sequence[Run]) -> str:
    rows = []
    for plain, everything in (("paced", "all-paced"), ("each", "all-each")):
        for key, what in (("cpu_us", "CPU µs"), ("p50_us", "p50 µs"), ("p99_us", "p99 µs")):
            before, after = (figure(runs, name, "relay", key) for name in (plain, everything))
            if before and after:
                cells = [text(before, spread=True), text(after, spread=True)]
                rows.append([f"{plain}, {what}", *cells, number(after.median / before.median)])
    return (
        table(["", "plain", "everything on", "ratio"], rows) if rows else "*Not part of this run.*"
    )


def _left_out(results: dict[str, Any]) -> str:
    lines = [f"- {title}: not installed; {advice}" for title, advice in results["missing"].items()]
    lines += [f"- {line}: more than the descriptor limit allows" for line in results["skipped"]]
    lines += [f"- failed: {line}" for line in results["failures"]]
    return "\n".join(lines) or "Nothing was left out."


# --- the profile -----------------------------------------------------------------------------------


def _profiled(profile: dict[str, Any] | None, what: str) -> dict[str, dict[str, Any]]:
    """What was recorded of each workload: its "layers" or its "functions"."""
    workloads: dict[str, Any] = profile["workloads"] if profile else {}
    return {name: recorded[what] for name, recorded in workloads.items() if what in recorded}


def _profile_parts(profile: dict[str, Any] | None) -> dict[str, str]:
    layers, functions = _profiled(profile, "layers"), _profiled(profile, "functions")
    return {
        "profile-layers": _layers(layers) if layers else _not_recorded(profile, "layers"),
        "profile-functions": (
            "\n\n".join(_functions(name, found) for name, found in functions.items())
            or _not_recorded(profile, "functions")
        ),
        "profile-of": _profile_of(profile) if profile else "",
    }


def _not_recorded(profile: dict[str, Any] | None, what: str) -> str:
    first = f"{profile['missing'][what]}, then " if profile else ""
    return f"*Not recorded: {first}`make bench-profile`.*"


def _layers(layers: dict[str, dict[str, Any]]) -> str:
    shares: list[dict[str, float]] = [found["shares"] for found in layers.values()]
    kernel = [sum(v for name, v in one.items() if name.startswith("kernel")) for one in shares]
    rows = [[name, *(_percent(one[name]) for one in shares)] for name in shares[0]]
    rows.append(["**kernel, all of it**", *(f"**{_percent(one)}**" for one in kernel)])
    plot = "![Where the relay's CPU time goes](performance/profile.svg)"
    return f"{plot}\n\n{table(['CPU time, %', *layers], rows)}"


def _functions(workload: str, found: dict[str, Any]) -> str:
    rows = [[f"`{name}`", _percent(share)] for name, share in found["shares"].items()]
    return table([f"*{workload}*: function", "self time, %"], rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _profile_of(profile: dict[str, Any]) -> str:
    samples = [
        f"{found['samples']:,} for the {what} of *{name}*"
        for what in ("layers", "functions")
        for name, found in _profiled(profile, what).items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in profile["versions"].items())
    return f"Samples: {', '.join(samples)}.\n\nRecorded with: {versions}."


# --- bounds ----------------------------------------------------------------------------------------


# What a run came to for a relay: "relay", or "relay-compiled".
Value = Callable[[Sequence[Run], str], float | None]


class Bound(NamedTuple):
    """What is to hold: a value of the run, and the most (or with `at_least` the least) it may be."""

    what: str
    value: Value
    bound: float
    at_least: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value keeps to it."""
        return value >= self.bound if self.at_least else value <= self.bound


def _of(workload: str, key: str, variant: str = "") -> Value:
    def value(runs: Sequence[Run], own: str) -> float | None:
        found = figure(runs, workload, own + variant, key)
        return found.median if found else None

    return value


def _to_floor(workload: str, key: str) -> Value:
    def value(runs: Sequence[Run], own: str) -> float | None:
        return ratio(*(by_repetition(runs, workload, name, key) for name in (own, "floor")))

    return value


def _to_best_peer(
    workload: str, key: str, beside: frozenset[str] | set[str] = frozenset()
) -> Value:
    def value(runs: Sequence[Run], own: str) -> float | None:
        best: dict[int, float] = {}
        for name in _PEERS - beside:
            for repetition, found in by_repetition(runs, workload, name, key).items():
                best[repetition] = min(found, best.get(repetition, found))
        return ratio(by_repetition(runs, workload, own, key), best)

    return value


def _of_all_on(everything: str, plain: str, key: str) -> Value:
    def value(runs: Sequence[Run], own: str) -> float | None:
        return ratio(*(by_repetition(runs, name, own, key) for name in (everything, plain)))

    return value


def _grown(workload: str) -> Value:
    def value(runs: Sequence[Run], own: str) -> float | None:
        found = sizes(runs, workload)
        if len(found) < 2:
            return None
        first, last = (
            by_repetition(runs, workload, own, "cpu_us", size) for size in (found[0], found[-1])
        )
        return ratio(last, first)

    return value


BOUNDS = (
    Bound("burst to 1,000, CPU: relay ÷ best peer", _to_best_peer("burst-1000", "cpu_us"), 0.1),
    Bound("burst to 5,000, CPU: relay ÷ best peer", _to_best_peer("burst-5000", "cpu_us"), 0.1),
    Bound("paced, CPU: relay ÷ floor", _to_floor("paced", "cpu_us"), 1.3),
    Bound("paced, CPU: relay ÷ best peer", _to_best_peer("paced", "cpu_us"), 1.0),
    Bound("each his own, p50: relay ÷ floor", _to_floor("each", "p50_us"), 1.25),
    Bound("each his own, p99: relay ÷ floor", _to_floor("each", "p99_us"), 1.5),
    Bound(
        "each his own, p50: relay ÷ best peer that reads Redis",
        _to_best_peer("each", "p50_us", _NOT_BY_REDIS),
        1.0,
    ),
    Bound("each his own, CPU: relay ÷ floor", _to_floor("each", "cpu_us"), 1.7),
    Bound("sparse, CPU µs an event, history off", _of("sparse", "cpu_us", "-off"), 1.3),
    Bound("sparse, CPU µs an event, history in memory", _of("sparse", "cpu_us"), 2.5),
    Bound("sparse, events/s", _of("sparse", "per_second"), 250_000, at_least=True),
    Bound("sparse, share lost", _of("sparse", "lost_share"), 0.0),
    Bound("idle, KiB a connection", _of("handshakes", "kib"), 3.5),
    Bound("storm, CPU µs a handshake", _of("handshakes", "cpu_us"), 330),
    *(Bound(f"growth: {title}", _grown(workload), 1.3) for workload, title in _GROWTH.items()),
    Bound("everything on, p99: ÷ paced's", _of_all_on("all-paced", "paced", "p99_us"), 1.5),
    Bound("everything on, CPU: ÷ paced's", _of_all_on("all-paced", "paced", "cpu_us"), 1.3),
)


def _bounds(runs: Sequence[Run]) -> str:
    rows = []
    for bound in BOUNDS:
        values = [bound.value(runs, own) for own in ("relay", "relay-compiled")]
        if values[0] is None:
            continue
        kept = [value is not None and bound.holds(value) for value in values]
        holds = "yes" if kept[0] else "compiled" if kept[1] else "**no**"
        limit = f"{'≥' if bound.at_least else '≤'} {bound.bound:,g}"
        rows.append([bound.what, *map(_exactly, values), limit, holds])
    if not rows:
        return "*Not part of this run.*"
    return table(["", "measured", "compiled", "bound", "holds"], rows)


def _exactly(value: float | None) -> str:
    """With so many digits that a narrow miss does not look like a hit."""
    if value is None:
        return "–"
    return f"{value:.4g}" if value < 1000 else number(value)
