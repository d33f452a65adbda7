"""Every command and its answer, and what a client is told of its jobs, as the protocol promises it."""

from typing import Any

import pytest

from relay.core.closing import CloseReason
from relay.core.errors import SessionError
from relay.core.event import COMPLETED, FAILED, PROGRESS
from relay.core.outbox import Verdict
from relay.core.session import FRAMES_PER_MESSAGE
from relay.core.wire import JobsCommand, QueueCommand
from tests.fakes import Client, Message, Relay, burst, draft, event, job_events


@pytest.fixture
def relay() -> Relay:
    return Relay()


@pytest.fixture
def client(relay: Relay) -> Client:
    return Client(relay)


def stands(*, known: bool, recovered: bool = False, replayed: int = 0) -> dict[str, object]:
    return {"known": known, "recovered": recovered, "replayed": replayed}


def subscribe(client: Client, job_id: str = "job", **rest: Any) -> list[Message]:
    """Subscribe to one job. Returns what came of it, the answer first."""
    return client.send("subscribe-to-job", {"jobId": job_id, **rest})


# Answers

REFS = [None, 7, 1.5, "r", ""]


@pytest.mark.parametrize("ref", REFS)
@pytest.mark.parametrize(
    ("command", "data", "answer", "answered"),
    [
        (
            "subscribe-to-job",
            {"jobId": "a", "note": 1, "since": "e-1"},
            "subscribed",
            {"jobId": "a", "note": 1, "jobs": {"a": stands(known=False)}},
        ),
        (
            "subscribe-to-job",
            {"jobId": 42, "queueName": "q"},
            "subscribed",
            {"jobId": "42", "queueName": "q", "jobs": {"42": stands(known=False)}},
        ),
        (
            "subscribe-to-jobs",
            {"jobIds": ["a", 2, "a"], "queueName": "q", "since": {"a": "e-1"}},
            "subscribed",
            {
                "jobIds": ["a", "2", "a"],
                "queueName": "q",
                "jobs": {"a": stands(known=False), "2": stands(known=False)},
            },
        ),
        ("subscribe-to-jobs", {"jobIds": []}, "subscribed", {"jobIds": [], "jobs": {}}),
        (
            "subscribe-to-jobs",
            {"jobIds": ["a", "b\n"]},
            "subscribed",
            {
                "jobIds": ["a", "b\n"],
                "jobs": {"a": stands(known=False), "b\n": {"error": "invalid-job-id"}},
            },
        ),
        ("subscribe-to-queue", {"queueName": "q"}, "subscribed", {"queueName": "q"}),
        (
            "subscribe-to-queue",
            {"queueName": "q", "snapshot": True},
            "subscribed",
            {"queueName": "q", "snapshot": True},
        ),
        ("unsubscribe-from-job", {"jobId": "a"}, "unsubscribed", {"jobId": "a"}),
        (
            "unsubscribe-from-jobs",
            {"jobIds": ["a", "b"], "queueName": "q"},
            "unsubscribed",
            {"jobIds": ["a", "b"], "queueName": "q"},
        ),
        ("unsubscribe-from-queue", {"queueName": "q"}, "unsubscribed", {"queueName": "q"}),
        ("authenticate", {"token": "t"}, "authenticated", {"expiresAt": None}),
        ("ping", {"any": ["thing"]}, "pong", {"any": ["thing"]}),
        ("ping", None, "pong", None),
    ],
)
def test_a_command_has_its_answer(
    client: Client, command: str, data: object, answer: str, answered: object, ref: object
) -> None:
    rest = {} if ref is None else {"ref": ref}

    assert client.send(command, data, **rest) == [{"event": answer, "data": answered, **rest}]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "bad-request"),
        (b"{", "bad-request"),
        (b"[]", "bad-request"),
        (b"7", "bad-request"),
        (b"{}", "bad-request"),
        (b'{"event":7}', "bad-request"),
        (b'{"event":"dance"}', "unknown-event"),
        (b'{"event":"job-progress","data":{}}', "unknown-event"),
        (b'{"event":"subscribe-to-job"}', "bad-request"),
        (b'{"event":"subscribe-to-job","data":[]}', "bad-request"),
        (b'{"event":"subscribe-to-job","data":{}}', "bad-request"),
        (b'{"event":"subscribe-to-job","data":{"jobId":null}}', "bad-request"),
        (b'{"event":"subscribe-to-job","data":{"jobId":true}}', "bad-request"),
        (b'{"event":"subscribe-to-job","data":{"jobId":"a","since":7}}', "bad-request"),
        (b'{"event":"subscribe-to-job","data":{"jobId":""}}', "invalid-job-id"),
        (b'{"event":"subscribe-to-job","data":{"jobId":"a\\n"}}', "invalid-job-id"),
        (b'{"event":"subscribe-to-job","data":{"jobId":"%b"}}' % (b"x" * 257), "invalid-job-id"),
        (b'{"event":"subscribe-to-job","data":{"jobId":"a","queueName":7}}', "bad-request"),
        (b'{"event":"subscribe-to-job","data":{"jobId":"a","queueName":""}}', "invalid-queue-name"),
        (b'{"event":"unsubscribe-from-job","data":{"jobId":""}}', "invalid-job-id"),
        (b'{"event":"subscribe-to-jobs","data":{"jobIds":"a"}}', "bad-request"),
        (b'{"event":"subscribe-to-jobs","data":{"jobIds":[null]}}', "bad-request"),
        (b'{"event":"subscribe-to-jobs","data":{"jobIds":["a"],"since":"e-1"}}', "bad-request"),
        (b'{"event":"subscribe-to-queue","data":{}}', "bad-request"),
        (b'{"event":"subscribe-to-queue","data":{"queueName":"\\u0000"}}', "invalid-queue-name"),
        (b'{"event":"subscribe-to-queue","data":{"queueName":"q","snapshot":1}}', "bad-request"),
        (b'{"event":"authenticate","data":{}}', "bad-request"),
        (b'{"event":"ping","ref":null}', "bad-request"),
        (b'{"event":"ping","ref":[1]}', "bad-request"),
        (b'{"event":"ping","ref":true}', "bad-request"),
        (b'{"event":"ping","ref":"%b"}' % (b"x" * 65), "bad-request"),
    ],
)
def test_a_message_at_fault_is_answered_and_the_session_goes_on(
    relay: Relay, client: Client, text: bytes, code: str
) -> None:
    [answer] = client.send_bytes(text)

    assert answer["event"] == "error"
    assert answer["data"].keys() == {"code", "message", "temporary"}
    assert answer["data"]["code"] == code
    assert answer["data"]["temporary"] is False
    assert relay.stats.client_errors == {code: 1}
    assert client.send("ping", 1) == [{"event": "pong", "data": 1}]


def test_an_error_bears_the_ref_of_its_message(client: Client) -> None:
    [answer] = client.send("dance", {}, ref="r1")

    assert (answer["event"], answer["ref"]) == ("error", "r1")


def test_messages_count_by_event_and_unknown_ones_together(relay: Relay, client: Client) -> None:
    client.send("ping")
    client.send("dance")
    client.send_bytes(b"[]")

    assert relay.stats.client_messages == {"ping": 1, "other": 2}


def test_an_answer_wakes_once_until_it_is_flushed(relay: Relay, client: Client) -> None:
    for _ in range(2):
        client.session.receive(b'{"event":"ping"}', 1.0)

    assert relay.woken == [client.session]


def test_relay_status_tells_how_the_relay_stands(client: Client) -> None:
    client.session.tell_status(redis_up=True)
    client.session.tell_status(redis_up=False, gap=True, retry_after_ms=1500)

    calm, draining = client.flush()
    assert calm == {
        "event": "relay-status",
        "data": {
            "protocol": 1,
            "connectionId": "c1",
            "heartbeatSeconds": 25,
            "redis": "connected",
            "gap": False,
            "draining": False,
        },
    }
    assert draining["data"] == calm["data"] | {
        "redis": "disconnected",
        "gap": True,
        "draining": True,
        "retryAfterMs": 1500,
    }


# Too many


def test_too_many_errors_in_a_row_end_the_session() -> None:
    client = Client(Relay(max_errors=3))
    client.send("dance")
    client.send("dance")
    client.send("ping")  # not in a row
    client.send("dance")
    client.send("dance")

    with pytest.raises(SessionError) as caught:
        client.send("dance")

    assert caught.value.reason is CloseReason.TOO_MANY_ERRORS
    assert [answer["event"] for answer in client.flush()] == ["error"]


def test_a_client_above_its_rate_is_told_so_and_may_go_on_later() -> None:
    client = Client(Relay(messages_per_second=2, messages_burst=3))
    ping = b'{"event":"ping","ref":1}'

    answers = [client.send_bytes(ping, now=100.0)[0] for _ in range(4)]

    assert [answer["event"] for answer in answers] == ["pong", "pong", "pong", "error"]
    assert answers[3]["data"]["code"] == "rate-limited"
    assert answers[3]["data"]["temporary"] is True
    assert answers[3]["ref"] == 1
    assert client.send_bytes(ping, now=100.4)[0]["event"] == "error"
    assert client.send_bytes(ping, now=100.5)[0]["event"] == "pong"


def test_frames_that_are_no_message_have_a_rate_that_follows_that_of_messages() -> None:
    session = Client(Relay(messages_per_second=1, messages_burst=2)).session
    # As many as two messages are worth, and as many again on credit.
    assert session.spend_frames(4 * FRAMES_PER_MESSAGE, 100.0)

    assert not session.spend_frames(1, 100.0)
    assert session.spend_frames(FRAMES_PER_MESSAGE - 1, 101.0)


def test_burst_of_messages_leaves_credit_for_heartbeats() -> None:
    client = Client(Relay(messages_per_second=1, messages_burst=2))
    for _ in range(2):
        client.send_bytes(b'{"event":"ping"}', now=100.0)

    assert client.session.spend_frames(2 * FRAMES_PER_MESSAGE, 100.0)


def test_messages_at_fault_count_for_the_rate() -> None:
    client = Client(Relay(messages_per_second=1, messages_burst=3))

    for _ in range(3):
        client.send_bytes(b"{", now=100.0)

    assert client.send_bytes(b'{"event":"ping"}', now=100.0)[0]["data"]["code"] == "rate-limited"


def test_rate_limited_messages_count_as_errors_in_a_row() -> None:
    client = Client(Relay(messages_per_second=1, messages_burst=1, max_errors=2))
    client.send("ping")
    client.send("ping")

    with pytest.raises(SessionError):
        client.send("ping")


def test_one_subscription_too_many_is_an_error() -> None:
    client = Client(Relay(max_subscriptions=2))
    subscribe(client, "a")
    client.send("subscribe-to-queue", {"queueName": "q"})

    [job_answer] = client.send("subscribe-to-job", {"jobId": "b"}, ref=1)
    [queue_answer] = client.send("subscribe-to-queue", {"queueName": "r"})

    assert job_answer["data"]["code"] == queue_answer["data"]["code"] == "too-many-subscriptions"
    assert job_answer["ref"] == 1
    assert subscribe(client, "a")[0]["event"] == "subscribed"
    client.send("unsubscribe-from-queue", {"queueName": "q"})
    assert subscribe(client, "b")[0]["event"] == "subscribed"


def test_in_a_batch_each_job_answers_for_itself() -> None:
    relay = Relay(max_subscriptions=2)
    client = Client(relay)

    [answer] = client.send("subscribe-to-jobs", {"jobIds": ["a", "", "b", "c"]})

    assert answer["data"]["jobs"] == {
        "a": stands(known=False),
        "b": stands(known=False),
        "c": {"error": "too-many-subscriptions"},
        "": {"error": "invalid-job-id"},
    }
    relay.publish(job_id="c")
    relay.publish(job_id="b")
    assert job_events(client.flush()) == ["e-2"]


# Live events


def test_events_go_to_those_who_watch_and_no_others(relay: Relay, client: Client) -> None:
    subscribe(client, "a")
    client.send("subscribe-to-job", {"jobId": "b", "queueName": "q1"})
    client.send("subscribe-to-queue", {"queueName": "q2"})

    told = [
        ("a", None),
        ("a", "q9"),
        ("b", None),
        ("b", "q1"),
        ("b", "q9"),
        ("c", "q2"),
        ("c", "q1"),
    ]
    for job_id, queue in told:
        relay.publish(job_id=job_id, queue=queue)

    assert job_events(client.flush()) == ["e-1", "e-2", "e-4", "e-6"]


def test_an_event_bears_its_id_beside_its_data(relay: Relay, client: Client) -> None:
    subscribe(client)
    relay.publish(progress=45, id="theirs")

    assert client.flush() == [
        {
            "event": PROGRESS,
            "data": {"jobId": "job", "progress": 45, "status": "active"},
            "id": "theirs",
        }
    ]


def test_a_job_watched_twice_over_brings_each_event_once(relay: Relay, client: Client) -> None:
    subscribe(client)
    subscribe(client, queueName="q")
    client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})
    subscribe(client)

    relay.publish(queue="q")
    relay.publish(COMPLETED, queue="q")

    assert job_events(client.flush()) == ["e-1", "e-2"]


def test_unsubscribed_jobs_bring_nothing(relay: Relay, client: Client) -> None:
    client.send("subscribe-to-jobs", {"jobIds": ["a", "b"]})
    client.send("subscribe-to-queue", {"queueName": "q"})

    client.send("unsubscribe-from-jobs", {"jobIds": ["a", "b"]})
    client.send("unsubscribe-from-queue", {"queueName": "q"})
    for job_id in ("a", "b"):
        relay.publish(job_id=job_id, queue="q")

    assert client.flush() == []
    assert not relay.index.topics(client.session)


def test_unsubscribing_ends_one_of_two_subscriptions_to_a_job(relay: Relay, client: Client) -> None:
    subscribe(client)
    subscribe(client, queueName="q")

    client.send("unsubscribe-from-job", {"jobId": "job"})
    relay.publish()
    relay.publish(queue="q")

    assert job_events(client.flush()) == ["e-2"]


def test_an_ended_session_is_told_nothing_and_holds_nothing(relay: Relay, client: Client) -> None:
    subscribe(client)
    client.congest()
    relay.publish()

    client.session.end()
    client.session.end()
    relay.publish()

    assert client.relieve() == []
    assert relay.stats.outbox_bytes == 0


# Snapshot


def test_the_latest_event_follows_the_answer(relay: Relay, client: Client) -> None:
    relay.publish(progress=10)
    relay.publish(progress=20)

    answer, snapshot = subscribe(client)

    assert answer["data"]["jobs"] == {"job": stands(known=True)}
    assert (snapshot["id"], snapshot["data"]["progress"]) == ("e-2", 20)


def test_a_job_that_ended_before_the_subscription_is_seen_to_end(
    relay: Relay, client: Client
) -> None:
    relay.publish(FAILED, error="x")
    relay.publish("job-archived")

    _, *events = subscribe(client)

    assert [message["event"] for message in events] == [FAILED, "job-archived"]


def test_a_queue_named_beside_the_job_gives_that_queues_snapshot(
    relay: Relay, client: Client
) -> None:
    relay.publish(queue="q1")
    relay.publish(queue="q2")

    assert job_events(subscribe(client, queueName="q1")) == ["e-1"]
    assert job_events(subscribe(client)) == ["e-2"]


def test_a_queues_watcher_gets_the_latest_of_each_job_if_it_asks(
    relay: Relay, client: Client
) -> None:
    for job_id in ("a", "b", "a"):
        relay.publish(job_id=job_id, queue="q")

    assert job_events(client.send("subscribe-to-queue", {"queueName": "q"})) == []
    [answer, *events] = client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})

    assert answer["event"] == "subscribed"
    assert job_events(events) == ["e-2", "e-3"]


@pytest.mark.parametrize("snapshot_before", [True, False])
def test_a_queues_snapshot_brings_nothing_older_than_what_was_sent(
    relay: Relay, client: Client, snapshot_before: bool
) -> None:
    client.send("subscribe-to-queue", {"queueName": "q", "snapshot": snapshot_before})
    relay.publish(COMPLETED, queue="q")
    relay.publish("job-archived", queue="q")
    client.flush()

    client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})

    assert job_events(client.seen) == ["e-1", "e-2", "e-2"]


def test_a_queues_second_snapshot_shows_the_latest_again_and_nothing_older(
    relay: Relay, client: Client
) -> None:
    relay.publish(COMPLETED, queue="q")
    relay.publish("job-archived", queue="q")
    for _ in range(2):
        client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})

    assert job_events(client.seen) == ["e-1", "e-2", "e-2"]


def test_a_queues_snapshot_brings_nothing_older_than_what_the_job_brought(
    relay: Relay, client: Client
) -> None:
    relay.publish(COMPLETED, queue="q")
    relay.publish("job-archived", queue="q")
    subscribe(client, queueName="q")

    events = client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})

    assert job_events(events) == ["e-2"]


def test_a_queues_snapshot_tells_an_end_before_the_subscription_without_one(
    relay: Relay, client: Client
) -> None:
    relay.publish(COMPLETED, queue="q")
    relay.publish("job-archived", queue="q")
    client.send("subscribe-to-queue", {"queueName": "q"})

    events = client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})

    assert job_events(events) == ["e-1", "e-2"]


def test_a_queues_snapshot_is_of_its_newest_thousand_jobs() -> None:
    relay = Relay(max_jobs=2000)
    client = Client(relay)
    for number in range(1005):
        relay.publish(job_id=f"j{number}", queue="q")

    events = client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})

    assert job_events(events) == [f"e-{number}" for number in range(6, 1006)]


def test_with_history_off_nothing_is_known() -> None:
    relay = Relay(exposed=False)
    watcher, late = Client(relay), Client(relay)
    subscribe(watcher)
    relay.publish(queue="q")

    [answer] = subscribe(late, since="e-1")

    assert answer["data"]["jobs"] == {"job": stands(known=False)}
    assert len(late.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})) == 1


# Recovery


def test_since_brings_every_later_event_in_order(relay: Relay, client: Client) -> None:
    for progress in range(4):
        relay.publish(progress=progress)

    answer, *events = subscribe(client, since="e-2")

    assert answer["data"] == {
        "jobId": "job",
        "jobs": {"job": stands(known=True, recovered=True, replayed=2)},
    }
    assert job_events(events) == ["e-3", "e-4"]
    assert relay.stats.replayed == 2


def test_since_the_newest_brings_nothing(relay: Relay, client: Client) -> None:
    relay.publish(id="a")

    [answer] = subscribe(client, since="a")

    assert answer["data"]["jobs"] == {"job": stands(known=True, recovered=True)}


@pytest.mark.parametrize("since", ["e-9", "other-2", "", "e-1"])
def test_since_what_is_not_held_brings_the_snapshot(since: str) -> None:
    relay = Relay(max_events=2)
    client = Client(relay)
    for _ in range(3):
        relay.publish()

    answer, *events = subscribe(client, since=since)

    assert answer["data"]["jobs"] == {"job": stands(known=True)}
    assert job_events(events) == ["e-3"]


def test_since_across_a_gap_brings_the_snapshot(relay: Relay, client: Client) -> None:
    relay.publish()
    relay.history.mark_gap(relay.seq)
    relay.publish()
    relay.publish()

    answer, *events = subscribe(client, since="e-1")

    assert answer["data"]["jobs"] == {"job": stands(known=True)}
    assert job_events(events) == ["e-3"]


def test_since_in_a_batch_holds_for_the_jobs_it_names(relay: Relay, client: Client) -> None:
    for job_id in ("a", "a", "b", "b"):
        relay.publish(job_id=job_id)

    answer, *events = client.send(
        "subscribe-to-jobs", {"jobIds": ["a", "b", "c"], "since": {"a": "e-1", "d": "e-1"}}
    )

    assert answer["data"]["jobs"] == {
        "a": stands(known=True, recovered=True, replayed=1),
        "b": stands(known=True),
        "c": stands(known=False),
    }
    assert job_events(events) == ["e-2", "e-4"]


def test_since_does_not_bring_again_what_the_subscription_brought(
    relay: Relay, client: Client
) -> None:
    subscribe(client)
    relay.publish()
    relay.publish()
    client.flush()

    [answer] = subscribe(client, since="e-1")

    assert answer["data"]["jobs"] == {"job": stands(known=True, recovered=True)}


def test_since_does_not_bring_again_what_the_queue_brought(relay: Relay, client: Client) -> None:
    relay.publish(queue="q")
    client.send("subscribe-to-queue", {"queueName": "q"})
    relay.publish(queue="q")
    client.flush()

    assert job_events(subscribe(client, since="e-1")) == []


def test_since_brings_what_was_before_the_queues_subscription(relay: Relay, client: Client) -> None:
    for _ in range(3):
        relay.publish(queue="q")
    client.send("subscribe-to-queue", {"queueName": "q"})

    assert job_events(subscribe(client, since="e-1")) == ["e-2", "e-3"]


def test_a_snapshot_of_a_queue_that_was_left_does_not_stand_in_the_way_of_since(
    relay: Relay, client: Client
) -> None:
    for _ in range(3):
        relay.publish(queue="q")
    client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})
    client.send("unsubscribe-from-queue", {"queueName": "q"})
    client.send("subscribe-to-queue", {"queueName": "q"})

    assert job_events(subscribe(client, since="e-1")) == ["e-2", "e-3"]


@pytest.mark.parametrize("live", [0, 1])
def test_since_brings_nothing_older_than_what_was_sent(live: int) -> None:
    relay = Relay()
    client = Client(relay)
    for _ in range(3):
        relay.publish(queue="q")
    client.send("subscribe-to-queue", {"queueName": "q", "snapshot": not live})
    relay.publish_batch([draft(queue="q")] * live)
    before = job_events(client.flush() or client.seen)

    answer, *events = subscribe(client, since="e-1")

    assert answer["data"]["jobs"] == {"job": stands(known=True)}
    assert job_events(events) == before == [f"e-{3 + live}"]


def test_subscribing_twice_shows_the_latest_again_and_nothing_older(
    relay: Relay, client: Client
) -> None:
    subscribe(client)
    relay.publish(COMPLETED)
    relay.publish("job-archived")
    client.flush()

    answer, *events = subscribe(client)

    assert answer["data"]["jobs"] == {"job": stands(known=True)}
    assert job_events(events) == ["e-2"]


def test_a_subscribe_brings_nothing_older_than_what_the_queue_brought(
    relay: Relay, client: Client
) -> None:
    client.send("subscribe-to-queue", {"queueName": "q"})
    relay.publish(COMPLETED, queue="q")
    relay.publish("job-archived", queue="q")
    client.flush()

    assert job_events(subscribe(client)) == ["e-2"]


# Waiting for Redis


def test_a_subscribe_that_needs_redis_is_answered_when_it_was_read(
    relay: Relay, client: Client
) -> None:
    relay.looked_up = {"job"}

    assert subscribe(client) == []
    assert client.lookup is not None
    assert client.lookup.job_ids == ["job"]
    relay.find(COMPLETED)
    assert client.flush() == []

    answer, *events = client.resolve()
    assert answer["data"]["jobs"] == {"job": stands(known=True)}
    assert job_events(events) == ["e-1"]


def test_a_lookup_that_found_nothing_leaves_the_job_unknown(relay: Relay, client: Client) -> None:
    relay.looked_up = {"job"}
    subscribe(client)

    assert [m["data"]["jobs"] for m in client.resolve()] == [{"job": stands(known=False)}]
    relay.publish()
    assert job_events(client.flush()) == ["e-1"]


def test_live_events_of_all_jobs_of_a_batch_wait_and_come_once(
    relay: Relay, client: Client
) -> None:
    relay.looked_up = {"a"}
    client.send("subscribe-to-jobs", {"jobIds": ["a", "b"]})
    for job_id in ("b", "a", "b"):
        relay.publish(job_id=job_id)
    assert client.flush() == []

    answer, *events = client.resolve()

    assert answer["event"] == "subscribed"
    assert sorted(event["data"]["jobId"] for event in events) == ["a", "b", "b"]


def test_what_was_read_comes_before_what_came_meanwhile(relay: Relay, client: Client) -> None:
    relay.looked_up = {"job"}
    subscribe(client, since="s-1")
    relay.publish(progress=30, id="s-3")
    relay.publish(progress=40, id="s-4")
    for number in (1, 2, 3):
        relay.find(progress=10 * number, stored_id=f"s-{number}")

    answer, *events = client.resolve()

    assert answer["data"]["jobs"] == {"job": stands(known=True, recovered=True, replayed=2)}
    assert job_events(events) == ["s-2", "s-3", "s-4"]


def test_a_snapshot_after_a_wait_is_the_newest_that_was_read(relay: Relay, client: Client) -> None:
    relay.looked_up = {"job"}
    subscribe(client)
    for number in (1, 2, 3):
        relay.find(progress=10 * number, stored_id=f"s-{number}")

    assert job_events(client.resolve()) == ["s-3"]


def test_a_state_that_was_read_and_came_too_is_told_in_its_place(
    relay: Relay, client: Client
) -> None:
    relay.looked_up = {"job"}
    subscribe(client)
    relay.publish(progress=10, id="c-1")
    relay.publish(progress=20, id="c-2")
    relay.find(progress=20, id="c-2")

    assert job_events(client.resolve()) == ["c-1", "c-2"]


def test_a_job_that_the_queue_brings_comes_once_when_its_lookup_is_done(
    relay: Relay, client: Client
) -> None:
    client.send("subscribe-to-queue", {"queueName": "q"})
    relay.looked_up = {"job"}
    subscribe(client)
    relay.publish(queue="q")
    client.flush()

    client.resolve()

    assert len(job_events(client.seen)) == 1


def test_whoever_watches_already_is_told_what_a_lookup_finds(relay: Relay) -> None:
    early, late = Client(relay), Client(relay)
    subscribe(early)
    relay.looked_up = {"job"}
    subscribe(late)
    relay.find(COMPLETED)
    late.resolve()

    assert job_events(early.flush()) == job_events(late.seen) == ["e-1"]


def test_what_comes_while_two_wait_is_told_when_both_were_answered(relay: Relay) -> None:
    one, other = Client(relay), Client(relay)
    relay.looked_up = {"job"}
    subscribe(one)
    subscribe(other)
    relay.publish(COMPLETED)

    assert job_events(one.resolve()) == []
    other.resolve()

    assert len(job_events(one.flush())) == len(job_events(other.seen)) == 1


def test_a_job_watched_before_misses_nothing_while_it_is_looked_up_again(
    relay: Relay, client: Client
) -> None:
    subscribe(client)
    relay.publish(progress=1)
    relay.looked_up = {"job"}
    client.send("subscribe-to-job", {"jobId": "job", "since": "e-1"})
    for name in (COMPLETED, "job-archived", "job-moved"):
        relay.publish(name)
    client.resolve()

    names = [message["event"] for message in client.seen if "id" in message]
    assert names == [PROGRESS, COMPLETED, "job-archived", "job-moved"]


def test_with_history_off_what_came_while_waiting_is_told() -> None:
    relay = Relay(exposed=False)
    client = Client(relay)
    relay.looked_up = {"job"}
    subscribe(client)
    relay.publish(COMPLETED)

    answer, *events = client.resolve()

    assert answer["data"]["jobs"] == {"job": stands(known=False)}
    assert len(job_events(events)) == 1


def test_with_history_off_what_a_lookup_found_is_told() -> None:
    relay = Relay(exposed=False)
    client = Client(relay)
    relay.looked_up = {"job"}
    subscribe(client)
    relay.find(COMPLETED)

    assert job_events(client.resolve()) == ["e-1"]


def test_a_session_that_ended_while_waiting_is_not_answered_and_holds_nothing_back(
    relay: Relay, client: Client
) -> None:
    other = Client(relay)
    subscribe(other)
    relay.looked_up = {"job"}
    subscribe(client)
    relay.publish()

    client.session.end()

    assert client.resolve() == []
    assert len(job_events(other.flush())) == 1


def test_a_snapshot_of_a_queue_that_redis_stores_is_given_when_it_was_read(relay: Relay) -> None:
    relay.hub.stores_queues = True
    client = Client(relay)
    client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})
    assert client.lookup is not None
    assert client.lookup.queue == "q"
    relay.router.hold(["a"])
    relay.find(COMPLETED, "a", "q", stored_id="s-1")
    relay.router.release(["a"])
    relay.publish(job_id="b", queue="q", progress=1)
    relay.publish(job_id="b", queue="q", progress=2)
    assert client.flush() == []

    answer, *events = client.resolve()
    relay.publish(COMPLETED, job_id="b", queue="q")

    assert answer["event"] == "subscribed"
    assert [one["data"]["jobId"] for one in events] == ["a", "b"]
    assert events[1]["data"]["progress"] == 2
    assert [one["event"] for one in client.flush()] == [COMPLETED]


# What is owed


def test_nothing_is_owed_after_unsubscribed(relay: Relay, client: Client) -> None:
    relay.publish(job_id="a", queue="q")
    relay.publish(job_id="b")
    client.congest()
    client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})
    subscribe(client, "b")

    client.send("unsubscribe-from-queue", {"queueName": "q"})
    client.send("unsubscribe-from-job", {"jobId": "b"})

    assert [message["event"] for message in client.relieve()] == ["subscribed"] * 2 + [
        "unsubscribed"
    ] * 2


def test_what_another_subscription_brings_outlives_an_unsubscribe(
    relay: Relay, client: Client
) -> None:
    client.send("subscribe-to-queue", {"queueName": "q"})
    relay.publish(queue="q")
    client.flush()
    client.session.receive(b'{"event":"subscribe-to-job","data":{"jobId":"job"}}', 1.0)
    relay.publish("job-note", queue="q")

    client.send("unsubscribe-from-job", {"jobId": "job"})

    assert "e-2" in job_events(client.seen)


def test_a_replay_outlives_another_subscribe_to_the_job(relay: Relay, client: Client) -> None:
    for _ in range(3):
        relay.publish()
    since = b'{"event":"subscribe-to-job","data":{"jobId":"job","since":"e-1"}}'
    client.session.receive(since, 1.0)

    subscribe(client)

    assert job_events(client.seen) == ["e-2", "e-3"]


# A client that does not keep up


def test_a_congested_client_gets_the_newest_progress_and_every_end(
    relay: Relay, client: Client
) -> None:
    subscribe(client)
    client.congest()
    for progress in (10, 20, 30):
        relay.publish(progress=progress)
    relay.publish(FAILED)
    relay.publish(status="retrying")
    relay.publish(COMPLETED)

    assert client.flush() == []
    assert job_events(client.relieve()) == ["e-4", "e-5", "e-6"]
    assert relay.stats.conflated == 3


def test_a_job_that_conflates_leaves_others_alone(relay: Relay, client: Client) -> None:
    client.send("subscribe-to-jobs", {"jobIds": ["a", "b"]})
    client.congest()
    for job_id in ("a", "b", "a"):
        relay.publish(job_id=job_id)

    assert job_events(client.relieve()) == ["e-2", "e-3"]


def test_a_full_outbox_is_told_to_the_one_who_offers() -> None:
    relay = Relay(max_outbox_bytes=2000)
    client = Client(relay)
    subscribe(client)
    client.congest()

    first = client.session.offer(burst(event(COMPLETED, seq=1, padding_bytes=1500)))
    second = client.session.offer(burst(event(COMPLETED, seq=2, padding_bytes=1500)))

    assert (first, second) == (Verdict.HELD, Verdict.OVERFLOW)


def test_answers_that_overflow_the_outbox_end_the_session() -> None:
    client = Client(Relay(max_outbox_bytes=2000))
    client.congest()
    client.send("ping", "x" * 1500)

    with pytest.raises(SessionError) as caught:
        client.send("ping", "x" * 1500)

    assert caught.value.reason is CloseReason.SLOW_CONSUMER


def test_what_is_owed_to_a_congested_client_stays_in_history() -> None:
    relay = Relay(high_water_bytes=2000)
    client = Client(relay)
    for number in range(50):
        relay.publish(job_id=f"j{number}", data="x" * 1000)
    client.congest()

    client.send("subscribe-to-jobs", {"jobIds": [f"j{number}" for number in range(50)]})

    assert client.outbox.pending_bytes < 5000  # the answer alone
    assert len(job_events(client.relieve())) == 50
    assert relay.stats.deliveries == {PROGRESS: 50}


# Asked for by other means than a message


def obeyed(client: Client, *job_ids: str, since: str) -> dict[str, Any]:
    """What the answer says of each job to a subscribe whose `since` belongs to one of them."""
    asked = JobsCommand(True, True, list(job_ids), None, {}, None, dict.fromkeys(job_ids, since))
    asked.since_of_one = True
    client.session.obey(asked)
    jobs: dict[str, Any] = client.flush()[0]["data"]["jobs"]
    return jobs


def test_a_since_of_one_job_is_that_of_the_job_that_bears_it(relay: Relay, client: Client) -> None:
    relay.publish(job_id="a", id="1")
    relay.publish(job_id="a", id="2")
    relay.publish(job_id="b", id="3")

    answered = obeyed(client, "a", "b", since="1")

    assert answered["a"] == stands(known=True, recovered=True, replayed=1)
    assert answered["b"] == stands(known=True)


def test_a_since_that_two_jobs_bear_is_that_of_neither(relay: Relay, client: Client) -> None:
    relay.publish(job_id="a", id="1")
    relay.publish(COMPLETED, "b", id="1")

    answered = obeyed(client, "a", "b", since="1")

    assert answered == {"a": stands(known=True), "b": stands(known=True)}
    assert len(job_events(client.seen)) == 2


def test_what_is_obeyed_costs_nothing_of_the_rate_and_may_be_refused() -> None:
    relay = Relay(max_subscriptions=1, messages_burst=1)
    client = Client(relay)
    for queue in ("a", "b"):
        client.session.obey(QueueCommand(True, queue, False, {}, None))

    answers = client.flush()

    assert [answer["event"] for answer in answers] == ["subscribed", "error"]
    assert answers[1]["data"]["code"] == "too-many-subscriptions"
    assert client.send("ping")[0]["event"] == "pong"
