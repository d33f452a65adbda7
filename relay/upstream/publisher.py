"""Tells the relay of jobs: one flat payload, one PUBLISH on the channel that the template names.

`Publisher` is for asyncio, `SyncPublisher` for everything else; both only add a connection to the
pure functions above them. Nothing connects before the first message. Messages go out over one
connection, in the order of the calls. A lost connection is replaced once for each message, so a
message may arrive twice but is never dropped in silence: what cannot be sent raises. `send` is the
one step that touches Redis (PUBLISH).
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from relay.core import payload as json_payload
from relay.core.event import COMPLETED, FAILED, PROGRESS, event_name, is_name
from relay.sources.template import ChannelTemplate

DEFAULT_CHANNEL: Final = "jobs:{queueName}:{jobId}"
# What a job is in whose publisher names no queue, where the channel needs one: the name that queue
# libraries use for it too.
DEFAULT_QUEUE: Final = "default"
DEFAULT_TIMEOUT_SECONDS: Final = 5.0

_RETRIES = 1
# A frozen server is not asked twice: the caller's own work waits for the answer.
_RETRIED = (RedisConnectionError,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What goes to Redis: `payload` is a JSON object in UTF-8."""

    channel: str
    payload: bytes


def flat_payload(
    event: str,
    job: str | int,
    fields: Mapping[str, Any],
    queue: str | None,
    status: str | None,
    data: object,
    now_ms: int,
) -> dict[str, Any]:
    """The payload of an event with its own `fields`; of the others, what is None is left out."""
    others = {"queueName": queue, "status": status, "data": data}
    told = {name: value for name, value in others.items() if value is not None}
    return {"event": event, "jobId": job, **fields, **told, "ts": now_ms}


def error_fields(error: str | BaseException) -> dict[str, str]:
    """What a `job-failed` says; of an exception, its type and, as the reason, its text."""
    if isinstance(error, str):
        return {"error": error}
    text = str(error)
    return {"error": type(error).__name__, **({"failedReason": text} if text else {})}


def parse_template(text: str) -> ChannelTemplate:
    """The channel template in `text`.

    Raises:
        ValueError: it is none.
    """
    try:
        return ChannelTemplate.parse(text)
    except ValueError as error:
        raise ValueError(f"channel template {text!r}: {error}") from None


def compose(template: ChannelTemplate, payload: Mapping[str, Any]) -> Message:
    """The message that carries `payload`, on the channel that `template` gives for it.

    Raises:
        ValueError: the job is missing or no valid name, the template needs an event that the
            payload does not tell, or a value is no JSON; the text says what to do.
    """
    job = _name("job", _first(payload, "jobId", "job_id", "id"))
    if job is None:
        raise ValueError('the payload names no job: add "jobId" beside its other fields')
    queue = _name("queue", _first(payload, "queueName", "queue_name", "queue"))
    if queue is None and template.names("queueName"):
        queue = DEFAULT_QUEUE
    event = event_name(_first(payload, "event", "type"))
    if event is None and template.names("event"):
        raise ValueError(
            f"the channel {template.text} has the event of job {job!r} in it: name it as "
            '"event", for instance "job-progress"'
        )
    channel = template.format(job_id=job, queue=queue, event=event or "")
    _check_way_back(template, channel, job, queue)
    try:
        encoded = json_payload.encode(dict(payload))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the payload of job {job!r} is no JSON ({error}): make it of dicts, lists, strings, "
            "numbers, booleans and None"
        ) from error
    return Message(channel=channel, payload=encoded)


class Publisher:
    """Publishes job events from asyncio code; an async context manager, to share between tasks."""

    def __init__(
        self,
        url: str,
        *,
        channel: str = DEFAULT_CHANNEL,
        username: str = "",
        password: str = "",
        tls_ca_file: str = "",
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        """Connects with the first message.

        Args:
            url: `redis://`, `rediss://` or `unix://`; credentials in it win over those below.
            channel: the channel template, the same as the relay's source has.
            username: of Redis' ACL; empty: none.
            password: empty: none.
            tls_ca_file: PEM file of the authority to trust for `rediss://`; empty: the system's.
            timeout_seconds: for the connection, and again for Redis' answer to each message.

        Raises:
            ValueError: the URL or the template is at fault.
        """
        self._template = parse_template(channel)
        self._lock = asyncio.Lock()
        self._redis = redis.asyncio.Redis.from_url(
            url,
            retry=AsyncRetry(NoBackoff(), _RETRIES, supported_errors=_RETRIED),
            **_connection_options(url, username, password, tls_ca_file, timeout_seconds),
        )

    async def progress(
        self,
        job: str | int,
        n: float,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
    ) -> int:
        """Tell how far `job` is: `n` in percent.

        Args:
            job: 1 to 256 characters without control characters; an int becomes its decimal digits.
            n: 0 to 100; the relay clamps what is outside.
            queue: the queue's name; None is `default` where the template has `{queueName}`.
            status: None stands for "active".
            data: whatever else the job has to say, such as `{"stage": "loading"}`.

        Returns:
            How many subscribers of Redis got it; in a cluster only those of the node asked.

        Raises:
            ValueError: nothing was sent, see `compose`.
            redis.RedisError: Redis is away, slower than the timeout, or refuses.
        """
        return await self.publish(
            flat_payload(PROGRESS, job, {"progress": n}, queue, status, data, _now_ms())
        )

    async def completed(
        self,
        job: str | int,
        result: object,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
    ) -> int:
        """Tell that `job` ended well, with `result`; the rest is as in `progress`."""
        return await self.publish(
            flat_payload(COMPLETED, job, {"result": result}, queue, status, data, _now_ms())
        )

    async def failed(
        self,
        job: str | int,
        error: str | BaseException,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
    ) -> int:
        """Tell that `job` failed; an exception is told as its type and text, without traceback.

        `status="cancelled"` tells that it was ended on purpose; the rest is as in `progress`.
        """
        fields = error_fields(error)
        return await self.publish(flat_payload(FAILED, job, fields, queue, status, data, _now_ms()))

    async def publish(self, payload: Mapping[str, Any]) -> int:
        """Send a flat payload as it is; it names the job as `jobId`. Else as `progress`."""
        return await self.send(self.compose(payload))

    def compose(self, payload: Mapping[str, Any]) -> Message:
        """The message that `publish` would send; see the function of this name."""
        return compose(self._template, payload)

    async def send(self, message: Message) -> int:
        """Send what `compose` made; returns and raises as `progress` does."""
        # redis-py would open a second connection for a concurrent call, and that could overtake.
        async with self._lock:
            return int(await self._redis.publish(message.channel, message.payload))

    async def aclose(self) -> None:
        """Close the connection; idempotent."""
        await self._redis.aclose()

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
        username: str = "",
        password: str = "",
        tls_ca_file: str = "",
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        """See `Publisher`."""
        self._template = parse_template(channel)
        self._lock = threading.Lock()
        self._redis = redis.Redis.from_url(
            url,
            retry=Retry(NoBackoff(), _RETRIES, supported_errors=_RETRIED),
            **_connection_options(url, username, password, tls_ca_file, timeout_seconds),
        )

    def progress(
        self,
        job: str | int,
        n: float,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
    ) -> int:
        """See `Publisher.progress`."""
        return self.publish(
            flat_payload(PROGRESS, job, {"progress": n}, queue, status, data, _now_ms())
        )

    def completed(
        self,
        job: str | int,
        result: object,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
    ) -> int:
        """See `Publisher.completed`."""
        return self.publish(
            flat_payload(COMPLETED, job, {"result": result}, queue, status, data, _now_ms())
        )

    def failed(
        self,
        job: str | int,
        error: str | BaseException,
        *,
        queue: str | None = None,
        status: str | None = None,
        data: object = None,
    ) -> int:
        """See `Publisher.failed`."""
        fields = error_fields(error)
        return self.publish(flat_payload(FAILED, job, fields, queue, status, data, _now_ms()))

    def publish(self, payload: Mapping[str, Any]) -> int:
        """See `Publisher.publish`."""
        return self.send(self.compose(payload))

    def compose(self, payload: Mapping[str, Any]) -> Message:
        """The message that `publish` would send; see the function of this name."""
        return compose(self._template, payload)

    def send(self, message: Message) -> int:
        """See `Publisher.send`."""
        with self._lock:
            return int(self._redis.publish(message.channel, message.payload))

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _first(payload: Mapping[str, Any], *names: str) -> object:
    for name in names:
        if payload.get(name) is not None:
            return payload[name]
    return None


def _name(what: str, value: object) -> str | None:
    if type(value) is int:
        value = str(value)
    if value is None:
        return None
    if not isinstance(value, str) or not is_name(value) or not _is_utf8(value):
        raise ValueError(
            f"{value!r} cannot name a {what}: it takes 1 to 256 characters, none of them a control"
        )
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _check_way_back(template: ChannelTemplate, channel: str, job: str, queue: str | None) -> None:
    """The relay reads the names off the channel: refuse what it would take for another job's."""
    told = template.match(channel.encode()) or {}
    names = {"jobId": job, "queueName": queue or ""}
    for placeholder, name in names.items():
        if told.get(placeholder, name.encode()) != name.encode():
            raise ValueError(
                f"the channel {channel} would be read as {placeholder} "
                f"{told[placeholder].decode(errors='replace')!r} and not {name!r}: use a name "
                f"without the characters that part the placeholders of {template.text}"
            )


def _connection_options(
    url: str, username: str, password: str, tls_ca_file: str, timeout_seconds: float
) -> dict[str, Any]:
    options: dict[str, Any] = {
        # RESP3 would bring nothing here, and a refused login in words that nobody understands.
        "protocol": 2,
        "username": username or None,
        "password": password or None,
        "socket_connect_timeout": timeout_seconds,
        "socket_timeout": timeout_seconds,
    }
    # redis-py's plain connections refuse TLS options.
    if tls_ca_file and url.startswith("rediss:"):
        options["ssl_ca_certs"] = tls_ca_file
    return options


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
