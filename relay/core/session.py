"""One client: commands in; replies, subscriptions and events out, in order and each once.

A session is told of events by `offer` and of what its client says by `receive`. What a subscribe owes
beyond its reply, a snapshot or a replay, goes through the backfill. A subscribe that needs Redis returns
a `Lookup`, a token to be verified a `Proof`; `resolve` goes on from there, and the jobs' live events wait in
history meanwhile.

What may be watched is decided when it is asked for, and again when a newer token comes, never for an event:
whatever the session is subscribed to, it is allowed to.

Knows no socket and no clock: it calls `wake` when there is something to send, and `now` is an argument.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from relay.core import wire
from relay.core.backfill import Backfill
from relay.core.closing import CloseReason
from relay.core.errors import CommandError, ErrorCode, SessionError
from relay.core.event import Burst, Format
from relay.core.grants import Grants
from relay.core.history import History, Key
from relay.core.index import Index, Topic, topics_of
from relay.core.outbox import HELD, OVERFLOW, PASSED, Outbox, Verdict
from relay.core.rights import FORBIDDEN, Proof, may_watch, refuse_forbidden, told_of_removed
from relay.core.standing import Debt, Sent, Subscribing, since_of_bearer, stand
from relay.core.stats import Stats
from relay.core.wire import (
    AuthenticateCommand,
    Command,
    JobsCommand,
    PingCommand,
    QueueCommand,
    Ref,
)

PROTOCOL_VERSION: Final = 1
MAX_QUEUE_SNAPSHOTS: Final = 1000
# So many frames that are no message cost as much of a client's rate as one that is. A message in fragments of 64
# bytes, the smallest that anybody sends on purpose, costs what some thirty messages do.
FRAMES_PER_MESSAGE: Final = 32
_OPEN_TO_ALL: Final = frozenset({"authenticate", "ping"})
_AUTHENTICATE_FIRST: Final = "send authenticate with a token first"


@dataclass(slots=True, kw_only=True)
class Hub:
    """What all sessions share. `position` is that of the newest message received; `auth_mode` says whether
    a client is asked for a token."""

    index: "Index[Session]"
    history: History
    stats: Stats
    position: Callable[[], int]
    needs_lookup: Callable[[str, str | None], bool]
    hold: Callable[[list[str]], None]
    release: Callable[[list[str]], None]
    wake: Callable[["Session"], None]
    on_subscribed: Callable[["Session", str], None] | None = None
    auth_mode: Literal["none", "jwt", "proxy"] = "none"
    stores_queues: bool = False  # whether Redis knows jobs of a queue that we do not
    heartbeat_seconds: float
    high_water_bytes: int
    max_outbox_bytes: int
    max_subscriptions: int
    max_errors: int
    messages_per_second: float
    messages_burst: int


@dataclass(slots=True)
class Lookup:
    """What must be looked up in Redis before the session can answer; then call its `resolve`.

    Jobs by id, or all that `queue` has.
    """

    job_ids: list[str]
    queue: str | None = None


class Session:
    """One client's state. `grants` is None until its client has authenticated.

    Invariants: an event is sent once however many subscriptions match it; of one job never an older
    one after a newer one; answers leave in the order of the requests (while a lookup or a proof is
    pending `receive` must not be called).
    """

    __slots__ = (
        "_errors", "_hub", "_pending", "_pending_queue", "_proof", "_snapshot_queues", "_tokens",
        "_tokens_at", "backfill", "connection_id", "grants", "link", "outbox", "woken",
    )  # fmt: skip

    def __init__(
        self,
        hub: Hub,
        connection_id: str,
        link: Any,
        grants: Grants | None,
        format: Format = wire.WEBSOCKET,
    ) -> None:
        self.connection_id = connection_id
        self.link = link  # what owns the transport; not looked at here
        self.grants = grants
        self.outbox = Outbox(hub.max_outbox_bytes, hub.stats, format)
        self.woken = False
        self._hub = hub
        self.backfill: Backfill | None = None
        self._proof: Proof | None = None  # a token that is being verified
        self._pending: Subscribing | None = None  # a subscribe to jobs that waits for Redis
        self._pending_queue: tuple[QueueCommand, bool] | None = (
            None  # one to a queue; whether it is new
        )
        self._snapshot_queues: set[str] | None = None  # queues watched whose jobs' state was sent
        self._errors = 0
        self._tokens = float(hub.messages_burst)
        self._tokens_at = 0.0

    @property
    def subscription_count(self) -> int:
        """How many jobs and queues its client watches."""
        return len(self._hub.index.topics(self))

    def tell_status(
        self, *, redis_up: bool, gap: bool = False, retry_after_ms: int | None = None
    ) -> Verdict:
        """Send `relay-status`; `retry_after_ms` given means draining."""
        status: dict[str, object] = {
            "protocol": PROTOCOL_VERSION,
            "connectionId": self.connection_id,
            "heartbeatSeconds": _whole(self._hub.heartbeat_seconds),
            "redis": "connected" if redis_up else "disconnected",
            "gap": gap,
            "draining": retry_after_ms is not None,
        }
        if retry_after_ms is not None:
            status["retryAfterMs"] = retry_after_ms
        return self._send("relay-status", status)

    def receive(self, text: bytes, now: float) -> Lookup | Proof | None:
        """Obey one message of the client, which is UTF-8.

        Returns a Lookup where Redis must be asked first, a Proof where a token must be verified: then
        `resolve` is due before the next message.

        Raises:
            SessionError: the session is to be closed for it.
        """
        may_go_on = self._spend_token(now)  # whatever it is: a message at fault costs no less
        name = "other"
        try:
            message = wire.parse_json(text)
            name = wire.command_name(message)
            self._hub.stats.client_messages[name] += 1
            command = wire.parse_command(message)
            if not may_go_on:
                raise CommandError(
                    ErrorCode.RATE_LIMITED,
                    f"more than {self._hub.messages_per_second:g} messages a second",
                    command.ref,
                )
            pending = self._obey(command)
        except CommandError as error:
            if self.grants is None and name not in _OPEN_TO_ALL:
                error = CommandError(ErrorCode.UNAUTHORIZED, _AUTHENTICATE_FIRST, error.ref)
            self._refuse(error)
            return None
        if self._proof is None:
            self._errors = 0
        return pending

    def spend_frames(self, count: int, now: float) -> bool:
        """Pay for fragments and control frames out of the same purse as for messages, which may be overdrawn
        by what it can hold. Returns whether that was enough: else the session is to be closed for it."""
        self._gain_tokens(now)
        self._tokens -= count / FRAMES_PER_MESSAGE
        return self._tokens >= -self._hub.messages_burst

    def obey(self, command: JobsCommand | QueueCommand) -> Lookup | None:
        """Do what a client asked by other means than a message; refused, it is answered `error`.

        Returns and raises what `receive` does. Costs nothing of the client's rate, nor is it an error in a row.
        """
        try:
            return self._obey_subscription(command)
        except CommandError as error:
            self._answer_error(error)
            return None

    def resolve(self) -> None:
        """Go on and answer: with what history holds, now that Redis was asked (what was held back of these
        jobs follows), or as the token was found to be.

        Raises:
            SessionError: the session is to be closed for it.
        """
        try:
            self._resolve()
        except CommandError as error:
            self._refuse(error)

    def _resolve(self) -> None:
        proof, self._proof = self._proof, None
        if proof is not None:
            self._answer_proof(proof)
        if self._pending_queue is not None:
            (command, added), self._pending_queue = self._pending_queue, None
            self._answer_queue(command, added=added)
        subscribing, self._pending = self._pending, None
        if subscribing is None:
            return
        try:
            self._subscribe_now(subscribing)
        finally:
            self._hub.release(subscribing.command.job_ids)

    def offer(self, burst: Burst) -> Verdict:
        """Be told of a job's new events. Verdict OVERFLOW: close as a slow consumer."""
        if self.backfill is not None or self._pending_queue is not None:
            absorbed = self._absorb(burst)
            if absorbed is not None:
                return absorbed
        verdict = self.outbox.offer(burst)
        if not self.woken:
            self.woken = True
            self._hub.wake(self)
        return verdict

    def refill(self) -> Verdict:
        """Put more of what is owed into the outbox, as much as passes through at once."""
        if self.backfill is None:
            return PASSED
        verdict = self.backfill.refill(self._hub.high_water_bytes)
        if not self.backfill:
            self.backfill = None
        return verdict

    def end(self) -> None:
        """Leave the index and let go of all that is pending; idempotent."""
        self._hub.index.drop(self)
        self.outbox.clear()
        subscribing, self._pending = self._pending, None
        if subscribing is not None:
            self._hub.release(subscribing.command.job_ids)
        self.backfill = self._snapshot_queues = self._pending_queue = self._proof = None

    # Commands

    def _obey(self, command: Command) -> Lookup | Proof | None:
        match command:
            case AuthenticateCommand():
                return self._authenticate(command)
            case PingCommand():
                self._reply("pong", command.data, command.ref)
                return None
            case JobsCommand() | QueueCommand():
                return self._obey_subscription(command)

    def _obey_subscription(self, command: JobsCommand | QueueCommand) -> Lookup | None:
        grants = self.grants
        if grants is None:
            raise CommandError(ErrorCode.UNAUTHORIZED, _AUTHENTICATE_FIRST, command.ref)
        match command:
            case JobsCommand(subscribe=True):
                return self._subscribe_to_jobs(command, grants)
            case JobsCommand():
                for job_id in command.job_ids:
                    self._unsubscribe((command.queue, job_id))
            case QueueCommand(subscribe=True):
                return self._subscribe_to_queue(command, grants)
            case QueueCommand():
                self._unsubscribe((command.queue, None))
        self._reply("unsubscribed", command.echo, command.ref)
        return None

    def _subscribe_to_jobs(self, command: JobsCommand, grants: Grants) -> Lookup | None:
        hub = self._hub
        # Before anything is asked or held: a refusal must not take longer for a job that exists.
        refuse_forbidden(command, grants)
        if not command.batch and not command.job_ids:
            raise CommandError(ErrorCode.FORBIDDEN, FORBIDDEN, command.ref)
        wanted = [job_id for job_id in command.job_ids if hub.needs_lookup(job_id, command.queue)]
        if not wanted:
            self._subscribe_now(Subscribing(command))
            return None
        # What comes meanwhile of any of them is told after the answer, behind what Redis still holds.
        hub.hold(command.job_ids)
        self._pending = Subscribing(command, asked_at=hub.position())
        return Lookup(wanted)

    def _subscribe_now(self, subscribing: Subscribing) -> None:
        command = subscribing.command
        subscribing.refused |= command.refused
        subscribing.position = self._hub.position()
        for job_id in command.job_ids:
            added = self._subscribe((command.queue, job_id))
            if added is None:
                subscribing.refused[job_id] = ErrorCode.TOO_MANY_SUBSCRIPTIONS
            elif added:
                subscribing.fresh.add(job_id)
        if subscribing.refused and not command.batch:
            raise self._too_many(command.ref)
        self._answer(subscribing)

    def _subscribe_to_queue(self, command: QueueCommand, grants: Grants) -> Lookup | None:
        if not grants.may_watch_queue(command.queue):
            message = f"{FORBIDDEN}: queue {command.queue}"
            raise CommandError(ErrorCode.FORBIDDEN, message, command.ref)
        added = self._subscribe((command.queue, None))
        if added is None:
            raise self._too_many(command.ref)
        if command.snapshot and self._hub.history.exposed and self._hub.stores_queues:
            self._pending_queue = (command, added)
            return Lookup([], command.queue)
        self._answer_queue(command, added=added)
        return None

    def _answer_queue(self, command: QueueCommand, *, added: bool) -> None:
        queue = command.queue
        self._reply("subscribed", command.echo, command.ref)
        history, topics = self._hub.history, self._hub.index.topics(self)
        if not command.snapshot or not history.exposed:
            return
        if self._snapshot_queues is None:
            self._snapshot_queues = set()
        sent_after = math.inf if added else float(topics[(queue, None)])
        if queue in self._snapshot_queues:
            sent_after = -1.0
        self._snapshot_queues.add(queue)
        position = self._hub.position()
        for job_id in history.newest_of_queue(queue, MAX_QUEUE_SNAPSHOTS):
            is_known = (None, job_id) in topics or (queue, job_id) in topics
            sent = -1 if is_known else sent_after
            self._owe((queue, job_id), position, snapshot=True, sent_after=sent)

    def _waits_for(self, burst: Burst) -> bool:
        """Whether the burst concerns this session only by a queue whose snapshot is being read: it will
        show where the job stands by then."""
        if self._pending_queue is None:
            return False
        command, added = self._pending_queue
        if not added or burst.queue != command.queue:
            return False
        topics = self._hub.index.topics(self)
        return (None, burst.job_id) not in topics and (burst.queue, burst.job_id) not in topics

    def _subscribe(self, topic: Topic) -> bool | None:
        """Whether the subscription is new; None where one more is too many."""
        index = self._hub.index
        topics = index.topics(self)
        if topic not in topics and len(topics) >= self._hub.max_subscriptions:
            return None
        added = index.add(self, topic, self._hub.position())
        if added and topic[1] is not None and self._hub.on_subscribed is not None:
            self._hub.on_subscribed(self, topic[1])
        return added

    def _unsubscribe(self, topic: Topic) -> None:
        if topic[1] is None and self._snapshot_queues is not None:
            self._snapshot_queues.discard(topic[0] or "")
        self._hub.index.remove(self, topic)
        if self.backfill is None:
            return
        for key in self.backfill.owed(*topic):
            if self._still_watches(key):
                # What another subscription brought lately waits in this debt, too.
                self._check(self.backfill.pay(key[1]))
            else:
                self.backfill.cancel(key)

    def _still_watches(self, key: Key) -> bool:
        """Whether a subscription may match events of this job."""
        queue, job_id = key
        topics = self._hub.index.topics(self)
        if queue is None:
            return any(topic[1] in (None, job_id) for topic in topics)
        return not topics.keys().isdisjoint(topics_of(queue, job_id))

    # Who it is

    def _authenticate(self, command: AuthenticateCommand) -> Proof | None:
        match self._hub.auth_mode:
            case "none":
                # Nobody is asked for a token, so none expires; a client may send one all the same.
                self._reply("authenticated", {"expiresAt": None}, command.ref)
                return None
            case "proxy":
                raise CommandError(
                    ErrorCode.UNAUTHORIZED, "the proxy says who you are; connect anew", command.ref
                )
            case "jwt":
                self._proof = Proof(command.token, command.ref)
                return self._proof

    def _answer_proof(self, proof: Proof) -> None:
        """Take over what the token grants; the old rights stay where it is not believed."""
        grants = proof.grants
        if grants is None:
            raise CommandError(proof.refused, proof.advice, proof.ref)
        if self.grants is not None and grants.principal != self.grants.principal:
            # What was subscribed to was asked for by somebody else.
            raise CommandError(
                ErrorCode.UNAUTHORIZED, "the token is somebody else's; connect anew", proof.ref
            )
        self.grants = grants
        self._errors = 0
        removed = self._give_up(grants)
        self._reply("authenticated", {"expiresAt": grants.expires_at_ms}, proof.ref)
        for data in told_of_removed(removed):
            self._reply("unsubscribed", data, None)

    def _give_up(self, grants: Grants) -> list[Topic]:
        """End what is not allowed any more, with all that is still owed or unsent of it. Returns the topics."""
        topics = self._hub.index.topics(self)
        removed = [topic for topic in topics if not may_watch(grants, topic)]
        for topic in removed:
            if topic[1] is None and self._snapshot_queues is not None:
                self._snapshot_queues.discard(topic[0] or "")
            self._hub.index.remove(self, topic)
        if removed and self.backfill is not None:
            self.backfill.restrict(self._hub.index.topics(self))
        # Also what another command has unsubscribed from may still wait there.
        self.outbox.restrict(grants.may_watch_job)
        return removed

    # Answers, snapshots, replays

    def _answer(self, subscribing: Subscribing) -> None:
        command, history = subscribing.command, self._hub.history
        sent = Sent(self._hub.index.topics(self), self._snapshot_queues or (), subscribing)
        if command.since_of_one:
            command.since = since_of_bearer(history, command)
        jobs: dict[str, object] = {}
        owed: list[tuple[Key, Debt]] = []
        for job_id in command.job_ids:
            if job_id not in subscribing.refused:
                key = (command.queue, job_id)
                standing = stand(key, subscribing, history, sent)
                jobs[job_id] = standing.answer
                self._hub.stats.replayed += standing.replayed
                if standing.debt is not None:
                    owed.append((key, standing.debt))
        jobs |= {job_id: {"error": code.value} for job_id, code in subscribing.refused.items()}
        self._reply("subscribed", {**command.echo, "jobs": jobs}, command.ref)
        for key, debt in owed:
            self._owe(key, debt.position, snapshot=debt.snapshot)

    def _owe(
        self, key: Key, position: int, *, snapshot: bool, sent_after: float = math.inf
    ) -> None:
        if self.backfill is None:
            hub = self._hub
            self.backfill = Backfill(hub.history, self.outbox, hub.stats)
        verdict = self.backfill.owe(key, position, snapshot=snapshot, sent_after=sent_after)
        self._check(verdict)
        self._wake()

    def _absorb(self, burst: Burst) -> Verdict | None:
        """What becomes of a burst that is not sent as it comes; None where it is."""
        if self._pending_queue is not None and self._waits_for(burst):
            return HELD
        absorbed = None if self.backfill is None else self.backfill.absorb(burst)
        if absorbed is not None:
            self._wake()
        return absorbed

    # Sending

    def _reply(self, event: str, data: object, ref: Ref) -> None:
        self._check(self._send(event, data, ref))

    def _send(self, event: str, data: object, ref: Ref = None) -> Verdict:
        verdict = self.outbox.reply(self.outbox.format.reply(event, data, ref))
        self._wake()
        return verdict

    def _check(self, verdict: Verdict) -> None:
        if verdict is OVERFLOW:
            raise SessionError(CloseReason.SLOW_CONSUMER)

    def _wake(self) -> None:
        if not self.woken:
            self.woken = True
            self._hub.wake(self)

    def _answer_error(self, error: CommandError) -> None:
        self._hub.stats.client_errors[error.code.value] += 1
        self._check(self._send("error", wire.error_data(error), error.ref))

    def _refuse(self, error: CommandError) -> None:
        self._errors += 1
        self._answer_error(error)
        if self._errors >= self._hub.max_errors:
            raise SessionError(CloseReason.TOO_MANY_ERRORS)

    def _too_many(self, ref: Ref) -> CommandError:
        limit = self._hub.max_subscriptions
        return CommandError(
            ErrorCode.TOO_MANY_SUBSCRIPTIONS, f"a connection has at most {limit} subscriptions", ref
        )

    def _spend_token(self, now: float) -> bool:
        """A token bucket: `messages_burst` at once, `messages_per_second` in the long run."""
        self._gain_tokens(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _gain_tokens(self, now: float) -> None:
        hub = self._hub
        gained = (now - self._tokens_at) * hub.messages_per_second
        self._tokens = min(self._tokens + gained, float(hub.messages_burst))
        self._tokens_at = now


def _whole(number: float) -> int | float:
    """25 rather than 25.0: the same to JSON, kinder to readers and to typed clients."""
    return int(number) if number == int(number) else number
