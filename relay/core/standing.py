"""Where a client stands with a job it subscribes to: what the answer says, and what it is owed.

Recovery is all or nothing, and never goes back: what another subscription of the same session has brought
is not sent again, and nothing older than that is sent after it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from relay.core.errors import ErrorCode
from relay.core.event import JobEvent
from relay.core.history import History, Key
from relay.core.index import Topic, topics_of
from relay.core.wire import JobsCommand


@dataclass(slots=True)
class Subscribing:
    """A subscribe on its way: what it asked, what is new in it, what is refused.

    `asked_at` is the position when it had to wait for Redis, `position` that when it is answered.
    """

    command: JobsCommand
    fresh: set[str] = field(default_factory=set)
    refused: dict[str, ErrorCode] = field(default_factory=dict)
    asked_at: int | None = None
    position: int = 0


class Debt(NamedTuple):
    """What came after `position` is owed; with `snapshot` also where the job stood by then."""

    position: int
    snapshot: bool


class Standing(NamedTuple):
    """One job in `subscribed`, and what follows the answer."""

    answer: dict[str, object]
    debt: Debt | None
    replayed: int = 0


class Sent(NamedTuple):
    """What tells whether a session was sent an event: its topics with the position at which each began,
    and the queues of whose jobs it was sent the state."""

    topics: Mapping[Topic, int]
    snapshot_queues: Collection[str | None]
    subscribing: Subscribing

    def covers(self, events: list[JobEvent], key: Key) -> bool:
        """Whether another subscription, or an earlier one to `key`, brought the first of `events` (or
        will); the second is the one that follows it, if any."""
        event = events[0]
        fresh = key[1] in self.subscribing.fresh
        if fresh and event.seq > self.subscribing.position:
            return False
        for topic in topics_of(event.queue, event.job_id):
            began = self.topics.get(topic)
            if began is None or (fresh and topic == key):
                continue
            gave_snapshot = topic[1] is not None or topic[0] in self.snapshot_queues
            is_snapshot = gave_snapshot and (len(events) == 1 or events[1].seq > began)
            if event.seq > began or is_snapshot:
                return True
        return False


def stand(key: Key, subscribing: Subscribing, history: History, sent: Sent) -> Standing:
    """How the subscribe to this job is answered."""
    queue, job_id = key
    since = subscribing.command.since.get(job_id)
    if not history.exposed:
        # Nothing is shown of the past, but what was just read is news to whoever asked for it.
        asked_at = subscribing.asked_at
        return Standing(_answer(known=False), None if asked_at is None else Debt(asked_at, False))
    if since is not None:
        later = history.after(job_id, queue, since)
        unsent = None if later is None else _unsent(later, key, sent)
        if unsent is not None:
            debt = Debt(unsent[0].seq - 1, snapshot=False) if unsent else None
            answer = _answer(known=True, recovered=True, replayed=len(unsent))
            return Standing(answer, debt, len(unsent))
    snapshot = history.snapshot(job_id, queue)
    if not snapshot:
        return Standing(_answer(known=False), None)
    newest = snapshot[-1].seq
    if job_id not in subscribing.fresh:
        return Standing(_answer(known=True), Debt(newest - 1, snapshot=False))
    if sent.covers(snapshot[-1:], key):
        position = min(newest - 1, subscribing.position)
        return Standing(_answer(known=True), Debt(position, snapshot=False))
    return Standing(_answer(known=True), Debt(subscribing.position, snapshot=True))


def since_of_bearer(history: History, command: JobsCommand) -> dict[str, str]:
    """`since` for the one job that bears the id; none where two do: taken for the wrong job it would
    pass over events that the client has not seen."""
    bearers = {
        job_id: since
        for job_id, since in command.since.items()
        if any(event.id == since for event in history.events(job_id, command.queue))
    }
    return bearers if len(bearers) == 1 else {}


def _unsent(later: list[JobEvent], key: Key, sent: Sent) -> list[JobEvent] | None:
    """Those of `later` that no other subscription brought; None where one did, and older ones are
    missing: they must not come after it."""
    covered = 0
    for number in range(len(later)):
        if sent.covers(later[number : number + 2], key):
            if covered < number:
                return None
            covered = number + 1
    return later[covered:]


def _answer(*, known: bool, recovered: bool = False, replayed: int = 0) -> dict[str, object]:
    return {"known": known, "recovered": recovered, "replayed": replayed}
