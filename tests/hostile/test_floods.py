"""More of everything than one client should send, or than it cares to read."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.web.conftest import (
    CONTINUATION,
    PING,
    PONG,
    SOON_SECONDS,
    TEXT,
    RawClient,
    command,
    frame,
)

if TYPE_CHECKING:
    from tests.hostile.conftest import Target

MAX_SUBSCRIPTIONS = 1000
SETTINGS = {
    "limits": {
        "max_subscriptions": MAX_SUBSCRIPTIONS,
        "messages_per_second": 1000,
        "messages_burst": 1000,
        "max_errors": 10,
    },
    "backpressure": {"max_outbox_bytes": 2 * 1024 * 1024, "unsent_bytes": 16384},
}
SMALL_BUFFER_BYTES = 4096


async def cut_off_while_sending(client: RawClient, data: bytes) -> None:
    """Send this again and again, and read nothing, until the relay has had enough."""
    with suppress(ConnectionError):
        async with asyncio.timeout(SOON_SECONDS):
            while True:
                await client.send(data)
                await asyncio.sleep(0)


async def is_taken(client: RawClient, data: bytes) -> bool:
    """Whether the relay reads this; only silence shows that it does not."""
    try:
        async with asyncio.timeout(1):
            await client.send(data)
    except TimeoutError:
        return False
    return True


async def answered(client: RawClient, ref: int = 1) -> None:
    """The client is still served. Pings and answers before it are passed over."""
    await client.send(command("ping", None, ref=ref))
    while True:
        opcode, data = await client.frame()
        if opcode == TEXT and json.loads(data).get("ref") == ref:
            return


async def test_message_in_thousands_of_fragments_costs_its_bytes_only(
    target: Target,
) -> None:
    """A client sends a message one byte at a time, as each fragment may cost more to keep than its byte."""
    client = await target.websocket()
    message = json.dumps({"event": "ping", "data": "a" * 30_000}).encode()

    await client.send(frame(TEXT, message[:1], final=False))
    await client.send(
        b"".join(frame(CONTINUATION, bytes([byte]), final=False) for byte in message[1:])
    )
    await client.send(frame(CONTINUATION))

    assert (await client.message())["event"] == "pong"


async def test_fragments_without_end_are_ended_at_the_limit_of_one_message(target: Target) -> None:
    """A client begins a message and never ends it."""
    client = await target.websocket()
    await client.send(frame(TEXT, b"a", final=False))

    await client.send(frame(CONTINUATION, b"a", final=False) * 65_536)

    assert await client.close_code() == 1009


TINY = {
    "pings": frame(PING),
    "pongs": frame(PONG),
    "empty fragments": frame(CONTINUATION, final=False),
    "fragments of a byte": frame(CONTINUATION, b"a", final=False),
}


@pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)
async def test_tiny_frames_without_end_end_the_connection(target: Target, tiny: bytes) -> None:
    """A client sends nothing but the smallest frames there are, which no limit on size or on messages ends."""
    client = await target.websocket()
    await client.send(frame(TEXT, b'{"event":"ping"', final=False))

    flooding = asyncio.create_task(cut_off_while_sending(client, tiny * 10_000))

    assert await client.close_code() in (1008, 1009)
    client.socket.close()
    flooding.cancel()


async def test_pings_of_a_client_that_reads_no_answer_end_its_connection(target: Target) -> None:
    """A client asks for pong after pong and reads none, so that they pile up."""
    client = await target.raw(receive_buffer_bytes=SMALL_BUFFER_BYTES)
    await client.upgrade()

    await cut_off_while_sending(client, frame(PING, b"a" * 125) * 100)


async def test_answers_to_a_client_that_reads_none_end_its_connection(target: Target) -> None:
    """A client has its own large messages sent back and reads none of them."""
    client = await target.raw(receive_buffer_bytes=SMALL_BUFFER_BYTES)
    await client.upgrade()

    await cut_off_while_sending(client, command("ping", "a" * 60_000))


async def test_pongs_that_nobody_asked_for_are_passed_over(target: Target) -> None:
    """A client floods the relay with answers to questions that it was never asked."""
    client = await target.websocket()

    for _ in range(20):
        await client.send(frame(PONG, b"a" * 125) * 1000)

    await answered(client)


async def test_client_that_never_reads_is_closed_and_the_others_are_not(target: Target) -> None:
    """A client subscribes to a queue of large results and never reads one."""
    sleeper = await target.raw(receive_buffer_bytes=SMALL_BUFFER_BYTES)
    await sleeper.upgrade()
    await sleeper.send(command("subscribe-to-queue", {"queueName": "flood"}))
    await sleeper.until_event("subscribed")
    reader = await target.friend()
    await reader.send("subscribe-to-queue", {"queueName": "flood"})
    await reader.told("subscribed")

    for number in range(200):
        await target.publish(json.dumps({"result": "a" * 60_000}), f"large-{number}", "flood")
        assert (await reader.told("job-completed"))["data"]["jobId"] == f"large-{number}"

    assert await sleeper.close_code() == 1013


async def test_message_flood_is_answered_with_rate_limited_and_then_closed(target: Target) -> None:
    """A client sends messages as fast as it can."""
    client = await target.websocket()

    await client.send(command("ping", 1) * 3000)

    assert (await client.until_event("error"))["data"]["code"] == "rate-limited"
    assert await client.close_code() == 1008


async def test_errors_in_a_row_are_closed(target: Target) -> None:
    """A client tries one thing after the other, to see what is answered differently."""
    client = await target.websocket()

    await client.send(command("no-such-event", {}) * 10)

    assert await client.close_code() == 1008


async def test_subscriptions_are_bounded_however_they_are_asked_for(target: Target) -> None:
    """A client subscribes to more jobs than anybody needs, in batches and one by one."""
    client = await target.websocket()
    before = await target.daemon.metric("relay_subscriptions", kind="job")

    for batch in range(5):
        ids = [f"job-{batch}-{number}" for number in range(2000)]
        await client.send(command("subscribe-to-jobs", {"jobIds": ids}))
    answers = [await client.until_event("subscribed") for _ in range(5)]
    await client.send(command("subscribe-to-job", {"jobId": "one-more"}))
    error = await client.until_event("error")

    assert set(map(str, answers[-1]["data"]["jobs"].values())) == {
        "{'error': 'too-many-subscriptions'}"
    }
    assert error["data"]["code"] == "too-many-subscriptions"
    after = await target.daemon.metric("relay_subscriptions", kind="job")
    assert after - before == MAX_SUBSCRIPTIONS


async def test_subscriptions_that_come_and_go_leave_nothing(target: Target) -> None:
    """A client subscribes to ever new jobs and leaves them again, in case a name stays behind."""
    client = await target.websocket()
    before = await target.daemon.metric("relay_subscriptions", kind="job")

    for batch in range(20):
        ids = [f"{batch}-{number}-{'x' * 40}" for number in range(MAX_SUBSCRIPTIONS)]
        await client.send(command("subscribe-to-jobs", {"jobIds": ids}))
        await client.until_event("subscribed")
        await client.send(command("unsubscribe-from-jobs", {"jobIds": ids}))
        await client.until_event("unsubscribed")

    assert await target.daemon.metric("relay_subscriptions", kind="job") == before


async def test_ids_of_the_largest_message_are_answered_in_bounds(target: Target) -> None:
    """A client names as many ids as fit into one message, as each is answered with much more than it takes."""
    client = await target.websocket()
    ids = [f"{number:x}" for number in range(6000)]
    since = dict.fromkeys(ids[:900], "x")

    await client.send(command("subscribe-to-jobs", {"jobIds": ids, "since": since}))

    assert len((await client.until_event("subscribed"))["data"]["jobs"]) == len(ids)


async def test_random_bytes_instead_of_frames_end_the_connection(target: Target) -> None:
    """A client shakes hands and then sends noise."""
    client = await target.websocket()

    with_noise = asyncio.create_task(cut_off_while_sending(client, b"\xff" + os.urandom(65_535)))

    assert await client.close_code() == 1002
    client.socket.close()
    with_noise.cancel()


LISTENERS = pytest.mark.parametrize("admin", [False, True], ids=["public", "admin"])


@LISTENERS
@pytest.mark.parametrize("extra", ["", "Connection: upgrade\r\nUpgrade: foo\r\n"])
async def test_garbage_behind_a_request_is_not_kept(
    target: Target, admin: bool, extra: str
) -> None:
    """A client sends megabytes of nonsense behind a good request, on connection after connection."""
    for _ in range(12):
        client = await target.raw(admin=admin)
        await client.send(f"GET /livez HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n".encode())
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(2):
                for _ in range(400):
                    await client.send(b"x" * 65_536)
        client.reset()


async def test_garbage_behind_a_request_that_is_held_is_not_kept(target: Target) -> None:
    """A client has its answer held, so that the nonsense behind its request is not looked at meanwhile."""
    clients = [await target.raw() for _ in range(8)]
    for client in clients:
        await client.send(b"GET /jobs/held?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(SOON_SECONDS):
        while await target.daemon.metric("relay_subscriptions", kind="job") < len(clients):
            pass

    for client in clients:
        for _ in range(100):
            await client.send(b"x" * 65_536)


async def test_requests_piled_up_behind_each_other_are_not_kept(target: Target) -> None:
    """A client sends requests without end on one connection and reads no answer."""
    client = await target.raw(receive_buffer_bytes=SMALL_BUFFER_BYTES)
    requests = b"GET /jobs/x HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000

    while await is_taken(client, requests):
        pass
