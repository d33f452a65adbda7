"""RFC 6455 frames as a server reads and writes them; no extensions, no I/O.

`FrameReader.feed` takes whatever the socket gave and returns whole messages and control frames. After a
violation `fault` says with which close code of section 7.4.1 to answer, and nothing more is read; nor is
anything after a close frame (section 1.4). A message is bounded before its bytes are kept: the length in
a header is judged when the header is there. So is the work: a frame of six bytes costs as much as one of
hundreds, so a caller may ask for so many at once, and learns how many of them were no message.
An idle reader holds no buffer.
"""

import codecs
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from relay.core.closing import CloseReason
from relay.core.errors import SessionError


class Opcode(IntEnum):
    """RFC 6455 §5.2."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Message(NamedTuple):
    """A whole message, or a control frame. Text is proven UTF-8."""

    opcode: Opcode
    data: bytes


_MAX_CONTROL_BYTES: Final = 125
# Defined for the wire by RFC 6455 §7.4 and the IANA registry; 3000-4999 are free to use.
_CLOSE_CODES: Final = frozenset({*range(1000, 1004), *range(1007, 1015)})
_CLOSE_MESSAGE_TEXT_BYTES: Final = 123

_utf8 = codecs.getincrementaldecoder("utf-8")


class FrameReader:
    """Reads one client's frames.

    Args:
        max_message_bytes: a message of exactly this size is legal, one byte more closes with 1009.

    `is_behind` says that `feed` stopped at its `most` frames, `bare_frames` how many of those it read ended no
    message: fragments and control frames.
    """

    __slots__ = (
        "_buffer", "_closed", "_decoder", "_fragments", "_opcode", "bare_frames", "fault", "is_behind",
        "max_message_bytes",
    )  # fmt: skip

    def __init__(self, max_message_bytes: int) -> None:
        self.max_message_bytes = max_message_bytes
        self.fault: CloseReason | None = None
        self.bare_frames = 0
        self.is_behind = False
        self._buffer: bytearray | None = None  # a frame that is not yet whole
        self._closed = False  # whether a close frame was read
        # Of a message that is not yet whole, in one piece: as objects, a client's one-byte fragments
        # would take fifty times the bytes that `max_message_bytes` grants it.
        self._fragments: bytearray | None = None
        self._opcode = Opcode.CONTINUATION  # of the message they belong to
        self._decoder: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes, most: int | None = None) -> list[Message]:
        """Take bytes off the wire; returns what is whole now, in order.

        Messages that came before a violation are still returned; then `fault` is set.

        Args:
            most: how many frames are read at once, None for all; a call with no more data reads on.
        """
        messages: list[Message] = []
        self.bare_frames = 0
        self.is_behind = False
        if self.fault is not None or self._closed:
            return messages
        view: bytes | bytearray = data
        if self._buffer is not None:
            self._buffer += data
            view = self._buffer
        start = frames = 0
        closed = False
        try:
            while not closed and (end := self._frame(view, start, messages)) != start:
                start = end
                closed = bool(messages) and messages[-1].opcode is Opcode.CLOSE
                frames += 1
                if frames == most:
                    self.is_behind = not closed and start < len(view)
                    break
        except SessionError as error:
            self.fault = error.reason
        self._closed = closed
        if closed or self.fault is not None:
            self._buffer = self._fragments = self._decoder = None
        elif start == len(view):
            self._buffer = None
        elif self._buffer is None:
            self._buffer = bytearray(view[start:])
        else:
            del self._buffer[:start]
        return messages

    def fail(self, reason: CloseReason) -> None:
        """Read nothing any more; `reason` is the fault."""
        self.fault = reason
        self.is_behind = False
        self._buffer = self._fragments = self._decoder = None

    def _frame(self, view: bytes | bytearray, start: int, messages: list[Message]) -> int:
        """Read one frame at `start`. Returns where it ends, or `start` while it is not whole."""
        available = len(view) - start
        if available < 2:
            return start
        first, second = view[start], view[start + 1]
        length = second & 0x7F
        if first & 0x70 or not second & 0x80:
            raise SessionError(CloseReason.PROTOCOL_ERROR)  # a reserved bit; a frame without a mask
        final = bool(first & 0x80)
        opcode = self._check_opcode(first & 0x0F, length, final=final)
        header = 6
        if length == 126:
            header = 8
            if available < 4:
                return start
            length = int.from_bytes(view[start + 2 : start + 4], "big")
            if length < 126:
                raise SessionError(CloseReason.PROTOCOL_ERROR)  # §5.2: the fewest bytes that do
        elif length == 127:
            header = 14
            if available < 10:
                return start
            length = int.from_bytes(view[start + 2 : start + 10], "big")
            if length >> 63 or length < 65536:
                raise SessionError(CloseReason.PROTOCOL_ERROR)
        collected = 0 if self._fragments is None else len(self._fragments)
        if collected + length > self.max_message_bytes and opcode < Opcode.CLOSE:
            raise SessionError(CloseReason.MESSAGE_TOO_BIG)
        if available < header + length:
            return start
        body = start + header
        data = unmask(bytes(view[body : body + length]), bytes(view[body - 4 : body]))
        if opcode >= Opcode.CLOSE:
            if opcode is Opcode.CLOSE:
                _check_close(data)
            self.bare_frames += 1
            messages.append(Message(opcode, data))
        else:
            self._collect(opcode, data, messages, final=final)
        return body + length

    def _check_opcode(self, value: int, length: int, *, final: bool) -> Opcode:
        try:
            opcode = Opcode(value)
        except ValueError:
            raise SessionError(CloseReason.PROTOCOL_ERROR) from None
        if opcode >= Opcode.CLOSE:
            if not final or length > _MAX_CONTROL_BYTES:
                raise SessionError(CloseReason.PROTOCOL_ERROR)
        elif (opcode is Opcode.CONTINUATION) != (self._fragments is not None):
            raise SessionError(CloseReason.PROTOCOL_ERROR)
        return opcode

    def _collect(
        self, opcode: Opcode, data: bytes, messages: list[Message], *, final: bool
    ) -> None:
        if self._fragments is None:
            if final:
                if opcode is Opcode.TEXT:
                    _check_utf8(data)
                messages.append(Message(opcode, data))
                return
            self._fragments = bytearray()
            self._opcode = opcode
            self._decoder = _utf8() if opcode is Opcode.TEXT else None
        if self._decoder is not None:
            try:
                self._decoder.decode(data, final)
            except UnicodeDecodeError:
                raise SessionError(CloseReason.BAD_UTF8) from None
        self._fragments += data
        if final:
            messages.append(Message(self._opcode, bytes(self._fragments)))
            self._fragments = self._decoder = None
        else:
            self.bare_frames += 1


def unmask(data: bytes, key: bytes) -> bytes:
    """XOR with the repeated four-byte key (RFC 6455 §5.3), as one operation on big integers."""
    length = len(data)
    if not length:
        return data
    mask = (key * (length // 4 + 1))[:length]
    masked = int.from_bytes(data, "little") ^ int.from_bytes(mask, "little")
    return masked.to_bytes(length, "little")


def control_frame(opcode: Opcode, data: bytes = b"") -> bytes:
    """A final, unmasked control frame; `data` of up to 125 bytes."""
    return bytes((0x80 | opcode, len(data))) + data


def close_frame(code: int | None, text: str = "") -> bytes:
    """A close frame (RFC 6455 §5.5.1); without a code where `code` is None."""
    if code is None:
        return control_frame(Opcode.CLOSE)
    # Cut between characters: half of one would be no UTF-8, and the client would fail the connection.
    reason = text.encode()[:_CLOSE_MESSAGE_TEXT_BYTES].decode(errors="ignore").encode()
    return control_frame(Opcode.CLOSE, struct.pack("!H", code) + reason)


def close_code(data: bytes) -> int | None:
    """The code in a checked close frame's data, None where there is none."""
    return int.from_bytes(data[:2], "big") if data else None


def _check_close(data: bytes) -> None:
    if not data:
        return
    code = int.from_bytes(data[:2], "big")
    if len(data) == 1 or not (code in _CLOSE_CODES or 3000 <= code <= 4999):
        raise SessionError(CloseReason.PROTOCOL_ERROR)
    _check_utf8(data[2:])


def _check_utf8(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError:
        raise SessionError(CloseReason.BAD_UTF8) from None
