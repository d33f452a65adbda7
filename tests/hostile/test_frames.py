"""Violations of RFC 6455, each as a client would send it after a proper handshake."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.web.conftest import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, command, frame

if TYPE_CHECKING:
    from tests.hostile.conftest import Target


def announced(opcode: int, length_code: int, length: bytes, data: bytes = b"") -> bytes:
    """A final, masked frame whose head announces a length in a form of the attacker's choice."""
    return bytes([0x80 | opcode, 0x80 | length_code]) + length + bytes(4) + data


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


RESERVED_BITS = {f"reserved bit {bit:#x}": frame(TEXT, b"{}", flags=bit) for bit in (64, 32, 16)}
RESERVED_OPCODES = {
    f"opcode {opcode}": frame(opcode, b"{}") for opcode in (*range(3, 8), *range(11, 16))
}
CLOSE_CODES = {
    f"close code {code}": closing(code)
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
}
PROTOCOL_ERRORS = {
    **RESERVED_BITS,
    **RESERVED_OPCODES,
    **CLOSE_CODES,
    "text without a mask": frame(TEXT, b"{}", masked=False),
    "close without a mask": frame(CLOSE, masked=False),
    "ping in fragments": frame(PING, b"a", final=False),
    "pong in fragments": frame(PONG, b"a", final=False),
    "close in fragments": frame(CLOSE, final=False),
    "ping of 126 bytes": frame(PING, b"a" * 126),
    "pong of 65536 bytes": frame(PONG, b"a" * 65536),
    "close with half a code": frame(CLOSE, b"\x03"),
    "close of 126 bytes": closing(1000, b"a" * 124),
    "continuation of nothing": frame(CONTINUATION, b"a"),
    "last continuation of nothing": frame(CONTINUATION, b"a", final=False),
    "text within a message": frame(TEXT, b"a", final=False) + frame(TEXT, b"b"),
    "binary within a message": frame(TEXT, b"a", final=False) + frame(BINARY, b"b"),
    "5 bytes announced in 16 bits": announced(TEXT, 126, struct.pack("!H", 5), b"{}   "),
    "125 bytes announced in 64 bits": announced(TEXT, 127, struct.pack("!Q", 125), b"a" * 125),
    "65535 bytes announced in 64 bits": announced(TEXT, 127, struct.pack("!Q", 65535)),
    "2^63 bytes announced": announced(TEXT, 127, struct.pack("!Q", 2**63)),
    "2^64 - 1 bytes announced": announced(TEXT, 127, struct.pack("!Q", 2**64 - 1)),
}
BAD_UTF8 = {
    "a byte that never occurs": frame(TEXT, b"\xff"),
    "an overlong form": frame(TEXT, b"\xc0\xaf"),
    "half a surrogate pair": frame(TEXT, b"\xed\xa0\x80"),
    "beyond the last code point": frame(TEXT, b"\xf4\x90\x80\x80"),
    "cut off at the end": frame(TEXT, b"caf\xc3"),
    "split over fragments": frame(TEXT, b"\xc3", final=False) + frame(CONTINUATION, b"\x28"),
    "cut off at the last fragment": frame(TEXT, b"a", final=False) + frame(CONTINUATION, b"\xe2"),
    "in the first of many fragments": frame(TEXT, b"\x80", final=False),
    "in a close frame": closing(1000, b"\xff"),
}
TOO_BIG = {
    "one byte too many": announced(TEXT, 127, struct.pack("!Q", 65537)),
    "2^62 bytes": announced(TEXT, 127, struct.pack("!Q", 2**62)),
    "2^62 bytes of binary": announced(BINARY, 127, struct.pack("!Q", 2**62)),
    "one byte too many in fragments": frame(TEXT, b"a" * 65536, final=False)
    + frame(CONTINUATION, b"a", final=False),
}


@pytest.mark.parametrize("data", PROTOCOL_ERRORS.values(), ids=PROTOCOL_ERRORS)
async def test_protocol_error_is_closed_with_1002(target: Target, data: bytes) -> None:
    """A client sends a frame that RFC 6455 forbids, to find a parser that goes on all the same."""
    client = await target.websocket()

    await client.send(data)

    assert await client.close_code() == 1002
    await client.ended()


@pytest.mark.parametrize("data", BAD_UTF8.values(), ids=BAD_UTF8)
async def test_text_that_is_not_utf8_is_closed_with_1007(target: Target, data: bytes) -> None:
    """A client sends text that is no UTF-8, in the hope that it reaches a log, a page or a decoder."""
    client = await target.websocket()

    await client.send(data)

    assert await client.close_code() == 1007
    await client.ended()


@pytest.mark.parametrize("data", TOO_BIG.values(), ids=TOO_BIG)
async def test_announced_size_is_judged_before_any_of_it_is_kept(
    target: Target, data: bytes
) -> None:
    """A client announces a message larger than any limit, so that room is made for it."""
    client = await target.websocket()

    await client.send(data)

    assert await client.close_code() == 1009
    await client.ended()


async def test_nothing_behind_a_violation_is_obeyed(target: Target) -> None:
    """A client hides a command behind a violation, for a parser that finds its feet again."""
    client = await target.websocket()

    await client.send(frame(TEXT, b"{}", masked=False) + command("ping", "smuggled"))

    assert (await client.frame())[0] == CLOSE
    await client.ended()


async def test_nothing_behind_a_close_frame_is_obeyed(target: Target) -> None:
    """A client goes on with commands after its own farewell."""
    client = await target.websocket()

    await client.send(frame(CLOSE) + command("ping", "smuggled"))

    assert (await client.frame())[0] == CLOSE
    await client.ended()


async def test_frames_ahead_of_the_handshake_are_no_handshake(target: Target) -> None:
    """A client skips the handshake and sends frames at once."""
    client = await target.raw()

    await client.send(command("ping", 1) + b"\r\n\r\n")

    assert (await client.answer()).status == 400
