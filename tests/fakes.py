"""A relay without edges, for tests of the core: publish by a call, and read a session like a client.

`Relay` speaks a dialect of its own: payloads are flat JSON objects with `event`, and `queueName` and
`eventId` where they are told. `Client`
does what a socket does: it flushes while the transport takes more, and decodes what it was sent.
"""

from typing import Any

import orjson

from relay.core.errors import InvalidReason
from relay.core.event import PROGRESS, RUNNING_STATUSES, Burst, Draft, Identity, JobEvent, Source
from relay.core.grants import EVERYTHING, Grants
from relay.core.history import History
from relay.core.index import Index
from relay.core.outbox import Outbox, Verdict
from relay.core.rights import Proof
from relay.core.router import Found, Router
from relay.core.session import Hub, Lookup, Session
from relay.core.stats import Stats

EPOCH = "e"
INVALID = b"invalid"
FLUSH_BYTES = 65536

Message = dict[str, Any]


class Dialect:
    """The source of the messages that tests write; `understood` lists each payload it was given."""

    pattern = "*"

    def __init__(self) -> None:
        self.understood: list[bytes] = []
        self.default_name = PROGRESS

    def identify(self, channel: bytes) -> Identity:
        queue, _, job_id = channel.decode().rpartition(":")
        return Identity(self, channel, job_id, queue or None)

    def parse(self, identity: Identity, message: bytes) -> Draft:
        fields = orjson.loads(message)
        assert identity.job_id is not None
        return Draft(
            fields.pop("event", self.default_name),
            identity.job_id,
            identity.queue or fields.pop("queueName", None),
            fields,
            id=fields.pop("eventId", None),
            runs=fields.get("status") in RUNNING_STATUSES,
        )

    def understand(self, identity: Identity, message: bytes) -> Draft | None:
        self.understood.append(message)
        return None if message == INVALID else self.parse(identity, message)


def draft(
    name: str = PROGRESS,
    job_id: str = "job",
    queue: str | None = None,
    *,
    id: str | None = None,
    **fields: Any,
) -> Draft:
    """What a source would make of such a message."""
    runs = fields.get("status") in RUNNING_STATUSES
    return Draft(name, job_id, queue, fields, id=id, runs=runs)


def identity(job_id: str = "job", queue: str | None = None) -> Identity:
    """What a channel tells of such a job."""
    source: Source = Dialect()
    return Identity(source, f"{queue or ''}:{job_id}".encode(), job_id, queue)


def raw(name: str = PROGRESS, **fields: Any) -> bytes:
    """The bytes of a message in the tests' dialect."""
    return orjson.dumps({"event": name, **fields})


def event(
    name: str = PROGRESS,
    job_id: str = "job",
    queue: str | None = None,
    *,
    seq: int = 1,
    padding_bytes: int = 0,
) -> JobEvent:
    """An event whose data tells its seq."""
    data = orjson.dumps({"jobId": job_id, "seq": seq, "padding": "x" * padding_bytes})
    return JobEvent(name, job_id, queue, f"{EPOCH}-{seq}", seq, 1000 + seq, data)


def burst(*events: JobEvent) -> Burst:
    """These events of one job, as one batch brought them."""
    return Burst(events[0].queue, events[0].job_id, events)


def decode(data: bytes) -> list[Message]:
    """The messages in a piece of WebSocket text frames."""
    messages = []
    while data:
        assert data[0] == 0x81, "a final text frame"
        head, length = 2, data[1]
        if length == 126:
            head, length = 4, int.from_bytes(data[2:4], "big")
        elif length == 127:
            head, length = 10, int.from_bytes(data[2:10], "big")
        messages.append(orjson.loads(data[head : head + length]))
        data = data[head + length :]
    return messages


class Relay:
    """Router, history, index and sessions, put together as the composition root does.

    Speaks the tests' dialect, or that of `source`. What the router tells is for a subclass to heed.
    """

    def __init__(
        self, *, source: Source | None = None, max_payload_bytes: int = 1 << 20, max_events: int = 100,
        max_jobs: int = 1000, exposed: bool = True, keeps_unwatched: bool = True, **limits: Any,
    ) -> None:  # fmt: skip
        self.source = source or Dialect()
        self.stats = Stats()
        self.index: Index[Session] = Index()
        self.looked_up: set[str] = set()  # the jobs that must be looked up at a subscribe
        self.woken: list[Session] = []
        self.overflowed: list[Session] = []
        self.routed: list[JobEvent] = []
        self.router = Router(
            sources={self.source.pattern.encode(): self.source},
            index=self.index,
            stats=self.stats,
            max_payload_bytes=max_payload_bytes,
            on_invalid=self._on_invalid,
            on_overflow=self._on_overflow,
            on_routed=self._on_routed,
        )
        self.history = self.router.history = History(
            epoch=EPOCH,
            understand=self.router.understand,
            on_refused=self.router.refused,
            max_events=max_events,
            max_jobs=max_jobs,
            max_bytes=1 << 24,
            ttl_seconds=3600,
            exposed=exposed,
            keeps_unwatched=keeps_unwatched,
        )
        defaults: dict[str, Any] = {
            "heartbeat_seconds": 25,
            "high_water_bytes": FLUSH_BYTES,
            "max_outbox_bytes": 1 << 22,
            "max_subscriptions": 1000,
            "max_errors": 10,
            "messages_per_second": 1000,
            "messages_burst": 1000,
        }
        self.hub = Hub(
            index=self.index,
            history=self.history,
            stats=self.stats,
            position=lambda: self.router.seq,
            needs_lookup=lambda job_id, _: job_id in self.looked_up,
            hold=self.router.hold,
            release=self.router.release,
            wake=self.woken.append,
            **(defaults | limits),
        )

    def _on_invalid(
        self, reason: InvalidReason, channel: bytes, error: Exception | None = None
    ) -> None:
        """A message was dropped."""

    def _on_overflow(self, session: Session) -> None:
        """A session's outbox is full."""
        self.overflowed.append(session)

    def _on_routed(self, event: JobEvent, progress: float | None) -> None:
        """Somebody is told of an event."""
        self.routed.append(event)

    @property
    def seq(self) -> int:
        """The position of the newest message."""
        return self.router.seq

    def publish(
        self, name: str = PROGRESS, job_id: str = "job", queue: str | None = None, **fields: Any
    ) -> JobEvent | None:
        """One message in a batch of its own. Returns the event where somebody was told of it."""
        events = self.publish_batch([draft(name, job_id, queue, **fields)])
        return events[0] if events else None

    def publish_batch(self, drafts: list[Draft]) -> list[JobEvent]:
        """Messages in one batch. Returns the events that somebody was told of."""
        self.routed.clear()
        now = float(self.router.seq + 1)
        batch = [
            (b"pmessage", b"*", identity(each.job_id, each.queue).channel, written(each))
            for each in drafts
        ]
        self.router.receive(batch, now, int(1000 * now))
        assert not self.overflowed
        return list(self.routed)

    def find(
        self, name: str = PROGRESS, job_id: str = "job", queue: str | None = None,
        *, stored_id: str | None = None, **fields: Any,
    ) -> None:  # fmt: skip
        """A lookup reads this message of the job."""
        each = draft(name, job_id, queue, **fields)
        told = self.source.identify(identity(job_id, queue).channel)
        assert told is not None
        self.router.merge([Found(told, written(each), stored_id, 500)], 1.0)


def written(each: Draft) -> bytes:
    """The message that a publisher of the tests' dialect sends for this draft."""
    told = {"eventId": each.id} if each.id is not None else {}
    return raw(each.name, **told, **each.fields)


class Client:
    """One session and its transport; `seen` is all that the client was sent."""

    def __init__(self, relay: Relay, grants: Grants | None = EVERYTHING) -> None:
        self.relay = relay
        self.session = Session(relay.hub, "c1", None, grants)
        self.outbox: Outbox = self.session.outbox
        self.seen: list[Message] = []
        self.lookup: Lookup | None = None
        self.proof: Proof | None = None

    def send(self, event: str, data: object = None, **rest: Any) -> list[Message]:
        """Say this to the relay. Returns what came of it."""
        return self.send_bytes(orjson.dumps({"event": event, "data": data, **rest}))

    def send_bytes(self, text: bytes, now: float = 1.0) -> list[Message]:
        """Say exactly this, at `now`. Returns what came of it."""
        pending = self.session.receive(text, now)
        self.lookup = pending if isinstance(pending, Lookup) else None
        self.proof = pending if isinstance(pending, Proof) else None
        return self.flush()

    def resolve(self) -> list[Message]:
        """Let the pending lookup be done. Returns what came of it."""
        self.session.resolve()
        return self.flush()

    def flush(self, rounds: int = 1_000_000) -> list[Message]:
        """Take what the session has to send, while the transport is not congested."""
        self.session.woken = False
        messages: list[Message] = []
        while not self.outbox.congested and rounds:
            rounds -= 1
            if not self.outbox.pending_bytes:
                assert self.session.refill() is not Verdict.OVERFLOW
                if not self.outbox.pending_bytes:
                    break
            messages += decode(self.outbox.take(FLUSH_BYTES))
        self.seen += messages
        return messages

    def congest(self) -> None:
        """The transport stops taking."""
        self.outbox.becomes(congested=True)

    def relieve(self) -> list[Message]:
        """The transport takes again. Returns what it was given."""
        self.outbox.becomes(congested=False)
        return self.flush()


def job_events(messages: list[Message]) -> list[str]:
    """The event ids in `messages`, in order."""
    return [message["id"] for message in messages if "id" in message]
