"""What a session may watch: decided when it asks, and again when a newer token comes."""

from typing import Any

import pytest

from relay.core.closing import CloseReason
from relay.core.errors import ErrorCode, SessionError
from relay.core.event import COMPLETED
from relay.core.grants import EVERYTHING, Grants, grants_of
from relay.core.rights import Proof, may_watch, told_of_removed
from relay.core.wire import QueueCommand
from tests.fakes import Client, Message, Relay

EXPIRES_AT_MS = 1_795_399_642_000


def grants(*jobs: str, queues: tuple[str, ...] = (), sub: str = "alice") -> Grants:
    claims = {"sub": sub, "jobs": list(jobs), "queues": list(queues)}
    return grants_of(claims, expires_at_ms=EXPIRES_AT_MS)


def client_with(rights: Grants | None, relay: Relay | None = None, **limits: Any) -> Client:
    """A client of a relay that asks for tokens."""
    relay = relay or Relay(**limits)
    relay.hub.auth_mode = "jwt"
    return Client(relay, rights)


def authenticate(client: Client, rights: Grants | None, ref: int = 1) -> list[Message]:
    """Send a token that turns out to grant this. Returns what came of it."""
    client.send("authenticate", {"token": "t"}, ref=ref)
    proof = client.proof
    assert proof is not None
    assert proof.token == "t"
    proof.grants = rights
    return client.resolve()


def code_of(answers: list[Message]) -> str:
    (answer,) = answers
    assert answer["event"] == "error"
    code: str = answer["data"]["code"]
    return code


def subscribe(client: Client, job_id: str, **more: object) -> list[Message]:
    return client.send("subscribe-to-job", {"jobId": job_id, **more})


# Before a token


@pytest.mark.parametrize(
    "text",
    [
        b'{"event":"subscribe-to-job","data":{"jobId":"a"}}',
        b'{"event":"subscribe-to-jobs","data":{"jobIds":["a"]}}',
        b'{"event":"subscribe-to-queue","data":{"queueName":"q"}}',
        b'{"event":"unsubscribe-from-job","data":{"jobId":"a"}}',
        b'{"event":"subscribe-to-job","data":{}}',
        b'{"event":"dance"}',
        b"{",
    ],
)
def test_everything_but_ping_is_unauthorized_before_a_token(text: bytes) -> None:
    client = client_with(None)

    assert code_of(client.send_bytes(text)) == "unauthorized"
    assert client.session.subscription_count == 0


def test_ping_is_answered_before_a_token() -> None:
    assert client_with(None).send("ping", 7) == [{"event": "pong", "data": 7}]


def test_unauthorized_answer_bears_the_ref() -> None:
    (answer,) = client_with(None).send("subscribe-to-job", {"jobId": "a"}, ref="r")

    assert (answer["ref"], answer["data"]["temporary"]) == ("r", False)


def test_first_token_opens_what_it_grants() -> None:
    client = client_with(None)

    answers = authenticate(client, grants("a"), ref=3)

    data = {"expiresAt": EXPIRES_AT_MS}
    assert answers == [{"event": "authenticated", "data": data, "ref": 3}]
    assert subscribe(client, "a")[0]["event"] == "subscribed"


# Tokens


def test_token_that_is_not_believed_leaves_the_older_rights() -> None:
    client = client_with(grants("a"))

    assert code_of(authenticate(client, None)) == "unauthorized"
    assert subscribe(client, "a")[0]["event"] == "subscribed"


def test_token_that_cannot_be_judged_now_may_be_sent_again() -> None:
    client = client_with(None)
    client.send("authenticate", {"token": "t"}, ref=1)
    assert client.proof is not None
    client.proof.refused, client.proof.advice = ErrorCode.UNAVAILABLE, "later"

    (answer,) = client.resolve()

    assert answer["data"] == {"code": "unavailable", "message": "later", "temporary": True}


def test_tokens_that_are_not_believed_are_errors_in_a_row() -> None:
    client = client_with(None, max_errors=3)
    for _ in range(2):
        authenticate(client, None)

    with pytest.raises(SessionError) as end:
        authenticate(client, None)

    assert end.value.reason is CloseReason.TOO_MANY_ERRORS


def test_token_that_is_believed_ends_a_row_of_errors() -> None:
    client = client_with(None, max_errors=2)
    authenticate(client, None)
    authenticate(client, grants("a"))

    assert code_of(authenticate(client, None)) == "unauthorized"


def test_token_of_somebody_else_is_refused() -> None:
    client = client_with(grants("a", sub="alice"))

    assert code_of(authenticate(client, grants("*", sub="mallory"))) == "unauthorized"
    assert code_of(subscribe(client, "b")) == "forbidden"


def test_proxy_alone_says_who_a_client_is_in_mode_proxy() -> None:
    client = client_with(grants("a"))
    client.relay.hub.auth_mode = "proxy"

    assert code_of(client.send("authenticate", {"token": "t"})) == "unauthorized"


def test_nothing_is_awaited_of_a_session_that_ended_meanwhile() -> None:
    client = client_with(None)
    client.send("authenticate", {"token": "t"})
    assert client.proof is not None
    client.session.end()
    client.proof.grants = grants("a")

    assert client.resolve() == []
    assert client.session.grants is None


# What may be watched


@pytest.mark.parametrize(
    ("data", "allowed"),
    [
        ({"jobId": "a-1"}, True),
        ({"jobId": "a-1", "queueName": "anything"}, True),
        ({"jobId": "b-1"}, False),
        ({"jobId": "b-1", "queueName": "q-1"}, True),
        ({"jobId": "b-1", "queueName": "r-1"}, False),
    ],
)
def test_right_of_a_queue_holds_for_requests_that_name_it(
    data: dict[str, str], allowed: bool
) -> None:
    client = client_with(grants("a-*", queues=("q-*",)))

    answers = client.send("subscribe-to-job", data)

    assert answers[0]["event"] == ("subscribed" if allowed else "error")
    assert allowed or code_of(answers) == "forbidden"


@pytest.mark.parametrize(("queue", "allowed"), [("q-1", True), ("a-1", False)])
def test_queue_is_watched_by_a_right_of_queues_alone(queue: str, allowed: bool) -> None:
    client = client_with(grants("*", queues=("q-*",)))

    answers = client.send("subscribe-to-queue", {"queueName": queue})

    assert answers[0]["event"] == ("subscribed" if allowed else "error")


def test_each_job_of_a_batch_answers_for_itself() -> None:
    client = client_with(grants("a"))

    (answer,) = client.send("subscribe-to-jobs", {"jobIds": ["a", "b", "c\n"]})

    stands = {"known": False, "recovered": False, "replayed": 0}
    assert answer["data"]["jobs"] == {
        "a": stands,
        "b": {"error": "forbidden"},
        "c\n": {"error": "invalid-job-id"},
    }


def test_refused_jobs_take_no_place_among_the_subscriptions() -> None:
    client = client_with(grants("z"), max_subscriptions=1)

    (answer,) = client.send("subscribe-to-jobs", {"jobIds": ["a", "b", "z"]})

    assert "error" not in answer["data"]["jobs"]["z"]


def test_refusal_looks_the_same_for_a_job_that_exists() -> None:
    relay = Relay()
    relay.publish(COMPLETED, "known")
    client = client_with(grants(), relay)

    assert subscribe(client, "known") == subscribe(client, "unknown")


def test_nothing_is_looked_up_or_held_for_what_is_refused() -> None:
    relay = Relay()
    relay.looked_up |= {"stored", "mine"}
    client = client_with(grants("mine"), relay)

    refused = subscribe(client, "stored")
    nothing = client.lookup
    client.send("subscribe-to-jobs", {"jobIds": ["stored", "mine"]})

    assert code_of(refused) == "forbidden"
    assert nothing is None
    assert client.lookup is not None
    assert client.lookup.job_ids == ["mine"]
    assert set(relay.history.holding) == {"mine"}


def test_events_of_another_queue_are_not_sent_by_a_right_of_a_queue() -> None:
    relay = Relay()
    relay.publish(job_id="job", queue="other", eventId="o-1", n=1)
    relay.publish(job_id="job", queue="q", eventId="q-1", n=2)
    relay.publish(job_id="job", queue="other", eventId="o-2", n=3)
    client = client_with(grants(queues=("q",)), relay)

    subscribe(client, "job", queueName="q", since="o-1")
    relay.publish(job_id="job", queue="other", n=4)
    relay.publish(job_id="job", n=5)
    relay.publish(job_id="job", queue="q", n=6)
    client.flush()

    events = [message for message in client.seen if "id" in message]
    assert [message["data"]["n"] for message in events] == [2, 6]


def test_errors_of_a_stream_do_not_end_it() -> None:
    client = client_with(grants(queues=("q",)), max_errors=1)

    for _ in range(3):
        client.session.obey(QueueCommand(True, "other", False, {"queueName": "other"}, None))

    (first, *_) = client.flush()
    assert first["data"]["code"] == "forbidden"
    assert "other" in first["data"]["message"]


def test_one_too_many_is_said_after_a_lookup_too() -> None:
    relay = Relay(max_subscriptions=1)
    relay.looked_up.add("late")
    client = client_with(EVERYTHING, relay)
    subscribe(client, "first")
    subscribe(client, "late")

    assert code_of(client.resolve()) == "too-many-subscriptions"
    assert not relay.history.holding


# A newer token that grants less


def test_what_a_newer_token_does_not_allow_is_unsubscribed_and_said() -> None:
    client = client_with(grants("*", queues=("*",)))
    client.send("subscribe-to-jobs", {"jobIds": ["a", "b", "c"]})
    client.send("subscribe-to-jobs", {"jobIds": ["a", "b"], "queueName": "q"})
    client.send("subscribe-to-queue", {"queueName": "q"})
    client.send("subscribe-to-queue", {"queueName": "r"})

    authenticated, *told = authenticate(client, grants("a", queues=("r",)))

    reason = {"reason": "forbidden"}
    assert authenticated["event"] == "authenticated"
    assert told == [
        {"event": "unsubscribed", "data": {"queueName": "q"} | reason},
        {"event": "unsubscribed", "data": {"jobIds": ["b", "c"]} | reason},
        {"event": "unsubscribed", "data": {"jobIds": ["b"], "queueName": "q"} | reason},
    ]
    topics = client.relay.index.topics(client.session)
    assert set(topics) == {(None, "a"), ("q", "a"), ("r", None)}


def test_same_rights_in_a_newer_token_change_nothing() -> None:
    client = client_with(grants("a"))
    subscribe(client, "a")

    assert [answer["event"] for answer in authenticate(client, grants("a"))] == ["authenticated"]
    assert client.session.subscription_count == 1


def test_held_events_of_what_is_not_allowed_any_more_are_not_sent() -> None:
    relay = Relay()
    client = client_with(grants("*"), relay)
    client.send("subscribe-to-jobs", {"jobIds": ["kept", "lost"]})
    client.congest()
    relay.publish(job_id="lost", n=1)
    relay.publish(COMPLETED, "lost", n=2)
    relay.publish(COMPLETED, "kept", n=3)

    authenticate(client, grants("kept"))
    seen = client.relieve()

    assert [message["event"] for message in seen] == [COMPLETED, "authenticated", "unsubscribed"]
    assert seen[0]["data"]["n"] == 3
    assert relay.stats.outbox_bytes == 0


def test_held_events_of_what_was_unsubscribed_before_are_not_sent_either() -> None:
    relay = Relay()
    client = client_with(grants("*"), relay)
    subscribe(client, "lost")
    client.congest()
    relay.publish(COMPLETED, "lost")
    client.send("unsubscribe-from-job", {"jobId": "lost"})

    authenticate(client, grants("kept"))

    assert COMPLETED not in [message["event"] for message in client.relieve()]


def test_snapshot_still_owed_of_what_is_not_allowed_any_more_is_not_sent() -> None:
    relay = Relay()
    for job_id in ("kept", "lost"):
        relay.publish(COMPLETED, job_id, text=job_id)
    client = client_with(grants("*"), relay)
    client.congest()
    client.send("subscribe-to-jobs", {"jobIds": ["kept", "lost"]})

    authenticate(client, grants("kept"))
    seen = client.relieve()

    assert [m["data"]["text"] for m in seen if m["event"] == COMPLETED] == ["kept"]


def test_of_a_job_in_every_queue_only_what_is_still_watched_is_owed() -> None:
    relay = Relay()
    relay.publish(job_id="job", queue="mine", n=1)
    relay.publish(job_id="job", queue="other", n=2)
    client = client_with(grants("*", queues=("mine",)), relay)
    client.send("subscribe-to-queue", {"queueName": "mine"})
    session = client.session
    # Nothing is flushed until the end: what comes is left to the debt of the job in every queue.
    session.receive(b'{"event":"subscribe-to-job","data":{"jobId":"job"}}', 1.0)
    relay.publish(job_id="job", queue="mine", n=3)
    relay.publish(job_id="job", queue="other", n=4)

    proof = session.receive(b'{"event":"authenticate","data":{"token":"t"}}', 1.0)
    assert isinstance(proof, Proof)
    proof.grants = grants(queues=("mine",))
    session.resolve()
    client.flush()

    events = [message for message in client.seen if "id" in message]
    assert [message["data"]["n"] for message in events] == [3]


def test_queue_that_is_taken_away_is_forgotten_with_its_snapshot() -> None:
    relay = Relay()
    relay.publish(COMPLETED, "job", "q")
    client = client_with(grants(queues=("q",)), relay)
    client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})

    authenticate(client, grants())
    authenticate(client, grants(queues=("q",)))
    again = client.send("subscribe-to-queue", {"queueName": "q", "snapshot": True})

    assert [message["event"] for message in again] == ["subscribed", COMPLETED]


def test_topic_is_watched_by_the_right_for_its_kind() -> None:
    rights = grants("a", queues=("q",))

    assert [may_watch(rights, t) for t in ((None, "a"), ("q", "b"), ("q", None))] == [True] * 3
    assert [may_watch(rights, t) for t in ((None, "b"), ("r", "b"), ("a", None))] == [False] * 3


def test_many_topics_are_told_of_in_few_messages() -> None:
    topics = [("q", f"job-{n}") for n in range(500)] + [(None, f"job-{n}") for n in range(500)]

    assert len(told_of_removed(topics)) == 2
