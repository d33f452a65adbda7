"""`relay demo` for a newcomer with nothing but a WebSocket client: progress soon, and no trace after Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from relay.demo.similarity import example_wallets
from tests.e2e.conftest import SOON_SECONDS, Client, get

if TYPE_CHECKING:
    from tests.e2e.conftest import Daemon, Launcher

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc"),
]

QUEUE = "similarity-operations"
# A newcomer is promised a minute, of which the installation takes most.
FIRST_PROGRESS_SECONDS = 15.0


def start(launcher: Launcher, folder: Path) -> Daemon:
    """The demo on free ports, with its temporary files in `folder`."""
    folder.mkdir()
    ports = ["--port", "0", "--admin-port", "0"]
    return launcher.launch(["demo", *ports], {"TMPDIR": str(folder)})


def submit(demo: Daemon, wallets: list[str]) -> tuple[int, dict[str, Any]]:
    """`POST` an analysis; the status and the body of the answer."""
    body = {
        "walletAddresses": wallets,
        "vectorType": "capital",
        "failureThreshold": 0,
        "timeoutMinutes": 1,
    }
    request = urllib.request.Request(
        f"{demo.public}/analyses/similarity/queue",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=SOON_SECONDS) as answer:
        return answer.status, json.load(answer)


def processes_of(folder: Path) -> set[int]:
    """The processes whose temporary files go to `folder`, and those that work in it."""
    found = set()
    wanted = f"TMPDIR={folder}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = (process / "environ").read_bytes().split(b"\0")
            # The server writes over its environment, to show its port in the list of processes.
            if wanted in environ or folder in (process / "cwd").readlink().parents:
                found.add(int(process.name))
        except OSError:
            continue  # it has ended meanwhile, or is another user's
    return found


async def test_demo_shows_progress_soon_and_runs_what_is_submitted_to_its_end(
    launcher: Launcher, tmp_path: Path
) -> None:
    started_at = time.monotonic()
    demo = start(launcher, tmp_path / "temporary")
    wallets = list(example_wallets(20, seed="a test"))

    async with Client.at(demo.ws_url) as client:
        await client.send("subscribe-to-queue", {"queueName": QUEUE, "snapshot": True})
        await client.told("job-progress")
        first_progress_after = time.monotonic() - started_at
        status, accepted = await asyncio.to_thread(submit, demo, wallets)
        _, doomed = await asyncio.to_thread(submit, demo, [*wallets, "no-address"])
        good = await told_of(client, accepted["jobId"])
        bad = await told_of(client, doomed["jobId"])
    page = await get(demo.public)

    assert first_progress_after < FIRST_PROGRESS_SECONDS
    assert status == 202
    assert good[0]["event"] == "job-queued"
    assert good[-1]["event"] == "job-completed"
    assert good[-1]["data"]["result"]
    assert good[-1]["data"]["processingTime"] >= 0
    steps = [message["data"]["progress"] for message in good if message["event"] == "job-progress"]
    assert steps == sorted(steps)
    assert bad[-1]["event"] == "job-failed"
    assert "no-address" in bad[-1]["data"]["failedReason"]
    assert page.status == 200
    assert "<html" in page.text.lower()


async def told_of(client: Client, job_id: str) -> list[dict[str, Any]]:
    """All that the client is told of a job, to its end."""

    def so_far() -> list[dict[str, Any]]:
        return [message for message in client.seen if message["data"].get("jobId") == job_id]

    while not {"job-completed", "job-failed"} & {message["event"] for message in so_far()}:
        await client.told("job-completed", "job-failed")
    return so_far()


async def test_ctrl_c_ends_the_demo_in_order_and_leaves_nothing_behind(
    launcher: Launcher, tmp_path: Path
) -> None:
    folder = tmp_path / "temporary"
    demo = start(launcher, folder)
    async with Client.at(demo.ws_url) as client:
        await client.send("subscribe-to-queue", {"queueName": QUEUE, "snapshot": True})
        await client.told("job-progress")
        running, files = processes_of(folder), os.listdir(folder)

        demo.signal(signal.SIGINT)
        end = await client.closed()
        exit_code = await demo.exit_code()

    assert len(running) == 3  # the relay, its worker and the server
    assert len(files) == 1
    assert end == (1012, "the relay is restarting")
    assert client.statuses()[-1]["draining"] is True
    assert exit_code == 0
    assert processes_of(folder) == set()
    assert os.listdir(folder) == []
    assert "Traceback" not in demo.log_text() + demo.error_text()
