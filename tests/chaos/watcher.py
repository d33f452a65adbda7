"""A client as a careful user would write it: it comes back, asks for what it missed, and takes notes.

It knows the documented protocol and nothing else of the relay: which close codes to come back after, when
to come back from a drain, `since` for each job. What it was told is kept as it came; whether
that is right is for the verdict to say, save what only one connection can show: an event told twice, or
an older one after a newer one.
"""

import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.chaos.ledger import Told, View

BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 1.0
# A relay that is frozen must not hold a client for long: the others are there.
OPEN_SECONDS = 3.0
PING_SECONDS = 4.0
MAX_JOBS_A_SUBSCRIBE = 100
COME_BACK = (1001, 1006, 1011, 1012, 1013, 3008)

Message = dict[str, Any]


class Watcher:
    """One client, which watches jobs, and where `queue` is given all jobs of that queue.

    Attributes:
        views: what it was told, by job. asked: the jobs that it watches by their id.
        gaps_at: when it was told `gap: true`. subscribed_at: when its queue was (re)subscribed to.
        faults: what no client should ever see.
    """

    def __init__(self, name: str, url: str, choose: random.Random, queue: str | None) -> None:
        self.name = name
        self.queue = queue
        self.views: dict[str, View] = {}
        self.asked: set[str] = set()
        self.gaps_at: list[float] = []
        self.subscribed_at: list[float] = []
        self.faults: list[str] = []
        self.closes: Counter[str] = Counter()
        self.connections = 0
        self.deliveries = 0
        self.repeated = 0  # deliveries that it had already, from an earlier connection
        self.refusals = 0  # answers `recovered: false` to a `since`
        self._url = url
        self._choose = choose
        self._socket: ClientConnection | None = None
        self._retry_after_seconds: float | None = None
        self._reading = asyncio.Event()
        self._reading.set()
        self._since: dict[
            str, int
        ] = {}  # which event of the job `since` named, by its number; 0: none

    @property
    def connected(self) -> bool:
        """Whether it is connected, as far as it knows."""
        return self._socket is not None

    async def run(self) -> None:
        """Stay connected; cancel to stop. Returns where the relay's close code forbids to come back."""
        failures = 0
        while True:
            try:
                async with connect(
                    self._url,
                    proxy=None,
                    compression=None,
                    open_timeout=OPEN_SECONDS,
                    close_timeout=1.0,
                    ping_interval=PING_SECONDS,
                    ping_timeout=PING_SECONDS,
                ) as socket:
                    failures = 0
                    await self._live(socket)
            except ConnectionClosed as end:
                code = end.rcvd.code if end.rcvd is not None else 1006
                self.closes[str(code)] += 1
                if code not in COME_BACK:
                    self.faults.append(f"{self.name}: closed for good with {end}")
                    return
            except (OSError, InvalidHandshake) as error:
                self.closes[type(error).__name__] += 1
            finally:
                self._socket = None
            failures += 1
            await asyncio.sleep(self._pause_seconds(failures))

    async def watch(self, job_id: str) -> None:
        """Watch this job, now or as soon as there is a connection."""
        self.asked.add(job_id)
        self.views.setdefault(job_id, View())
        if self._socket is not None:
            await self._subscribe(self._socket, [job_id])

    async def stall(self, seconds: float) -> None:
        """Read nothing for that long."""
        self._reading.clear()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._reading.set()

    async def _live(self, socket: ClientConnection) -> None:
        self.connections += 1
        # From here on `watch` sends by itself; what came before goes with the first batches.
        self._socket = socket
        job_ids = sorted(self.asked)
        if self.queue is not None:
            # First: the snapshot of a queue tells its jobs, and they must not be told once more.
            await _send(socket, "subscribe-to-queue", {"queueName": self.queue, "snapshot": True})
        for start in range(0, len(job_ids), MAX_JOBS_A_SUBSCRIBE):
            await self._subscribe(socket, job_ids[start : start + MAX_JOBS_A_SUBSCRIBE])
        while True:
            message = json.loads(await socket.recv())
            self._take(message)
            await self._reading.wait()

    async def _subscribe(self, socket: ClientConnection, job_ids: list[str]) -> None:
        since = {job: last for job in job_ids if (last := self.views[job].last_id) is not None}
        for job in job_ids:
            # Not always the newest it holds: a relay without Redis may have shown an older state last.
            self._since[job] = self.views[job].told[-1].n if job in since else 0
        try:
            await _send(socket, "subscribe-to-jobs", {"jobIds": job_ids, "since": since})
        except ConnectionClosed:
            if socket is self._socket:
                self._socket = None  # whoever reads finds out why

    def _pause_seconds(self, failures: int) -> float:
        told, self._retry_after_seconds = self._retry_after_seconds, None
        ceiling = min(BACKOFF_SECONDS * 2**failures, MAX_BACKOFF_SECONDS)
        return (told or 0.0) + self._choose.uniform(0, ceiling)

    def _take(self, message: Message) -> None:
        event, data = message["event"], message["data"]
        if event.startswith("job-"):
            self._note(event, data, message["id"])
        elif event == "relay-status":
            if data["gap"]:
                self.gaps_at.append(time.monotonic())
            if data["draining"]:
                self._retry_after_seconds = data["retryAfterMs"] / 1000
        elif event == "subscribed":
            self._note_answer(data)
        else:
            self.faults.append(f"{self.name}: unexpected {message}")

    def _note_answer(self, data: Message) -> None:
        now = time.monotonic()
        if "jobs" not in data:
            self.subscribed_at.append(now)
        for job_id, stands in data.get("jobs", {}).items():
            if "error" in stands:
                self.faults.append(f"{self.name} {job_id}: refused, {stands}")
                continue
            if stands["recovered"]:
                self.views[job_id].recovered = self.connections
                self.views[job_id].recovered_n = self._since[job_id]
            else:
                self.views[job_id].announced_at.append(now)
                self.refusals += self._since[job_id] > 0

    def _note(self, event: str, data: Message, event_id: str) -> None:
        view = self.views.setdefault(data["jobId"], View())
        told = Told(self.connections, data["data"]["n"], event, event_id)
        where = f"{self.name} {data['jobId']} n={told.n} {event_id}"
        here = [before for before in view.told if before.connection == told.connection]
        had_it = any(before.id == event_id for before in view.told)
        of_queue = data["queueName"] == self.queue
        if of_queue and here and here[-1].id == event_id and view.repeated != told.connection:
            # Both subscriptions, the job's own and the queue's, are answered with where the job stands.
            view.repeated = told.connection
        elif any(before.id == event_id for before in here):
            self.faults.append(f"{where}: told twice on connection {told.connection}")
        elif here and here[-1].n > told.n:
            self.faults.append(f"{where}: out of order, after n={here[-1].n}")
        elif told.n <= view.recovered_n and view.recovered == told.connection and not of_queue:
            self.faults.append(f"{where}: told again although recovered")
        self.deliveries += 1
        self.repeated += had_it
        view.told.append(told)


async def _send(socket: ClientConnection, event: str, data: Message) -> None:
    await socket.send(json.dumps({"event": event, "data": data}))
