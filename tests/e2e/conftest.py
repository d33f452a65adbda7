"""The installed daemon as a subprocess, and a foreign client, for tests that see the relay from outside.

Invariants: ports are free ones; settings of the caller's environment do not reach the daemon; whatever a
test leaves running is ended with it. Everything waits on what the daemon says or does, within a bound.
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
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from relay.demo.tether import tethered

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
# Far above what anything takes on a busy machine, far below what a human waits for.
SOON_SECONDS = 20.0
_POLL_SECONDS = 0.01

Message = dict[str, Any]
Settings = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


async def get(url: str) -> Answer:
    """`GET url`, whatever the status."""
    return await asyncio.to_thread(_get, url)


def _get(url: str) -> Answer:
    try:
        with urllib.request.urlopen(url, timeout=SOON_SECONDS) as answer:
            return Answer(answer.status, answer.read().decode())
    except urllib.error.HTTPError as refusal:
        with refusal:
            return Answer(refusal.code, refusal.read().decode())


class Daemon:
    """A running `relay`, from its ready file to its exit code."""

    def __init__(
        self, process: subprocess.Popen[bytes], folder: Path, ready: dict[str, Any]
    ) -> None:
        self.ready = ready
        self.public: str = ready["public"]
        self.admin: str = ready["admin"]
        self.ws_url = self.public.replace("http://", "ws://") + "/job-progress"
        self.pid: int = ready["pid"]
        self.config = folder / "config.toml"
        self._process = process
        self._folder = folder

    def log_text(self) -> str:
        """All that was written to standard output."""
        return (self._folder / "stdout").read_text(errors="replace")

    def error_text(self) -> str:
        """All that was written to standard error."""
        return (self._folder / "stderr").read_text(errors="replace")

    def log_lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log so far, or its lines of one event; a line still being written is left out."""
        whole = self.log_text().split("\n")[:-1]  # a line's own text may hold what else ends a line
        lines = [json.loads(line) for line in whole]
        return [line for line in lines if event is None or line["event"] == event]

    async def logged(self, event: str, *, times: int = 1) -> dict[str, Any]:
        """The `times`-th log line of this event, awaited."""
        await eventually(
            lambda: len(self.log_lines(event)) >= times, f"{times} × {event} in the log"
        )
        return self.log_lines(event)[times - 1]

    async def is_ready(self) -> bool:
        return (await get(f"{self.admin}/readyz")).status == 200

    async def metric(self, name: str, **labels: str) -> float:
        """The value of one series now."""
        text = (await get(f"{self.admin}/metrics")).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        raise AssertionError(f"no series {name}{labels}")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def exit_code(self) -> int:
        """The exit code, awaited."""
        return await asyncio.to_thread(self._process.wait, SOON_SECONDS)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self._process.terminate()
        return self._process.wait(SOON_SECONDS)


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for what happens in another process; `what` is said when it does not."""
    deadline = time.monotonic() + SOON_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SOON_SECONDS:g} s: {what}"
        await asyncio.sleep(_POLL_SECONDS)


class StartDaemon(Protocol):
    """The `daemon` fixture."""

    def __call__(
        self,
        settings: Settings | str = "",
        *,
        environ: Mapping[str, str] = ...,
        subscribed: bool = True,
    ) -> Daemon:
        """Start `relay serve` and wait until it listens.

        Args:
            settings: the configuration, as TOML or as section → key → value. Free ports are added.
            environ: more settings.
            subscribed: also wait until it is subscribed to Redis.
        """


def toml(settings: Settings) -> str:
    """`settings` as TOML: its strings, numbers, booleans and lists are written as JSON's are."""
    lines: list[str] = []
    for section, values in settings.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def relay_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a relay: ours without its settings, free ports, and `environ`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    return inherited | {"RELAY_SERVER__PORT": "0", "RELAY_ADMIN__PORT": "0"} | dict(environ)


class Launcher:
    """Starts `relay` commands in folders of their own, and ends them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def launch(
        self,
        arguments: list[str],
        environ: Mapping[str, str] | None = None,
        config: str | None = None,
    ) -> Daemon:
        """Start `relay` with a ready file among its arguments, and wait for that file."""
        folder = self._folder / f"relay-{len(self._processes)}"
        folder.mkdir()
        if config is not None:
            (folder / "config.toml").write_text(config)
            arguments = [*arguments, "--config", str(folder / "config.toml")]
        ready_file = folder / "ready.json"
        command = [sys.executable, "-m", "relay", *arguments, "--ready-file", str(ready_file)]
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                tethered(command),
                cwd=ROOT,
                env=relay_environ(environ or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        self._processes.append(process)
        deadline = time.monotonic() + SOON_SECONDS
        while not ready_file.exists():
            said = "".join((folder / name).read_text() for name in ("stdout", "stderr"))
            assert process.poll() is None, f"ended with {process.returncode} at its start:\n{said}"
            assert time.monotonic() < deadline, f"no ready file within {SOON_SECONDS:g} s:\n{said}"
            time.sleep(_POLL_SECONDS)
        return Daemon(process, folder, json.loads(ready_file.read_text()))

    def serve(
        self,
        settings: Settings | str = "",
        *,
        environ: Mapping[str, str] | None = None,
        subscribed: bool = True,
    ) -> Daemon:
        """See `StartDaemon`."""
        config = settings if isinstance(settings, str) else toml(settings)
        daemon = self.launch(["serve"], environ, config)
        deadline = time.monotonic() + SOON_SECONDS
        while subscribed and _get(f"{daemon.admin}/readyz").status != 200:
            assert time.monotonic() < deadline, f"not subscribed:\n{daemon.log_text()}"
            time.sleep(_POLL_SECONDS)
        return daemon

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.end()


@pytest.fixture
def daemon(launcher: Launcher) -> StartDaemon:
    return launcher.serve


class Client:
    """A WebSocket client that knows nothing of the relay but its protocol.

    `seen` is all that it was told.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.seen: list[Message] = []

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str, **options: Any) -> AsyncIterator[Self]:
        """Connected to `url`; gone at the end."""
        async with connect(url, proxy=None, **options) as socket:
            yield cls(socket)

    async def send(self, event: str, data: object) -> None:
        await self._socket.send(json.dumps({"event": event, "data": data}))

    async def told(self, *events: str) -> Message:
        """The next message of one of these events; others before it are passed over."""
        while True:
            async with asyncio.timeout(SOON_SECONDS):
                message: Message = json.loads(await self._socket.recv())
            self.seen.append(message)
            if message["event"] in events:
                return message

    async def subscribe(self, job_id: str, **more: Any) -> Message:
        """Subscribe to a job; what the answer says of it."""
        await self.send("subscribe-to-job", {"jobId": job_id, **more})
        answer = await self.told("subscribed")
        stands: Message = answer["data"]["jobs"][job_id]
        return stands

    async def told_until_the_end(self) -> list[Message]:
        """The job events up to the first that ends a job."""
        messages: list[Message] = []
        while not messages or messages[-1]["event"] not in ("job-completed", "job-failed"):
            messages.append(await self.told("job-progress", "job-completed", "job-failed"))
        return messages

    async def closed(self) -> tuple[int, str]:
        """The close code and reason, awaited; what comes before is in `seen`."""
        with pytest.raises(ConnectionClosed) as end:
            await self.told()
        close = end.value.rcvd
        assert close is not None, "the connection was cut without a close frame"
        return close.code, close.reason

    def statuses(self) -> list[Message]:
        """The data of each `relay-status` seen."""
        return [message["data"] for message in self.seen if message["event"] == "relay-status"]
