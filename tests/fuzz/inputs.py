"""What the fuzzer sends: random sentences of each language that the relay reads, and broken ones.

A *sound* input keeps to the framing around it, whatever nonsense it says, so the connection goes on and every input
behind it is read, too. A *broken* one is a sound one with bytes changed, cut, doubled or added; it is the last
of its connection. All randomness comes from the generator that is handed in.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Final

from tests.web.conftest import CONTINUATION, PING, PONG, TEXT, frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

QUEUE: Final = "fuzz"
JOBS: Final = 50  # that are watched by name
# Far more than the relay is set to remember, so that a job that ended is forgotten and can begin again.
JOBS_IN_ALL: Final = 20_000
MAX_CONTROL_BYTES: Final = 125
_EDGES: Final = (
    0,
    1,
    125,
    126,
    127,
    65535,
    65536,
    2**31 - 1,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
)
_ATOMS: Final = (
    "null", "true", "false", "0", "-0", "1e999", "-1e999", "1e-999", "NaN", "Infinity", "0.1", "45", "100.5", "-1",
    "9" * 400, '""', '"\\ud800"', '"\\udc00x"', '"\\u0000"', '"\\u2028"', '"\\r\\nX-A: b"', "[]", "{}", "[[[]]]",
    '{"__proto__":{}}', '{"jobId":"job-1"}', '{"message":"m"}', '{"current":1,"total":0}', '{"percent":1e308}',
    "[" * 300 + "]" * 300, '"' + "x" * 300 + '"',
)  # fmt: skip
_CHARACTERS: Final = "abcXYZ019-_:.*?/\\\"'{}[]<>&%+= \t\n\r\x00\x1b\x7f\x85é߿ࠀ�😀\u2028"
_EVENTS: Final = (
    "subscribe-to-job", "subscribe-to-jobs", "subscribe-to-queue", "unsubscribe-from-job", "unsubscribe-from-jobs",
    "unsubscribe-from-queue", "authenticate", "ping", "job-progress", "", "subscribe-to-", "toString",
)  # fmt: skip
_FIELDS: Final = (
    "event", "type", "jobId", "job_id", "queueName", "queue_name", "queue", "id", "progress", "status", "data",
    "result", "returnvalue", "error", "failedReason", "eventId", "startedAt", "processedOn", "finishedOn", "ts",
    "truncated", "task_id", "traceback", "children", "date_done", "odd",
)  # fmt: skip
_STATUSES: Final = (
    "active", "queued", "completed", "failed", "cancelled", "retrying", "SUCCESS", "FAILURE", "STARTED", "PROGRESS",
    "REVOKED", "RETRY", "PENDING", "odd",
)  # fmt: skip
_NAMES: Final = (
    "job-progress",
    "job-completed",
    "job-failed",
    "progress",
    "failed",
    "job-odd",
    "job-",
)
_PATHS: Final = (
    "/jobs", "/jobs/job-1", "/jobs/job-1/history", "/jobs/job-1/nothing", "/", "/client/relay.js", "/client/..",
    "/socket.io/", "/livez", "/metrics", "/admin/connections", "/favicon.ico", "//", "/job-progress",
)  # fmt: skip
_ADMIN_PATHS: Final = (
    "/livez", "/readyz", "/healthz", "/metrics", "/admin/connections", "/admin/disconnect", "/admin/revoke", "/",
)  # fmt: skip
_HEADERS: Final = (
    "Accept", "Origin", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "If-None-Match",
    "Last-Event-ID", "Authorization", "Cookie", "Range", "Accept-Encoding", "User-Agent", "Referer", "X-Odd",
    "Access-Control-Request-Method", "Access-Control-Request-Headers", "Sec-WebSocket-Protocol",
)  # fmt: skip
_VALUES: Final = (
    "", "*", "null", "http://localhost:3001", "https://evil.example", "127.0.0.1", "::1, 10.0.0.1", "fe80::1%25x",
    '"a", W/"b', "Bearer x", "Bearer", "a=b; c", "bytes=0-1", "gzip", "GET", "for=\"[::1]:80\"", "bearer, x",
    "application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=x; q=", "text/plain;version=",
)  # fmt: skip
_QUERIES: Final = (
    "queueName", "ids", "jobs", "queues", "snapshot", "since", "lastEventId", "token", "search", "odd",
)  # fmt: skip


def text(random: Random, most: int = 12) -> str:
    """A few odd characters."""
    return "".join(random.choices(_CHARACTERS, k=random.randrange(most)))


def _value(random: Random, depth: int = 0) -> str:
    """JSON, or nearly."""
    kind = random.randrange(8)
    if kind < 3 or depth > 3:
        return random.choice(_ATOMS)
    if kind == 3:
        return json.dumps(text(random), ensure_ascii=random.random() < 0.5)
    if kind == 4:
        return str(random.choice(_EDGES) * random.choice((1, -1)))
    if kind == 5:
        return repr(random.uniform(-200, 200))
    if kind == 6:
        members = (_value(random, depth + 1) for _ in range(random.randrange(4)))
        return f"[{','.join(members)}]"
    return _object((text(random, 4), _value(random, depth + 1)) for _ in range(random.randrange(4)))


def _object(pairs: Iterable[tuple[str, str]]) -> str:
    """A JSON object of names and values that are JSON already, or nearly."""
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in pairs) + "}"


def _name(random: Random) -> str:
    """A job's or a queue's name as JSON, often one that exists."""
    if random.random() < 0.7:
        return f'"job-{random.randrange(JOBS)}"'
    return json.dumps(random.choice((QUEUE, text(random), "x" * random.randrange(300))))


def message(random: Random) -> bytes:
    """What a client says: a command, or something like it."""
    if random.random() < 0.05:
        return _value(random).encode()
    data: dict[str, Callable[[], str]] = {
        "jobId": lambda: _name(random),
        "jobIds": lambda: "[" + ",".join(_name(random) for _ in range(random.randrange(6))) + "]",
        "queueName": lambda: f'"{QUEUE}"' if random.random() < 0.5 else _name(random),
        "since": lambda: random.choice((_value(random), f"{{{_name(random)}:{_name(random)}}}")),
        "snapshot": lambda: random.choice(("true", "false", "1", "null")),
        "token": lambda: json.dumps(text(random)),
    }
    chosen = random.sample(sorted(data), random.randrange(1, 5))
    fields = [(name, data[name]() if random.random() < 0.9 else _value(random)) for name in chosen]
    pairs = [("event", json.dumps(random.choice(_EVENTS))), ("data", _object(fields))]
    if random.random() < 0.2:
        pairs.append(("ref", _value(random)))
    if random.random() < 0.1:
        pairs.append((random.choice(("event", "data", text(random))), _value(random)))
    return _object(pairs).encode(errors="replace")


def sound_message(random: Random) -> bytes:
    """A client's message in its frame."""
    return frame(TEXT, message(random))


def sound_frames(random: Random) -> bytes:
    """A message in fragments with control frames between them, or control frames alone."""
    if random.random() < 0.3:
        return _control(random)
    said = message(random) if random.random() < 0.5 else text(random, 60).encode()
    cuts = sorted(random.randrange(len(said) + 1) for _ in range(random.randrange(5)))
    parts = [said[start:end] for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    frames = []
    for place, part in enumerate(parts):
        opcode = CONTINUATION if place else TEXT
        frames.append(frame(opcode, part, final=place == len(parts) - 1))
        if place < len(parts) - 1 and random.random() < 0.3:
            frames.append(_control(random))
    return b"".join(frames)


def _control(random: Random) -> bytes:
    size = random.choice((0, 1, MAX_CONTROL_BYTES, random.randrange(MAX_CONTROL_BYTES)))
    return frame(random.choice((PING, PONG)), random.randbytes(size))


def broken_frames(random: Random) -> bytes:
    """Frames with a fault, or noise in their place."""
    kind = random.randrange(4)
    if kind == 0:
        return random.randbytes(random.randrange(1, 300))
    if kind == 1:
        head = bytes([random.randrange(256), random.randrange(256)])
        length = struct.pack("!Q", random.choice(_EDGES) % 2**64)[random.choice((0, 6)) :]
        return head + length + random.randbytes(random.randrange(200))
    return mutated(random, sound_frames(random) + sound_message(random))


def payload(random: Random) -> tuple[bytes, bytes]:
    """A channel that the relay listens to, and what is published there."""
    fields = []
    for name in random.sample(_FIELDS, random.randrange(1, 9)):
        match name:
            case "event" | "type":
                value = json.dumps(random.choice(_NAMES))
            case "status":
                value = json.dumps(random.choice(_STATUSES))
            case "jobId" | "job_id" | "id" | "task_id" | "eventId":
                value = _name(random)
            case _:
                value = _value(random)
        fields.append((name, value if random.random() < 0.85 else _value(random)))
    inner = _object(fields)
    if random.random() < 0.15:
        inner = _object([("event", json.dumps(random.choice(_NAMES))), ("data", inner)])
    data = inner.encode(errors="replace")
    kind = random.random()
    if kind < 0.2:
        data = mutated(random, data)
    elif kind < 0.21:
        data = b'{"result":"' + b"x" * random.choice((60_000, 70_000, 1_200_000)) + b'"}'
    return _channel(random), data


def _channel(random: Random) -> bytes:
    number = random.randrange(JOBS)
    return random.choice(
        (
            b"jobs:fuzz:job-%d" % number,
            b"jobs:fuzz:job-%d" % random.randrange(JOBS_IN_ALL),
            b"jobs:fuzz:" + mutated(random, text(random).encode()),
            b"jobs:%b:job-1" % random.randbytes(random.randrange(5)),
            b"anywhere:" + text(random).encode(),
            b"celery-task-meta-job-%d" % number,
            b"celery-task-meta-" + text(random).encode(),
        )
    )


def sound_head(random: Random) -> bytes:
    """A request that leaves its connection open."""
    method = random.choice(("GET", "GET", "GET", "GET", "OPTIONS", "DELETE", "PUT"))
    path = random.choice(_PATHS)
    if random.random() < 0.3:
        path = f"/jobs/{_escaped(random, text(random))}"
    return _request(random, method, path + _query(random))


def sound_admin(random: Random) -> bytes:
    """A request to the admin listener that leaves its connection open."""
    path = random.choice(_ADMIN_PATHS)
    if path.startswith("/admin/") and random.random() < 0.8:
        keys = ("principal", "jti", "connectionId", "until", "odd")
        fields = [(key, _value(random)) for key in random.sample(keys, random.randrange(3))]
        body = (_object(fields) if random.random() < 0.8 else _value(random)).encode()
        kind = random.choice(("application/json", "application/json; charset=x", "text/plain", ""))
        headers = [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        return _request(random, "POST", path, headers) + body
    return _request(random, random.choice(("GET", "GET", "PUT")), path + _query(random))


def broken_head(random: Random) -> bytes:
    """A request with a fault, or one after which the connection is used for something else."""
    kind = random.randrange(6)
    if kind == 0:
        return random.randbytes(random.randrange(1, 400)) + b"\r\n\r\n"
    if kind == 1:
        path = random.choice(("/jobs/job-1/events", "/events", "/jobs/job-1", "/job-progress"))
        query = random.choice((_query(random), "?wait=0.01", "?jobs=job-1,job-2&queues=fuzz"))
        return mutated(random, _request(random, "GET", path + query)) + random.randbytes(50)
    if kind == 2:
        return mutated(random, _handshake(random)) + sound_frames(random)
    if kind == 3:
        headers = [
            random.choice(("Content-Encoding: gzip", "Transfer-Encoding: chunked", "Expect: x"))
        ]
        headers.append(random.choice(("Upgrade: x", "Connection: upgrade", "Content-Length: 10")))
        body = random.randbytes(random.randrange(60))
        return _request(random, random.choice(("GET", "POST")), "/jobs/job-1", headers) + body
    return mutated(random, sound_head(random))


def broken_admin(random: Random) -> bytes:
    """A request to the admin listener with a fault."""
    if random.random() < 0.3:
        headers = [
            "Content-Type: application/json",
            random.choice(("Content-Encoding: gzip", "Content-Encoding: deflate", "Expect: x")),
            random.choice(("Transfer-Encoding: chunked", "Content-Length: 10")),
        ]
        body = random.choice(
            (b"2\r\n{}\r\n0\r\n\r\n", random.randbytes(12), b"\x1f\x8b" + bytes(8))
        )
        return _request(random, "POST", "/admin/revoke", headers) + body
    return mutated(random, sound_admin(random))


def mutated(random: Random, data: bytes) -> bytes:
    """`data` with one to four faults."""
    faulty = bytearray(data)
    for _ in range(random.randrange(1, 5)):
        start = random.randrange(len(faulty) + 1)
        end = min(len(faulty), start + random.choice((1, 1, 2, 4, 16)))
        match random.randrange(6):
            case 0 if start < len(faulty):
                faulty[start] ^= 1 << random.randrange(8)
            case 1:
                del faulty[start:end]
            case 2:
                faulty[start:start] = faulty[start:end] * random.choice((1, 2, 100))
            case 3:
                faulty[start:start] = random.randbytes(random.randrange(9))
            case 4:
                faulty[start:start] = random.choice(_ATOMS).encode()
            case _:
                del faulty[start:]
    return bytes(faulty)


def _request(random: Random, method: str, target: str, headers: list[str] | None = None) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *(headers or ())]
    for name in random.sample(_HEADERS, random.randrange(4)):
        value = random.choice(_VALUES)
        if random.random() < 0.2:
            value = "".join(character for character in text(random) if character.isprintable())
        lines.append(f"{name}: {value}")
    return "\r\n".join(lines).encode(errors="replace") + b"\r\n\r\n"


def _handshake(random: Random) -> bytes:
    headers = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        random.choice(("Sec-WebSocket-Extensions: permessage-deflate", "X-Odd: x")),
    ]
    return _request(random, "GET", "/job-progress" + _query(random), headers)


def _query(random: Random) -> str:
    if random.random() < 0.5:
        return ""
    names = random.sample(_QUERIES, random.randrange(1, 4))
    return "?" + "&".join(f"{name}={_escaped(random, text(random))}" for name in names)


def _escaped(random: Random, odd: str) -> str:
    """Percent-encoded, or cut so that it is no UTF-8 any more."""
    octets = odd.encode()
    if random.random() < 0.2:
        octets = octets[1:]
    return "".join(f"%{octet:02x}" for octet in octets)
