"""The script that appends and publishes, called as any client would: with raw commands."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.client import PubSub
from redis.exceptions import ClusterDownError, NoScriptError, ResponseError

from relay.demo.embedded import EmbeddedRedis
from relay.upstream.durable import APPEND_SCRIPT, APPEND_SHA

Entry: TypeAlias = tuple[bytes, dict[bytes, bytes]]


@pytest.fixture(scope="module")
def client(shared_redis: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(shared_redis.url, protocol=2) as client:
        yield client


@pytest.fixture
def subscriber(client: redis.Redis) -> Iterator[PubSub]:
    """Gets whatever is published under `jobs:`."""
    with client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
        pubsub.psubscribe("jobs:*")
        pubsub.get_message(timeout=5)
        yield pubsub


@pytest.fixture
def job() -> str:
    """A job that no other test has told of."""
    return f"job-{uuid4().hex}"


def append(
    client: redis.Redis,
    job: str,
    payload: bytes = b"{}",
    *,
    queue: str = "q",
    max_events: int | str = 100,
    ttl_seconds: int | str = 60,
    key: str = "",
) -> bytes:
    """The documented recipe: by hash, and in full where the server does not know it."""
    arguments = (
        f"h:{job}", f"jobs:{queue}:{job}", payload, "job-progress", queue,
        max_events, ttl_seconds, key,
    )  # fmt: skip
    try:
        event_id: bytes = client.evalsha(APPEND_SHA, 1, *arguments)
    except NoScriptError:
        event_id = client.eval(APPEND_SCRIPT, 1, *arguments)
    return event_id


def allow(client: redis.Redis, user: str, rights: str) -> None:
    """Make the user `user`, password `p`, with these rights and no others."""
    words = ["ACL", "SETUSER", user, "reset", "on", ">p", "resetchannels", *rights.split()]
    client.execute_command(*words)  # type: ignore[no-untyped-call]


def stored(client: redis.Redis, job: str) -> list[Entry]:
    entries: list[Entry] = client.xrange(f"h:{job}")  # type: ignore[assignment]
    return entries


def received(subscriber: PubSub) -> bytes:
    message = subscriber.get_message(timeout=5)
    assert message is not None
    data: bytes = message["data"]
    return data


def test_what_is_stored_is_the_payload_and_what_is_published_has_the_id_in_front(
    client: redis.Redis, subscriber: PubSub, job: str
) -> None:
    event_id = append(
        client, job, b'{"progress":45, "big":12345678901234567890,"none":[]}', key="k"
    )

    assert stored(client, job) == [
        (event_id, {
            b"event": b"job-progress",
            b"queueName": b"q",
            b"payload": b'{"progress":45, "big":12345678901234567890,"none":[]}',
            b"key": b"k",
        })
    ]  # fmt: skip
    assert received(subscriber) == (
        b'{"eventId":"%b","progress":45, "big":12345678901234567890,"none":[]}' % event_id
    )


@pytest.mark.parametrize("payload", [b"{}", b"{ }", b"{\n\t}", b"{}\n", b'{ "a": {} }', b'{"a":1}'])
def test_what_is_published_is_json(
    payload: bytes, client: redis.Redis, subscriber: PubSub, job: str
) -> None:
    event_id = append(client, job, payload)

    assert json.loads(received(subscriber)) == {"eventId": event_id.decode(), **json.loads(payload)}


@given(fields=st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(), max_size=3))
def test_any_object_is_published_with_nothing_but_the_id_added(
    fields: dict[str, Any], client: redis.Redis
) -> None:
    with client.pubsub() as subscriber:  # type: ignore[no-untyped-call]
        subscriber.subscribe("jobs:q:any")
        received(subscriber)
        event_id = append(client, "any", json.dumps({**fields, "last": 1}).encode())

        published = json.loads(received(subscriber))

    assert published == {**fields, "eventId": fields.get("eventId", event_id.decode()), "last": 1}


@pytest.mark.parametrize("payload", [b"", b"[]", b" {}", b'"{}"', b"\xef\xbb\xbf{}"])
def test_a_payload_that_begins_with_anything_but_a_brace_is_refused_with_advice(
    payload: bytes, client: redis.Redis, job: str
) -> None:
    with pytest.raises(ResponseError, match="the payload a JSON object"):
        append(client, job, payload)

    assert stored(client, job) == []


@pytest.mark.parametrize("bound", [0, -1, "", "many"])
def test_bounds_that_would_keep_nothing_are_refused_with_advice(
    bound: int | str, client: redis.Redis, job: str
) -> None:
    with pytest.raises(ResponseError, match="whole numbers from 1"):
        append(client, job, max_events=bound)
    with pytest.raises(ResponseError, match="whole numbers from 1"):
        append(client, job, ttl_seconds=bound)

    assert stored(client, job) == []


def test_a_call_with_too_few_arguments_is_told_what_they_are(client: redis.Redis, job: str) -> None:
    with pytest.raises(ResponseError, match="ARGV takes channel, payload"):
        client.eval(APPEND_SCRIPT, 1, f"h:{job}", "jobs:q:a", "{}")


@pytest.mark.parametrize("later", [0, 9, 10, 11, 35, 99])
def test_a_key_is_found_however_many_events_came_after_it(
    later: int, client: redis.Redis, subscriber: PubSub, job: str
) -> None:
    event_id = append(client, job, key="end")
    others = [append(client, job) for _ in range(later)]
    told = [received(subscriber) for _ in range(1 + later)]

    assert append(client, job, b'{"again":1}', key="end") == event_id

    assert [entry[0] for entry in stored(client, job)] == [event_id, *others]
    assert len(told) == 1 + later
    assert subscriber.get_message(timeout=0) is None


def test_a_key_is_forgotten_with_its_event(client: redis.Redis, job: str) -> None:
    first = append(client, job, max_events=2, key="k")
    append(client, job, max_events=2)
    append(client, job, max_events=2)

    assert append(client, job, max_events=2, key="k") != first


def test_jobs_of_two_queues_with_one_id_share_a_stream_but_no_keys(
    client: redis.Redis, job: str
) -> None:
    ids = [append(client, job, queue=queue, key="end") for queue in ("q", "r", "q", "r")]

    assert ids[:2] == ids[2:]
    assert [fields[b"queueName"] for _, fields in stored(client, job)] == [b"q", b"r"]


def test_the_newest_events_are_kept_so_that_an_end_is_never_what_goes(
    client: redis.Redis, job: str
) -> None:
    ids = [append(client, job, max_events=3) for _ in range(5)]

    assert [event_id for event_id, _ in stored(client, job)] == ids[2:]


def test_each_event_gives_the_stream_its_time_again(client: redis.Redis, job: str) -> None:
    append(client, job)
    client.expire(f"h:{job}", 1)

    append(client, job)

    assert 50 < client.ttl(f"h:{job}") <= 60


def test_a_server_that_has_forgotten_the_script_is_sent_it_in_full(
    client: redis.Redis, job: str
) -> None:
    first = append(client, job, key="k")
    client.script_flush()

    assert append(client, job, key="k") == first


@pytest.mark.parametrize("refused", ["resetchannels", "-publish", "-expire"])
def test_what_could_not_be_published_is_not_stored_so_that_a_retry_is_told(
    refused: str, shared_redis: EmbeddedRedis, client: redis.Redis, subscriber: PubSub, job: str
) -> None:
    allow(client, "narrow", f"~* &* +@all {refused}")
    with (
        redis.Redis.from_url(
            shared_redis.url, protocol=2, username="narrow", password="p"
        ) as narrow,
        pytest.raises(ResponseError),
    ):
        append(narrow, job, key="end")
    assert stored(client, job) == []

    event_id = append(client, job, key="end")

    assert event_id in received(subscriber)


def test_a_server_without_memory_stores_and_publishes_nothing(own_redis: EmbeddedRedis) -> None:
    with redis.Redis.from_url(own_redis.url, protocol=2) as client, client.pubsub() as pubsub:
        pubsub.psubscribe("jobs:*")
        pubsub.get_message(timeout=5)
        client.config_set("maxmemory", 1)

        with pytest.raises(ResponseError, match="maxmemory"):
            append(client, "a", key="end")

        client.config_set("maxmemory", 0)
        assert stored(client, "a") == []
        assert append(client, "a", key="end") in received(pubsub)


def test_in_a_cluster_a_subscriber_of_another_node_is_told() -> None:
    arguments = ("--cluster-enabled", "yes")
    with (
        EmbeddedRedis(arguments) as holder,
        EmbeddedRedis(arguments) as other,
        redis.Redis.from_url(holder.url, protocol=2) as client,
        redis.Redis.from_url(other.url, protocol=2) as listener,
        listener.pubsub() as pubsub,
    ):
        client.cluster("ADDSLOTS", *range(16_384))
        client.cluster("MEET", "127.0.0.1", other.port)
        pubsub.psubscribe("jobs:*")
        pubsub.get_message(timeout=5)

        published = published_until_received(client, pubsub)

    assert published.startswith(b'{"eventId":"')


def published_until_received(client: redis.Redis, pubsub: PubSub) -> bytes:
    """Nodes that have just met need a moment, and nothing says when they are done."""
    for _ in range(100):
        with contextlib.suppress(ClusterDownError):
            append(client, "a")
        message = pubsub.get_message(timeout=0.1)
        if message is not None:
            data: bytes = message["data"]
            return data
    raise AssertionError("the other node was told of nothing")
