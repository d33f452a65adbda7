"""A queue's jobs are read for who asks, and for its watchers however long Redis keeps them back."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError

from relay.upstream import queue_lookup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import pytest

# Far above what the tests take on a busy machine, far below what a human waits for.
SOON_SECONDS = 10.0
SINCE_MS = 1_700_000_000_000


class QueueDesk:
    """Queue lookups, and what they ask for; `jobs` is what the next reads bring, or the fault."""

    def __init__(self, *jobs: list[str] | Exception) -> None:
        self.answers = list(jobs)
        self.requested: list[list[str]] = []
        self.late: list[str] = []
        self.known: set[str] = set()
        self.since_ms: list[int] = []
        self.connected = True
        self.lookups = queue_lookup.QueueLookups(
            read=self._read,
            needs_lookup=lambda job_id, _: job_id not in self.known,
            request=self._request,
            on_late=self.late.extend,
            is_watched=lambda _: True,
            is_connected=lambda: self.connected,
        )

    async def _read(self, _: str, since_ms: int) -> list[str]:
        self.since_ms.append(since_ms)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def read(self) -> None:
        """Wait until jobs were asked for."""
        async with asyncio.timeout(SOON_SECONDS):
            while not self.requested:  # noqa: ASYNC110  what is waited for sets no event
                await asyncio.sleep(0.01)

    def _request(self, job_ids: Sequence[str], done: Callable[[], None]) -> None:
        self.requested.append(list(job_ids))
        self.known |= set(job_ids)
        done()


@asynccontextmanager
async def working(desk: QueueDesk) -> AsyncIterator[QueueDesk]:
    task = asyncio.ensure_future(desk.lookups.run())
    yield desk
    task.cancel()
    await asyncio.wait([task])


async def test_jobs_of_a_queue_that_are_not_known_are_looked_up() -> None:
    async with working(QueueDesk(["a", "b"])) as desk:
        desk.known = {"a"}
        answered = asyncio.Event()

        desk.lookups.request("q", answered.set)
        await asyncio.wait_for(answered.wait(), SOON_SECONDS)

    assert desk.requested == [["b"]]
    assert desk.late == []


async def test_queue_that_could_not_be_read_is_answered_and_read_for_its_watchers_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_lookup, "RETRY_SECONDS", 0.01)
    async with working(QueueDesk(RedisConnectionError("away"), ["a"])) as desk:
        answered = asyncio.Event()

        desk.lookups.request("q", answered.set)
        await asyncio.wait_for(answered.wait(), SOON_SECONDS)
        before = list(desk.requested)
        await desk.read()

    assert before == []
    assert desk.requested == [["a"]]
    assert desk.late == ["a"]


async def test_queue_that_was_unread_after_a_reconnect_is_read_since_then_for_its_watchers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_lookup, "RETRY_SECONDS", 0.01)
    away = RedisConnectionError("away")
    async with working(QueueDesk(away, away, ["a"])) as desk:
        desk.lookups.try_again(["q"], SINCE_MS)
        await desk.read()

    assert desk.since_ms == [SINCE_MS] * 3
    assert desk.requested == [["a"]]
    assert desk.late == ["a"]


async def test_queue_that_is_unread_when_the_link_goes_is_read_after_it_came_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_lookup, "RETRY_SECONDS", 0.01)
    async with working(QueueDesk(["a"])) as desk:
        desk.connected = False
        desk.lookups.try_again(["q"], SINCE_MS)
        answered = asyncio.Event()
        desk.lookups.request("q", answered.set)
        await asyncio.wait_for(answered.wait(), SOON_SECONDS)
        before = list(desk.requested)

        desk.connected = True
        await desk.read()

    assert before == []
    assert desk.since_ms == [SINCE_MS]
    assert desk.late == ["a"]
