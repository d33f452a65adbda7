"""What `relay watch` shows: events folded into a row a job, rows drawn as bars or told as lines.

Pure but for `Bars` and `Lines`, which write to a console; time is an argument.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from relay.core import payload
from relay.core.event import COMPLETED, FAILED

# Ids and `since` of so many jobs, all of the longest sort, still fit the relay's default message
# limit; as many batches as hold its default limit of subscriptions stay within its burst.
_BATCH_JOBS: Final = 25
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_PREVIEW_CHARACTERS: Final = 120


class State(Enum):
    """Where a watched job stands; the values are rich styles."""

    WAITING = "dim"
    RUNNING = "cyan"
    COMPLETED = "green"
    FAILED = "red"
    REFUSED = "yellow"


@dataclass(slots=True)
class Row:
    """What is known of one job. `first_at` and `ended_at` are monotonic seconds."""

    job_id: str
    state: State = State.WAITING
    percent: float = 0.0
    status: str = "waiting"
    note: str = "no event yet"
    event_id: str | None = None
    first_at: float | None = None
    ended_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether no more is expected of the job."""
        return self.state not in (State.WAITING, State.RUNNING)

    @property
    def line(self) -> str:
        """The row as one line of text."""
        text = f"{printable(self.job_id)}  {self.percent:.0f}%  {self.status}"
        return f"{text}  {self.note}" if self.note else text

    def elapsed_seconds(self, now: float) -> float | None:
        """Since the first event that was seen, until the end."""
        if self.first_at is None:
            return None
        return (now if self.ended_at is None else self.ended_at) - self.first_at


class Board:
    """The rows of all watched jobs, in the order in which they were named."""

    def __init__(self, job_ids: Iterable[str]) -> None:
        self.rows = {job_id: Row(job_id) for job_id in job_ids}

    @property
    def finished(self) -> bool:
        """Whether every job has ended or was refused."""
        return all(row.ended for row in self.rows.values())

    @property
    def exit_code(self) -> int:
        """0 if every job completed, else 1."""
        return 0 if all(row.state is State.COMPLETED for row in self.rows.values()) else 1

    def apply(
        self, name: str, data: dict[str, Any], event_id: str | None, now: float
    ) -> Row | None:
        """Take in a job's event; returns its row, or None where the job is not watched."""
        row = self.rows.get(str(data.get("jobId")))
        if row is None:
            return None
        row.event_id = event_id
        row.first_at = now if row.first_at is None else row.first_at
        progress = data.get("progress")
        if isinstance(progress, int | float):
            row.percent = float(min(max(progress, 0), 100))
        if name == COMPLETED:
            row.state, row.percent, row.ended_at = State.COMPLETED, 100.0, now
            row.status, row.note = "completed", _outcome(data)
        elif name == FAILED:
            row.state, row.ended_at = State.FAILED, now
            row.status = "cancelled" if data.get("status") == "cancelled" else "failed"
            row.note = ": ".join(_texts(data.get("error"), data.get("failedReason")))
        else:
            # An event after the end: the relay passes it on only when the job runs again.
            row.state, row.ended_at = State.RUNNING, None
            row.status = _status(name, data)
            row.note = _stage(data)
        return row

    def refuse(self, job_id: str, reason: str) -> Row | None:
        """Note that the relay will not let us watch the job."""
        row = self.rows.get(job_id)
        if row is not None:
            row.state, row.status, row.note = State.REFUSED, "refused", printable(reason)
        return row

    def subscriptions(self) -> list[dict[str, Any]]:
        """What to subscribe to, one dict a message: jobs not refused, from where they are known."""
        rows = [row for row in self.rows.values() if row.state is not State.REFUSED]
        batches = [rows[start : start + _BATCH_JOBS] for start in range(0, len(rows), _BATCH_JOBS)]
        return [
            {
                "jobIds": [row.job_id for row in batch],
                "since": {row.job_id: row.event_id for row in batch if row.event_id is not None},
            }
            for batch in batches
        ]


def printable(text: str) -> str:
    """`text` without what could move the cursor, recolour the terminal, or not be encoded."""
    return _CONTROL.sub(" ", text).encode(errors="replace").decode()


def render(board: Board, now: float, max_rows: int) -> Table:
    """The board as bars. Where not all rows fit, the jobs that still run stand first."""
    rows = list(board.rows.values())
    if len(rows) > max_rows:
        rows.sort(key=lambda row: row.ended)
    table = Table.grid(padding=(0, 2), expand=True)
    # Only the note gives way: a long one must not squeeze the rest.
    for ratio in (None, None, None, None, None, 1):
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=ratio)
    for row in rows[:max_rows]:
        elapsed = row.elapsed_seconds(now)
        table.add_row(
            Text(printable(row.job_id), style="bold"),
            ProgressBar(
                completed=row.percent,
                width=30,
                pulse=row.state is State.WAITING,
                complete_style=row.state.value,
                finished_style=row.state.value,
            ),
            Text(f"{row.percent:3.0f}%"),
            Text(row.status, style=row.state.value),
            Text("" if elapsed is None else _duration(elapsed)),
            Text(row.note, style="dim"),
        )
    if len(rows) > max_rows:
        ended = sum(row.ended for row in rows)
        table.add_row(Text(f"{len(rows)} jobs, {ended} ended", style="dim"))
    return table


class Bars:
    """Bars that are drawn again in place; for a terminal."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def changed(self, row: Row) -> None:
        """Nothing to do: `live` draws the whole board at its own pace."""

    def note(self, text: str) -> None:
        """Printed above the bars."""
        self._live.console.print(Text(text, style="dim"))


class Lines:
    """A line for each change that can be read off it; for pipes and log files."""

    def __init__(self, console: Console, notes: Console) -> None:
        self._console = console
        self._notes = notes
        self._shown: dict[str, str] = {}

    def changed(self, row: Row) -> None:
        """Print the row unless its line stands there already."""
        if self._shown.get(row.job_id) != row.line:
            self._shown[row.job_id] = row.line
            self._console.print(Text(row.line), soft_wrap=True)

    def note(self, text: str) -> None:
        """Printed apart from the jobs' lines."""
        self._notes.print(Text(text), soft_wrap=True)


def _status(name: str, data: dict[str, Any]) -> str:
    told = _texts(data.get("status"))
    if name == "job-progress":
        return told[0] if told else "active"
    return printable(name.removeprefix("job-"))


def _stage(data: dict[str, Any]) -> str:
    inner = data.get("data")
    told = {**data, **inner} if isinstance(inner, dict) else data
    return ": ".join(_texts(told.get("stage"), told.get("message")))


def _outcome(data: dict[str, Any]) -> str:
    parts = []
    took_ms = data.get("processingTime")
    if isinstance(took_ms, int | float):
        parts.append(f"in {took_ms / 1000:.1f} s")
    if data.get("result") is not None:
        result = printable(payload.encode(data["result"]).decode())
        cut = len(result) > _PREVIEW_CHARACTERS
        parts.append(result[:_PREVIEW_CHARACTERS] + "…" if cut else result)
    return " ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _texts(*values: object) -> list[str]:
    """What of `values` is text, safe to show, each once."""
    texts = (printable(value) for value in values if isinstance(value, str) and value)
    return list(dict.fromkeys(texts))
