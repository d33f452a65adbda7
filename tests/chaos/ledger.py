"""What was published, and what each client was told: the two sides that the verdict compares.

Every event carries its number within its job as `data.n`, so what a client holds can be put in order
without trusting the event ids that are under test. Times are monotonic seconds.
"""

from dataclasses import dataclass, field

TERMINAL = ("job-completed", "job-failed")


@dataclass(slots=True, kw_only=True)
class Published:
    """One event: `n` counts from 1 within its job. `id` is there once Redis has acknowledged it."""

    n: int
    offered_at: float
    attempts: int = 0
    acknowledged: bool = False
    id: str | None = None  # with durable history only


@dataclass(slots=True, kw_only=True)
class Job:
    """One job; its last event is the one that ends it."""

    id: str
    queue: str
    events: list[Published] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Told:
    """One event as a client got it. `connection` counts the client's connections."""

    connection: int
    n: int
    event: str
    id: str

    @property
    def is_end(self) -> bool:
        """Whether it ends the job."""
        return self.event in TERMINAL


@dataclass(slots=True)
class View:
    """What one client was told of one job, in the order of arrival.

    `announced_at` is when it was told that something may be missing. The others are numbers of
    connections: on `recovered` the relay promised to tell what came after `recovered_n` and nothing else,
    on `repeated` it told again where the job stands.
    """

    told: list[Told] = field(default_factory=list)
    announced_at: list[float] = field(default_factory=list)
    recovered: int | None = None
    recovered_n: int = 0
    repeated: int | None = None

    @property
    def last_id(self) -> str | None:
        """The id to recover from."""
        return self.told[-1].id if self.told else None
