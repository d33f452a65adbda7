"""Durable history as its writers see it: where it lies in Redis, and the commands that add to it.

An event is appended to its job's stream and published by one script, `append.lua`: both or neither.
Beside it stands, for each queue, a sorted set of its jobs by the time of their last event, which tells
a relay that was away which streams to read. The set is a help, not the truth: without it a queue's
watchers are told of a gap.

Pure: no connection and no clock. Redis: EVALSHA, EVAL; ZADD, ZREMRANGEBYRANK, EXPIRE.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final, TypeAlias

from relay.upstream.payloads import Message

APPEND_SCRIPT: Final = resources.files("relay.upstream").joinpath("append.lua").read_text("utf-8")
# The name that Redis gives to a script; no secret hangs on it.
APPEND_SHA: Final = hashlib.sha1(APPEND_SCRIPT.encode(), usedforsecurity=False).hexdigest()
MAX_QUEUE_JOBS: Final = 10_000

Command: TypeAlias = tuple[str | bytes | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DurableHistory:
    """Where events are kept in Redis, and how long; the same as `[history]` of the relay's settings.

    Args:
        prefix: of every key; the relay must have the same.
        max_events: kept of one job; the oldest go first. A key is remembered as long as its event.
        ttl_seconds: from a job's last event until its history goes.

    Raises:
        ValueError: the prefix is empty, or a number below 1.
    """

    prefix: str = "relay:history:"
    max_events: int = 100
    ttl_seconds: int = 3600

    def __post_init__(self) -> None:
        if not self.prefix:
            raise ValueError('the prefix is empty: name one, such as "relay:history:"')
        for name in ("max_events", "ttl_seconds"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}: make it a whole number from 1")


def chosen(history: DurableHistory | bool | None) -> DurableHistory | None:
    """What the argument of that name stands for: True is the defaults, None and False are none."""
    if isinstance(history, DurableHistory):
        return history
    return DurableHistory() if history else None


def check_key(history: DurableHistory | None, key: str | None) -> None:
    """Refuse a key that could not do what it is there for.

    Raises:
        ValueError: there is nothing that remembers it, or it is empty.
    """
    if key is None:
        return
    if history is None:
        raise ValueError(
            f"key {key!r}: only durable history remembers keys; make the publisher with "
            "history=True, or leave the key out"
        )
    if not key:
        raise ValueError("the key is empty: make it a text that no other event of this job has")


def append_arguments(history: DurableHistory, message: Message, key: str | None) -> Command:
    """What follows the number of keys, 1, in EVALSHA and EVAL."""
    return (
        f"{history.prefix}{message.job}",
        message.channel,
        message.payload,
        message.event or "",
        message.queue or "",
        history.max_events,
        history.ttl_seconds,
        key or "",
    )


def queue_commands(history: DurableHistory, message: Message, now_ms: int) -> list[Command]:
    """What notes the job among its queue's; nothing where the queue is not known."""
    if message.queue is None:
        return []
    jobs = f"{history.prefix}queue:{message.queue}"
    return [
        ("ZADD", jobs, now_ms, message.job),
        ("ZREMRANGEBYRANK", jobs, 0, -MAX_QUEUE_JOBS - 1),
        ("EXPIRE", jobs, history.ttl_seconds),
    ]
