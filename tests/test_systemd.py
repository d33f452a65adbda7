"""The supervisor hears what it is told; without one nothing happens."""

from __future__ import annotations

import os
import socket
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from relay import systemd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        yield receiver


def test_lines_arrive_in_one_datagram(supervisor: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": supervisor.getsockname()}

    was_told = systemd.notify(systemd.READY, systemd.status("serving\non 3001"), environ=environ)

    assert was_told
    assert supervisor.recv(1000) == b"READY=1\nSTATUS=serving on 3001"


@pytest.mark.parametrize(
    ("line", "datagram"),
    [
        (systemd.READY, b"READY=1"),
        (systemd.STOPPING, b"STOPPING=1"),
        (systemd.WATCHDOG, b"WATCHDOG=1"),
    ],
)
def test_each_state_has_its_word(supervisor: socket.socket, line: str, datagram: bytes) -> None:
    systemd.notify(line, environ={"NOTIFY_SOCKET": supervisor.getsockname()})

    assert supervisor.recv(1000) == datagram


def test_reload_tells_when_it_began(supervisor: socket.socket) -> None:
    before = time.monotonic_ns() // 1000

    systemd.notify(systemd.reloading(), environ={"NOTIFY_SOCKET": supervisor.getsockname()})

    state, _, began = supervisor.recv(1000).partition(b"\nMONOTONIC_USEC=")
    assert state == b"RELOADING=1"
    assert before <= int(began) <= time.monotonic_ns() // 1000


@pytest.mark.skipif(not os.path.exists("/proc/net/unix"), reason="abstract names are Linux's")
def test_abstract_socket_is_reached() -> None:
    name = f"relay-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(5)

        was_told = systemd.notify(systemd.READY, environ={"NOTIFY_SOCKET": f"@{name}"})

        assert was_told
        assert receiver.recv(1000) == b"READY=1"


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/nowhere/at/all", "@nobody", "/" * 200])
def test_supervisor_that_cannot_be_told_is_passed_over(address: str) -> None:
    assert not systemd.notify(systemd.READY, environ={"NOTIFY_SOCKET": address})


def test_without_a_supervisor_nothing_is_said() -> None:
    assert not systemd.notify(systemd.READY, environ={})


def test_watchdog_is_served_at_half_its_time() -> None:
    mine = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}

    assert systemd.watchdog_interval_seconds(mine) == 15
    assert systemd.watchdog_interval_seconds({"WATCHDOG_USEC": "500000"}) == 0.25


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "x"},
    ],
)
def test_watchdog_that_is_not_ours_is_not_served(environ: dict[str, str]) -> None:
    assert systemd.watchdog_interval_seconds(environ) is None
