"""What a session may watch: its grants applied to commands and topics.

Invariant: nothing here looks at a job, only at names, so what is refused looks the same whether the job
exists or not. A topic that names a queue is matched by events of that queue alone (`index`), which is what
makes a right to a queue hold for its own events and no others.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from relay.core.errors import ErrorCode
from relay.core.grants import Grants
from relay.core.index import Topic
from relay.core.wire import JobsCommand, Ref

FORBIDDEN: Final = "the token does not allow to watch this"


@dataclass(slots=True)
class Proof:
    """A token that must be verified before the session goes on.

    Put what it grants into `grants`, or why it is not believed into `refused`; then call the session's
    `resolve`.
    """

    token: str
    ref: Ref
    grants: Grants | None = None
    refused: ErrorCode = ErrorCode.UNAUTHORIZED
    advice: str = "the token is not believed"


def may_watch(grants: Grants, topic: Topic) -> bool:
    """Whether a subscription to `topic` is allowed."""
    queue, job_id = topic
    if job_id is not None:
        return grants.may_watch_job(job_id, queue)
    return queue is not None and grants.may_watch_queue(queue)


def refuse_forbidden(command: JobsCommand, grants: Grants) -> None:
    """Move the jobs of a subscribe that are not allowed to those it refuses."""
    allowed = [job for job in command.job_ids if grants.may_watch_job(job, command.queue)]
    if len(allowed) < len(command.job_ids):
        forbidden = dict.fromkeys(command.job_ids, ErrorCode.FORBIDDEN)
        for job_id in allowed:
            del forbidden[job_id]
        command.refused |= forbidden
        command.job_ids = allowed


def told_of_removed(topics: Iterable[Topic]) -> list[dict[str, object]]:
    """What a client is told of subscriptions that a newer token took away: one `unsubscribed` for each
    queue, and one for the jobs of each queue name, however many they are."""
    jobs: defaultdict[str | None, list[str]] = defaultdict(list)
    queues = []
    for queue, job_id in topics:
        if job_id is None:
            queues.append(queue)
        else:
            jobs[queue].append(job_id)
    told: list[dict[str, object]] = [{"queueName": queue} for queue in queues]
    for queue, job_ids in jobs.items():
        told.append({"jobIds": job_ids} | ({} if queue is None else {"queueName": queue}))
    return [{**data, "reason": ErrorCode.FORBIDDEN.value} for data in told]
