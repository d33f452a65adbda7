"""The judge of the chaos run sees each thing that can go wrong, and excuses only what was announced."""

import random

import pytest

from tests.chaos.ledger import Job, Published, Told, View
from tests.chaos.verdict import Verdict, judge
from tests.chaos.watcher import Watcher

ENDED_AT = 10.0


@pytest.fixture
def job() -> Job:
    """A job of two events, which Redis acknowledged."""
    return Job(
        id="job",
        queue="q",
        events=[
            Published(n=1, offered_at=5.0, acknowledged=True, id="1-0"),
            Published(n=2, offered_at=ENDED_AT, acknowledged=True, id="2-0"),
        ],
    )


def told(n: int, event_id: str, connection: int = 1) -> Told:
    return Told(connection, n, "job-completed" if n == 2 else "job-progress", event_id)


def watcher(*seen: Told) -> Watcher:
    """A client that watches the job and was told this."""
    client = Watcher("client", "ws://127.0.0.1:1/", random.Random(0), None)
    client.asked.add("job")
    client.views["job"] = View(told=list(seen))
    return client


def verdict(job: Job, client: Watcher, *held: str, lossy: bool = False) -> Verdict:
    return judge([job], [client], {"job": held}, lossy=lossy)


def test_a_client_that_was_told_all_is_good(job: Job) -> None:
    found = verdict(job, watcher(told(1, "1-0"), told(2, "2-0")), "1-0", "2-0")

    assert (found.owed, found.failures, found.announced) == (1, [], 0)


def test_an_end_told_again_after_a_reconnect_is_the_same_end(job: Job) -> None:
    found = verdict(job, watcher(told(2, "2-0"), told(2, "2-0", connection=2)), "1-0", "2-0")

    assert found.failures == []


@pytest.mark.parametrize(
    "seen", [[], [told(1, "1-0")], [told(2, "2-0"), told(1, "1-0", connection=2)]]
)
def test_an_end_that_redis_holds_is_lost_even_if_a_gap_was_announced(
    job: Job, seen: list[Told]
) -> None:
    client = watcher(*seen)
    client.gaps_at.append(ENDED_AT + 1)

    found = verdict(job, client, "1-0", "2-0")

    assert len(found.lost) == 1


@pytest.mark.parametrize(("announced_at", "lost"), [(ENDED_AT - 1, 1), (ENDED_AT + 1, 0)])
def test_an_end_that_redis_lost_must_have_been_announced_after_it(
    job: Job, announced_at: float, lost: int
) -> None:
    client = watcher(told(1, "1-0"))
    client.views["job"].announced_at.append(announced_at)

    found = verdict(job, client, "1-0", lossy=True)

    assert (len(found.lost), found.announced, found.redis_lost) == (lost, 1 - lost, 1)


def test_two_ids_for_one_end_are_a_fault(job: Job) -> None:
    job.events[-1].attempts = 2

    found = verdict(job, watcher(told(2, "2-0"), told(2, "3-0", connection=2)), "1-0", "2-0", "3-0")

    assert any("ended with 2 ids" in fault for fault in found.faults)
    assert any("appended twice" in fault for fault in found.faults)


def test_what_redis_lost_is_a_fault_where_it_must_not_lose_anything(job: Job) -> None:
    found = verdict(job, watcher(told(2, "2-0")), "2-0")

    assert any("Redis lost" in fault for fault in found.faults)


def test_what_nobody_published_is_a_fault(job: Job) -> None:
    client = watcher(told(2, "2-0"))
    client.views["ghost"] = View()

    assert len(verdict(job, client, "1-0", "2-0").faults) == 1


def test_a_watched_queues_jobs_are_owed_too(job: Job) -> None:
    client = Watcher("client", "ws://127.0.0.1:1/", random.Random(0), "q")

    found = verdict(job, client, "1-0", "2-0")

    assert (found.owed, len(found.lost)) == (1, 1)
