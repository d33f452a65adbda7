"""Many short jobs, published as a careful worker would: each event again, with its key, until Redis has it.

A job's watchers come before it starts, while it runs and after it has ended: each of these is a way to
miss how it ends.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import redis

from relay.upstream.publisher import Receipt
from tests.chaos.ledger import Job, Published
from tests.chaos.watcher import Watcher

STEPS = (3, 10)  # of progress, before the end
STEP_SECONDS = (0.1, 0.6)
RETRY_SECONDS = (0.05, 0.25)
LATE_SECONDS = (0.0, 3.0)  # from the end of a job until its last watchers come
FAILING_SHARE = 0.1
WATCHERS_A_JOB = 5
QUEUES = ("q-0", "q-1", "q-2", "q-3")


class Publishes(Protocol):
    """What of `relay.Publisher` is needed here."""

    async def publish(self, payload: Mapping[str, Any], *, key: str | None = None) -> Receipt:
        """Raises redis.RedisError where Redis did not acknowledge it."""


class Workload:
    """All jobs of a run.

    Attributes:
        jobs: those begun, with what of them was acknowledged. retries: attempts that Redis did not
            acknowledge.
    """

    def __init__(
        self,
        publishers: Sequence[Publishes],
        watchers: Sequence[Watcher],
        *,
        events_per_second: float,
        keyed: bool,
        choose: random.Random,
    ) -> None:
        """Nothing is published yet.

        Args:
            keyed: whether the publishers have durable history, which a key needs.
        """
        self.jobs: list[Job] = []
        self.retries = 0
        self._publishers = publishers
        self._watchers = watchers
        self._jobs_per_second = events_per_second / (sum(STEPS) / 2 + 1)
        self._keyed = keyed
        self._choose = choose

    async def run(self, seconds: float) -> None:
        """Begin jobs for that long; returns once each has ended and its last watchers have come."""
        deadline = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            while time.monotonic() < deadline:
                job = Job(id=f"job-{len(self.jobs)}", queue=self._choose.choice(QUEUES))
                self.jobs.append(job)
                tasks.create_task(self._work(job))
                await asyncio.sleep(self._choose.expovariate(self._jobs_per_second))

    async def _work(self, job: Job) -> None:
        steps = self._choose.randint(*STEPS)
        coming = self._choose.sample(self._watchers, min(WATCHERS_A_JOB, len(self._watchers)))
        # Step 0 is before the first event, the one after the last is late.
        arrivals = [(self._choose.randint(0, steps + 1), watcher) for watcher in coming]
        publisher = self._choose.choice(self._publishers)
        for n in range(1, steps + 2):
            for at, watcher in arrivals:
                if at == n - 1:
                    await watcher.watch(job.id)
            await asyncio.sleep(self._choose.uniform(*STEP_SECONDS))
            await self._tell(publisher, job, n, steps)
        for at, watcher in arrivals:
            if at == steps + 1:
                await asyncio.sleep(self._choose.uniform(*LATE_SECONDS) / len(arrivals))
                await watcher.watch(job.id)

    async def _tell(self, publisher: Publishes, job: Job, n: int, steps: int) -> None:
        event = Published(n=n, offered_at=time.monotonic())
        job.events.append(event)
        payload = self._payload(job, n, steps)
        while True:
            event.attempts += 1
            try:
                receipt = await publisher.publish(payload, key=str(n) if self._keyed else None)
            except redis.RedisError:
                self.retries += 1
                await asyncio.sleep(self._choose.uniform(*RETRY_SECONDS))
            else:
                event.id = receipt.event_id
                event.acknowledged = True
                return

    def _payload(self, job: Job, n: int, steps: int) -> dict[str, object]:
        payload: dict[str, object] = {"jobId": job.id, "queueName": job.queue, "data": {"n": n}}
        if n <= steps:
            return payload | {"event": "progress", "progress": 100 * n // (steps + 1)}
        if self._choose.random() < FAILING_SHARE:
            return payload | {"event": "failed", "error": "out of luck"}
        return payload | {"event": "completed", "result": None}
