"""The index agrees with a naive set of pairs, whatever is added, removed and dropped in which order."""

from collections import Counter
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.index import Index, Topic, topic_kind

Operation: TypeAlias = tuple[str, str, Topic]

JOBS = ["j1", "j2", "j3"]
QUEUES = ["q1", "q2"]
SUBSCRIBERS = ["a", "b", "c"]
TOPICS: list[Topic] = [
    *((None, job) for job in JOBS),
    *((queue, job) for queue in QUEUES for job in JOBS),
    *((queue, None) for queue in QUEUES),
]
operations = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "remove", "drop"]),
        st.sampled_from(SUBSCRIBERS),
        st.sampled_from(TOPICS),
    ),
    max_size=40,
)


def applied(steps: list[Operation]) -> tuple[Index[str], dict[tuple[str, Topic], int]]:
    """An index after these steps, and the pairs that it should hold, each with its position."""
    index: Index[str] = Index()
    pairs: dict[tuple[str, Topic], int] = {}
    for position, (what, subscriber, topic) in enumerate(steps):
        pair = (subscriber, topic)
        if what == "add":
            assert index.add(subscriber, topic, position) is (pair not in pairs)
            pairs.setdefault(pair, position)
        elif what == "remove":
            assert index.remove(subscriber, topic) is (pair in pairs)
            pairs.pop(pair, None)
        else:
            gone = [pair for pair in pairs if pair[0] == subscriber]
            assert index.drop(subscriber) == len(gone)
            pairs = {pair: begun for pair, begun in pairs.items() if pair not in gone}
    return index, pairs


@given(operations)
@settings(max_examples=60, deadline=None)
def test_agrees_with_a_set_of_pairs(steps: list[Operation]) -> None:
    index, pairs = applied(steps)

    for subscriber in SUBSCRIBERS:
        expected = {topic: begun for (who, topic), begun in pairs.items() if who == subscriber}
        assert index.topics(subscriber) == expected
    for kind in ("job", "queue"):
        assert index.counts[kind] == sum(topic_kind(topic) == kind for _, topic in pairs)
    for job in JOBS:
        for queue in (None, *QUEUES):
            matching = {(None, job), (queue, job), (queue, None)}
            expected_audience = {who for who, topic in pairs if topic in matching}
            audience = index.audience(queue, job)
            assert len(audience) == len(expected_audience)
            assert set(audience) == expected_audience
    assert set(index.named) == {topic[1] for _, topic in pairs if topic[1] is not None}


@given(operations)
@settings(max_examples=60, deadline=None)
def test_watches_all_that_may_concern_somebody(steps: list[Operation]) -> None:
    index, pairs = applied(steps)

    for job in JOBS:
        for queue in QUEUES:
            assert index.watches(queue, job) is bool(index.audience(queue, job))
        may_concern = any(topic[1] in (job, None) for _, topic in pairs)
        assert index.watches(None, job) is may_concern


@given(operations)
@settings(max_examples=50, deadline=None)
@pytest.mark.uncompiled
def test_holds_nothing_when_all_have_left(steps: list[Operation]) -> None:
    index, _ = applied(steps)

    for subscriber in SUBSCRIBERS:
        index.drop(subscriber)

    assert index.counts == {"job": 0, "queue": 0}
    assert not index.named
    assert not any(index.watches(queue, job) for job in JOBS for queue in (None, *QUEUES))
    assert all(value == {} for name, value in vars(index).items() if name != "counts")


@given(operations)
@settings(max_examples=60, deadline=None)
def test_busiest_are_those_with_most_subscribers(steps: list[Operation]) -> None:
    index, pairs = applied(steps)

    counted = Counter(topic for _, topic in pairs)
    jobs = {topic: count for topic, count in counted.items() if topic_kind(topic) == "job"}
    queues = {topic[0]: count for topic, count in counted.items() if topic_kind(topic) == "queue"}

    assert dict(index.busiest_jobs(100)) == jobs
    assert dict(index.busiest_queues(100)) == queues
    expected = sorted(jobs.values(), reverse=True)[:2]
    assert [count for _, count in index.busiest_jobs(2)] == expected
