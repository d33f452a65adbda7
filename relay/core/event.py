"""What happened to which job, and the one encoding of it that all watchers share.

A source makes a `Draft` from a message; history puts it in relation to what it knows of the job and
makes the `JobEvent`. A `Burst` is what one batch from Redis brought for one job.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, Protocol

from relay.core.errors import AmendedReason

PROGRESS: Final = "job-progress"
COMPLETED: Final = "job-completed"
FAILED: Final = "job-failed"
TERMINAL: Final = frozenset({COMPLETED, FAILED})
KNOWN_EVENTS: Final = frozenset({PROGRESS, COMPLETED, FAILED})

MAX_NAME_CHARACTERS: Final = 256
MAX_EVENT_ID_CHARACTERS: Final = 64
# A status that a publisher writes to say that a job which had ended runs again.
RUNNING_STATUSES: Final = frozenset({"active", "queued", "waiting", "retrying"})

# Half of a surrogate pair is no character: UTF-8 has no bytes for it, and whoever writes it out fails.
_NOT_IN_A_NAME: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_EVENT_NAME: Final = re.compile(r"job-[A-Za-z0-9_.:-]{1,60}")
_SHORT_NAMES: Final = {"progress": PROGRESS, "completed": COMPLETED, "failed": FAILED}
# What a truncated terminal event still says; texts are cut to this many characters.
_KEPT_WHEN_TRUNCATED: Final = (
    "status",
    "progress",
    "error",
    "failedReason",
    "processingTime",
    "ts",
)
_MAX_TRUNCATED_TEXT_CHARACTERS: Final = 1024


def is_name(text: str) -> bool:
    """Whether `text` may name a job or a queue: 1 to 256 characters, none of them a control."""
    return 0 < len(text) <= MAX_NAME_CHARACTERS and _NOT_IN_A_NAME.search(text) is None


def is_event_id(text: object) -> bool:
    """Whether a publisher's event id can be kept: 1 to 64 characters."""
    return (
        type(text) is str
        and 0 < len(text) <= MAX_EVENT_ID_CHARACTERS
        and _SURROGATE.search(text) is None
    )


def event_name(text: object) -> str | None:
    """The full event name that `text` stands for, or None if it is no event name."""
    if type(text) is not str:
        return None
    return _SHORT_NAMES.get(text) or (text if _EVENT_NAME.fullmatch(text) else None)


class Identity:
    """What a Redis channel tells of the messages on it; one object a channel, used again and again.

    `job_id` is None where only the payload can tell, `queue` None where the channel has none.
    `record` is history's alone: where it finds what it knows of this job without looking it up.
    """

    __slots__ = ("channel", "event", "job_id", "queue", "record", "source")

    def __init__(
        self,
        source: "Source",
        channel: bytes,
        job_id: str | None,
        queue: str | None,
        event: str | None = None,
    ) -> None:
        self.source = source
        self.channel = channel
        self.job_id = job_id
        self.queue = queue
        self.event = event
        self.record: Any = None


class Draft:
    """A message understood, but not yet put in relation to what was known of its job.

    `fields` are what clients are given, beside jobId and queueName. `id` is the publisher's event id,
    `runs` says that the publisher itself wrote a status by which the job is running. `data` is the message
    where it says all that clients are given, and nothing else: then it need not be written anew.
    """

    __slots__ = ("amended", "data", "fields", "id", "job_id", "name", "queue", "runs", "ts_ms")

    def __init__(
        self,
        name: str,
        job_id: str,
        queue: str | None,
        fields: dict[str, Any],
        *,
        id: str | None = None,
        runs: bool = False,
        ts_ms: int | float | None = None,
        amended: tuple[AmendedReason, ...] = (),
        data: bytes | None = None,
    ) -> None:
        self.data = data
        self.name = name
        self.job_id = job_id
        self.queue = queue
        self.fields = fields
        self.id = id
        self.runs = runs
        self.ts_ms = ts_ms
        self.amended = amended

    def truncate(self) -> None:
        """Leave `result`, `data` and whatever else may be large out, and say so in `truncated`."""
        kept: dict[str, Any] = {}
        for name in _KEPT_WHEN_TRUNCATED:
            value = self.fields.get(name)
            if isinstance(value, str):
                kept[name] = value[:_MAX_TRUNCATED_TEXT_CHARACTERS]
            elif isinstance(value, int | float):
                kept[name] = value
        kept["truncated"] = True
        self.fields, self.data = kept, None
        self.amended = (*self.amended, AmendedReason.TRUNCATED)


class Source(Protocol):
    """A publisher's dialect. Both methods are pure."""

    pattern: str

    def identify(self, channel: bytes) -> Identity | None:
        """What `channel` tells, or None where it is not of this source's shape."""

    def parse(self, identity: Identity, message: bytes) -> Draft:
        """The draft in `message`. Raises DecodeError."""


class JobEvent:
    """One event as clients are given it.

    `seq` is the relay's own running number, the event's place in time; `data` is the encoded JSON
    object, `at_ms` when the relay received it (Unix milliseconds). Not frozen: it is on the hot path.
    """

    __slots__ = ("at_ms", "data", "id", "job_id", "name", "queue", "seq")

    def __init__(
        self, name: str, job_id: str, queue: str | None, id: str, seq: int, at_ms: int, data: bytes
    ) -> None:
        self.name = name
        self.job_id = job_id
        self.queue = queue
        self.id = id
        self.seq = seq
        self.at_ms = at_ms
        self.data = data

    @property
    def terminal(self) -> bool:
        """Whether the job ended with this event."""
        return self.name in TERMINAL

    @property
    def conflation_key(self) -> tuple[str | None, str, str] | None:
        """Frames with an equal key replace one another in a congested outbox; None: never."""
        return None if self.name in TERMINAL else (self.queue, self.job_id, self.name)

    @property
    def metric_name(self) -> str:
        """The name as a metric label: publishers may invent names, labels must stay few."""
        return self.name if self.name in KNOWN_EVENTS else "other"


class Format(Protocol):
    """How what a session says becomes bytes; one object a transport, shared by all its sessions.

    `transport` is its name in metrics and logs.
    """

    transport: str

    def event(self, event: JobEvent) -> bytes:
        """One job event, ready for a socket."""

    def reply(self, event: str, data: object, ref: str | int | float | None = None) -> bytes:
        """Anything else the relay says, ready for a socket; `ref` is the request's."""


class Burst:
    """One job's events of one batch, in order; their bytes are made once a format, for all who watch.

    `frames` are the bytes of each event and `joined` all of them as one piece, in `format`: the one that was
    asked for last, which of most bursts is the only one.
    """

    __slots__ = ("_others", "events", "format", "frames", "job_id", "joined", "queue")

    frames: list[bytes]
    joined: bytes

    def __init__(self, queue: str | None, job_id: str, events: Sequence[JobEvent]) -> None:
        self.queue = queue
        self.job_id = job_id
        self.events = events
        self.format: Format | None = None
        self._others: dict[Format, tuple[list[bytes], bytes]] | None = None

    def write_as(self, format: Format) -> None:
        """Have the bytes in `format`."""
        if self.format is not None:
            self._others = self._others or {}
            self._others[self.format] = (self.frames, self.joined)
            if format in self._others:
                self.format = format
                self.frames, self.joined = self._others[format]
                return
        self.format = format
        self.frames = frames = [format.event(event) for event in self.events]
        self.joined = frames[0] if len(frames) == 1 else b"".join(frames)


def text_frame(message: bytes) -> bytes:
    """`message` as one unmasked, final text frame (RFC 6455 §5.2)."""
    length = len(message)
    if length < 126:
        return b"\x81%c%b" % (length, message)
    if length < 65536:
        return b"\x81\x7e%c%c%b" % (length >> 8, length & 255, message)
    return b"\x81\x7f%b%b" % (length.to_bytes(8, "big"), message)
