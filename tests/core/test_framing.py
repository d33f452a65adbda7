"""RFC 6455 to the letter: what a client may send is read, what it may not has its close code."""

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.closing import CloseReason
from relay.core.event import text_frame
from relay.core.framing import (
    FrameReader,
    Message,
    Opcode,
    close_code,
    close_frame,
    control_frame,
    unmask,
)

LIMIT = 1000
KEY = b"\x12\x34\x56\x78"
EURO = "€".encode()
MAX_CONTROL_FRAME_BYTES = 6 + 125


def frame(
    opcode: int, data: bytes = b"", *, final: bool = True, rsv: int = 0, key: bytes | None = KEY
) -> bytes:
    """A frame as a client sends it; without a mask where `key` is None."""
    first = (0x80 if final else 0) | rsv << 4 | opcode
    masked = 0x80 if key is not None else 0
    if len(data) < 126:
        head = bytes((first, masked | len(data)))
    elif len(data) < 65536:
        head = bytes((first, masked | 126)) + len(data).to_bytes(2, "big")
    else:
        head = bytes((first, masked | 127)) + len(data).to_bytes(8, "big")
    if key is None:
        return head + data
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


def text(data: bytes, *, final: bool = True) -> bytes:
    return frame(Opcode.TEXT, data, final=final)


def more(data: bytes, *, final: bool = True) -> bytes:
    return frame(Opcode.CONTINUATION, data, final=final)


def ping(data: bytes = b"") -> bytes:
    return frame(Opcode.PING, data)


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(Opcode.CLOSE, code.to_bytes(2, "big") + reason)


@dataclass
class Read:
    """What a reader made of a stream."""

    messages: list[Message] = field(default_factory=list)
    fault: CloseReason | None = None
    most_held_bytes: int = 0


def read(*chunks: bytes, limit: int = LIMIT) -> Read:
    reader = FrameReader(limit)
    result = Read()
    for chunk in chunks:
        result.messages += reader.feed(chunk)
        result.most_held_bytes = max(result.most_held_bytes, held_bytes(reader))
    result.fault = reader.fault
    return result


def held_bytes(reader: FrameReader) -> int:
    return len(reader._buffer or b"") + len(reader._fragments or b"")


# --- what is legal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 127, 65535, 65536, 70001])
def test_message_of_any_length_form_is_read(size: int) -> None:
    data = random.Random(size).randbytes(size)

    result = read(frame(Opcode.BINARY, data), limit=100_000)

    assert result == Read([Message(Opcode.BINARY, data)])


def test_fragments_are_one_message() -> None:
    result = read(text(b"a", final=False) + more(b"", final=False) + more(b"bc"))

    assert result.messages == [Message(Opcode.TEXT, b"abc")]


def test_message_after_a_fragmented_one_is_read_afresh() -> None:
    result = read(text(b"a", final=False) + more(b"b") + frame(Opcode.BINARY, b"\xff") + text(b"c"))

    assert [message.data for message in result.messages] == [b"ab", b"\xff", b"c"]


def test_control_frames_between_fragments_come_first() -> None:
    result = read(text(b"a", final=False) + ping(b"p") + frame(Opcode.PONG) + more(b"b"))

    assert result.messages == [
        Message(Opcode.PING, b"p"),
        Message(Opcode.PONG, b""),
        Message(Opcode.TEXT, b"ab"),
    ]


def test_control_frame_of_125_bytes_is_legal_whatever_the_limit() -> None:
    assert read(ping(b"p" * 125), limit=10).messages == [Message(Opcode.PING, b"p" * 125)]


def test_message_of_exactly_the_limit_is_legal() -> None:
    whole = read(text(b"a" * LIMIT))
    fragmented = read(text(b"a" * (LIMIT - 1), final=False), more(b"a", final=False), more(b""))

    assert whole.messages == fragmented.messages == [Message(Opcode.TEXT, b"a" * LIMIT)]


def test_limit_counts_each_message_by_itself() -> None:
    result = read(text(b"a", final=False) + more(b"b" * (LIMIT - 1)) + text(b"c" * LIMIT))

    assert (len(result.messages), result.fault) == (2, None)


def test_character_cut_by_fragments_and_a_ping_is_whole() -> None:
    result = read(
        text(EURO[:1], final=False) + ping() + more(EURO[1:2], final=False) + more(EURO[2:])
    )

    assert result.messages[-1] == Message(Opcode.TEXT, EURO)


def test_binary_message_may_hold_any_bytes() -> None:
    result = read(frame(Opcode.BINARY, b"\xff", final=False) + more(b"\xc0"))

    assert result.messages == [Message(Opcode.BINARY, b"\xff\xc0")]


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_close_with_a_code_for_the_wire_is_read(code: int) -> None:
    result = read(close(code, EURO))

    assert (result.fault, close_code(result.messages[0].data)) == (None, code)


def test_close_may_be_empty() -> None:
    result = read(frame(Opcode.CLOSE))

    assert result == Read([Message(Opcode.CLOSE, b"")])
    assert close_code(result.messages[0].data) is None


def test_nothing_after_a_close_frame_is_read() -> None:
    reader = FrameReader(LIMIT)

    first = reader.feed(close(1000) + text(b"a") + b"\xff\xff" + text(b"b" * 50)[:20])
    later = reader.feed(text(b"c"))

    assert (len(first), later, reader.fault, held_bytes(reader)) == (1, [], None, 0)


# --- what is not -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        # §5.1: a client masks each frame.
        (frame(Opcode.TEXT, b"a", key=None), CloseReason.PROTOCOL_ERROR),
        (frame(Opcode.PING, key=None), CloseReason.PROTOCOL_ERROR),
        (frame(Opcode.CLOSE, key=None), CloseReason.PROTOCOL_ERROR),
        # §5.2: reserved bits, without an extension that means something by them.
        (frame(Opcode.TEXT, b"a", rsv=4), CloseReason.PROTOCOL_ERROR),
        (frame(Opcode.TEXT, b"a", rsv=2), CloseReason.PROTOCOL_ERROR),
        (frame(Opcode.PING, rsv=1), CloseReason.PROTOCOL_ERROR),
        (text(b"a", final=False) + frame(0, b"b", rsv=4), CloseReason.PROTOCOL_ERROR),
        # §5.2: reserved opcodes.
        *((frame(opcode), CloseReason.PROTOCOL_ERROR) for opcode in (*range(3, 8), *range(11, 16))),
        # §5.2: a length in more bytes than it needs, or with its highest bit set.
        (b"\x81\xfe\x00\x7d" + KEY + bytes(125), CloseReason.PROTOCOL_ERROR),
        (b"\x81\xff" + (0xFFFF).to_bytes(8, "big"), CloseReason.PROTOCOL_ERROR),
        (b"\x81\xff" + (1 << 63).to_bytes(8, "big"), CloseReason.PROTOCOL_ERROR),
        # §5.4: fragments.
        (more(b"a"), CloseReason.PROTOCOL_ERROR),
        (more(b"a", final=False), CloseReason.PROTOCOL_ERROR),
        (text(b"a", final=False) + text(b"b"), CloseReason.PROTOCOL_ERROR),
        (text(b"a", final=False) + frame(Opcode.BINARY, b"b"), CloseReason.PROTOCOL_ERROR),
        (text(b"a", final=False) + more(b"b") + more(b"c"), CloseReason.PROTOCOL_ERROR),
        # §5.5: control frames are whole and short.
        (frame(Opcode.PING, final=False), CloseReason.PROTOCOL_ERROR),
        (frame(Opcode.CLOSE, final=False), CloseReason.PROTOCOL_ERROR),
        (ping(b"p" * 126), CloseReason.PROTOCOL_ERROR),
        (frame(Opcode.CLOSE, b"\x03\xe8" + b"r" * 124), CloseReason.PROTOCOL_ERROR),
        # §5.5.1, §7.4: close frames.
        (frame(Opcode.CLOSE, b"\x03"), CloseReason.PROTOCOL_ERROR),
        *(
            (close(code), CloseReason.PROTOCOL_ERROR)
            for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
        ),
        (close(1000, b"\xff"), CloseReason.BAD_UTF8),
        (close(1000, EURO[:2]), CloseReason.BAD_UTF8),
        # §8.1: text is UTF-8.
        (text(b"a\xff"), CloseReason.BAD_UTF8),
        (text(EURO[:2]), CloseReason.BAD_UTF8),
        (text(b"\xed\xa0\x80"), CloseReason.BAD_UTF8),
        (text(b"\xc0\x80"), CloseReason.BAD_UTF8),
        (text(b"\xf4\x90\x80\x80"), CloseReason.BAD_UTF8),
        (text(b"a", final=False) + more(b"\xff", final=False), CloseReason.BAD_UTF8),
        (text(EURO[:2], final=False) + more(b""), CloseReason.BAD_UTF8),
        (text(EURO[:2], final=False) + more(b"a"), CloseReason.BAD_UTF8),
        # The limit.
        (text(b"a" * (LIMIT + 1)), CloseReason.MESSAGE_TOO_BIG),
        (text(b"a" * LIMIT, final=False) + more(b"a"), CloseReason.MESSAGE_TOO_BIG),
        (b"\x81\xff" + (1 << 62).to_bytes(8, "big"), CloseReason.MESSAGE_TOO_BIG),
    ],
)
def test_violation_has_its_close_reason(stream: bytes, reason: CloseReason) -> None:
    before, after = text(b"before"), text(b"after")

    result = read(before + stream + after)

    assert result.fault is reason
    assert result.messages[0] == Message(Opcode.TEXT, b"before")
    assert Message(Opcode.TEXT, b"after") not in result.messages


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"\x81\x01", CloseReason.PROTOCOL_ERROR),
        (b"\x83\x80", CloseReason.PROTOCOL_ERROR),
        (b"\x89\xfe", CloseReason.PROTOCOL_ERROR),
        (b"\x81\xfe\x03\xe9", CloseReason.MESSAGE_TOO_BIG),
        (b"\x81\xff\x00\x00\x00\x00\x00\x01\x00\x00", CloseReason.MESSAGE_TOO_BIG),
    ],
)
def test_header_is_judged_before_any_data_came(header: bytes, reason: CloseReason) -> None:
    assert read(header).fault is reason


def test_bad_text_in_a_fragment_is_judged_before_the_message_ends() -> None:
    assert read(text(b"\xff", final=False)).fault is CloseReason.BAD_UTF8


def test_nothing_is_read_or_kept_after_a_violation() -> None:
    reader = FrameReader(LIMIT)

    reader.feed(text(b"a", final=False) + more(b"\xff") + text(b"b")[:3])
    later = reader.feed(text(b"c"))

    assert (later, reader.fault, held_bytes(reader)) == ([], CloseReason.BAD_UTF8, 0)


# --- properties ------------------------------------------------------------------------------------

KEYS = st.binary(min_size=4, max_size=4)


@st.composite
def messages_on_the_wire(draw: st.DrawFn) -> tuple[list[Message], bytes]:
    """Some messages, and their frames: fragmented anywhere, with pings between, masked anyhow."""
    messages: list[Message] = []
    stream = b""
    for _ in range(draw(st.integers(1, 4))):
        opcode = draw(st.sampled_from([Opcode.TEXT, Opcode.BINARY]))
        characters = st.text(st.characters(codec="utf-8"), max_size=100)
        body = draw(characters).encode() if opcode is Opcode.TEXT else draw(st.binary(max_size=300))
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
        pieces = [body[a:b] for a, b in pairwise([0, *cuts, len(body)])]
        for i, piece in enumerate(pieces):
            kind = Opcode.CONTINUATION if i else opcode
            stream += frame(kind, piece, final=i == len(pieces) - 1, key=draw(KEYS))
            if i < len(pieces) - 1 and draw(st.booleans()):
                stream += frame(Opcode.PING, b"between", key=draw(KEYS))
                messages.append(Message(Opcode.PING, b"between"))
        messages.append(Message(opcode, body))
    return messages, stream


def chunks_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    inner = sorted(cut for cut in cuts if cut < len(stream))
    return [stream[a:b] for a, b in pairwise([0, *inner, len(stream)])]


CUTS = st.lists(st.integers(0, 1500), max_size=12)


@given(messages_on_the_wire(), CUTS)
def test_masked_frames_give_back_their_messages_however_they_are_cut(
    sent: tuple[list[Message], bytes], cuts: list[int]
) -> None:
    messages, stream = sent

    assert read(*chunks_of(stream, cuts)).messages == messages


@given(messages_on_the_wire(), st.integers(0, 1500), st.binary(max_size=3), CUTS)
def test_damaged_stream_gives_the_same_messages_and_fault_however_it_is_cut(
    sent: tuple[list[Message], bytes], position: int, damage: bytes, cuts: list[int]
) -> None:
    stream = sent[1][:position] + damage + sent[1][position + len(damage) :]
    whole = read(stream)

    cut = read(*chunks_of(stream, cuts))
    by_byte = read(*(stream[i : i + 1] for i in range(len(stream))))

    assert (cut.messages, cut.fault) == (whole.messages, whole.fault)
    assert (by_byte.messages, by_byte.fault) == (whole.messages, whole.fault)


@st.composite
def plausible_frames(draw: st.DrawFn) -> bytes:
    """A frame that is often legal, so that random streams get further than their first header."""
    opcode = draw(st.sampled_from([0, 0, 1, 2, 9, 10, draw(st.integers(0, 15))]))
    data = draw(st.sampled_from([b"", b"a", b"a" * 40, b"a" * 99, b"a" * 125]))
    return frame(opcode, data, final=draw(st.booleans()))


@given(st.lists(plausible_frames() | st.binary(max_size=30), max_size=30), CUTS)
def test_no_stream_raises_or_is_held_beyond_the_limit_and_one_control_frame(
    pieces: list[bytes], cuts: list[int]
) -> None:
    limit = 100

    result = read(*chunks_of(b"".join(pieces), cuts), limit=limit)

    assert result.most_held_bytes < limit + MAX_CONTROL_FRAME_BYTES
    assert all(
        len(message.data) <= limit or message.opcode > Opcode.CLOSE for message in result.messages
    )


def test_data_alone_is_held_up_to_the_limit_and_one_header() -> None:
    whole = text(b"a" * LIMIT)
    fragments = [text(b"", final=False), *(more(b"a", final=False) for _ in range(LIMIT))]

    assert read(whole[:-1]).most_held_bytes <= LIMIT + 14
    assert read(*fragments, more(b"")[:-1]).most_held_bytes <= LIMIT + 14


def test_empty_fragments_are_not_piled_up() -> None:
    result = read(text(b"", final=False), *(more(b"", final=False) for _ in range(100)))

    assert result.most_held_bytes == 0


def test_idle_reader_holds_no_buffer() -> None:
    reader = FrameReader(LIMIT)

    reader.feed(text(b"a")[:3])
    reader.feed(text(b"a")[3:])

    assert reader._buffer is None
    assert reader._fragments is None


# --- what the server sends -------------------------------------------------------------------------


@given(st.binary(max_size=300), KEYS)
def test_unmask_is_xor_with_the_repeated_key(data: bytes, key: bytes) -> None:
    assert unmask(data, key) == bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_text_frame_is_final_unmasked_and_of_the_shortest_length_form(size: int) -> None:
    data = b"a" * size

    assert text_frame(data) == frame(Opcode.TEXT, data, key=None)


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG, Opcode.CLOSE])
def test_control_frame_is_final_and_unmasked(opcode: Opcode) -> None:
    assert control_frame(opcode, b"p" * 125) == frame(opcode, b"p" * 125, key=None)


def test_close_frame_holds_code_and_text() -> None:
    assert close_frame(1012, "bye") == b"\x88\x05\x03\xf4bye"
    assert close_frame(None) == b"\x88\x00"


def test_close_text_is_cut_between_characters() -> None:
    body = close_frame(1000, "a" + "€" * 60)[2:]

    assert len(body) <= 125
    assert body[2:].decode() == "a" + "€" * 40


# Work


def test_no_more_frames_are_read_at_once_than_is_asked_for() -> None:
    reader = FrameReader(LIMIT)
    stream = b"".join(frame(Opcode.TEXT, b"%d" % number) for number in range(10))

    first = reader.feed(stream, 4)
    was_behind = reader.is_behind
    rest = [message for _ in range(2) for message in reader.feed(b"", 4)]

    assert [message.data for message in first] == [b"0", b"1", b"2", b"3"]
    assert was_behind
    assert [message.data for message in rest] == [b"%d" % number for number in range(4, 10)]
    assert not reader.is_behind


def test_reader_that_has_read_all_is_not_behind() -> None:
    reader = FrameReader(LIMIT)

    reader.feed(frame(Opcode.TEXT, b"a") * 4, 4)

    assert not reader.is_behind


@pytest.mark.parametrize(
    ("stream", "bare_frames"),
    [
        (frame(Opcode.TEXT, b"a") * 3, 0),
        (frame(Opcode.PING) + frame(Opcode.PONG, b"a") + frame(Opcode.TEXT, b"a"), 2),
        (frame(Opcode.TEXT, b"a", final=False) + frame(Opcode.CONTINUATION, b"b"), 1),
        (frame(Opcode.TEXT, final=False) + frame(Opcode.CONTINUATION, final=False) * 5, 6),
        (frame(Opcode.TEXT, b"a")[:-1], 0),
    ],
)
def test_frames_that_end_no_message_are_counted(stream: bytes, bare_frames: int) -> None:
    reader = FrameReader(LIMIT)

    reader.feed(stream)
    counted = reader.bare_frames
    reader.feed(b"")

    assert counted == bare_frames
    assert reader.bare_frames == 0


def test_nothing_is_read_after_a_fault_that_somebody_else_found() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(frame(Opcode.TEXT, b"a") * 2, 1)

    reader.fail(CloseReason.TOO_MANY_FRAMES)

    assert not reader.is_behind
    assert reader.feed(frame(Opcode.TEXT, b"a")) == []
    assert reader.fault is CloseReason.TOO_MANY_FRAMES
