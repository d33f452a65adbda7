"""One measurement's processes: Redis, the subject, the clients and the publisher; all end with it.

Everything runs on this machine and over loopback, so the subject shares its cores with the load: rates and
latencies depend on that, CPU time a unit hardly does.
"""

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import redis

from relay.demo.embedded import EmbeddedRedis
from relay.demo.tether import tethered
from tests.bench import proc
from tests.bench.subjects import CACHE, ROOT, Launch, Place, Subject, environ_for

START_SECONDS = 20.0
STOP_SECONDS = 8.0
# Quiet is less than 2% of a core, three times in a row.
QUIET_POLL_SECONDS = 0.05
QUIET_CPU_SECONDS = 0.001
QUIET_POLLS = 3
LOG_CHARACTERS = 400
# More than any workload has, so that the jobs of one are never those of another.
JOBS_APART = 10_000_000

Numbers = dict[str, Any]


class StageError(Exception):
    """A process did not do what the measurement needs; the text says what it said."""


class Watchers:
    """A running `load watch`. Use it as a context manager: leaving it disconnects the clients."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [str(CACHE / "load"), "watch", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.handshakes = self._line()

    def result(self) -> Numbers:
        """What arrived, awaited."""
        return self._line()

    def _line(self) -> Numbers:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StageError(f"the load generator ended with {self._process.wait()}")
        numbers: Numbers = json.loads(line)
        return numbers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Stage:
    """One subject on a Redis of its own; an exception of its start leaves nothing behind.

    Args:
        folder: for the subject's configuration and log; empty or new.
        environ: more for the subject's environment.
        watch: more arguments for the clients.
    """

    def __init__(
        self,
        subject: Subject,
        folder: Path,
        environ: dict[str, str] | None = None,
        watch: Sequence[str] = (),
    ) -> None:
        self.subject = subject
        self._environ = environ or {}
        self._watch = tuple(watch)
        self._folder = folder
        self._redis = EmbeddedRedis(("--maxclients", "1000"))
        self._client: redis.Redis | None = None
        self._copies: list[subprocess.Popen[bytes]] = []
        self.first_job = 0
        self.port = _free_port()
        self.admin_ports = [_free_port() for _ in range(subject.copies)]

    @property
    def redis_port(self) -> int:
        """Where its Redis listens."""
        return self._redis.port

    @property
    def pids(self) -> list[int]:
        """The subject's processes; without what descends from them."""
        return [copy.pid for copy in self._copies]

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._redis.start()
            self._client = redis.Redis(port=self._redis.port)
            for admin_port in self.admin_ports:
                self._start_copy(admin_port)
            self._await_start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def watchers(self, *arguments: object) -> Watchers:
        """Clients, each connected and subscribed."""
        return self.others(*self.subject.dialogue, *arguments)

    def others(self, *arguments: object) -> Watchers:
        """Clients with a dialogue of their own."""
        words = ("--port", self.port, "--base", self.first_job, *self._watch, *arguments)
        return Watchers([str(word) for word in words])

    def use_new_jobs(self) -> None:
        """Go on with jobs that the subject has not heard of, so that nobody is sent what was before."""
        self.first_job += JOBS_APART

    def publish(self, *arguments: object) -> Numbers:
        """Publish, and wait until all of it is acknowledged."""
        port = self.port if self.subject.publishes_to_server else self._redis.port
        mode, *rest = self.subject.publish
        words = [
            str(CACHE / "load"),
            mode,
            "--port",
            str(port),
            "--base",
            str(self.first_job),
            *rest,
        ]
        words += [str(argument) for argument in arguments]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StageError(f"the publisher ended: {done.stderr.strip()}")
        numbers: Numbers = json.loads(done.stdout)
        return numbers

    def cpu(self) -> proc.Cpu:
        """What the subject has used."""
        return proc.cpu(self.pids)

    def redis_cpu(self) -> proc.Cpu:
        """What Redis has used."""
        return proc.cpu([self._redis.pid])

    def pss_kib(self) -> int:
        """The subject's memory."""
        return proc.pss_kib(self.pids)

    def cut_off(self) -> int:
        """How often Redis closed a subscriber that did not keep up."""
        assert self._client is not None
        stats: Any = self._client.info("stats")
        return int(stats.get("client_output_buffer_limit_disconnections", 0))

    def settle(self, limit_seconds: float = 10.0) -> None:
        """Wait until the subject does next to nothing."""
        deadline = time.monotonic() + limit_seconds
        quiet, before = 0, self.cpu().total
        while quiet < QUIET_POLLS and time.monotonic() < deadline:
            time.sleep(QUIET_POLL_SECONDS)
            now = self.cpu().total
            quiet = quiet + 1 if now - before < QUIET_CPU_SECONDS else 0
            before = now

    def _start_copy(self, admin_port: int) -> None:
        place = Place(
            folder=self._folder,
            port=self.port,
            admin_port=admin_port,
            redis_port=self._redis.port,
        )
        launch = self.subject.launch(place)
        launch = Launch(command=launch.command, environ=launch.environ | self._environ)
        with (self._folder / f"{self.subject.name}.log").open("ab") as log:
            copy = subprocess.Popen(
                tethered(_found(launch.command)),
                cwd=ROOT,
                env=environ_for(launch, place),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._copies.append(copy)

    def _await_start(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not (_accepts(self.port) and self._subscribers() >= self._expected_subscribers()):
            if any(copy.poll() is not None for copy in self._copies):
                raise StageError(f"it ended at its start: {self._said()}")
            if time.monotonic() > deadline:
                raise StageError(f"it did not start within {START_SECONDS:g} s: {self._said()}")
            time.sleep(QUIET_POLL_SECONDS)
        self.settle()

    def _subscribers(self) -> int:
        assert self._client is not None
        clients: Any = self._client.client_list("pubsub")
        return len(clients)

    def _expected_subscribers(self) -> int:
        return self.subject.copies if self.subject.subscribes_at_start else 0

    def _said(self) -> str:
        """The end of its log, on one line."""
        log = (self._folder / f"{self.subject.name}.log").read_text(errors="replace")
        return " ".join(log[-LOG_CHARACTERS:].split()) or "its log is empty"

    def _stop(self) -> None:
        for copy in self._copies:
            copy.send_signal(signal.SIGTERM)
        for copy in self._copies:
            try:
                copy.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                copy.kill()
                copy.wait()
        self._copies.clear()
        if self._client is not None:
            self._client.close()
        self._redis.stop()


def _found(command: list[str]) -> list[str]:
    """The command with the path of its program; nginx may be outside an ordinary user's PATH."""
    path = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/sbin")
    if path is None:
        raise StageError(f"{command[0]} is not on the PATH: install it")
    return [path, *command[1:]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True
