"""`relay demo` as its user has it: one command, one Ctrl-C."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from relay.demo import api, jobs
from relay.demo.similarity import example_wallets

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc"),
]

START_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Demo:
    process: asyncio.subprocess.Process
    addresses: dict[str, Any]
    folder: Path

    async def read_until(self, text: str) -> str:
        """The first line of the demo's output that holds `text`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            while line := (await self.process.stdout.readline()).decode():
                if text in line:
                    return line
        raise AssertionError(f"the demo ended without {text!r}")

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def worker_pid(self) -> int:
        (pid,) = (
            pid
            for pid in self.children()
            if b"relay.demo.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        return pid

    @asynccontextmanager
    async def queue_events(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """What a client that watches the queue is told."""
        async with (
            aiohttp.ClientSession(self.addresses["public"]) as http,
            http.ws_connect("/job-progress") as socket,
        ):
            await socket.send_json(
                {"event": "subscribe-to-queue", "data": {"queueName": jobs.QUEUE_NAME}}
            )

            async def messages() -> AsyncIterator[dict[str, Any]]:
                async with asyncio.timeout(START_SECONDS):
                    async for message in socket:
                        yield message.json()

            yield messages()


async def event_of(
    events: AsyncIterator[dict[str, Any]], name: str, job_id: str | None = None
) -> dict[str, Any]:
    async for message in events:
        if message["event"] == name and job_id in (None, message["data"]["jobId"]):
            data: dict[str, Any] = message["data"]
            return data
    raise AssertionError(f"closed before {name}")


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Demo]:
    ready_file, folder = tmp_path / "ready.json", tmp_path / "temporary"
    folder.mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "demo", "--port", "0", "--admin-port", "0"),
        *("--ready-file", str(ready_file)),
        stdout=subprocess.PIPE,
        # Its files are looked for afterwards; a terminal's settings would change what it prints.
        env={**os.environ, "TMPDIR": str(folder), "TERM": "dumb"},
    )
    waiting = Demo(process, {}, folder)
    try:
        # Printed after the ready file is there: the first event of the first analysis.
        await waiting.read_until("% ")
        yield Demo(process, json.loads(ready_file.read_text()), folder)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_first_analysis_moves_in_the_terminal_and_at_a_client(demo: Demo) -> None:
    async with demo.queue_events() as events:
        progress = await event_of(events, "job-progress")

    assert progress["status"] == "active"
    assert progress["jobId"] in await demo.read_until("active")


async def test_ready_file_names_what_is_there(demo: Demo) -> None:
    with redis.Redis.from_url(demo.addresses["redis"]) as connection:
        assert connection.ping()
    assert demo.addresses["pid"] == demo.process.pid
    async with aiohttp.ClientSession() as http:
        async with http.get(demo.addresses["public"]) as page:
            assert page.content_type == "text/html"
        async with http.get(f"{demo.addresses['admin']}/livez") as livez:
            assert livez.status == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_leaves_nothing_behind(demo: Demo, number: signal.Signals) -> None:
    children = [os.pidfd_open(pid) for pid in demo.children()]
    assert len(children) == 2
    assert len(list(demo.folder.iterdir())) == 1

    demo.process.send_signal(number)
    exit_code = await asyncio.wait_for(demo.process.wait(), 10)
    assert demo.process.stdout is not None
    said = (await demo.process.stdout.read()).decode()

    assert exit_code == 0
    assert "server are gone" in said
    assert "session_opened" not in said, "the log stays out of the way of the bars"
    gone, _, _ = select.select(children, [], [], 0)
    assert gone == children
    assert list(demo.folder.iterdir()) == []
    for child in children:
        os.close(child)


async def test_killed_worker_is_replaced_and_its_job_failed(demo: Demo) -> None:
    async with demo.queue_events() as events, aiohttp.ClientSession() as http:
        lost = await event_of(events, "job-progress")
        os.kill(demo.worker_pid(), signal.SIGKILL)
        said = await demo.read_until("The worker has ended")
        failed = await event_of(events, "job-failed", lost["jobId"])
        response = await http.post(
            demo.addresses["public"] + api.SUBMIT_PATH,
            json={"walletAddresses": example_wallets(3, seed="next")},
        )
        next_job = (await response.json())["jobId"]
        completed = await event_of(events, "job-completed", next_job)

    assert "another starts in 0.5 s" in said
    assert failed["error"] == "worker-lost"
    assert completed["result"]["pairs"] == 3
