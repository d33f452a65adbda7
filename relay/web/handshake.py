"""What is decided before an upgrade: RFC 6455 §4.2.1, origin and host, limits; pure.

`decide` answers for a head that asks for a WebSocket on our path: an Accept, or a Refusal with the HTTP
answer to give. Heads that ask for something else are not ours (`is_upgrade`).
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from relay.core import payload
from relay.core.errors import ErrorCode
from relay.core.wire import error_body
from relay.web.origin import OriginPolicy, Refused
from relay.web.request import Head

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
RETRY_AFTER_SECONDS: Final = 5
INVALID_TOKEN: Final = 'Bearer error="invalid_token"'  # RFC 6750 §3
MAX_HEAD_BYTES: Final = 16 * 1024
# For every answer: a browser is to guess nothing from our bytes, and to name us to no other site.
SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_REASONS: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    408: "Request Timeout",
    426: "Upgrade Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Accept:
    """The upgrade is granted; `response` are the bytes of the 101."""

    response: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request is refused. `label` is the metric's `reason`; `refused` holds what was compared, `detail`
    more about the reason, for the log.
    """

    label: str
    status: int
    code: ErrorCode
    message: str
    headers: tuple[tuple[str, str], ...] = ()
    refused: Refused | None = None
    detail: str | None = None

    @property
    def response(self) -> bytes:
        """The whole answer, after which the connection is closed."""
        body = payload.encode({"error": error_body(self.code, self.message)})
        lines = [
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
            *(f"{name}: {value}" for name, value in (*SECURITY_HEADERS.items(), *self.headers)),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How full the relay is, for one client address."""

    draining: bool
    connections: int
    max_connections: int
    of_address: int
    max_of_address: int  # 0: no limit


def is_upgrade(head: Head, path: str) -> bool:
    """Whether the head asks for a WebSocket on `path`."""
    upgrades = [token.lower() for token in head.tokens("upgrade")]
    return head.method == "GET" and head.path == path and "websocket" in upgrades


def decide(head: Head, peer: str, policy: OriginPolicy, load: Load) -> Accept | Refusal:
    """Grant or refuse an upgrade. `load` is that seen from the client's real address."""
    fault = _fault(head)
    if fault is not None:
        return fault
    refused = policy.judge(peer, head.get)
    if refused is not None:
        return foreign(refused)
    full = judge_load(load)
    if full is not None:
        return full
    return Accept(_switching(head))


def foreign(refused: Refused) -> Refusal:
    """The answer to an origin or a host that is not let in."""
    return Refusal(
        refused.what, 403, ErrorCode.FORBIDDEN,
        f"this {refused.what} may not connect; see server.allowed_{refused.what}s",
        refused=refused,
    )  # fmt: skip


def judge_load(load: Load) -> Refusal | None:
    """Why one more connection is refused, or None."""
    if load.draining:
        return _busy("draining", "the relay is restarting")
    if load.connections >= load.max_connections:
        return _busy("max_connections", "the relay has as many connections as it may")
    if load.max_of_address and load.of_address >= load.max_of_address:
        return Refusal(
            "max_connections_per_address", 429, ErrorCode.RATE_LIMITED,
            "too many connections from this address",
        )  # fmt: skip
    return None


def _busy(label: str, message: str) -> Refusal:
    headers = (("Retry-After", str(RETRY_AFTER_SECONDS)),)
    return Refusal(label, 503, ErrorCode.UNAVAILABLE, message, headers)


def _fault(head: Head) -> Refusal | None:
    """What RFC 6455 §4.2.1 finds wrong with the head."""
    if head.get("sec-websocket-version") != "13":
        headers = (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"))
        return Refusal(
            "version", 426, ErrorCode.BAD_REQUEST, "speak version 13 of the protocol", headers
        )
    connection = [token.lower() for token in head.tokens("connection")]
    if (
        head.minor_version != 1
        or "upgrade" not in connection
        or head.get("host") is None
        or len(head.all("origin")) > 1
        or head.all("transfer-encoding")
        or head.all("content-length") not in ([], ["0"])
    ):
        return _malformed("the request is not a WebSocket handshake")
    try:
        key = base64.b64decode(head.get("sec-websocket-key") or "", validate=True)
    except (binascii.Error, ValueError):
        return _malformed("Sec-WebSocket-Key is not base64")
    if len(key) != 16:
        return _malformed("Sec-WebSocket-Key is missing or not 16 bytes")
    return None


def _malformed(message: str) -> Refusal:
    return Refusal("malformed", 400, ErrorCode.BAD_REQUEST, message)


TOO_LARGE: Final = Refusal(
    "too_large", 431, ErrorCode.BAD_REQUEST, f"a request's head has at most {MAX_HEAD_BYTES} bytes"
)
TIMEOUT: Final = Refusal(
    "timeout", 408, ErrorCode.BAD_REQUEST, "the request's head did not come in time"
)
UNREADABLE: Final = _malformed("this is not an HTTP/1.1 request that can be understood")


def _switching(head: Head) -> bytes:
    key = (head.get("sec-websocket-key") or "").encode()
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    # A token may ride in the list of subprotocols (`bearer, <token>`); a client that offers the pair
    # must see `bearer` selected, else it closes.
    offered = head.tokens("sec-websocket-protocol")
    chosen = b"Sec-WebSocket-Protocol: bearer\r\n" if offered[:1] == ["bearer"] else b""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept, chosen)
    )
