"""Every way a session ends: the code on the wire, the words beside it, and whether to come back.

The enum's `label` is also the `reason` label of `relay_connections_closed_total`, the `reason` of the
`session_closed` log line, and a row of the table in docs/protocol.md. Codes are those of RFC 6455 §7.4.1
and of the IANA WebSocket close code registry (3000 and 3008).
"""

from enum import Enum


class CloseReason(Enum):
    """Why a session ended.

    `code` is None where no close frame of ours is sent: the client closed first, or the link is gone.
    """

    CLIENT_CLOSED = (None, "the client closed", True)
    CONNECTION_LOST = (None, "the connection was lost", True)
    PROTOCOL_ERROR = (1002, "protocol error", False)
    BINARY_FRAME = (1003, "only text frames are understood", False)
    BAD_UTF8 = (1007, "text is not valid UTF-8", False)
    TOO_MANY_ERRORS = (1008, "too many errors in a row", False)
    OPERATOR = (1008, "disconnected by an operator", False)
    MESSAGE_TOO_BIG = (1009, "message too big", False)
    INTERNAL_ERROR = (1011, "internal error", True)
    RESTARTING = (1012, "the relay is restarting", True)
    SLOW_CONSUMER = (1013, "slow consumer", True)
    # After these with a fresh token only, which is more than just coming back.
    TOKEN_MISSING = (3000, "no token in time", False)
    TOKEN_EXPIRED = (3000, "the token has expired", False)
    TOKEN_REVOKED = (3000, "the token was revoked", False)
    HEARTBEAT_TIMEOUT = (3008, "no answer to heartbeats", True)

    def __init__(self, code: int | None, text: str, may_return: bool) -> None:
        self.code = code
        self.text = text
        self.may_return = may_return

    @property
    def label(self) -> str:
        """The name in metrics, logs and docs."""
        return self.name.lower()
