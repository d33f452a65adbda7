"""Screenshots of the dashboard for `docs/`: `python -m tests.e2e.dashboard_screenshots [--seconds N]`; needs chromium
and pngquant.

A real daemon with an embedded server, some sixty clients of each kind, one of them too slow, and jobs that come
and go; a page looks on for as long as the plots reach back, then four are photographed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import shutil
import socket
import subprocess
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
from playwright.async_api import async_playwright, expect
from redis.asyncio import Redis

from relay.demo.embedded import EmbeddedRedis
from tests.e2e.conftest import ROOT, Launcher
from tests.web.conftest import command, upgrade
from tests.web.tokens import SECRET, bearing, token

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from playwright.async_api import Browser

    from tests.e2e.conftest import Daemon

QUEUES = ["similarity-operations", "portfolio-imports", "reports"]
NAMES = ["alice", "bob", "chen", "dana", "emeka", "farah", "goran", "hana"]
HERO, HERO_QUEUE = "similarity-7F3A91", QUEUES[0]
JOBS_AT_ONCE = 40
WATCHERS, STREAMS, POLLS = 46, 9, 4
WAVE_SECONDS = 90  # traffic rises and falls
VIEWS = {1280: 900, 390: 844}
SCALE = 1


class Job:
    """A job of the worker that is played here."""

    def __init__(self, number: int) -> None:
        self.queue = random.choice(QUEUES)
        self.id = f"{self.queue.split('-')[0].rstrip('s')}-{number:06X}"
        self.progress = 0.0
        self.step = random.uniform(0.2, 2.0)

    def next_payload(self) -> dict[str, Any]:
        self.progress += self.step
        if self.progress < 100:
            return {"progress": round(self.progress, 1), "status": "active"}
        if random.random() < 0.1:
            return {"event": "job-failed", "error": "ValueError", "failedReason": "no such wallet"}
        return {"event": "job-completed", "result": {"pairs": random.randint(3, 900)}}


class Stage:
    """The clients and the publisher."""

    def __init__(self, relay: Daemon, http: aiohttp.ClientSession, redis: Redis) -> None:
        self._relay, self._http, self._redis = relay, http, redis
        self._sockets: list[aiohttp.ClientWebSocketResponse] = []
        self._numbers = random.sample(range(0x100000, 0xFFFFFF), 100_000)
        self.jobs: list[Job] = []

    async def watch(self) -> None:
        """One WebSocket client; the jobs that it watches are chosen as they begin."""
        async with self._http.ws_connect(self._relay.ws_url, headers=self._holder()) as ws:
            if random.random() < 0.3:
                await self._send(ws, "subscribe-to-queue", queueName=random.choice(QUEUES))
            self._sockets.append(ws)
            async for _ in ws:
                pass

    async def listen(self) -> None:
        """One event stream."""
        url = f"{self._relay.public}/events?queues={random.choice(QUEUES)}"
        async with self._http.get(url, headers=self._holder()) as stream:
            async for _ in stream.content:
                pass

    async def poll(self) -> None:
        """One client that asks again and again."""
        while True:
            job = random.choice(self.jobs)
            # Held until it begins: nobody knows of it yet.
            url = f"{self._relay.public}/jobs/later-{job.id}?wait=20"
            async with self._http.get(url, headers=self._holder()) as answer:
                await answer.read()

    async def stall(self) -> None:
        """One WebSocket client that watches much and reads nothing."""
        parts = urlsplit(self._relay.public)
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (parts.hostname, parts.port))
        await loop.sock_sendall(sock, upgrade(**self._holder()))
        for queue in QUEUES:
            await loop.sock_sendall(sock, command("subscribe-to-queue", {"queueName": queue}))
        with sock:
            await asyncio.Event().wait()

    async def work(self) -> None:
        """Jobs come, tell how far they are, and end."""
        at = 0.0
        while True:
            while len(self.jobs) < JOBS_AT_ONCE:
                await self._begin(Job(self._numbers.pop()))
            busy = 0.55 + 0.45 * math.sin(2 * math.pi * at / WAVE_SECONDS)
            for job in random.sample(self.jobs, max(1, int(12 * busy * random.uniform(0.7, 1.3)))):
                payload = job.next_payload()
                await self._publish(job.queue, job.id, payload)
                if "event" in payload:
                    self.jobs.remove(job)
            await asyncio.sleep(0.04)
            at += 0.04

    async def perform(self) -> None:
        """The job whose timeline is shown."""
        stages = ["loading wallets", "building vectors", "comparing pairs", "writing the result"]
        for step in range(24):
            wallets = {"done": step * 21, "of": 500}
            data = {"stage": stages[step // 6], "wallets": wallets}
            fields = {"progress": round(100 * (step / 24) ** 1.3, 1), "status": "active"}
            await self._publish(HERO_QUEUE, HERO, fields | {"data": data})
            await asyncio.sleep(random.uniform(0.05, 0.5) * (4 if step == 14 else 1))
        result = {
            "pairs": 124750,
            "mostSimilar": [{"a": "0x7f…3a", "b": "0x91…c4", "cosine": 0.981}],
        }
        await self._publish(HERO_QUEUE, HERO, {"event": "job-completed", "result": result})

    async def _begin(self, job: Job) -> None:
        self.jobs.append(job)
        watching = min(len(self._sockets), int(random.expovariate(0.35)) + 1)
        for ws in random.sample(self._sockets, watching):
            await self._send(ws, "subscribe-to-job", jobId=job.id)

    async def _publish(self, queue: str, job_id: str, fields: dict[str, Any]) -> None:
        seconds, microseconds = await self._redis.time()
        payload = fields | {"ts": seconds * 1000 + microseconds / 1000}
        await self._redis.publish(f"jobs:{queue}:{job_id}", json.dumps(payload))

    @staticmethod
    async def _send(ws: aiohttp.ClientWebSocketResponse, event: str, **data: object) -> None:
        with suppress(ConnectionError):
            await ws.send_json({"event": event, "data": data})

    @staticmethod
    def _holder() -> dict[str, str]:
        sub = f"{random.choice(NAMES)}@example.com"
        return bearing(token("*", queues=["*"], sub=sub))


async def photograph(browser: Browser, relay: Daemon, folder: Path) -> None:
    for width, height in VIEWS.items():
        for scheme in ("light", "dark"):
            context = await browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="light" if scheme == "light" else "dark",
                device_scale_factor=SCALE,
                reduced_motion="reduce",
            )
            page = await context.new_page()
            await page.goto(f"{relay.admin}/#job={HERO}&queue={HERO_QUEUE}")
            await page.wait_for_selector("#timeline:not([hidden])")
            await page.fill("#search", "alice")
            await expect(page.locator("#list-count")).to_contain_text("found")
            await expect(page.locator("#relay-p99")).to_contain_text("s")
            await page.evaluate(
                "() => { document.activeElement.blur(); scrollTo({ top: 0, behavior: 'instant' }) }"
            )
            path = folder / f"dashboard-{width}-{scheme}.png"
            await page.screenshot(path=path, full_page=True, animations="disabled")
            smaller = ["pngquant", "--force", "--ext", ".png", "--speed", "1", "--strip", str(path)]
            await asyncio.to_thread(subprocess.run, smaller, check=True)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")  # noqa: T201
            await context.close()


async def run(seconds: float, folder: Path) -> None:
    async with AsyncExitStack() as closing:
        server = closing.enter_context(EmbeddedRedis())
        launcher = Launcher(Path(closing.enter_context(tempfile.TemporaryDirectory())))
        closing.callback(launcher.end)
        relay = launcher.serve(
            {
                "redis": {"url": server.url},
                "auth": {"mode": "jwt", "jwt_secret": SECRET},
                # The one that reads nothing does not answer pings either, and is to stay.
                "heartbeat": {"interval_seconds": 300},
                "backpressure": {"unsent_bytes": 4096},
                "history": {"max_jobs": 5000, "max_bytes": 8 << 20},
            }
        )
        # Without a limit: each stream is a connection of its own.
        connector = aiohttp.TCPConnector(limit=0)
        http = await closing.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        )
        redis = await closing.enter_async_context(Redis.from_url(server.url))
        playwright = await closing.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-dev-shm-usage"],
        )
        closing.push_async_callback(browser.close)
        stage = Stage(relay, http, redis)
        cast: list[Coroutine[Any, Any, None]] = [stage.work(), stage.stall()]
        cast += [stage.watch() for _ in range(WATCHERS)]
        cast += [stage.listen() for _ in range(STREAMS)]
        onlooker = await browser.new_page()
        await onlooker.goto(relay.admin)
        async with asyncio.TaskGroup() as tasks:
            playing = [tasks.create_task(part) for part in cast]
            await asyncio.sleep(seconds / 2)
            playing += [tasks.create_task(stage.poll()) for _ in range(POLLS)]
            await asyncio.sleep(seconds / 2)
            await stage.perform()
            await photograph(browser, relay, folder)
            for task in playing:
                task.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=310, help="how long there is traffic")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    given = parser.parse_args()
    asyncio.run(run(given.seconds, given.folder))
