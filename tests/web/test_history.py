"""`GET /jobs/{jobId}/history`: all that is held of a job, as every other transport told it."""

from typing import Any

import pytest

from tests.web.conftest import Running, Serve


async def get(relay: Running, path: str) -> tuple[int, Any]:
    """Status and body of the answer."""
    async with relay.http.get(f"{relay.public}{path}") as answer:
        return answer.status, await answer.json()


async def test_events_are_told_oldest_first(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    await relay.publish(progress=10, data={"step": 1}, eventId="a")
    await relay.publish(event="job-stalled", eventId="b")
    await relay.publish(event="job-completed", result=[1], processingTime=5, eventId="c")
    await relay.known("job", status="completed")

    status, body = await get(relay, "/jobs/job/history")

    assert status == 200
    assert body == {
        "events": [
            {
                "event": "job-progress",
                "id": "a",
                "data": {
                    "jobId": "job", "progress": 10, "status": "active", "queueName": "q",
                    "data": {"step": 1},
                },
            },
            {"event": "job-stalled", "id": "b", "data": {"jobId": "job", "queueName": "q"}},
            {
                "event": "job-completed",
                "id": "c",
                "data": {"jobId": "job", "result": [1], "processingTime": 5, "queueName": "q"},
            },
        ]
    }  # fmt: skip


async def test_queue_name_narrows_the_events(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    await relay.publish("job", "q1", progress=1)
    await relay.publish("job", "q2", progress=2)
    await relay.known("job", progress=2)

    _, all_of_it = await get(relay, "/jobs/job/history")
    _, narrowed = await get(relay, "/jobs/job/history?queueName=q1")

    assert [event["data"]["progress"] for event in all_of_it["events"]] == [1, 2]
    assert [event["data"]["progress"] for event in narrowed["events"]] == [1]


@pytest.mark.parametrize("backend", ["memory", "off"])
async def test_nothing_known_is_not_found(serve: Serve, backend: str) -> None:
    relay = await serve({"history.backend": backend})

    status, body = await get(relay, "/jobs/job/history")

    assert (status, body["error"]["code"]) == (404, "not-found")
