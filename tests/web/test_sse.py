"""Event streams: what a listener is told, how it comes back, and that a stalled one disturbs nobody."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self
from uuid import uuid4

import aiohttp
import pytest

from relay import Publisher
from relay.demo.embedded import EmbeddedRedis
from relay.web import sse
from tests.tools import require_tool
from tests.web.conftest import NO_PROXY, SOON_SECONDS, Json, RawClient, Running, Serve

EVERY_LOOP = True

NARROW = {
    "backpressure.high_water_bytes": 4096,
    "backpressure.unsent_bytes": 4096,
    "limits.max_payload_bytes": 65536,
}
PADDING = "x" * 4000


class Told(dict[str, str]):
    """The fields of one event as they were written; a comment has none."""

    @property
    def name(self) -> str:
        return self["event"]

    @property
    def body(self) -> Json:
        body: Json = json.loads(self["data"])
        return body


def parsed(block: bytes) -> Told:
    """The fields of one block, each at most once; WHATWG HTML §9.2.6."""
    told = Told()
    for line in block.decode().rstrip("\n").split("\n"):
        assert "\r" not in line
        name, _, value = line.partition(":")
        assert name not in told
        if name:
            told[name] = value.removeprefix(" ")
    return told


class Listener:
    """Reads a stream event by event."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def block(self) -> Told:
        """The next block, a comment or the `retry:` at the start included."""
        async with asyncio.timeout(SOON_SECONDS):
            return parsed(await self.response.content.readuntil(b"\n\n"))

    async def event(self) -> Told:
        """The next event."""
        while "event" not in (told := await self.block()):
            pass
        return told

    async def until(self, name: str) -> Told:
        """Read on until an event of that name."""
        while (told := await self.event()).name != name:
            pass
        return told

    async def subscribed(self) -> Self:
        """Read on until the subscription stands."""
        await self.until("subscribed")
        return self

    async def ended(self) -> None:
        """The stream holds nothing more."""
        async with asyncio.timeout(SOON_SECONDS):
            assert await self.response.content.read() == b""


@asynccontextmanager
async def listen(
    relay: Running, path: str, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Listener]:
    """A stream that was granted, until the end of the block."""
    async with relay.http.get(f"{relay.public}{path}", headers=headers) as response:
        assert response.status == 200, await response.text()
        yield Listener(response)


async def refused(
    relay: Running, path: str, headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Status and code of an answer that is no stream."""
    async with relay.http.get(f"{relay.public}{path}", headers=headers) as response:
        return response.status, (await response.json())["error"]["code"]


async def stalled_listener(relay: Running, path: str) -> RawClient:
    """A client that has its stream and reads no further than the first bytes."""
    client = await relay.raw(receive_buffer_bytes=4096)
    await client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (await client.answer()).status == 200
    await relay.metric_reaches(1, "relay_connections", transport="sse")
    return client


async def rest(client: RawClient) -> list[Told]:
    """All that is left of a stream, up to its end."""
    await client.ended()
    blocks = client._unread.split(b"\n\n")
    return [told for told in map(parsed, blocks[:-1]) if "event" in told]


# --- the answer ------------------------------------------------------------------------------------


async def test_answer_is_a_stream_that_no_proxy_holds_back(serve: Serve) -> None:
    relay = await serve()
    async with listen(relay, "/jobs/job/events") as listener:
        first = await listener.block()
        second = await listener.block()

    headers = listener.response.headers
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Accel-Buffering"] == "no"
    assert 1000 <= int(first["retry"]) <= 3000
    assert second.name == "relay-status"
    assert second.body["draining"] is False


async def test_job_is_told_from_its_start_to_its_end(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    async with listen(relay, "/jobs/job/events") as listener:
        subscribed = await listener.until("subscribed")
        await relay.publish(progress=40, data={"text": "a\nb\r\n"})
        progress = await listener.event()
        await relay.publish(event="job-completed", result=[1])
        completed = await listener.event()

    assert subscribed.body == {
        "jobId": "job",
        "jobs": {"job": {"known": False, "recovered": False, "replayed": 0}},
    }
    assert "id" not in subscribed
    assert (progress.name, progress.body["data"]) == ("job-progress", {"text": "a\nb\r\n"})
    assert (completed.name, completed.body["result"]) == ("job-completed", [1])
    assert (await relay.known("job"))["id"] == completed["id"] != progress["id"]


async def test_job_that_ended_before_is_seen_to_end(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    await relay.publish(event="job-failed", error="disk full")
    await relay.known("job", status="failed")
    async with listen(relay, "/jobs/job/events") as listener:
        subscribed = await listener.until("subscribed")
        told = await listener.event()

    assert subscribed.body["jobs"]["job"]["known"] is True
    assert (told.name, told.body["error"]) == ("job-failed", "disk full")


async def test_task_that_ended_unheard_is_read_from_redis(serve: Serve) -> None:
    relay = await serve({"source.tasks.kind": "celery"})
    await relay.subscribed()
    key = "celery-task-meta-unheard"
    await relay.redis.set(key, json.dumps({"status": "SUCCESS", "result": 7, "task_id": "unheard"}))
    async with listen(relay, "/jobs/unheard/events") as listener:
        told = await (await listener.subscribed()).event()
    await relay.redis.delete(key)

    assert (told.name, told.body["result"]) == ("job-completed", 7)


@pytest.mark.tool
async def test_curl_reads_the_stream(serve: Serve) -> None:
    curl_program = require_tool("curl", hint="apt-get install curl")
    relay = await serve()
    await relay.subscribed()
    curl = await asyncio.create_subprocess_exec(
        curl_program, "--silent", "--no-buffer", f"{relay.public}/jobs/job/events",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert curl.stdout is not None
    async with asyncio.timeout(SOON_SECONDS):
        while not (await curl.stdout.readuntil(b"\n\n")).startswith(b"event: subscribed\n"):
            pass
        await relay.publish(progress=10)
        told = parsed(await curl.stdout.readuntil(b"\n\n"))
        curl.terminate()
        await curl.wait()

    assert (told.name, told.body["progress"]) == ("job-progress", 10)
    await relay.metric_reaches(0, "relay_connections", transport="sse")


# --- coming back -----------------------------------------------------------------------------------


async def with_history(serve: Serve) -> tuple[Running, list[str]]:
    """A relay that holds three events of `one` and an end of `two`; the ids of the three."""
    relay = await serve()
    await relay.subscribed()
    ids = []
    for number in (1, 2, 3):
        await relay.publish("one", progress=number)
        ids.append((await relay.known("one", progress=number))["id"])
    await relay.publish("two", event="job-completed", result="two")
    await relay.known("two", status="completed")
    return relay, ids


async def test_events_after_the_last_one_seen_are_replayed(serve: Serve) -> None:
    relay, ids = await with_history(serve)
    async with listen(relay, "/jobs/one/events", {"Last-Event-ID": ids[0]}) as listener:
        subscribed = await listener.until("subscribed")
        told = [await listener.event() for _ in range(2)]

    assert subscribed.body["jobs"]["one"] == {"known": True, "recovered": True, "replayed": 2}
    assert [event["id"] for event in told] == ids[1:]


async def test_header_of_an_event_source_wins_over_the_query(serve: Serve) -> None:
    relay, ids = await with_history(serve)
    path = f"/jobs/one/events?lastEventId={ids[0]}"
    async with listen(relay, path) as listener:
        by_query = await (await listener.subscribed()).event()
    async with listen(relay, path, {"Last-Event-ID": ids[1]}) as listener:
        by_header = await (await listener.subscribed()).event()

    assert (by_query["id"], by_header["id"]) == (ids[1], ids[2])


async def test_job_that_bears_the_id_is_replayed_and_every_other_gets_its_snapshot(
    serve: Serve,
) -> None:
    relay, ids = await with_history(serve)
    headers = {"Last-Event-ID": ids[0]}
    async with listen(relay, "/events?jobs=two,one,unknown", headers) as listener:
        subscribed = await listener.until("subscribed")
        told = [await listener.event() for _ in range(3)]

    stands = subscribed.body["jobs"]
    assert stands["one"] == {"known": True, "recovered": True, "replayed": 2}
    assert stands["two"] == {"known": True, "recovered": False, "replayed": 0}
    assert stands["unknown"]["known"] is False
    assert {event.body["jobId"]: event["id"] for event in told if event.body["jobId"] == "one"} == {
        "one": ids[2]
    }
    assert [event.name for event in told if event.body["jobId"] == "two"] == ["job-completed"]


async def test_id_that_two_jobs_bear_hides_the_end_of_neither(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    await relay.publish("one", progress=1, eventId="7")
    await relay.publish("two", event="job-completed", eventId="7")
    await relay.known("two", status="completed")
    async with listen(relay, "/events?jobs=one,two", {"Last-Event-ID": "7"}) as listener:
        subscribed = await listener.until("subscribed")
        told = [await listener.event() for _ in range(2)]

    assert [stand["recovered"] for stand in subscribed.body["jobs"].values()] == [False, False]
    assert {event.name for event in told} == {"job-progress", "job-completed"}


async def test_id_that_no_header_can_hold_is_left_out(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    async with listen(relay, "/jobs/job/events") as listener:
        await listener.subscribed()
        await relay.publish(progress=1, eventId="a\nevent: forged\n\n")
        told = await listener.event()
        await relay.publish(progress=2, eventId="ü 2")
        next_told = await listener.event()

    assert (told.name, told.body["progress"]) == ("job-progress", 1)
    assert "id" not in told
    assert next_told["id"] == "ü 2"


async def test_relay_that_starts_late_replays_what_redis_holds(
    serve: Serve, shared_redis: EmbeddedRedis
) -> None:
    job_id = f"late-{uuid4()}"
    async with Publisher(shared_redis.url, history=True) as publisher:
        for number in (1, 2):
            await publisher.progress(job_id, number, queue="q")
        await publisher.completed(job_id, "done", queue="q")
    relay = await serve({"history.backend": "redis"})
    await relay.subscribed()
    async with relay.http.get(f"{relay.public}/jobs/{job_id}/history") as answer:
        first, *later = [event["id"] for event in (await answer.json())["events"]]
    other = await serve({"history.backend": "redis"})
    await other.subscribed()
    path = f"/events?jobs=unknown,{job_id}"
    async with listen(other, path, {"Last-Event-ID": first}) as listener:
        subscribed = await listener.until("subscribed")
        told = [await listener.event() for _ in later]

    stand = {"known": True, "recovered": True, "replayed": 2}
    assert subscribed.body["jobs"][job_id] == stand
    assert [event["id"] for event in told] == later
    assert told[-1].name == "job-completed"


# --- what is asked for -----------------------------------------------------------------------------


async def test_queue_is_told_with_its_snapshot_where_asked_for(serve: Serve) -> None:
    relay, _ = await with_history(serve)
    async with (
        listen(relay, "/events?queues=q&snapshot=true") as asked,
        listen(relay, "/events?queues=q") as unasked,
    ):
        await asked.subscribed()
        snapshot = [await asked.event(), await asked.event()]
        await unasked.subscribed()
        await relay.publish("new", progress=5)
        first = await unasked.event()

    assert sorted(event.body["jobId"] for event in snapshot) == ["one", "two"]
    assert first.body["jobId"] == "new"


async def test_queue_name_narrows_jobs_to_it(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    async with listen(relay, "/jobs/shared/events?queueName=q1") as listener:
        await listener.subscribed()
        await relay.publish("shared", "q2", progress=2)
        await relay.publish("shared", "q1", progress=1)
        told = await listener.event()

    assert told.body["queueName"] == "q1"


async def test_repeated_parameter_may_hold_commas(serve: Serve) -> None:
    relay = await serve()
    async with listen(relay, "/events?jobs=a,b&jobs=c") as listener:
        subscribed = await listener.until("subscribed")

    assert subscribed.body["jobIds"] == ["a,b", "c"]


async def test_job_of_a_stream_that_cannot_be_one_is_refused_in_its_place(serve: Serve) -> None:
    relay = await serve()
    async with listen(relay, f"/events?jobs=good,{'x' * 257}") as listener:
        subscribed = await listener.until("subscribed")

    assert subscribed.body["jobs"]["x" * 257] == {"error": "invalid-job-id"}
    assert subscribed.body["jobs"]["good"]["known"] is False


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/events", "bad-request"),
        ("/events?jobs=,", "bad-request"),
        ("/events?queues=q&snapshot=maybe", "bad-request"),
        ("/events?queues=%00", "invalid-queue-name"),
        ("/events?jobs=%00", "invalid-job-id"),
        ("/events?jobs=a&queueName=%00", "invalid-queue-name"),
        ("/jobs/%00/events", "invalid-job-id"),
        ("/events?jobs=a,b&queues=q", "too-many-subscriptions"),
    ],
)
async def test_fault_in_the_request_is_answered_before_any_stream(
    serve: Serve, path: str, code: str
) -> None:
    relay = await serve({"limits.max_subscriptions": 2})

    assert await refused(relay, path) == (400, code)


async def test_pages_are_told_as_their_origin_allows(serve: Serve) -> None:
    relay = await serve()
    page = {"Origin": "http://localhost:5173"}
    async with listen(relay, "/jobs/job/events", page) as listener:
        allowed = listener.response.headers["Access-Control-Allow-Origin"]
    foreign = await refused(relay, "/jobs/job/events", {"Origin": "https://evil.example"})

    assert allowed == page["Origin"]
    assert foreign == (403, "forbidden")


async def test_only_get_opens_a_stream(serve: Serve) -> None:
    relay = await serve()

    async with relay.http.head(f"{relay.public}/jobs/job/events") as answer:
        assert answer.status == 405


# --- the connection --------------------------------------------------------------------------------


async def test_connection_that_served_documents_may_become_a_stream(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    await relay.publish(progress=1)
    await relay.known("job", progress=1)
    client = await relay.raw()
    request = "GET /jobs/job{} HTTP/1.1\r\nHost: localhost\r\n\r\n"

    await client.send(request.format("").encode())
    document = await client.answer()
    await client.send((request.format("/events") + request.format("")).encode())
    stream = await client.answer()
    while (told := parsed(await client._until(b"\n\n"))).get("event") != "job-progress":
        pass

    assert (document.status, stream.status) == (200, 200)
    assert told.body["progress"] == 1


async def test_stream_is_counted_once_and_no_more_when_its_client_has_gone(serve: Serve) -> None:
    relay = await serve({"limits.max_connections": 2})
    client = await relay.raw()
    await client.send(b"GET /jobs/job/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await client.answer()
    while b"event: subscribed" not in await client._until(b"\n\n"):
        pass

    answers = []
    for other in (await relay.raw(), await relay.raw()):
        await other.send(b"GET /jobs/job HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answers.append((await other.answer()).status)
    client.socket.shutdown(socket.SHUT_WR)
    await client.ended()
    await relay.metric_reaches(0, "relay_connections", transport="sse")

    assert answers == [404, 503]
    assert await refused(relay, "/jobs/job") == (404, "not-found")
    assert await relay.metric("relay_connections_opened_total", transport="sse") == 1
    assert await relay.metric("relay_connections_closed_total", reason="client_closed") == 1
    assert await relay.metric("relay_subscriptions", kind="job") == 0


async def test_streams_count_for_their_address(serve: Serve) -> None:
    relay = await serve(NO_PROXY | {"limits.max_connections_per_address": 1})
    async with listen(relay, "/jobs/job/events") as listener:
        await listener.subscribed()
        answer = await refused(relay, "/jobs/job/events")

    assert answer == (429, "rate-limited")


async def test_draining_relay_says_when_to_come_back_and_ends_the_stream(serve: Serve) -> None:
    relay = await serve({"server.drain_seconds": 0.1})
    await relay.subscribed()
    async with listen(relay, "/jobs/job/events") as listener:
        await listener.subscribed()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(relay.relay.drain())
            status, farewell = await listener.event(), await listener.event()
            await listener.ended()

    assert status.body["draining"] is True
    assert int(status["retry"]) == status.body["retryAfterMs"]
    assert farewell.name == "relay-close"
    assert farewell.body == {"code": 1012, "reason": "the relay is restarting"}
    await relay.metric_reaches(1, "relay_connections_closed_total", reason="restarting")


async def test_idle_stream_is_sent_comments_and_lives(serve: Serve) -> None:
    relay = await serve({"heartbeat.interval_seconds": 0.1, "heartbeat.timeout_seconds": 0.2})
    await relay.subscribed()
    async with listen(relay, "/jobs/job/events") as listener:
        await listener.subscribed()
        comments = [await listener.block() for _ in range(8)]

    assert comments == [{}] * 8
    assert await relay.metric("relay_connections_closed_total", reason="heartbeat_timeout") == 0


async def test_stream_whose_output_stays_unsent_is_dead(serve: Serve) -> None:
    relay = await serve(
        NARROW | {"heartbeat.interval_seconds": 0.2, "heartbeat.timeout_seconds": 0.3}
    )
    await relay.subscribed()
    await stalled_listener(relay, "/events?queues=q")

    async with asyncio.timeout(SOON_SECONDS):
        number = 0
        while await relay.metric("relay_connections_closed_total", reason="heartbeat_timeout") < 1:
            await relay.publish(f"job-{number % 50}", progress=number % 100, data=PADDING)
            number += 1


# --- slow listeners --------------------------------------------------------------------------------


async def test_stalled_listener_is_conflated_while_a_healthy_one_sees_every_event(
    serve: Serve,
) -> None:
    count = 300
    relay = await serve(NARROW)
    await relay.subscribed()
    stalled = await stalled_listener(relay, "/jobs/job/events")
    seen: list[Told] = []
    async with listen(relay, "/jobs/job/events") as healthy:
        await healthy.subscribed()
        for number in range(1, count + 1):
            await relay.publish(progress=number / 10, data=PADDING)
            seen.append(await healthy.event())
        await relay.publish(event="job-completed", result="done")
        seen.append(await healthy.event())
    conflated = await relay.metric("relay_conflated_total")
    told: list[Told] = []
    while not told or told[-1].name != "job-completed":
        block = parsed(await stalled._until(b"\n\n"))
        told += [block] if block.get("event", "").startswith("job-") else []

    every = [number / 10 for number in range(1, count + 1)]
    progress = [event.body["progress"] for event in told[:-1]]
    assert [event.body["progress"] for event in seen[:-1]] == every
    assert progress == sorted(set(progress))
    assert progress[-1] == count / 10, "the newest is never lost"
    assert len(progress) + conflated == count
    assert conflated > 0
    assert await relay.metric("relay_outbox_bytes") == 0


async def test_listener_whose_outbox_is_full_is_told_so_behind_what_it_was_sent(
    serve: Serve,
) -> None:
    relay = await serve(NARROW | {"backpressure.max_outbox_bytes": 131072})
    await relay.subscribed()
    stalled = await stalled_listener(relay, "/events?queues=q")
    ends = 0

    async with asyncio.timeout(SOON_SECONDS):
        while await relay.metric("relay_subscriptions", kind="queue"):
            # Ends are never conflated, so they pile up.
            await relay.publish(f"job-{ends}", event="job-completed", result=PADDING)
            ends += 1
    *told, farewell = [event for event in await rest(stalled) if event.name != "relay-status"]

    assert farewell.name == "relay-close"
    assert farewell.body == {"code": 1013, "reason": "slow consumer"}
    ended = [event.body["jobId"] for event in told if event.name == "job-completed"]
    assert ended == [f"job-{number}" for number in range(len(ended))]
    await relay.metric_reaches(1, "relay_slow_consumers_closed_total")
    assert await relay.metric("relay_outbox_bytes") == 0


async def test_listener_that_never_reads_its_end_is_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "CLOSE_TIMEOUT_SECONDS", 0.1)
    relay = await serve(NARROW | {"backpressure.max_outbox_bytes": 131072})
    await relay.subscribed()
    await stalled_listener(relay, "/events?queues=q")

    async with asyncio.timeout(SOON_SECONDS):
        number = 0
        while await relay.metric("relay_connections", transport="sse"):
            await relay.publish(f"job-{number}", event="job-completed", result=PADDING)
            number += 1

    assert await relay.metric("relay_slow_consumers_closed_total") == 1
