"""The parts of the benchmark that need no server: what is read, summed up, drawn and written."""

from __future__ import annotations

import os
import re
import sys
import xml.etree.ElementTree
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench import figures, guard, proc, profile, report, svg
from tests.bench.figures import Figure
from tests.bench.run import Options, takes_part
from tests.bench.stage import Stage, StageError
from tests.bench.subjects import SUBJECTS, find
from tests.bench.workloads import WORKLOADS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.figures import Run

MACHINE = {
    "cpu": "A CPU", "cores": 2, "memory_gib": 4, "kernel": "6.1", "virtual": True, "load_before": 0.25,
}  # fmt: skip


def run(workload: str, subject: str, size: int = 0, **numbers: float) -> Run:
    """One run of which only these numbers were kept; the others are 1."""
    every = dict.fromkeys(column.key for columns in report._COLUMNS.values() for column in columns)
    return {
        "workload": workload, "subject": subject, "size": size, "repetition": 0,
        **dict.fromkeys(every, 1.0), **numbers,
    }  # fmt: skip


def results(*runs: Run, **more: Any) -> dict[str, Any]:
    """What a run of the benchmark would have written."""
    common = {
        "machine": MACHINE, "versions": {"relay": "1.2.3"}, "command": "make bench", "repetitions": 5,
        "has_auth": False, "missing": {}, "skipped": [], "failures": [],
    }  # fmt: skip
    return {**common, "runs": list(runs), **more}


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the rows that begin with this title."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {title} |")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


# --- /proc -----------------------------------------------------------------------------------------


def test_ticks_are_found_behind_a_command_name_with_brackets_and_blanks() -> None:
    stat = "42 (tmux: (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 17 5 3 2 20 0 1 0 100 0 0"

    assert proc.parse_stat(stat) == (17, 5)


def test_pss_is_counted_and_not_its_parts() -> None:
    rollup = "00400000-7ff [rollup]\nRss:  900 kB\nPss:  700 kB\nPss_Anon:  600 kB\n"

    assert proc.parse_pss_kib(rollup) == 700


def test_cpu_since_is_the_difference() -> None:
    used = proc.Cpu(5.0, 3.0, 2.0).since(proc.Cpu(1.5, 1.0, 0.5))

    assert used == proc.Cpu(3.5, 2.0, 1.5)


# --- figures ---------------------------------------------------------------------------------------


def test_figure_is_median_least_and_greatest_of_the_runs_that_fit() -> None:
    runs = [
        run("paced", "relay", cpu_us=9.0),
        run("paced", "relay", cpu_us=30.0),
        run("paced", "relay", cpu_us=10.0),
        run("paced", "floor", cpu_us=1.0),
        run("paced", "relay", 10, cpu_us=2.0),
    ]

    found = figures.figure(runs, "paced", "relay", "cpu_us")

    assert found == Figure(10.0, 9.0, 30.0, 3)


def test_figure_of_what_was_not_measured_is_none() -> None:
    assert figures.figure([run("paced", "relay")], "paced", "floor", "cpu_us") is None


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.416, "0.42"), (12.34, "12.3"), (2.0, "2"), (345.6, "346"), (1234567.0, "1,234,567")],
)
def test_number_has_as_many_digits_as_mean_something(value: float, written: str) -> None:
    assert figures.number(value) == written


def test_spread_is_shown_only_where_there_is_one() -> None:
    assert figures.text(Figure(2.5, 1.5, 3.0, 5), spread=True) == "2.50 (1.50–3)"
    assert figures.text(Figure(2.5, 2.5, 2.5, 1), spread=True) == "2.50"
    assert figures.text(None, spread=True) == "–"


# --- the page --------------------------------------------------------------------------------------


def test_page_puts_the_cheapest_first_and_fills_every_place() -> None:
    numbers = results(run("paced", "nchan", cpu_us=12.0), run("paced", "relay", cpu_us=10.0))

    page = report.render(numbers, report.TEMPLATE.read_text())

    assert page.index("| relay | 10 |") < page.index("| nchan (nginx) | 12 |")
    assert "{{" not in page
    assert "A CPU, 2 cores of a virtual machine" in page


def test_page_names_what_was_left_out_and_how_to_get_it() -> None:
    numbers = results(missing={"nchan": "apt-get install it"}, failures=["naive, paced: it ended"])

    page = report.render(numbers, "{{left-out}}")

    assert page.splitlines() == [
        "- nchan: not installed; apt-get install it",
        "- failed: naive, paced: it ended",
    ]


def test_bound_that_is_missed_or_holds_only_if_compiled_is_said_to_be() -> None:
    numbers = results(
        run("paced", "relay", cpu_us=15.0),
        run("paced", "floor", cpu_us=10.0),
        run("paced", "nchan", cpu_us=20.0),
        run("each", "relay", cpu_us=20.0),
        run("each", "relay-compiled", cpu_us=16.0),
        run("each", "floor", cpu_us=10.0),
    )

    page = report.render(numbers, "{{bounds}}")

    assert rows(page, "paced, CPU: relay ÷ floor") == [
        ["paced, CPU: relay ÷ floor", "1.5", "–", "≤ 1.3", "**no**"]
    ]
    assert rows(page, "paced, CPU: relay ÷ best peer")[0][1:] == ["0.75", "–", "≤ 1", "yes"]
    assert rows(page, "each his own, CPU: relay ÷ floor")[0][1:] == [
        "2",
        "1.6",
        "≤ 1.7",
        "compiled",
    ]
    assert rows(page, "sparse, events/s") == []


def test_peer_that_does_not_read_redis_does_not_count_where_that_matters() -> None:
    numbers = results(
        run("each", "relay", p50_us=150.0),
        run("each", "nchan", p50_us=100.0),
        run("each", "nest", p50_us=200.0),
    )

    page = report.render(numbers, "{{bounds}}")

    (row,) = rows(page, "each his own, p50: relay ÷ best peer that reads Redis")
    assert row[1] == "0.75"


def test_growth_is_the_largest_by_the_smallest() -> None:
    numbers = results(
        run("growth-sparse-jobs", "relay", 100_000, cpu_us=3.0),
        run("growth-sparse-jobs", "relay", 100, cpu_us=2.0),
    )

    page = report.render(numbers, "{{growth}}")

    assert rows(page, "sparse, over jobs") == [["sparse, over jobs", "100: 2 · 100,000: 3", "1.50"]]


def test_template_with_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        report.render(results(), "{{nonsense}}")


# --- plots -----------------------------------------------------------------------------------------


def test_plots_are_well_formed_and_hold_every_subject_and_size() -> None:
    runs = [
        run("paced", "relay", cpu_us=10.0),
        run("paced", "socketio", cpu_us=20.0),
        run("growth-paced-connections", "relay", 10, cpu_us=9.0),
        run("growth-paced-connections", "relay", 10_000, cpu_us=9.5),
    ]

    plots = report.plots(runs)

    assert sorted(plots) == ["growth-paced.svg", "peers.svg"]
    texts = [xml.etree.ElementTree.fromstring(plot).itertext() for _, plot in sorted(plots.items())]
    growth, peers = ("\n".join(text) for text in texts)
    assert "10,000" in growth
    assert {"relay", "Socket.IO", "20"} <= set(peers.splitlines())


def test_longer_bar_is_the_greater_value() -> None:
    panel = svg.Panel("µs", [svg.Bar("slow", 100.0, "peer"), svg.Bar("fast", 1.0, "own")])

    widths = re.findall(r'<rect class="(\w+)".* width="([\d.]+)"', svg.bars([panel]))

    assert [kind for kind, _ in widths] == ["own", "peer"]
    assert float(widths[0][1]) < float(widths[1][1])


def test_labels_are_escaped() -> None:
    plot = svg.bars([svg.Panel("a < b", [svg.Bar("R&D", 1.0, "own")])])

    assert "a &lt; b" in plot
    assert "R&amp;D" in plot


def test_stack_is_as_long_as_its_shares_and_has_numbers_where_there_is_room() -> None:
    plot = svg.stacks("%", [svg.Stack("paced", {"kernel": 0.75, "Python": 0.24, "C": 0.01})])

    parts = re.findall(r'<rect class="(p\d)".* width="([\d.]+)" height="30', plot)
    lengths = {kind: float(width) for kind, width in parts}
    assert lengths["p0"] == pytest.approx(3 * lengths["p1"], rel=0.05)
    texts = set("\n".join(xml.etree.ElementTree.fromstring(plot).itertext()).splitlines())
    assert {"paced", "kernel", "Python", "C", "75", "24"} <= texts
    assert "1" not in texts


# --- who and what ----------------------------------------------------------------------------------


def test_subject_that_is_not_installed_says_how_to_get_it(tmp_path: Path) -> None:
    subject = find("naive")
    there = type(subject)(
        **{name: getattr(subject, name) for name in ("name", "title", "launch", "dialogue")},
        needs=((tmp_path, "make it"), (tmp_path / "absent", "install it")),
    )

    assert there.missing == "install it"
    assert subject.missing is None


def test_everybody_is_measured_by_the_common_workloads_and_only_the_relay_by_its_own() -> None:
    taking_part = {
        each.name: {subject.name for subject in SUBJECTS if takes_part(subject, each)}
        for each in WORKLOADS
    }

    assert {"relay", "floor", "nchan", "naive"} <= taking_part["each"]
    assert "relay-off" in taking_part["sparse"] - taking_part["each"]
    assert taking_part["growth-sparse-jobs"] == {"relay"}


def test_a_run_is_of_five_repetitions_unless_asked_otherwise() -> None:
    assert Options(subjects=()).repetitions == 5


# --- the profile -----------------------------------------------------------------------------------

PERF_REPORT = """
 161        |[kernel.kallsyms]                       |[k] finish_task_switch.isra.0          |__schedule
 60         |[kernel.kallsyms]                       |[k] _raw_spin_unlock_irqrestore        |sock_def_readable
 1          |[kernel.kallsyms]                       |[k] rb_first                           |tcp_schedule_loss_probe.part.0
 7          |[kernel.kallsyms]                       |[k] __inet_lookup_established          |__inet_lookup_established
 5          |[kernel.kallsyms]                       |[k] vfs_write                          |[other]
 172        |libpython3.11.so.1.0                    |[.] _PyEval_EvalFrameDefault           |[other]
 3          |python3.12                              |[.] _PyEval_EvalFrameDefault           |[other]
 2          |loop.cpython-311-x86_64-linux-gnu.so    |[.] __pyx_f_6uvloop_4loop_8UVStream_write|[other]
 2          |_asyncio.cpython-311-x86_64-linux-gnu.so|[.] _asyncio_Future_done               |[other]
 9          |hiredis.cpython-311-x86_64-linux-gnu.so |[.] redisReaderGetReply                |[other]
 1          |orjson.cpython-311-x86_64-linux-gnu.so  |[.] 0x000000000000ffb3                 |[other]
 6          |libc.so.6                               |[.] __memmove_avx_unaligned_erms       |[other]
 1          |[vdso]                                  |[.] __vdso_clock_gettime               |[other]
"""
PY_SPY_RAW = """\
_run (relay/cli.py:328);run (uvloop/__init__.py:38);Runner.run (asyncio/runners.py:118) 40
Runner.run (asyncio/runners.py:118);Relay._on_batch (relay/app.py:329);Router.receive (relay/core/router.py:91) 3
Runner.run (asyncio/runners.py:118);Relay._on_batch (relay/app.py:331);Router.receive (relay/core/router.py:87) 2
Router.receive (relay/core/router.py:87);__create_fn__.<locals>.__init__ (<string>:2) 1
Router.receive (relay/core/router.py:87);run (/home/somebody/lib/__init__.py:2);work (/home/somebody/own.py:2) 4
"""


def recorded(**parts: dict[str, float]) -> dict[str, Any]:
    """A profile in which each part of *paced* was of a hundred samples."""
    paced = {what: {"samples": 100, "shares": shares} for what, shares in parts.items()}
    advice = {"layers": "install perf", "functions": "install py-spy"}
    missing = {what: how for what, how in advice.items() if what not in parts}
    return {"versions": {"perf": "6.1"}, "missing": missing, "workloads": {"paced": paced}}


def test_layers_are_told_by_library_and_in_the_kernel_by_the_known_caller() -> None:
    layers = profile.parse_layers(PERF_REPORT)

    assert layers.samples == 430
    assert {name: round(430 * share) for name, share in layers.shares.items()} == {
        "kernel: TCP/IP": 8,
        "kernel: waking and scheduling": 221,
        "kernel: the rest": 5,
        "Python interpreter": 175,
        "event loop": 4,
        "parsers and encoders": 10,
        "C library and the rest": 7,
    }


def test_layers_without_a_sample_of_the_kernel_say_how_to_get_some() -> None:
    (interpreter,) = (line for line in PERF_REPORT.splitlines() if "libpython" in line)

    with pytest.raises(StageError, match=r"perf_event_paranoid"):
        profile.parse_layers(interpreter)


def test_functions_are_charged_with_what_they_are_in_and_the_loop_is_left_out() -> None:
    functions = profile.parse_functions(PY_SPY_RAW)

    assert functions.samples == 10
    assert list(functions.shares.items()) == [
        ("relay.core.router.Router.receive", 0.5),
        ("own.work", 0.4),
        ("__create_fn__.<locals>.__init__", 0.1),
    ]


def test_profile_without_a_function_is_refused() -> None:
    with pytest.raises(StageError, match="py-spy saw no Python function"):
        profile.parse_functions(PY_SPY_RAW.splitlines()[0])


def test_page_holds_the_profile_and_the_kernel_s_sum() -> None:
    layers = {"kernel: TCP/IP": 0.5, "kernel: the rest": 0.125, "Python interpreter": 0.375}
    found = recorded(layers=layers, functions={"relay.app.main": 0.8, "relay.cli.run": 0.2})

    page = report.render(results(), report.TEMPLATE.read_text(), found)

    assert rows(page, "kernel: TCP/IP") == [["kernel: TCP/IP", "50.0"]]
    assert rows(page, "**kernel, all of it**") == [["**kernel, all of it**", "**62.5**"]]
    assert rows(page, "`relay.app.main`") == [["`relay.app.main`", "80.0"]]
    assert "](performance/profile.svg)" in page
    assert "perf 6.1" in page
    assert "Not recorded" not in page


def test_page_without_a_profile_says_how_to_make_one() -> None:
    page = report.render(results(), report.TEMPLATE.read_text())

    section = page.partition("## Where the time goes")[2].partition("\n## ")[0]
    assert section.count("*Not recorded: `make bench-profile`.*") == 2
    assert "profile.svg" not in page


def test_page_says_how_to_get_the_half_that_was_not_recorded() -> None:
    page = report.render(
        results(), "{{profile-layers}}\n{{profile-functions}}", recorded(functions={"main": 1.0})
    )

    assert page.splitlines()[0] == "*Not recorded: install perf, then `make bench-profile`.*"
    assert rows(page, "`main`")


def test_profile_is_drawn_beside_the_other_plots() -> None:
    plots = report.plots([], recorded(layers={"kernel: TCP/IP": 0.6, "Python interpreter": 0.4}))

    assert list(plots) == ["profile.svg"]
    assert "Python interpreter" in plots["profile.svg"]


# Stands for a recorder: writes what it was told once it is told to stop.
WAITS = """
import pathlib, signal, sys
signal.signal(signal.SIGINT, lambda *_: (pathlib.Path(sys.argv[1]).write_text("seen"), sys.exit()))
open(sys.argv[2], "w").close()
signal.pause()
"""


def test_recorder_is_at_work_while_there_is_something_published_and_stops_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, begun = tmp_path / "target", tmp_path / "begun"
    os.mkfifo(begun)
    stage = profile.RecordedStage(find("relay"), tmp_path)
    stage.command = [sys.executable, "-c", WAITS, str(target), str(begun)]

    def publish(_: Stage, *__: object) -> dict[str, Any]:
        begun.read_bytes()
        return {"recorder_is_at_work": not target.exists()}

    monkeypatch.setattr(Stage, "publish", publish)

    assert stage.publish() == {"recorder_is_at_work": True}
    assert target.read_text() == "seen"


def test_recorder_that_ends_early_is_reported_with_what_it_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('may not')"]

    with (
        pytest.raises(StageError, match=r"ended: may not"),
        profile.recording(command, tmp_path / "log") as recorder,
    ):
        recorder.wait()


def test_profile_with_nothing_to_record_with_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = [each._replace(folder=tmp_path) for each in profile.RECORDERS]
    monkeypatch.setattr(profile, "RECORDERS", nowhere)
    monkeypatch.setenv("PATH", str(tmp_path))

    code = profile.main()

    assert code == 2
    said = capsys.readouterr().err
    assert "apt-get install linux-perf" in said
    assert "make bench-peers" in said


# --- the guard -------------------------------------------------------------------------------------


def test_guard_finds_what_costs_more_than_recorded_and_lets_a_little_pass() -> None:
    recorded = {"a": guard.Cost(10.0, 2.0, 0.0), "b": guard.Cost(10.0, 2.0, 1.0)}
    measured = {"a": guard.Cost(10.9, 2.0, 0.0), "b": guard.Cost(10.0, 3.0, 1.0)}

    (fault,) = guard.faults(measured, recorded)

    assert fault.startswith("b: 3 calls a unit, recorded 2")


def test_guard_finds_what_was_never_recorded() -> None:
    (fault,) = guard.faults({"new": guard.Cost(1.0, 1.0, 1.0)}, {})

    assert "--record" in fault


def test_guard_counts_the_same_twice() -> None:
    works = guard.WORKS["unwatched message, kept"], guard.WORKS["paced, a delivery"]

    assert [guard.cost(work) for work in works] == [guard.cost(work) for work in works]


def test_a_ratio_is_the_median_of_those_of_each_repetition() -> None:
    slow_minutes = {0: 1.0, 1: 3.0, 2: 1.0}
    runs = [
        {**run("paced", name, cpu_us=cost * slowed), "repetition": repetition}
        for repetition, slowed in slow_minutes.items()
        for name, cost in (("relay", 12.0 + repetition), ("floor", 10.0))
    ]

    own, floor = (
        figures.by_repetition(runs, "paced", name, "cpu_us") for name in ("relay", "floor")
    )

    assert figures.ratio(own, floor) == pytest.approx(1.3)
    assert figures.ratio(own, {}) is None
