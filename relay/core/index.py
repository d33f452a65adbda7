"""Who watches what: a job, a job within a queue, or a queue to subscribers, and each subscriber back.

Invariant: the forward maps and the map back hold the same pairs; a topic without subscribers and a
subscriber without topics are in none of them. Generic over the subscriber: any hashable object.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping
from heapq import nlargest
from itertools import chain
from operator import itemgetter
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

# (queue, job id): a job of any queue (None, job), a job within a queue (queue, job), a queue (queue, None).
Topic = tuple[str | None, str | None]


def topic_kind(topic: Topic) -> str:
    """The label of a topic in `relay_subscriptions{kind}`: "job" or "queue"."""
    return "queue" if topic[1] is None else "job"


def topics_of(queue: str | None, job_id: str) -> tuple[Topic, ...]:
    """The topics that an event of this job matches."""
    return ((None, job_id),) if queue is None else ((None, job_id), (queue, job_id), (queue, None))


class Index(Generic[S]):
    """The subscriptions of all subscribers, each with the position at which it began.

    `named` holds the jobs that are watched by name, `queues` the queues that are watched, for whoever
    only asks whether; they are not to be changed.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, set[S]] = {}
        self.queues: dict[str, set[S]] = {}
        self._queue_jobs: dict[Topic, set[S]] = {}
        self.named: dict[str, int] = {}  # jobs watched by name, in any queue or one: how often
        self._topics: dict[S, dict[Topic, int]] = {}
        self.counts = {"job": 0, "queue": 0}

    def add(self, subscriber: S, topic: Topic, position: int) -> bool:
        """Subscribe. Returns whether anything changed; an earlier position is kept."""
        topics = self._topics.setdefault(subscriber, {})
        if topic in topics:
            return False
        topics[topic] = position
        queue, job_id = topic
        if job_id is None:
            assert queue is not None
            self.queues.setdefault(queue, set()).add(subscriber)
        else:
            self.named[job_id] = self.named.get(job_id, 0) + 1
            if queue is None:
                self._jobs.setdefault(job_id, set()).add(subscriber)
            else:
                self._queue_jobs.setdefault(topic, set()).add(subscriber)
        self.counts[topic_kind(topic)] += 1
        return True

    def remove(self, subscriber: S, topic: Topic) -> bool:
        """Unsubscribe. Returns whether anything changed."""
        topics = self._topics.get(subscriber)
        if topics is None or topic not in topics:
            return False
        del topics[topic]
        if not topics:
            del self._topics[subscriber]
        self._remove_forward(subscriber, topic)
        return True

    def drop(self, subscriber: S) -> int:
        """Remove all of a subscriber's subscriptions. Returns how many there were."""
        topics = self._topics.pop(subscriber, {})
        for topic in topics:
            self._remove_forward(subscriber, topic)
        return len(topics)

    def topics(self, subscriber: S) -> Mapping[Topic, int]:
        """What `subscriber` watches, and the position at which each began."""
        return self._topics.get(subscriber, {})

    def watches(self, queue: str | None, job_id: str) -> bool:
        """Whether a message of this job concerns anybody.

        `queue` None means that the channel does not tell it: then the payload may, and whoever watches
        any queue, or the job within one, may be concerned.
        """
        if job_id in self._jobs:
            return True
        if queue is None:
            return bool(self.queues) or job_id in self.named
        return queue in self.queues or (queue, job_id) in self._queue_jobs

    def audience(self, queue: str | None, job_id: str, *, by_name: bool = False) -> Collection[S]:
        """Everybody who watches this job, each once; `by_name`: not those who watch its queue. Not to be
        changed, nor kept across a change."""
        named = self._jobs.get(job_id, ())
        if queue is None:
            return named
        of_queue = () if by_name else self.queues.get(queue, ())
        within = self._queue_jobs.get((queue, job_id), ())
        found = [subscribers for subscribers in (named, of_queue, within) if subscribers]
        if len(found) == 1:
            return found[0]
        return set().union(*found) if found else ()

    def busiest_jobs(self, limit: int) -> list[tuple[Topic, int]]:
        """The jobs that most subscribers watch by name, with how many those are; most first.

        Looks at every one that is watched, some 0.2 µs each: not for the hot path.
        """
        named: Iterable[tuple[Topic, int]] = (
            ((None, job_id), len(watchers)) for job_id, watchers in self._jobs.items()
        )
        within = ((topic, len(watchers)) for topic, watchers in self._queue_jobs.items())
        return nlargest(limit, chain(named, within), key=itemgetter(1))

    def busiest_queues(self, limit: int) -> list[tuple[str, int]]:
        """The queues that most subscribers watch, with how many those are; most first."""
        watched = ((queue, len(watchers)) for queue, watchers in self.queues.items())
        return nlargest(limit, watched, key=itemgetter(1))

    def _remove_forward(self, subscriber: S, topic: Topic) -> None:
        queue, job_id = topic
        if job_id is None:
            assert queue is not None
            _discard(self.queues, queue, subscriber)
        else:
            left = self.named[job_id] - 1
            if left:
                self.named[job_id] = left
            else:
                del self.named[job_id]
            if queue is None:
                _discard(self._jobs, job_id, subscriber)
            else:
                _discard(self._queue_jobs, topic, subscriber)
        self.counts[topic_kind(topic)] -= 1


K = TypeVar("K", bound=Hashable)


def _discard(forward: dict[K, set[S]], key: K, subscriber: S) -> None:
    subscribers = forward[key]
    subscribers.discard(subscriber)
    if not subscribers:
        del forward[key]
