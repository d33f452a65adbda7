"""What a tree of processes has used so far, read from /proc; Linux only.

CPU time is user and system time of every thread. `/proc/PID/stat` tells it in ticks of 10 ms, too coarse
for a burst that is over in fifty; the scheduler's own account, `schedstat`, tells the same sum in
nanoseconds. So the sum is taken from there, where the kernel keeps it, and its parts from `stat`.
Memory is PSS: pages that processes share are counted once.
"""

import os
from pathlib import Path
from typing import NamedTuple

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Cpu(NamedTuple):
    """Seconds of CPU time since the start; `total` is finer than the sum of its parts."""

    total: float
    user: float
    system: float

    def since(self, before: "Cpu") -> "Cpu":
        """What was used after `before`."""
        return Cpu(*(late - early for late, early in zip(self, before, strict=True)))


def parse_stat(text: str) -> tuple[int, int]:
    """User and system ticks in a `/proc/PID/stat`. The command's name may hold anything but an end."""
    fields = text.rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def parse_pss_kib(text: str) -> int:
    """KiB in a `/proc/PID/smaps_rollup`."""
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def tree(root_pid: int) -> list[int]:
    """A process and all that descend from it, as far as they still run."""
    found, pending = [], [root_pid]
    while pending:
        pid = pending.pop()
        found.append(pid)
        for task in _tasks(pid):
            pending += [int(child) for child in _read(task / "children").split()]
    return found


def cpu(root_pids: list[int]) -> Cpu:
    """What these processes and their descendants have used."""
    user = system = nanoseconds = 0
    for pid in (pid for root in root_pids for pid in tree(root)):
        stat = _read(Path(f"/proc/{pid}/stat"))
        if stat:
            ticks = parse_stat(stat)
            user, system = user + ticks[0], system + ticks[1]
        nanoseconds += sum(int((_read(t / "schedstat") or "0").split()[0]) for t in _tasks(pid))
    parts = user / _TICKS_A_SECOND, system / _TICKS_A_SECOND
    return Cpu(nanoseconds / 1e9 if nanoseconds else sum(parts), *parts)


def pss_kib(root_pids: list[int]) -> int:
    """The memory of these processes and their descendants."""
    pids = [pid for root in root_pids for pid in tree(root)]
    return sum(parse_pss_kib(_read(Path(f"/proc/{pid}/smaps_rollup"))) for pid in pids)


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    """The text of a file; none where the process or thread has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""
