"""A batch from Redis, routed: what is looked at, what is counted, and what never disturbs what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from relay.core.errors import AmendedReason, InvalidReason
from relay.core.outbox import Verdict
from relay.core.router import OVERSIZE_FACTOR, Found
from relay.core.session import Session
from relay.sources.channel import ChannelSource
from relay.sources.template import ChannelTemplate
from tests import fakes
from tests.fakes import Client, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.core.event import Draft, Identity, JobEvent

NOW, NOW_MS = 100.0, 100_000
MAX_PAYLOAD_BYTES = 32_000

Reported = tuple[InvalidReason, bytes, Exception | None]


class Broken(ChannelSource):
    """A source with a bug: it fails on what it is given."""

    def parse(self, identity: Identity, message: bytes) -> Draft:
        raise ZeroDivisionError


class Unidentifying(ChannelSource):
    """A source with a bug: it fails on a channel."""

    def identify(self, channel: bytes) -> Identity | None:
        if channel == b"jobs:q:bug":
            raise ZeroDivisionError
        return super().identify(channel)


class Bench(fakes.Relay):
    """A router with everything behind it, and what it reported."""

    def __init__(
        self,
        template: str = "jobs:{queueName}:{jobId}",
        source: type[ChannelSource] = ChannelSource,
        *,
        exposed: bool = True,
        **limits: Any,
    ) -> None:
        super().__init__(
            source=source(ChannelTemplate.parse(template)),
            max_payload_bytes=MAX_PAYLOAD_BYTES,
            exposed=exposed,
            **limits,
        )
        self.invalid: list[Reported] = []
        self.on_overflow: Callable[[Session], None] = lambda _: None
        self.debugged: list[tuple[str, float | None]] = []

    def _on_invalid(
        self, reason: InvalidReason, channel: bytes, error: Exception | None = None
    ) -> None:
        self.invalid.append((reason, channel, error))

    def _on_overflow(self, session: Session) -> None:
        super()._on_overflow(session)
        self.on_overflow(session)

    def _on_routed(self, event: JobEvent, progress: float | None) -> None:
        self.debugged.append((event.job_id, progress))

    def receive(self, *payloads: bytes | Message, channel: str = "jobs:q:job") -> float:
        """One batch of one channel. Returns how many watched events it came to."""
        return self.receive_batch([(channel, payload) for payload in payloads])

    def receive_batch(self, messages: list[tuple[str, bytes | Message]]) -> int:
        """One batch. Returns how many watched events it came to."""
        pattern = self.source.pattern.encode()
        batch = [
            (b"pmessage", pattern, channel.encode(), as_bytes(payload))
            for channel, payload in messages
        ]
        return self.router.receive(batch, NOW, NOW_MS).count

    def found(self, payload: bytes | Message) -> Found:
        """A message of the job `job`, read from Redis."""
        identity = self.source.identify(b"jobs:q:job")
        assert identity is not None
        return Found(identity, as_bytes(payload), None, NOW_MS)

    def watcher(self, job_id: str = "job", queue: str | None = None) -> Client:
        """A client subscribed to a job, which has read the answer."""
        client = Client(self)
        data = {"jobId": job_id} if queue is None else {"jobId": job_id, "queueName": queue}
        client.send("subscribe-to-job", data)
        client.seen.clear()
        return client


def as_bytes(payload: bytes | Message) -> bytes:
    return payload if isinstance(payload, bytes) else orjson.dumps(payload)


def progress(percent: int) -> Message:
    return {"event": "job-progress", "progress": percent}


def told(client: Client) -> list[Any]:
    """The progress or the name of each event that the client has now been sent."""
    return [message["data"].get("progress", message["event"]) for message in client.flush()]


# --- unwatched -------------------------------------------------------------------------------------


@pytest.mark.uncompiled
def test_unwatched_message_is_not_parsed() -> None:
    bench = Bench(source=Broken)

    count = bench.receive(progress(10), b"not even JSON")

    assert count == 0
    assert bench.invalid == []
    assert bench.stats.unwatched == 2
    assert bench.stats.received == 2


def test_unwatched_messages_are_understood_at_the_first_look_and_once() -> None:
    bench = Bench()
    bench.receive(progress(10), b"not JSON", progress(30), b"[]")
    looks = []

    for _ in range(2):
        client = bench.watcher()
        looks.append((client.flush(), len(bench.invalid)))
    client = Client(bench)
    snapshot = client.send("subscribe-to-job", {"jobId": "job"})

    assert [count for _, count in looks] == [2, 2]
    assert [reason for reason, _, _ in bench.invalid] == [
        InvalidReason.NOT_JSON,
        InvalidReason.NOT_OBJECT,
    ]
    assert snapshot[-1]["data"]["progress"] == 30


def test_unwatched_message_is_dropped_where_nothing_is_to_be_kept() -> None:
    bench = Bench(exposed=False)

    bench.receive(progress(10))

    assert len(bench.history) == 0
    assert bench.stats.unwatched == 1


def test_message_whose_channel_tells_no_job_is_read_to_learn_whether_it_is_watched() -> None:
    bench = Bench("events")
    client = bench.watcher("b")

    count = bench.receive(
        {"jobId": "a", "progress": 1}, {"jobId": "b", "progress": 2}, channel="events"
    )

    assert count == 1
    assert told(client) == [2]
    assert bench.stats.unwatched == 1


# --- malformed -------------------------------------------------------------------------------------

DEEP = b'{"jobId":"job","data":' + b"[" * 10_000 + b"]" * 10_000 + b"}"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", InvalidReason.NOT_JSON),
        (b"progress 10", InvalidReason.NOT_JSON),
        (b'{"progress":10', InvalidReason.NOT_JSON),
        (b"[10]", InvalidReason.NOT_OBJECT),
        (b"null", InvalidReason.NOT_OBJECT),
        (b'{"error":"\xff\xfe"}', InvalidReason.NOT_UTF8),
        (DEEP, InvalidReason.TOO_DEEP),
        (b'{"progress":10,"data":"%b"}' % bytes(b"x" * MAX_PAYLOAD_BYTES), InvalidReason.TOO_LARGE),
        (b" " * (MAX_PAYLOAD_BYTES * OVERSIZE_FACTOR + 1), InvalidReason.TOO_LARGE),
    ],
    ids=lambda value: value.value if isinstance(value, InvalidReason) else "",
)
def test_malformed_message_is_counted_by_reason_and_disturbs_no_other(
    payload: bytes, reason: InvalidReason
) -> None:
    bench = Bench()
    client = bench.watcher()

    bench.receive(progress(10), payload, progress(30))

    assert told(client) == [10, 30]
    assert bench.invalid == [(reason, b"jobs:q:job", None)]
    assert bench.stats.invalid == {reason.value: 1}


@pytest.mark.parametrize("channel", ["jobs:q:", "jobs::job", "jobs:q:a\nb", "jobs:lonely"])
def test_channel_that_names_no_job_is_counted_as_without_identity(channel: str) -> None:
    bench = Bench()
    client = bench.watcher()

    bench.receive_batch([(channel, progress(10)), ("jobs:q:job", progress(30))])

    assert told(client) == [30]
    assert bench.stats.invalid == {InvalidReason.NO_IDENTITY.value: 1}


def test_channel_that_is_no_utf8_is_counted_as_without_identity() -> None:
    bench = Bench()

    bench.router.receive([(b"pmessage", b"jobs:*:*", b"jobs:q:\xff", b"{}")], NOW, NOW_MS)

    assert bench.invalid == [(InvalidReason.NO_IDENTITY, b"jobs:q:\xff", None)]


@pytest.mark.parametrize(
    "fields", [{}, {"jobId": ""}, {"jobId": None}, {"jobId": ["x"]}, {"id": 1.5}]
)
def test_payload_that_names_no_job_where_the_channel_does_not_is_counted(fields: Message) -> None:
    bench = Bench("events")
    client = bench.watcher()

    bench.receive(fields, {"jobId": "job", "progress": 30}, channel="events")

    assert told(client) == [30]
    assert bench.stats.invalid == {InvalidReason.NO_IDENTITY.value: 1}


@pytest.mark.uncompiled
def test_bug_in_parsing_costs_that_message_alone_and_is_reported_with_the_error() -> None:
    bench = Bench(source=Broken)
    bench.watcher()

    count = bench.receive(progress(10))

    (reason, channel, error) = bench.invalid[0]
    assert (count, reason, channel) == (0, InvalidReason.INTERNAL, b"jobs:q:job")
    assert isinstance(error, ZeroDivisionError)
    assert bench.stats.invalid == {InvalidReason.INTERNAL.value: 1}


def test_channel_is_taken_apart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    identify = ChannelSource.identify

    def counted(source: ChannelSource, channel: bytes) -> Identity | None:
        asked.append(channel)
        return identify(source, channel)

    monkeypatch.setattr(ChannelSource, "identify", counted)
    bench = Bench()

    for _ in range(3):
        bench.receive_batch([("jobs:q:job", progress(10)), ("jobs:q:other", progress(30))])

    assert asked == [b"jobs:q:job", b"jobs:q:other"]


@pytest.mark.uncompiled
def test_bug_in_identifying_costs_that_message_alone() -> None:
    bench = Bench(source=Unidentifying)
    client = bench.watcher()

    bench.receive_batch([("jobs:q:bug", progress(10)), ("jobs:q:job", progress(30))])

    assert told(client) == [30]
    assert [reason for reason, _, _ in bench.invalid] == [InvalidReason.INTERNAL]


# --- put right -------------------------------------------------------------------------------------


def test_oversize_end_is_delivered_truncated() -> None:
    bench = Bench()
    client = bench.watcher()

    bench.receive(
        {"event": "job-completed", "result": "x" * MAX_PAYLOAD_BYTES, "processingTime": 7}
    )
    (completed,) = client.flush()

    assert completed["event"] == "job-completed"
    assert completed["data"] == {
        "jobId": "job",
        "queueName": "q",
        "result": None,
        "processingTime": 7,
        "truncated": True,
    }
    assert bench.stats.amended == {AmendedReason.TRUNCATED.value: 1}
    assert bench.invalid == []


def test_payload_of_exactly_the_limit_is_whole() -> None:
    bench = Bench()
    client = bench.watcher()
    empty = as_bytes({"event": "job-completed", "result": ""})
    result = "x" * (MAX_PAYLOAD_BYTES - len(empty))

    bench.receive({"event": "job-completed", "result": result})

    assert client.flush()[0]["data"]["result"] == result
    assert bench.stats.amended == {}


@pytest.mark.uncompiled
def test_end_beyond_all_bounds_is_refused_unread() -> None:
    bench = Bench(source=Broken)
    bench.watcher()

    bench.receive(b"x" * (MAX_PAYLOAD_BYTES * OVERSIZE_FACTOR + 1))

    assert [reason for reason, _, _ in bench.invalid] == [InvalidReason.TOO_LARGE]


def test_payload_that_contradicts_its_channel_is_delivered_under_the_channels_identity() -> None:
    bench = Bench()
    client, other = bench.watcher("job"), bench.watcher("other")

    bench.receive({"jobId": "other", "queueName": "elsewhere", "progress": 10})
    (message,) = client.flush()

    assert (message["data"]["jobId"], message["data"]["queueName"]) == ("job", "q")
    assert other.flush() == []
    assert bench.stats.amended == {AmendedReason.MISMATCH.value: 1}


# --- what is told ----------------------------------------------------------------------------------


def test_second_end_and_late_progress_are_not_told_and_are_counted() -> None:
    bench = Bench()
    client = bench.watcher()

    bench.receive({"event": "job-completed"}, progress(90), {"event": "job-completed"})

    assert [message["event"] for message in client.flush()] == ["job-completed"]
    assert bench.stats.duplicates == 1
    assert bench.stats.invalid == {InvalidReason.LATE.value: 1}


@pytest.mark.uncompiled
def test_all_watchers_of_an_event_are_offered_one_and_the_same_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    for queue in (None, None, "q"):
        bench.watcher(queue=queue)
    offered: list[bytes] = []

    def offer(self: Session, burst: Any) -> Verdict:
        burst.write_as(self.outbox.format)
        offered.append(burst.joined)
        return Verdict.PASSED

    monkeypatch.setattr(Session, "offer", offer)
    bench.receive(progress(10), progress(20))

    assert len(offered) == 3
    assert offered[0] is offered[1] is offered[2]


def test_deliveries_are_counted_by_event_and_client() -> None:
    bench = Bench()
    bench.watcher()
    bench.watcher()

    bench.receive(progress(10), {"event": "job-stalled"}, {"event": "job-failed"})

    assert bench.stats.deliveries == {"job-progress": 2, "other": 2, "job-failed": 2}


def test_batch_tells_how_many_watched_events_it_held_and_when_they_were_sent() -> None:
    bench = Bench()
    bench.watcher()
    batch = [
        (b"pmessage", b"jobs:*:*", b"jobs:q:" + job, as_bytes({"progress": 1, "ts": 99_000 + ts}))
        for ts, job in enumerate((b"job", b"unwatched", b"job"))
    ]

    routed = bench.router.receive(batch, NOW, NOW_MS)

    assert (routed.count, routed.ts_ms) == (2, [99_000, 99_002])
    assert bench.debugged == [("job", 1), ("job", 1)]


def test_full_outboxes_are_reported_once_all_of_the_batch_is_offered() -> None:
    bench = Bench(max_outbox_bytes=200)
    slow, healthy = bench.watcher(), bench.watcher("other")
    slow.congest()
    slow.session.outbox.offer(fakes.burst(fakes.event("job-failed", "old", padding_bytes=10)))
    healthy_was_told: list[list[Any]] = []
    bench.on_overflow = lambda _: healthy_was_told.append(told(healthy))

    bench.receive_batch(
        [
            ("jobs:q:job", {"event": "job-failed", "error": "x" * 300}),
            ("jobs:q:other", progress(50)),
        ]
    )

    assert bench.overflowed == [slow.session]
    assert healthy_was_told == [[50]]


# --- what was read from Redis ----------------------------------------------------------------------


def test_what_was_read_from_redis_is_told_before_what_was_held_back_for_it() -> None:
    bench = Bench()
    client = bench.watcher()

    bench.router.hold(["job"])
    bench.receive(progress(80))
    held = told(client)
    bench.router.merge([bench.found(progress(70))], NOW)
    bench.router.release(["job"])
    bench.receive(progress(90))

    assert held == []
    assert told(client) == [70, 80, 90]


@pytest.mark.parametrize("payload", [b"not JSON", b"x" * (MAX_PAYLOAD_BYTES * OVERSIZE_FACTOR + 1)])
def test_invalid_message_that_was_read_is_counted_and_told_to_nobody(payload: bytes) -> None:
    bench = Bench()
    client = bench.watcher()

    bench.router.hold(["job"])
    bench.router.merge([bench.found(payload)], NOW)
    bench.router.release(["job"])

    assert client.flush() == []
    assert bench.stats.invalid.total() == 1
