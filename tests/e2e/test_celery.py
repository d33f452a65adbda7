"""A real Celery worker's tasks, seen through the installed daemon by a foreign WebSocket client.

The worker runs the tasks of this very file, started as anybody would start it; nothing in it knows of the
relay. Its broker and its result backend are the embedded server.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import pytest
import redis
from celery import Celery
from websockets.asyncio.client import ClientConnection, connect

from relay.demo.embedded import EmbeddedRedis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
# A worker takes some seconds to start and the first task waits for it.
TASK_SECONDS = 60.0

# Where broker and result backend are, the worker reads from CELERY_BROKER_URL and CELERY_RESULT_BACKEND.
app = Celery("tests.e2e.test_celery")


@app.task(bind=True)  # type: ignore[untyped-decorator]
def count(self: Any, total: int, secret: str) -> dict[str, int]:
    """Tells its progress, and succeeds."""
    for current in range(1, total + 1):
        self.update_state(state="PROGRESS", meta={"current": current, "total": total})
    return {"rows": total}


@app.task(bind=True)  # type: ignore[untyped-decorator]
def fail(self: Any, secret: str) -> None:
    """Tells its progress, and fails."""
    self.update_state(state="LOADING", meta={"percent": 10, "file": "rows.csv"})
    raise ValueError("bad row 17")


@app.task(bind=True)  # type: ignore[untyped-decorator]
def retry_once(self: Any) -> int:
    """Fails for a moment, and succeeds when it is tried again."""
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("upstream 503"), countdown=0)
    return int(self.request.retries)


# --- what runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    """A server of our own: flushing it under the worker would cost the worker its queue."""
    with EmbeddedRedis(binary=os.environ.get("RELAY_TEST_REDIS_SERVER")) as server:
        app.conf.update(broker_url=server.url, result_backend=server.url)
        yield server
        app.close()


@pytest.fixture(scope="module")
def worker(server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    command = [sys.executable, "-m", "celery", "--app", app.main, "worker", "--pool", "solo"]
    addresses = {"CELERY_BROKER_URL": server.url, "CELERY_RESULT_BACKEND": server.url}
    with ended(command, log, addresses):
        yield


@contextmanager
def ended(
    command: list[str], log: Path, environ: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process, gone at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environ, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(log.read_text(errors="replace"))  # noqa: T201  pytest shows it where a test fails


@pytest.fixture
def start_relay(server: EmbeddedRedis, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Starts the daemon and gives its WebSocket's URL."""
    config, ready = tmp_path / "relay.toml", tmp_path / "ready.json"
    config.write_text(
        f"""
        [server]
        port = 0
        [admin]
        port = 0
        [redis]
        url = "{server.url}"
        backoff_max_seconds = 0.1
        [source.celery]
        kind = "celery"
        """
    )
    command = [sys.executable, "-m", "relay", "serve", "--config", str(config)]
    command += ["--ready-file", str(ready)]
    with ExitStack() as stack:

        def start() -> str:
            daemon = stack.enter_context(ended(command, tmp_path / "relay.log", {}))
            deadline = time.monotonic() + START_SECONDS
            while not is_ready(ready):
                assert daemon.poll() is None, "the daemon ended at its start"
                assert time.monotonic() < deadline, "the daemon is not ready"
                time.sleep(0.02)
            public: str = json.loads(ready.read_text())["public"]
            return public.replace("http://", "ws://") + "/job-progress"

        yield start


def is_ready(ready_file: Path) -> bool:
    if not ready_file.exists():
        return False
    admin = json.loads(ready_file.read_text())["admin"]
    try:
        with urllib.request.urlopen(f"{admin}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return False


class Watcher:
    """A client of the relay, and what it was told."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator[Self]:
        async with connect(url) as socket:
            watcher = cls(socket)
            await watcher.told("relay-status")
            yield watcher

    async def told(self, *events: str) -> dict[str, Any]:
        """The next message of one of these events."""
        while True:
            async with asyncio.timeout(TASK_SECONDS):
                message: dict[str, Any] = json.loads(await self._socket.recv())
            if message["event"] in events:
                return message

    async def subscribe(self, job_id: str) -> dict[str, Any]:
        """The answer to a subscription: what is said of the job."""
        command = {"event": "subscribe-to-job", "data": {"jobId": job_id}}
        await self._socket.send(json.dumps(command))
        answer = await self.told("subscribed")
        stands: dict[str, Any] = answer["data"]["jobs"][job_id]
        return stands

    async def told_until_the_end(self) -> list[dict[str, Any]]:
        """The job's messages up to the one that ends it."""
        messages: list[dict[str, Any]] = []
        while not messages or messages[-1]["event"] == "job-progress":
            messages.append(await self.told("job-progress", "job-completed", "job-failed"))
        return messages


def run(task: Any, *args: object) -> str:
    """Run a task to its end with nobody watching, and give its id."""
    result = task.delay(*args)
    result.get(timeout=TASK_SECONDS, propagate=False)
    return str(result.id)


# --- live ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
async def test_watched_task_is_told_live_in_order_to_its_success(
    start_relay: Callable[[], str],
) -> None:
    task_id = str(uuid4())

    async with Watcher.at(start_relay()) as watcher:
        stands = await watcher.subscribe(task_id)
        count.apply_async(args=[4, "do not tell"], task_id=task_id)
        messages = await watcher.told_until_the_end()

    assert stands == {"known": False, "recovered": False, "replayed": 0}
    assert [message["event"] for message in messages] == ["job-progress"] * 4 + ["job-completed"]
    assert [message["data"].get("progress") for message in messages] == [25, 50, 75, 100, None]
    assert messages[0]["data"] == {
        "jobId": task_id,
        "progress": 25,
        "status": "active",
        "stage": "PROGRESS",
        "data": {"current": 1, "total": 4},
    }
    assert messages[-1]["data"]["result"] == {"rows": 4}
    assert messages[-1]["data"]["processingTime"] >= 0
    assert all(message["id"].startswith("c-") for message in messages)
    assert "do not tell" not in json.dumps(messages)


@pytest.mark.usefixtures("worker")
async def test_watched_task_is_told_live_in_order_to_its_failure(
    start_relay: Callable[[], str],
) -> None:
    task_id = str(uuid4())

    async with Watcher.at(start_relay()) as watcher:
        await watcher.subscribe(task_id)
        fail.apply_async(args=["do not tell"], task_id=task_id)
        progress, failed = await watcher.told_until_the_end()

    assert progress["data"]["stage"] == "LOADING"
    assert progress["data"]["progress"] == 10
    assert failed["event"] == "job-failed"
    assert failed["data"]["error"] == "ValueError"
    assert failed["data"]["failedReason"] == "bad row 17"
    assert "Traceback" not in json.dumps(failed)


@pytest.mark.usefixtures("worker")
async def test_task_that_is_retried_has_not_failed(start_relay: Callable[[], str]) -> None:
    task_id = str(uuid4())

    async with Watcher.at(start_relay()) as watcher:
        await watcher.subscribe(task_id)
        retry_once.apply_async(task_id=task_id)
        retrying, completed = await watcher.told_until_the_end()

    assert retrying["event"] == "job-progress"
    assert retrying["data"]["status"] == "retrying"
    assert retrying["data"]["failedReason"] == "upstream 503"
    assert completed["event"] == "job-completed"
    assert completed["data"]["result"] == 1


# --- ended before anybody watched ------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
async def test_task_that_ended_unwatched_is_seen_to_end(start_relay: Callable[[], str]) -> None:
    url = start_relay()
    task_id = await asyncio.to_thread(run, count, 3, "do not tell")

    async with Watcher.at(url) as watcher:
        stands = await watcher.subscribe(task_id)
        (completed,) = await watcher.told_until_the_end()

    assert stands == {"known": True, "recovered": False, "replayed": 0}
    assert completed["event"] == "job-completed"
    assert completed["data"]["result"] == {"rows": 3}


@pytest.mark.usefixtures("worker")
async def test_tasks_that_ended_before_the_relay_started_are_seen_to_end(
    start_relay: Callable[[], str],
) -> None:
    succeeded = await asyncio.to_thread(run, count, 2, "do not tell")
    failed = await asyncio.to_thread(run, fail, "do not tell")

    async with Watcher.at(start_relay()) as watcher:
        stands = [await watcher.subscribe(succeeded)]
        (completed,) = await watcher.told_until_the_end()
        stands.append(await watcher.subscribe(failed))
        (failure,) = await watcher.told_until_the_end()

    assert stands == [{"known": True, "recovered": False, "replayed": 0}] * 2
    assert completed["event"] == "job-completed"
    assert completed["data"]["result"] == {"rows": 2}
    assert failure["event"] == "job-failed"
    assert failure["data"]["error"] == "ValueError"


async def test_task_that_ended_while_the_relay_was_cut_off_is_seen_to_end_after_the_reconnect(
    start_relay: Callable[[], str], server: EmbeddedRedis
) -> None:
    task_id = str(uuid4())
    missed = {"status": "SUCCESS", "result": "unheard", "task_id": task_id}

    async with Watcher.at(start_relay()) as watcher:
        await watcher.subscribe(task_id)
        with redis.Redis.from_url(server.url) as client:
            # Stored and not published: to the relay it is as if the message had been lost on its way.
            client.set(f"celery-task-meta-{task_id}", json.dumps(missed))
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        (completed,) = await watcher.told_until_the_end()

    assert completed["data"]["result"] == "unheard"
