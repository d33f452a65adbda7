"""An upgraded socket: every close code, the close handshake, and clients that do not keep up."""

import asyncio
import json
import select
import socket

import pytest
from websockets.asyncio.client import ClientConnection, connect

from relay.core.closing import CloseReason
from relay.core.session import Session
from relay.demo.embedded import EmbeddedRedis
from relay.web import websocket
from tests.web.conftest import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    SOON_SECONDS,
    TEXT,
    Json,
    RawClient,
    Running,
    Serve,
    command,
    frame,
)

EVERY_LOOP = True

MAX_MESSAGE_BYTES = 100
UNREADABLE = b"\xff" * 65536


def close(code: int, text: str = "") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + text.encode())


def message_of(size: int) -> bytes:
    """A `ping` that is so many bytes long."""
    empty = len(json.dumps({"event": "ping", "data": ""}))
    return json.dumps({"event": "ping", "data": "x" * (size - empty)}).encode()


# Talking


async def test_first_message_tells_who_one_is_and_how_the_relay_stands(serve: Serve) -> None:
    relay = await serve({"heartbeat.interval_seconds": 30})
    client = await relay.raw()

    await client.upgrade()
    message = await client.message()

    assert message["event"] == "relay-status"
    assert message["data"].pop("connectionId")
    assert message["data"].pop("redis") in ("connected", "disconnected")
    assert message["data"] == {
        "protocol": 1,
        "heartbeatSeconds": 30,
        "gap": False,
        "draining": False,
    }


@pytest.mark.parametrize("backend", ["off", "memory"])
async def test_first_subscription_to_redis_is_a_gap_to_who_watched_before_it_alone(
    own_redis: EmbeddedRedis, serve: Serve, backend: str
) -> None:
    own_redis.kill()
    relay = await serve(
        {
            "redis.url": own_redis.url,
            "redis.backoff_max_seconds": 0.05,
            "history.backend": backend,
        }
    )
    watcher, bystander = [await relay.raw() for _ in range(2)]
    for client in (watcher, bystander):
        await client.upgrade()
        await client.until("relay-status", redis="disconnected")
    await watcher.send(command("subscribe-to-job", {"jobId": "job"}))
    await watcher.until("subscribed")

    own_redis.start()
    told = [
        await client.until("relay-status", redis="connected") for client in (watcher, bystander)
    ]

    assert [status["data"]["gap"] for status in told] == [True, False]
    assert await relay.metric("relay_gaps_total") == 1
    assert await relay.metric("relay_redis_reconnects_total") == 0


async def test_everybody_is_told_of_the_loss_of_redis_and_of_the_gap_after_it(
    own_redis: EmbeddedRedis, serve: Serve
) -> None:
    relay = await serve({"redis.url": own_redis.url, "redis.backoff_max_seconds": 0.05})
    clients = [await relay.websocket() for _ in range(2)]

    own_redis.kill()
    lost = [await client.until("relay-status", redis="disconnected") for client in clients]
    own_redis.start()
    back = [await client.until("relay-status", redis="connected") for client in clients]
    newcomer = await relay.raw()
    await newcomer.upgrade()

    assert [status["data"]["gap"] for status in lost] == [False, False]
    assert [status["data"]["gap"] for status in back] == [True, True]
    assert (await newcomer.until("relay-status"))["data"]["gap"] is False


async def test_connections_have_ids_of_their_own(serve: Serve) -> None:
    relay = await serve()
    one, other = await relay.raw(), await relay.raw()

    await one.upgrade()
    await other.upgrade()
    ids = {(await client.message())["data"]["connectionId"] for client in (one, other)}

    assert len(ids) == 2


async def test_foreign_client_sees_a_job_from_its_start_to_its_end(serve: Serve) -> None:
    relay = await serve()
    await relay.subscribed()
    async with connect(relay.websocket_url) as client:
        await client.recv()
        await client.send('{"event":"subscribe-to-job","data":{"jobId":"job"}}')
        subscribed = json.loads(await client.recv())
        await relay.publish(event="job-progress", progress=40, status="active")
        progress = json.loads(await client.recv())
        await relay.publish(event="job-completed", result={"n": 1})
        completed = json.loads(await client.recv())

    assert subscribed["event"] == "subscribed"
    assert progress["event"] == "job-progress"
    assert progress["data"] == {
        "jobId": "job", "queueName": "q", "progress": 40, "status": "active"
    }  # fmt: skip
    assert (completed["event"], completed["data"]["result"]) == ("job-completed", {"n": 1})
    assert progress["id"] != completed["id"]


@pytest.mark.parametrize("data", [b"", b"x", b"\x00\xff" * 62])
async def test_ping_is_answered_with_a_pong_of_the_same_data(serve: Serve, data: bytes) -> None:
    client = await (await serve()).websocket()

    await client.send(frame(PING, data))

    assert await client.frame() == (PONG, data)


async def test_foreign_ping_is_answered(serve: Serve) -> None:
    relay = await serve()
    async with connect(relay.websocket_url, ping_interval=None) as client:
        async with asyncio.timeout(SOON_SECONDS):
            latency_seconds = await (await client.ping())

    assert latency_seconds >= 0


async def test_unasked_pong_is_no_fault(serve: Serve) -> None:
    client = await (await serve()).websocket()

    await client.send(frame(PONG, b"x") + command("ping", 1))

    assert (await client.message())["event"] == "pong"


async def test_messages_in_one_segment_are_answered_in_order(serve: Serve) -> None:
    client = await (await serve()).websocket()

    await client.send(b"".join(command("ping", number, ref=number) for number in range(20)))
    answers = [await client.message() for _ in range(20)]

    assert [(answer["data"], answer["ref"]) for answer in answers] == [
        (number, number) for number in range(20)
    ]


async def test_message_may_come_byte_by_byte(serve: Serve) -> None:
    client = await (await serve()).websocket()
    received = asyncio.Event()  # something else for the loop to do between the segments

    for byte in command("ping", "whole"):
        await client.send(bytes([byte]))
        asyncio.get_running_loop().call_soon(received.set)
        await received.wait()

    assert (await client.message())["data"] == "whole"


async def test_message_may_come_in_fragments_with_a_ping_between(serve: Serve) -> None:
    client = await (await serve()).websocket()
    text = '{"event":"ping","data":"é"}'.encode()

    await client.send(frame(TEXT, text[:24], final=False))
    await client.send(frame(PING, b"between"))
    await client.send(frame(CONTINUATION, text[24:]))

    assert await client.frame() == (PONG, b"between")
    assert (await client.message())["data"] == "é"


async def test_answers_keep_the_order_of_the_requests_while_redis_is_asked(serve: Serve) -> None:
    relay = await serve({"source.tasks.kind": "celery"})
    await relay.subscribed()
    client = await relay.websocket()

    await client.send(
        command("subscribe-to-job", {"jobId": "unknown"}, ref=1)
        + command("ping", ref=2)
        + command("subscribe-to-job", {"jobId": "other"}, ref=3)
        + command("ping", ref=4)
    )
    await client.send(command("ping", ref=5))

    assert [(await client.message())["ref"] for _ in range(5)] == [1, 2, 3, 4, 5]


# Close codes


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        pytest.param(frame(TEXT, b"{}", masked=False), 1002, "protocol_error", id="unmasked"),
        pytest.param(frame(TEXT, b"{}", flags=0x40), 1002, "protocol_error", id="reserved bit"),
        pytest.param(frame(3), 1002, "protocol_error", id="reserved opcode"),
        pytest.param(frame(CONTINUATION), 1002, "protocol_error", id="continues nothing"),
        pytest.param(frame(PING, b"x" * 126), 1002, "protocol_error", id="long control frame"),
        pytest.param(close(1005), 1002, "protocol_error", id="code that no frame may bear"),
        pytest.param(frame(CLOSE, b"\x03"), 1002, "protocol_error", id="half a code"),
        pytest.param(frame(BINARY, b"{}"), 1003, "binary_frame", id="binary"),
        pytest.param(frame(TEXT, b"\xff"), 1007, "bad_utf8", id="not UTF-8"),
        pytest.param(
            frame(TEXT, message_of(MAX_MESSAGE_BYTES + 1)), 1009, "message_too_big", id="too big"
        ),
        pytest.param(
            frame(TEXT, b"x" * MAX_MESSAGE_BYTES, final=False) + frame(CONTINUATION, b"x"),
            1009,
            "message_too_big",
            id="too big in fragments",
        ),
        pytest.param(
            frame(TEXT, b"x" * 70000)[:14], 1009, "message_too_big", id="too big by its header"
        ),
    ],
)
async def test_violation_is_answered_with_its_code_and_counted(
    serve: Serve, data: bytes, code: int, reason: str
) -> None:
    relay = await serve({"limits.max_message_bytes": MAX_MESSAGE_BYTES})
    client = await relay.websocket()

    await client.send(data)
    received = await client.close_code()
    client.socket.close()

    assert received == code
    await relay.metric_reaches(1, "relay_connections_closed_total", reason=reason)


async def test_message_of_exactly_the_limit_is_legal(serve: Serve) -> None:
    relay = await serve({"limits.max_message_bytes": MAX_MESSAGE_BYTES})
    client = await relay.websocket()

    await client.send(frame(TEXT, message_of(MAX_MESSAGE_BYTES)))

    assert (await client.message())["event"] == "pong"


async def test_message_before_a_violation_in_the_same_segment_is_answered(serve: Serve) -> None:
    client = await (await serve()).websocket()

    await client.send(command("ping", 1) + frame(TEXT, masked=False))

    assert (await client.message())["event"] == "pong"
    assert await client.close_code() == 1002


async def test_close_frame_reaches_a_peer_that_goes_on_sending_what_cannot_be_read(
    serve: Serve,
) -> None:
    client = await (await serve()).websocket()

    await client.send(frame(TEXT, masked=False))
    for _ in range(16):
        await client.send(UNREADABLE)

    assert await client.close_code() == 1002
    await client.ended()


async def test_too_many_errors_in_a_row_are_answered_and_then_closed(serve: Serve) -> None:
    relay = await serve({"limits.max_errors": 3})
    client = await relay.websocket()

    await client.send(b"".join(frame(TEXT, b"junk") for _ in range(4)))
    answers = [await client.message() for _ in range(3)]

    assert [answer["data"]["code"] for answer in answers] == ["bad-request"] * 3
    assert await client.close_code() == 1008


async def test_good_message_ends_the_row_of_errors(serve: Serve) -> None:
    relay = await serve({"limits.max_errors": 3})
    client = await relay.websocket()
    row = frame(TEXT, b"junk") * 2 + command("ping")

    await client.send(row * 3)
    answers = [await client.message() for _ in range(9)]

    assert [answer["event"] for answer in answers] == ["error", "error", "pong"] * 3


@pytest.mark.uncompiled
async def test_bug_of_ours_costs_its_session_and_no_other(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = await serve()
    unlucky, lucky = await relay.websocket(), await relay.websocket()
    receive = Session.receive

    def fail_at_bug(session: Session, text: bytes, now: float) -> object:
        return 1 / 0 if b"bug" in text else receive(session, text, now)

    monkeypatch.setattr(Session, "receive", fail_at_bug)
    await unlucky.send(command("ping", "bug"))
    await lucky.send(command("ping"))

    assert await unlucky.close_code() == 1011
    assert (await lucky.message())["event"] == "pong"


async def test_silent_client_is_pinged_and_at_last_given_up(serve: Serve) -> None:
    relay = await serve({"heartbeat.interval_seconds": 0.05, "heartbeat.timeout_seconds": 0.1})
    client = await relay.websocket()

    first = await client.frame()

    assert first == (PING, b"")
    assert await client.close_code() == 3008
    client.socket.close()
    await relay.metric_reaches(1, "relay_connections_closed_total", reason="heartbeat_timeout")


async def test_client_that_answers_heartbeats_is_kept(serve: Serve) -> None:
    interval_seconds = 0.05
    relay = await serve(
        {"heartbeat.interval_seconds": interval_seconds, "heartbeat.timeout_seconds": 0.5}
    )
    client = await relay.websocket()
    began_at = asyncio.get_running_loop().time()

    for _ in range(16):
        assert await client.frame() == (PING, b"")
        await client.send(frame(PONG))

    assert asyncio.get_running_loop().time() - began_at > 0.5 + interval_seconds


async def test_draining_relay_tells_each_client_when_to_come_back_and_closes_it(
    serve: Serve,
) -> None:
    relay = await serve({"server.drain_seconds": 0.2})
    clients = [await relay.websocket() for _ in range(3)]

    async with asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(relay.relay.drain())
        farewells = []
        for client in clients:
            farewells.append((await client.until("relay-status"))["data"])
            assert await client.close_code() == 1012
            assert not draining.done()
            await client.send(close(1012))
            await client.ended()

    assert all(farewell["draining"] for farewell in farewells)
    assert all(500 <= farewell["retryAfterMs"] <= 900 for farewell in farewells)
    assert await relay.metric("relay_connections", transport="websocket") == 0
    assert await relay.metric("relay_connections_closed_total", reason="restarting") == 3


async def test_drain_is_spread_over_its_time(serve: Serve) -> None:
    relay = await serve({"server.drain_seconds": 0.4})
    for _ in range(4):
        await relay.websocket()
    began_at = asyncio.get_running_loop().time()
    clients = [await relay.websocket() for _ in range(4)]

    async def end_of(client: RawClient) -> float:
        assert await client.close_code() == 1012
        client.reset()
        return asyncio.get_running_loop().time() - began_at

    async with asyncio.TaskGroup() as tasks:
        ends = [tasks.create_task(end_of(client)) for client in clients]
        drain = tasks.create_task(relay.relay.drain())
        await asyncio.gather(*ends)
        drain.cancel()

    assert max(end.result() for end in ends) - min(end.result() for end in ends) > 0.1


async def test_drain_without_clients_is_over_at_once(serve: Serve) -> None:
    relay = await serve({"server.drain_seconds": 3600})

    async with asyncio.timeout(SOON_SECONDS):
        await relay.relay.drain()


async def test_drain_does_not_wait_for_ever_for_who_never_answers(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_SECONDS", 0.05)
    relay = await serve({"server.drain_seconds": 0})
    await relay.websocket()

    async with asyncio.timeout(SOON_SECONDS):
        await relay.relay.drain()

    assert await relay.metric("relay_connections", transport="websocket") == 0


async def test_stopped_relay_lets_go_of_who_is_still_connected(serve: Serve) -> None:
    relay = await serve()
    client = await relay.websocket()

    await relay.relay.stop()

    await client.ended()


# The close handshake


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        (frame(CLOSE), b""),
        (close(1000), b"\x03\xe8"),
        (close(1001, "bye"), b"\x03\xe9"),
        (close(4321, "own"), b"\x10\xe1"),
    ],
    ids=["no code", "1000", "with a text", "a code of its own"],
)
async def test_close_frame_is_echoed_and_the_connection_closed(
    serve: Serve, sent: bytes, echoed: bytes
) -> None:
    relay = await serve()
    client = await relay.websocket()

    await client.send(sent)

    assert await client.frame() == (CLOSE, echoed)
    await client.ended()
    await relay.metric_reaches(1, "relay_connections_closed_total", reason="client_closed")


async def test_what_comes_before_a_close_frame_is_answered_and_nothing_after_it(
    serve: Serve,
) -> None:
    client = await (await serve()).websocket()

    await client.send(command("ping", 1) + close(1000) + command("ping", 2))

    assert (await client.message())["data"] == 1
    assert await client.close_code() == 1000
    await client.ended()


async def test_relay_closes_once_its_close_frame_is_answered(serve: Serve) -> None:
    client = await (await serve()).websocket()

    await client.send(frame(BINARY))
    code = await client.close_code()
    await client.send(close(1003))

    assert code == 1003
    await client.ended()


async def test_peer_that_never_answers_a_close_frame_is_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_SECONDS", 0.1)
    client = await (await serve()).websocket()

    await client.send(frame(BINARY) + command("ping"))

    assert await client.frame() == (CLOSE, b"\x03\xeb" + b"only text frames are understood")
    await client.ended()


async def test_peer_that_closes_but_does_not_read_is_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_SECONDS", 0.1)
    relay = await serve({"limits.messages_burst": 1000, "limits.messages_per_second": 1000})
    client = await relay.websocket(receive_buffer_bytes=4096)

    await fill(relay, client)
    await client.send(frame(CLOSE))

    await relay.metric_reaches(0, "relay_connections", transport="websocket")


async def test_close_is_seen_while_a_subscription_waits_for_redis(serve: Serve) -> None:
    relay = await serve({"source.tasks.kind": "celery"})
    await relay.subscribed()
    client = await relay.websocket()

    await client.send(command("subscribe-to-job", {"jobId": "unknown"}) + close(1000))

    assert (await client.message())["event"] == "subscribed"
    assert await client.close_code() == 1000
    await client.ended()


async def test_lost_connection_leaves_nothing_behind(serve: Serve) -> None:
    relay = await serve()
    client = await relay.websocket()
    await client.send(command("subscribe-to-jobs", {"jobIds": ["a", "b"]}))
    await client.until("subscribed")
    subscriptions = await relay.metric("relay_subscriptions", kind="job")

    client.reset()

    assert subscriptions == 2
    await relay.metric_reaches(0, "relay_connections", transport="websocket")
    await relay.metric_reaches(0, "relay_subscriptions", kind="job")
    assert await relay.metric("relay_connections_closed_total", reason="connection_lost") == 1


@pytest.mark.uncompiled
async def test_what_comes_after_the_end_does_not_reach_whoever_has_the_descriptor_then(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[Session] = []
    receive = Session.receive

    def seen(session: Session, text: bytes, now: float) -> object:
        sessions.append(session)
        return receive(session, text, now)

    monkeypatch.setattr(Session, "receive", seen)
    relay = await serve()
    client = await relay.websocket()
    await client.send(command("ping"))
    await client.until_event("pong")
    (session,) = sessions

    session.link.cut_off()
    async with asyncio.timeout(SOON_SECONDS):
        while session.link.reason is None:  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0)
    pairs = [socket.socketpair() for _ in range(10)]  # the lowest descriptors, so it is among them
    session.tell_status(redis_up=True)
    session.link.flush()
    session.link.ping()
    session.link.close(CloseReason.OPERATOR)

    ends = [end for pair in pairs for end in pair]
    assert select.select(ends, [], [], 0)[0] == []
    for end in ends:
        end.close()


async def test_a_message_larger_than_the_socket_takes_arrives_whole_and_in_order(
    serve: Serve,
) -> None:
    relay = await serve(
        MUCH | {"backpressure.unsent_bytes": 4096, "limits.max_message_bytes": 1 << 20}
    )
    client = await relay.websocket(receive_buffer_bytes=4096)
    sizes = [1, 400_000, 2, 300_000, 3]

    for size in sizes:
        await client.send(command("ping", "x" * size))

    answers = [await client.until_event("pong") for _ in sizes]
    assert [len(answer["data"]) for answer in answers] == sizes


# Clients that do not keep up

NARROW = {
    "backpressure.high_water_bytes": 4096,
    "backpressure.unsent_bytes": 4096,
    "limits.max_payload_bytes": 65536,
}
# As many messages and frames as a client likes.
MUCH = {"limits.messages_per_second": 1_000_000, "limits.messages_burst": 1_000_000}
PADDING = "x" * 20_000


async def fill(relay: Running, client: RawClient) -> None:
    """Have the relay send to `client`, which does not read, until the transport takes no more."""
    answer = command("ping", PADDING)
    outbox = "relay_outbox_bytes"
    async with asyncio.timeout(SOON_SECONDS):
        while not await relay.metric(outbox):
            await client.send(answer)


async def watch(client: RawClient | ClientConnection) -> None:
    request = {"event": "subscribe-to-queue", "data": {"queueName": "q"}}
    if isinstance(client, RawClient):
        await client.send(frame(TEXT, json.dumps(request).encode()))
        await client.until("subscribed")
    else:
        await client.send(json.dumps(request))
        await client.recv()


async def test_stalled_reader_is_conflated_while_a_healthy_one_sees_every_event(
    serve: Serve,
) -> None:
    count = 300
    relay = await serve(NARROW)
    await relay.subscribed()
    stalled = await relay.websocket(receive_buffer_bytes=4096)
    async with connect(relay.websocket_url) as healthy:
        await healthy.recv()
        await watch(healthy)
        await watch(stalled)
        seen: list[Json] = []
        for number in range(1, count + 1):
            await relay.publish(progress=number / 10, data=PADDING)
            seen.append(json.loads(await healthy.recv()))
        await relay.publish(event="job-completed", result="done")
        seen.append(json.loads(await healthy.recv()))
    conflated = await relay.metric("relay_conflated_total")
    told = [await stalled.message()]
    while told[-1]["event"] != "job-completed":
        told.append(await stalled.message())

    progress = [message["data"]["progress"] for message in told[:-1]]
    assert [message["data"]["progress"] for message in seen[:-1]] == [
        number / 10 for number in range(1, count + 1)
    ]
    assert progress == sorted(set(progress))
    assert progress[-1] == count / 10, "the newest is never lost"
    assert len(progress) + conflated == count
    assert conflated > 0
    assert told[-1]["data"]["result"] == "done"
    assert await relay.metric("relay_outbox_bytes") == 0


async def test_client_whose_outbox_is_full_is_closed_as_a_slow_consumer(serve: Serve) -> None:
    relay = await serve(
        NARROW | {"backpressure.max_outbox_bytes": 131072, "limits.max_payload_bytes": 65536}
    )
    await relay.subscribed()
    stalled = await relay.websocket(receive_buffer_bytes=4096)
    await watch(stalled)
    ends = 0

    async with asyncio.timeout(SOON_SECONDS):
        while not await relay.metric("relay_slow_consumers_closed_total"):
            # Ends are never conflated, so they pile up.
            await relay.publish(f"job-{ends}", event="job-completed", result=PADDING)
            ends += 1
            if await relay.metric("relay_subscriptions", kind="queue") == 0:
                break
    told = []
    while (received := await stalled.frame())[0] == TEXT:
        told.append(json.loads(received[1]))

    assert int.from_bytes(received[1][:2], "big") == 1013
    assert [message["data"]["jobId"] for message in told] == [
        f"job-{number}" for number in range(len(told))
    ]
    await stalled.send(close(1013))
    await stalled.ended()
    await relay.metric_reaches(1, "relay_slow_consumers_closed_total")
    assert await relay.metric("relay_connections_closed_total", reason="slow_consumer") == 1
    assert await relay.metric("relay_outbox_bytes") == 0


async def test_slow_consumer_that_never_reads_is_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_SECONDS", 0.1)
    relay = await serve(NARROW | {"backpressure.max_outbox_bytes": 131072})
    await relay.subscribed()
    stalled = await relay.websocket(receive_buffer_bytes=4096)
    await watch(stalled)

    async with asyncio.timeout(SOON_SECONDS):
        number = 0
        while await relay.metric("relay_connections", transport="websocket"):
            await relay.publish(f"job-{number}", event="job-completed", result=PADDING)
            number += 1

    assert await relay.metric("relay_slow_consumers_closed_total") == 1


async def test_pongs_that_nobody_reads_do_not_pile_up(serve: Serve) -> None:
    relay = await serve(NARROW | MUCH)
    client = await relay.websocket(receive_buffer_bytes=4096)
    pings = 50_000  # the buffers of the two systems hold some ten thousand pongs

    for number in range(pings):
        await client.send(frame(PING, b"%0125d" % number))
    answers = [(await client.frame())[1]]
    while answers[-1] != b"%0125d" % (pings - 1):
        answers.append((await client.frame())[1])

    assert answers == sorted(answers)
    assert len(answers) < pings / 2


async def test_more_frames_than_anybody_has_use_for_end_the_connection(serve: Serve) -> None:
    relay = await serve()
    client = await relay.websocket()

    await client.send(frame(PONG) * 10_000)

    assert await client.close_code() == 1008
    await client.ended()
    await relay.metric_reaches(1, "relay_connections_closed_total", reason="too_many_frames")


async def test_message_in_a_thousand_fragments_is_no_flood(serve: Serve) -> None:
    client = await (await serve()).websocket()
    message = message_of(64_000)
    parts = [message[start : start + 64] for start in range(0, len(message), 64)]

    await client.send(frame(TEXT, parts[0], final=False))
    await client.send(b"".join(frame(CONTINUATION, part, final=False) for part in parts[1:]))
    await client.send(frame(CONTINUATION))

    assert (await client.until_event("pong"))["data"]


@pytest.mark.parametrize("size", [50, 20_000])
async def test_messages_of_one_read_are_answered_in_order_over_many_turns(
    serve: Serve, size: int
) -> None:
    client = await (await serve(MUCH)).websocket()
    messages = [
        command("ping", number, padding="x" * size)
        if number % 3
        else command("subscribe-to-job", {"jobId": f"job-{number}"})
        for number in range(300)
    ]

    await client.send(b"".join(messages))
    answers = [await client.message() for _ in messages]

    told = [answer["data"] for answer in answers if answer["event"] == "pong"]
    assert told == [number for number in range(300) if number % 3]
    assert [answer["event"] for answer in answers] == [
        "pong" if number % 3 else "subscribed" for number in range(300)
    ]
