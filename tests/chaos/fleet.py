"""Several relays behind the balancer: started, killed, drained, frozen, each in a place of its own.

A relay that comes back has another port and knows nothing of the one before it.
"""

import asyncio
import resource
import signal
from pathlib import Path

from tests.chaos.balancer import Balancer
from tests.e2e.conftest import Daemon, Launcher, Settings

DRAIN_SECONDS = 1.0
HEALTH_CHECK_SECONDS = 1.0
POLL_SECONDS = 0.05
NO_DESCRIPTORS = 3  # below what every process has open


def settings(redis_url: str, history: str) -> Settings:
    """A relay that notices faults fast, and takes little in before it calls a client slow."""
    return {
        "server": {"host": "127.0.0.1", "drain_seconds": DRAIN_SECONDS},
        "redis": {
            "url": redis_url,
            "connect_timeout_seconds": 1.0,
            "health_check_seconds": HEALTH_CHECK_SECONDS,
            "backoff_max_seconds": 0.5,
        },
        "history": {"backend": history},
        "heartbeat": {"interval_seconds": 5, "timeout_seconds": 5},
        "limits": {"max_payload_bytes": 16_384},
        "backpressure": {
            "high_water_bytes": 1024, "unsent_bytes": 1024, "max_outbox_bytes": 32_768,
        },
    }  # fmt: skip


class Fleet:
    """The relays; make it inside a running loop, `start` them, `end` them whatever happens."""

    def __init__(self, folder: Path, redis_urls: list[str], history: str, front: Balancer) -> None:
        self._settings = [settings(url, history) for url in redis_urls]
        # One for each place: relays of different places start at the same time.
        self._launchers = [Launcher(_made(folder / f"place-{n}")) for n in range(len(redis_urls))]
        self._daemons: list[Daemon | None] = [None] * len(redis_urls)
        self._started: list[Daemon] = []
        self._bad_exits: list[str] = []
        self._front = front

    def __len__(self) -> int:
        return len(self._daemons)

    async def start(self, place: int) -> None:
        """Start the relay of this place; it takes connections from now on."""
        daemon = await asyncio.to_thread(
            self._launchers[place].serve, self._settings[place], subscribed=False
        )
        self._started.append(daemon)
        self._put(place, daemon)

    async def kill(self, place: int) -> None:
        """SIGKILL."""
        daemon = self._take(place)
        daemon.signal(signal.SIGKILL)
        await daemon.exit_code()

    async def drain(self, place: int) -> None:
        """SIGTERM, to the end."""
        daemon = self._take(place)
        daemon.signal(signal.SIGTERM)
        code = await daemon.exit_code()
        if code != 0:
            self._bad_exits.append(f"a drained relay ended with {code}")

    async def freeze(self, place: int, seconds: float) -> None:
        """Stop it in its tracks for that long; it keeps its connections."""
        daemon = self._daemons[place]
        assert daemon is not None
        daemon.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            daemon.signal(signal.SIGCONT)

    async def starve(self, place: int, seconds: float) -> None:
        """Leave it no descriptor for one more connection for that long; it keeps those it has."""
        daemon = self._daemons[place]
        assert daemon is not None
        soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (NO_DESCRIPTORS, hard))
        try:
            await asyncio.sleep(seconds)
        finally:
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))

    async def ready(self) -> None:
        """Return once every relay is subscribed to Redis."""
        unready = [daemon for daemon in self._daemons if daemon is not None]
        while unready:
            unready = [daemon for daemon in unready if not await daemon.is_ready()]
            await asyncio.sleep(POLL_SECONDS)

    def complaints(self) -> list[str]:
        """What shows that relays crashed: nothing else makes them write to standard error."""
        return self._bad_exits + [text for daemon in self._started if (text := daemon.error_text())]

    def end(self) -> None:
        """Kill all that run."""
        for launcher in self._launchers:
            launcher.end()

    def _take(self, place: int) -> Daemon:
        daemon = self._daemons[place]
        assert daemon is not None
        self._put(place, None)
        return daemon

    def _put(self, place: int, daemon: Daemon | None) -> None:
        self._daemons[place] = daemon
        there = [each for each in self._daemons if each is not None]
        self._front.targets = [int(each.public.rpartition(":")[2]) for each in there]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
