"""What durable history takes, and what it refuses with advice."""

import hashlib
from typing import Any

import pytest

from relay.settings import HistoryConfig
from relay.upstream.durable import (
    APPEND_SCRIPT,
    APPEND_SHA,
    DurableHistory,
    append_arguments,
    check_key,
    chosen,
    queue_commands,
)
from relay.upstream.payloads import Message

MESSAGE = Message(channel="jobs:q:a", payload=b"{}", job="a", queue="q", event="job-queued")
BARE = Message(channel="own.a", payload=b"{}", job="a", queue=None, event=None)


def test_its_defaults_are_those_of_the_relays_settings() -> None:
    history, settings = DurableHistory(), HistoryConfig()

    assert (history.prefix, history.max_events, history.ttl_seconds) == (
        settings.prefix, settings.max_events, settings.ttl_seconds
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"prefix": ""}, "the prefix is empty"),
        ({"max_events": 0}, "max_events is 0"),
        ({"max_events": True}, "max_events is True"),
        ({"ttl_seconds": 0}, "ttl_seconds is 0"),
        ({"ttl_seconds": 1.5}, "ttl_seconds is 1.5"),
    ],
)
def test_what_redis_would_take_for_nothing_is_refused(
    arguments: dict[str, Any], advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        DurableHistory(**arguments)


def test_true_is_the_defaults_and_false_is_none() -> None:
    own = DurableHistory(max_events=5)

    assert [chosen(given) for given in (True, False, None, own)] == [
        DurableHistory(), None, None, own
    ]  # fmt: skip


def test_an_empty_key_is_refused_because_it_would_protect_nothing() -> None:
    with pytest.raises(ValueError, match="the key is empty"):
        check_key(DurableHistory(), "")


def test_the_scripts_arguments_stand_in_the_documented_order() -> None:
    history = DurableHistory(prefix="p:", max_events=5, ttl_seconds=60)

    assert append_arguments(history, MESSAGE, "k") == (
        "p:a", "jobs:q:a", b"{}", "job-queued", "q", 5, 60, "k"
    )  # fmt: skip
    assert append_arguments(history, BARE, None) == ("p:a", "own.a", b"{}", "", "", 5, 60, "")


def test_a_queue_is_noted_bounded_and_with_an_end() -> None:
    assert queue_commands(DurableHistory(prefix="p:", ttl_seconds=60), MESSAGE, 7) == [
        ("ZADD", "p:queue:q", 7, "a"),
        ("ZREMRANGEBYRANK", "p:queue:q", 0, -10_001),
        ("EXPIRE", "p:queue:q", 60),
    ]
    assert queue_commands(DurableHistory(), BARE, 7) == []


def test_the_script_is_called_by_the_hash_of_what_is_shipped() -> None:
    assert hashlib.sha1(APPEND_SCRIPT.encode()).hexdigest() == APPEND_SHA
