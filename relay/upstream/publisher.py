"""Tells the relay of jobs: one flat payload a message, on the channel that the template names.

`Publisher` is for asyncio, `SyncPublisher` for everything else; both only join the pure functions of
`payloads` and `durable` with `sending`, which knows how Redis is laid out. Without durable history a
message is one PUBLISH; with it the script that appends and publishes, after the note for its queue's
watchers.

Nothing connects before the first message. Messages go out one at a time, in the order of the calls. A
lost connection is replaced once for each message, so a message without a key may arrive twice. What
cannot be sent raises.
"""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from relay.clock import now_ms
from relay.core.event import COMPLETED, FAILED, PROGRESS
from relay.upstream import durable
from relay.upstream.durable import DurableHistory
from relay.upstream.link import RedisSettings
from relay.upstream.payloads import (
    DEFAULT_CHANNEL,
    Message,
    compose,
    error_fields,
    flat_payload,
    parse_template,
)
from relay.upstream.sending import Sender, SyncSender

DEFAULT_TIMEOUT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What Redis answered to a message that it took.

    `event_id` is the event's id with durable history, and None without it: then the relay makes one.
    `receivers` is how many subscribers got the message, and None with durable history, where nobody
    needs to listen. In a cluster only those of the node asked are counted.
    """

    event_id: str | None = None
    receivers: int | None = None


class Publisher:
    """Publishes job events from asyncio code; an async context manager, to share between tasks."""

    def __init__(
        self,
        url: str,
        *,
        channel: str = DEFAULT_CHANNEL,
        history: DurableHistory | bool | None = None,
        username: str = "",
        password: str = "",
        tls_ca_file: str = "",
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        """Connects with the first message.

        Args:
            url: as the relay's `redis.url`: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or
                `redis+cluster://`; credentials in it win over those below.
            channel: the channel template, the same as the relay's source has.
            history: keep each event in Redis too, for a relay with `history.backend = "redis"`: True
                with that setting's defaults, a `DurableHistory` with others, None not at all.
            username: of Redis' ACL; empty: none.
            password: empty: none.
            tls_ca_file: PEM file of the authority to trust for `rediss://`; empty: the system's.
            timeout_seconds: for the connection, and again for Redis' answer to each message; in a
                cluster for each node that is asked.

        Raises:
            ValueError: the URL or the template is at fault.
        """
        self._template = parse_template(channel)
        self._history = durable.chosen(history)
        self._lock = asyncio.Lock()
        self._sender = Sender(
            _settings(url, username, password, tls_ca_file, timeout_seconds), timeout_seconds
        )

    async def progress(
        self,
        job: str | int,
        n: float,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
        key: str | None = None,
    ) -> Receipt:
        """Tell how far `job` is: `n` in percent.

        After an error that is Redis' the message may or may not have arrived. Call again with the same
        key until it succeeds: the event is then told once.

        Args:
            job: 1 to 256 characters without control characters; an int becomes its decimal digits.
            n: 0 to 100; the relay clamps what is outside.
            queue: the queue's name; None is `default` where the template has `{queueName}`.
            status: None stands for "active".
            data: whatever else the job has to say, such as `{"stage": "loading"}`.
            key: names this one event among all of its job, such as `f"{attempt}:end"`; needs durable
                history, which forgets it together with the event. None: a repetition is told again.

        Returns:
            The event's id with durable history, else how many subscribers of Redis got it.

        Raises:
            ValueError: nothing was sent, see `compose`; or the key is at fault.
            redis.RedisError: Redis is away, slower than the timeout, or refuses.
        """
        fields = {"progress": n}
        payload = flat_payload(PROGRESS, job, fields, queue, status, data, now_ms())
        return await self.publish(payload, key=key)

    async def completed(
        self,
        job: str | int,
        result: object,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
        key: str | None = None,
    ) -> Receipt:
        """Tell that `job` ended well, with `result`; the rest is as in `progress`."""
        fields = {"result": result}
        payload = flat_payload(COMPLETED, job, fields, queue, status, data, now_ms())
        return await self.publish(payload, key=key)

    async def failed(
        self,
        job: str | int,
        error: str | BaseException,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
        key: str | None = None,
    ) -> Receipt:
        """Tell that `job` failed; an exception is told as its type and text, without traceback.

        `status="cancelled"` tells that it was ended on purpose; the rest is as in `progress`.
        """
        fields = error_fields(error)
        payload = flat_payload(FAILED, job, fields, queue, status, data, now_ms())
        return await self.publish(payload, key=key)

    async def publish(self, payload: Mapping[str, Any], *, key: str | None = None) -> Receipt:
        """Send a flat payload as it is; it names the job as `jobId`. Else as `progress`.

        Durable history gives each event its id, so there an `eventId` in the payload is left out.
        """
        return await self.send(self.compose(payload), key=key)

    def compose(self, payload: Mapping[str, Any]) -> Message:
        """The message that `publish` would send; see `relay.upstream.payloads.compose`."""
        return compose(self._template, payload, keep_event_id=self._history is None)

    async def send(self, message: Message, *, key: str | None = None) -> Receipt:
        """Send what `compose` made; returns and raises as `progress` does."""
        durable.check_key(self._history, key)
        # redis-py would open a second connection for a concurrent call, and that could overtake.
        async with self._lock:
            if self._history is None:
                receivers = await self._sender.publish(message.channel, message.payload)
                return Receipt(receivers=receivers)
            notes = durable.queue_commands(self._history, message, now_ms())
            event = durable.append_arguments(self._history, message, key)
            return Receipt(event_id=await self._sender.append(notes, event))

    async def aclose(self) -> None:
        """Close the connection; idempotent."""
        await self._sender.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class SyncPublisher:
    """`Publisher` for code without an event loop: same methods and faults; threads may share it."""

    def __init__(
        self,
        url: str,
        *,
        channel: str = DEFAULT_CHANNEL,
        history: DurableHistory | bool | None = None,
        username: str = "",
        password: str = "",
        tls_ca_file: str = "",
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        """See `Publisher`."""
        self._template = parse_template(channel)
        self._history = durable.chosen(history)
        self._lock = threading.Lock()
        self._sender = SyncSender(
            _settings(url, username, password, tls_ca_file, timeout_seconds), timeout_seconds
        )

    def progress(
        self,
        job: str | int,
        n: float,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
        key: str | None = None,
    ) -> Receipt:
        """See `Publisher.progress`."""
        fields = {"progress": n}
        payload = flat_payload(PROGRESS, job, fields, queue, status, data, now_ms())
        return self.publish(payload, key=key)

    def completed(
        self,
        job: str | int,
        result: object,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
        key: str | None = None,
    ) -> Receipt:
        """See `Publisher.completed`."""
        fields = {"result": result}
        payload = flat_payload(COMPLETED, job, fields, queue, status, data, now_ms())
        return self.publish(payload, key=key)

    def failed(
        self,
        job: str | int,
        error: str | BaseException,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
        key: str | None = None,
    ) -> Receipt:
        """See `Publisher.failed`."""
        fields = error_fields(error)
        payload = flat_payload(FAILED, job, fields, queue, status, data, now_ms())
        return self.publish(payload, key=key)

    def publish(self, payload: Mapping[str, Any], *, key: str | None = None) -> Receipt:
        """See `Publisher.publish`."""
        return self.send(self.compose(payload), key=key)

    def compose(self, payload: Mapping[str, Any]) -> Message:
        """The message that `publish` would send; see `relay.upstream.payloads.compose`."""
        return compose(self._template, payload, keep_event_id=self._history is None)

    def send(self, message: Message, *, key: str | None = None) -> Receipt:
        """See `Publisher.send`."""
        durable.check_key(self._history, key)
        with self._lock:
            if self._history is None:
                return Receipt(receivers=self._sender.publish(message.channel, message.payload))
            notes = durable.queue_commands(self._history, message, now_ms())
            event = durable.append_arguments(self._history, message, key)
            return Receipt(event_id=self._sender.append(notes, event))

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _settings(
    url: str, username: str, password: str, tls_ca_file: str, timeout_seconds: float
) -> RedisSettings:
    return RedisSettings(
        url=url,
        username=username,
        password=password,
        tls_ca_file=tls_ca_file,
        connect_timeout_seconds=timeout_seconds,
    )
