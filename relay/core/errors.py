"""The exceptions, by who is at fault and who survives.

    DecodeError     a publisher's message is bad: it is counted and skipped
    CommandError    a client's message is bad: it is answered, the session goes on
    SessionError    a client did what ends a session: it is closed with that reason
    UpstreamError   Redis is away or refuses: retried with backoff

An operator's mistake is `relay.config.ConfigError`. Anything else that is raised is a bug of ours.
"""

from enum import StrEnum
from typing import Final

from relay.core.closing import CloseReason


class InvalidReason(StrEnum):
    """Why a message from Redis was dropped: label of `relay_messages_invalid_total`."""

    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NOT_OBJECT = "not_object"
    TOO_DEEP = "too_deep"
    TOO_LARGE = "too_large"
    NO_IDENTITY = "no_identity"
    UNSUPPORTED = "unsupported"
    LATE = "late"
    INTERNAL = "internal"


class AmendedReason(StrEnum):
    """What was put right in a message that was delivered: label of `relay_messages_amended_total`."""

    MISMATCH = "mismatch"
    TRUNCATED = "truncated"
    QUEUE_NAME = "queue_name"
    EVENT_ID = "event_id"


class ErrorCode(StrEnum):
    """The codes of `error` replies, of refusals inside `subscribed`, and of HTTP error bodies."""

    BAD_REQUEST = "bad-request"
    UNKNOWN_EVENT = "unknown-event"
    INVALID_JOB_ID = "invalid-job-id"
    INVALID_QUEUE_NAME = "invalid-queue-name"
    FORBIDDEN = "forbidden"
    TOO_MANY_SUBSCRIPTIONS = "too-many-subscriptions"
    RATE_LIMITED = "rate-limited"
    UNAUTHORIZED = "unauthorized"
    UNAVAILABLE = "unavailable"


# Errors that the same message may not meet again a little later.
TEMPORARY: Final = frozenset({ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE})


class RelayError(Exception):
    """Root of the relay's own exceptions."""


class DecodeError(RelayError):
    """A publisher's message cannot be understood; nothing but this message is lost."""

    def __init__(self, reason: InvalidReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class CommandError(RelayError):
    """A client's message is at fault; it is answered with `error` and the session goes on."""

    def __init__(self, code: ErrorCode, message: str, ref: str | int | float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.ref = ref


class SessionError(RelayError):
    """The session cannot go on and is closed with `reason`."""

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(reason.text)
        self.reason = reason


class UpstreamError(RelayError):
    """Redis is away or refuses us; the message says what to do about it."""
