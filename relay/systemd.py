"""Tells systemd how the service stands: ready, reloading, stopping, alive. Silent elsewhere.

Invariant: nothing here raises or ends the service, for a supervisor that cannot be told is no reason to stop.
The protocol is that of sd_notify(3) and sd_watchdog_enabled(3): lines of KEY=VALUE in one datagram.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"

_SEND_TIMEOUT_SECONDS = 1.0


def reloading() -> str:
    """The line that a reload has begun; `READY` tells that it is over."""
    # The time is what newer versions know this reload by, apart from an earlier one.
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def status(text: str) -> str:
    """The line of free text that `systemctl status` shows."""
    return f"STATUS={' '.join(text.split())}"


def notify(*lines: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send lines to the supervisor, as `notify(READY, status("serving"))`.

    Args:
        lines: what to tell, all in one datagram.
        environ: where `NOTIFY_SOCKET` is looked up.

    Returns:
        Whether there was a supervisor and the lines were handed to it. Waits at most a second.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        # Abstract names are written with "@" and begin with a zero byte.
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_SEND_TIMEOUT_SECONDS)
            sender.connect(address)
            sender.sendall("\n".join(lines).encode())
    except OSError:
        return False
    return True


def watchdog_interval_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often `WATCHDOG` is to be sent: at half the time after which systemd loses patience.

    Args:
        environ: where `WATCHDOG_USEC` and `WATCHDOG_PID` are looked up.

    Returns:
        Seconds; None where no watchdog is set for this process.
    """
    limit_microseconds = environ.get("WATCHDOG_USEC", "")
    if not limit_microseconds.isdecimal() or int(limit_microseconds) == 0:
        return None
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(limit_microseconds) / 2_000_000
