"""What a run needs of Redis, however it is laid out."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from relay.upstream.connection import Client
from relay.upstream.durable import DurableHistory
from tests.chaos.faults import Fault
from tests.chaos.workload import Publishes

PUBLISHERS = 4
PUBLISH_TIMEOUT_SECONDS = 1.0


class Stage(Protocol):
    """Redis, from start to end; an async context manager that leaves nothing behind."""

    @property
    def urls(self) -> list[str]:
        """Where each relay finds Redis."""

    async def publishers(self) -> Sequence[Publishes]:
        """Those of the workers; closed with the rest."""

    def faults(self) -> list[Fault]:
        """All that can happen to it."""

    async def held(self, job_ids: list[str]) -> dict[str, list[str]]:
        """The event ids that Redis holds of each job, oldest first."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


async def read_streams(client: Client, job_ids: list[str]) -> dict[str, list[str]]:
    """The ids in the stream of each job."""
    found: dict[str, list[str]] = {}
    for job_id in job_ids:
        entries: Any = await client.xrange(DurableHistory().prefix + job_id)
        found[job_id] = [entry.decode() for entry, _ in entries]
    return found
