"""Ties the life of a child process to that of the process that started it.

Linux: `prctl(PR_SET_PDEATHSIG)`, which `execve` keeps. Elsewhere nothing of the kind exists, and a
parent that is killed outright leaves its children behind; one that exits in order stops them itself.

Run as a script it ties itself, then becomes the given command under the same process id. That is
done there and not in a `preexec_fn`, because Python code between fork and exec can deadlock in a
process that has threads. The file uses the standard library alone, so it starts without a package path.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process (SIGKILL) when its parent dies; does nothing but on Linux.

    The kernel's parent is the thread that made this process: a child started from a thread of a
    pool dies with that thread.

    Args:
        parent_pid: who the parent should be.

    Raises:
        ProcessLookupError: the parent was gone before it could be tied to.
        OSError: the kernel refused.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent_pid:
        raise ProcessLookupError(f"process {parent_pid}, the parent, is gone")


def tethered(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` with its life tied to this process, where that can be."""
    if sys.platform != "linux":
        return list(command)
    # -I and -S: neither the environment nor site-packages are needed, and it starts in 10 ms.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
