"""JSON that is meant to be dear to read, from clients and from publishers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.hostile.conftest import request
from tests.web.conftest import TEXT, command, frame

if TYPE_CHECKING:
    from tests.e2e.conftest import Message
    from tests.hostile.conftest import Target

DEEP = 100_000
SETTINGS = {
    "limits": {"max_message_bytes": 2 * 1024 * 1024},
    "backpressure": {"max_outbox_bytes": 16 * 1024 * 1024},
}


def ping(data: str) -> str:
    return f'{{"event":"ping","data":{data}}}'


BOMBS = {
    "arrays in arrays": "[" * DEEP + "]" * DEEP,
    "arrays that are never closed": "[" * DEEP,
    "objects in objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "objects that are never closed": '{"a":' * DEEP,
    "a command with deep data": ping("[" * DEEP + "]" * DEEP),
    "data a little too deep to answer": ping("[" * 300 + "]" * 300),
    "data as deep as a reader takes it": ping("[" * 1000 + "]" * 1000),
    "data as deep as may be": ping("[" * 250 + "]" * 250),
    "a huge integer": ping("9" * DEEP),
    "a huge negative integer": ping("-" + "9" * DEEP),
    "a number of many decimals": ping("0." + "1" * DEEP),
    "an infinite number": ping("1e999999999"),
    "a vanishing number": ping("1e-999999999"),
    "no number": ping("NaN"),
    "infinity by name": ping("-Infinity"),
    "the same key again and again": '{"event":"ping",'
    + '"event":"x",' * 50_000
    + '"event":"ping"}',
    "two different commands in one": '{"event":"ping","event":"subscribe-to-queue"}',
    "very many keys": ping(json.dumps({f"{number:x}": 0 for number in range(DEEP)})),
    "a very long key": ping(json.dumps({"k" * 1_000_000: 0})),
    "a very long string": ping(json.dumps("s" * 1_000_000)),
    "a very long event name": json.dumps({"event": "e" * 1_000_000}),
    "half a surrogate pair": ping('"\\ud800"'),
    "half a surrogate pair as a job": '{"event":"subscribe-to-job","data":{"jobId":"\\udfff"}}',
    "a NUL in a job": '{"event":"subscribe-to-job","data":{"jobId":"a\\u0000b"}}',
    "a job that is an object": '{"event":"subscribe-to-job","data":{"jobId":{"$ne":null}}}',
    "a huge ref": '{"event":"ping","ref":' + "9" * DEEP + "}",
    "a ref that is an object": '{"event":"ping","ref":{}}',
    "the prototype of all objects": ping('{"__proto__":{"polluted":1},"constructor":{}}'),
    "jobs of all types": '{"event":"subscribe-to-jobs","data":{"jobIds":[1,null,[],{},true,"a"]}}',
    "nothing but spaces": " " * 1_000_000,
    "a byte order mark": "\ufeff" + ping("1"),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
async def test_bomb_of_a_client_is_answered_and_the_connection_goes_on(
    target: Target, bomb: str
) -> None:
    """A client sends JSON that recurses, explodes or confuses where a parser is careless."""
    client = await target.websocket()

    await client.send(frame(TEXT, bomb.encode()))
    answer = await client.message()
    await client.send(command("ping", "still here"))

    assert answer["event"] in ("pong", "error")
    assert (await client.until_event("pong"))["data"] in ("still here", answer["data"])


async def test_document_of_a_job_with_half_a_surrogate_pair(target: Target) -> None:
    """A publisher sends half of a surrogate pair, which is no character and fits into no UTF-8."""
    watcher = await target.friend()
    await watcher.subscribe("half")
    await target.publish(r'{"progress":5,"data":{"a":"\ud800"}}', "half")
    await watcher.told("job-progress")
    paths = ["/jobs/half", "/jobs?ids=half", "/jobs?queueName=q", "/jobs/half?wait=1&since=x"]

    answers = [await target.ask(request(path)) for path in [*paths, "/jobs/half/history"]]

    assert [answer.status for answer in answers] == [200] * 5
    for answer in answers:
        assert rb"\ud800" in answer.body
        json.loads(answer.body.decode())


@pytest.mark.parametrize("depth", [250, 900, 940, 970, 990])
async def test_document_of_a_job_with_deep_data(target: Target, depth: int) -> None:
    """A publisher nests its data as deep as one reader takes it, and another does not."""
    watcher = await target.friend()
    await watcher.subscribe("deep")
    for middle in ("1", r'"\ud800"'):
        await target.publish(f'{{"data":{"[" * depth}{middle}{"]" * depth}}}', "deep")
    await target.publish('{"event":"job-queued","after":1}', "deep")
    await watcher.told("job-queued")

    for path in ["/jobs/deep", "/jobs?ids=deep", "/jobs?queueName=q", "/jobs/deep/history"]:
        assert (await target.ask(request(path))).status == 200, path


PAYLOADS: dict[str, bytes] = {
    **{name: bomb.encode() for name, bomb in BOMBS.items()},
    "deep data of a job": b'{"progress":1,"data":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep data that one reader takes": b'{"data":' + b"[" * 900 + b"]" * 900 + b"}",
    "deep data with NaN in it": b'{"data":' + b"[" * 900 + b"NaN" + b"]" * 900 + b"}",
    "half a surrogate pair in a result": b'{"result":"\\ud800"}',
    "half a surrogate pair for a key": b'{"\\udc00":1,"progress":2}',
    "half a surrogate pair for an event id": b'{"eventId":"\\ud800","progress":2}',
    "half a surrogate pair for a queue": b'{"queueName":"\\ud800","progress":2}',
    "huge progress": b'{"progress":' + b"9" * DEEP + b"}",
    "infinite progress": b'{"progress":1e999}',
    "progress of infinite parts": b'{"progress":{"current":1e308,"total":1e-308}}',
    "times beyond all calendars": b'{"result":1,"startedAt":1e308,"finishedOn":-1e308,"ts":1e308}',
    "times that are no times": b'{"result":1,"startedAt":{},"finishedOn":[],"ts":"now"}',
    "a wrapped form of itself": b'{"event":"job-progress","data":{"jobId":"x","data":{"jobId":"y"}}}',
    "not UTF-8": b'{"progress":"\xff\xfe"}',
    "UTF-16": '{"progress":1}'.encode("utf-16"),
    "nothing": b"",
    "only NUL": bytes(1000),
    "almost too large": b'{"result":"' + b"a" * 1_000_000 + b'"}',
    "too large": b'{"result":"' + b"a" * 2_000_000 + b'"}',
    "too large for all": b'{"result":"' + b"a" * 20_000_000 + b'"}',
    "too large and torn": b'{"event":"job-completed","result":"' + b"\xff" * 2_000_000,
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
async def test_bomb_of_a_publisher_hurts_no_other_message(target: Target, payload: bytes) -> None:
    """Somebody who may publish sends JSON that recurses, explodes or confuses, for a job that is watched."""
    watcher = await target.friend()
    await watcher.subscribe("bombed")
    internal_before = await target.daemon.metric("relay_messages_invalid_total", reason="internal")

    await target.publish(payload, "bombed")
    await target.publish('{"status":"active","progress":77,"after":"the bomb"}', "bombed")
    events: list[Message] = []
    while not events or events[-1]["data"].get("after") != "the bomb":
        events.append(await watcher.told("job-progress", "job-completed", "job-failed"))

    assert len(events) <= 2
    internal = await target.daemon.metric("relay_messages_invalid_total", reason="internal")
    assert internal == internal_before
