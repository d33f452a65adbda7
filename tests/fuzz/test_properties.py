"""Whatever comes over the wire or out of a file, each parser returns or raises what it says it raises.

Some hundred examples each, made by hypothesis: arbitrary ones, and near misses of what is expected. A failing one is
shrunk and kept in .hypothesis, so that it is tried first the next time.
"""

from __future__ import annotations

import itertools
import json
import string
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.config import ConfigError, parse
from relay.core import payload
from relay.core.closing import CloseReason
from relay.core.errors import CommandError, DecodeError
from relay.core.framing import FrameReader, Message, Opcode
from relay.core.wire import COMMANDS, parse_command, parse_json
from relay.sources.channel import ChannelSource
from relay.sources.template import ChannelTemplate
from relay.web.handshake import Accept, Load, Refusal, decide
from relay.web.origin import OriginPolicy
from relay.web.request import parse_head
from tests.web.conftest import frame, upgrade

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_MESSAGE_BYTES = 1000
VIOLATIONS = {CloseReason.PROTOCOL_ERROR, CloseReason.BAD_UTF8, CloseReason.MESSAGE_TOO_BIG}

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Exception)


def result_of(call: Callable[[], _T], refusal: type[_E]) -> _T | _E:
    """What `call` returns, or how it refuses; any other exception is the test's failure."""
    try:
        return call()
    except refusal as error:
        return error


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


# --- frames ----------------------------------------------------------------------------------------

frames = st.builds(
    frame,
    st.sampled_from((0, 1, 2, 8, 9, 10, 3, 11)),
    st.binary(max_size=140),
    final=st.booleans(),
    masked=st.sampled_from((True, True, True, False)),
    flags=st.sampled_from((0, 0, 0, 0x40, 0x10)),
)
streams = st.binary(max_size=400) | st.lists(frames, max_size=6).map(b"".join)


def fed(stream: bytes, cuts: list[int]) -> tuple[list[Message], CloseReason | None]:
    """What a reader makes of the stream when it comes in these pieces."""
    reader = FrameReader(MAX_MESSAGE_BYTES)
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    messages: list[Message] = []
    for start, end in itertools.pairwise(places):
        messages += reader.feed(stream[start:end])
    return messages, reader.fault


@given(streams, st.lists(st.integers(0, 10_000), max_size=20))
@example(frame(1, b"\xc3", final=False) + frame(0, b"\xa9"), [7, 8, 9])
def test_frames_mean_the_same_in_whatever_pieces_they_come(stream: bytes, cuts: list[int]) -> None:
    whole, in_pieces = fed(stream, []), fed(stream, cuts)

    assert in_pieces == whole


@given(streams)
def test_messages_out_of_any_bytes_keep_their_promises(stream: bytes) -> None:
    messages, fault = fed(stream, [])

    assert fault is None or fault in VIOLATIONS
    for message in messages:
        assert len(message.data) <= MAX_MESSAGE_BYTES
        assert message.opcode is not Opcode.TEXT or message.data.decode() is not None


# --- client messages -------------------------------------------------------------------------------

fields = st.fixed_dictionaries(
    {},
    optional={
        "jobId": st.text(max_size=300) | json_values,
        "jobIds": st.lists(st.text(max_size=10) | json_values, max_size=5) | json_values,
        "queueName": st.text(max_size=300) | json_values,
        "since": st.text() | json_values,
        "snapshot": st.booleans() | json_values,
        "token": st.text() | json_values,
    },
)
commands = st.fixed_dictionaries(
    {"event": st.sampled_from(sorted(COMMANDS)) | json_values, "data": fields | json_values},
    optional={"ref": st.text(max_size=70) | json_values},
)


@given(commands)
def test_any_command_is_understood_or_refused_by_code(command: dict[str, Any]) -> None:
    result = result_of(
        lambda: parse_command(parse_json(json.dumps(command).encode())), CommandError
    )

    assert not isinstance(result, CommandError) or result.message


@given(st.binary(max_size=200))
@example(b"[" * 2000)
@example(b'{"event":"ping","data":' + b"[" * 300 + b"]" * 300 + b"}")
def test_any_bytes_for_a_message_are_understood_or_refused_by_code(text: bytes) -> None:
    result = result_of(lambda: parse_command(parse_json(text)), CommandError)

    assert not isinstance(result, CommandError) or result.message


# --- payloads --------------------------------------------------------------------------------------

SOURCE = ChannelSource(ChannelTemplate.parse("jobs:{queueName}:{jobId}"))
ANYWHERE = ChannelSource(ChannelTemplate.parse("jobs:{event}"))
known = st.sampled_from(
    (
        "event", "type", "jobId", "job_id", "id", "queueName", "queue", "progress", "status", "data", "result",
        "returnvalue", "error", "failedReason", "eventId", "ts", "startedAt", "finishedOn",
    )
)  # fmt: skip
payloads = st.dictionaries(known, json_values, max_size=8).map(json.dumps).map(str.encode)


@pytest.mark.parametrize(
    ("source", "channel"), [(SOURCE, b"jobs:q:job"), (ANYWHERE, b"jobs:completed")]
)
@given(message=payloads | st.binary(max_size=200))
@example(message=b'{"jobId":"a","result":"\\ud800"}')
@example(message=b'{"jobId":"a","progress":1e999}')
def test_any_payload_is_understood_or_refused_by_reason(
    source: ChannelSource, channel: bytes, message: bytes
) -> None:
    identity = source.identify(channel)
    assert identity is not None
    draft = result_of(lambda: source.parse(identity, message), DecodeError)

    if isinstance(draft, DecodeError):
        assert draft.reason
        return
    assert 0 <= draft.fields.get("progress", 0) <= 100
    json.loads(payload.encode(draft.fields), parse_constant=pytest.fail)


@given(st.binary(max_size=60) | st.binary(max_size=20).map(b"jobs:".__add__))
def test_any_channel_is_understood_or_refused_by_reason(channel: bytes) -> None:
    identity = result_of(lambda: SOURCE.identify(channel), DecodeError)

    assert identity is None or isinstance(identity, DecodeError) or identity.job_id


# --- request heads ---------------------------------------------------------------------------------

POLICY = OriginPolicy(
    allowed_origins=("https://app.example.org",),
    allowed_hosts=(),
    trusted_proxies=(),
    loopback=True,
)
ROOM = Load(draining=False, connections=0, max_connections=1, of_address=0, max_of_address=0)
header_values = st.text(st.characters(max_codepoint=255), max_size=40) | st.sampled_from(
    ("websocket", "Upgrade", "13", "localhost", "https://app.example.org", "http://[", "http://a:b")
)
heads = st.dictionaries(
    st.sampled_from(
        ("Host", "Origin", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version",
         "Sec-WebSocket-Protocol", "X-Forwarded-Host", "Content-Length", "Transfer-Encoding")
    ),
    header_values,
    max_size=5,
)  # fmt: skip


def changed(head: bytes, headers: dict[str, str]) -> bytes:
    """The head with these headers in place of its own, or beside them."""
    lines = [line for line in head.split(b"\r\n") if line.split(b":")[0].decode() not in headers]
    return b"\r\n".join(
        [*lines[:-2], *(f"{name}: {value}".encode("latin-1") for name, value in headers.items())]
    )


@given(heads.map(lambda headers: changed(upgrade(), headers)) | st.binary(max_size=300))
@example(changed(upgrade(), {"Origin": "http://["}))
def test_any_head_is_granted_or_refused_and_forges_no_header(data: bytes) -> None:
    head = parse_head(data)
    if head is None:
        return
    outcome = decide(head, "127.0.0.1", POLICY, ROOM)

    assert isinstance(outcome, Accept | Refusal)
    lines = outcome.response.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 ")
    assert all(b": " in line and b"\n" not in line and b"\r" not in line for line in lines[1:])
    assert outcome.response.isascii()


@given(st.text(max_size=40), st.text(max_size=40))
@example("http://[", "[")
@example("http://a:99999999999", "a:99999999999")
def test_any_origin_and_host_are_judged(origin: str, host: str) -> None:
    headers = {"origin": origin, "host": host}

    refused = POLICY.judge("127.0.0.1", headers.get)

    assert refused is None or refused.what in ("origin", "host")


# --- settings --------------------------------------------------------------------------------------

sections = st.sampled_from(
    ("server", "admin", "redis", "source", "history", "heartbeat", "backpressure", "limits", "auth", "log", "odd")
)  # fmt: skip
names = st.sampled_from(
    ("host", "port", "path", "url", "mode", "allowed_origins", "trusted_proxies", "max_bytes", "level", "token", "odd")
)  # fmt: skip
toml_values = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=True).map(lambda number: repr(number)),
    st.booleans().map(lambda flag: str(flag).lower()),
    st.text(string.printable, max_size=20).map(json.dumps),
    st.lists(st.text(string.ascii_letters, max_size=5), max_size=3).map(json.dumps),
    st.just("{}"),
)
tables = st.dictionaries(sections, st.dictionaries(names, toml_values, max_size=4), max_size=4)


def as_toml(table: dict[str, dict[str, str]]) -> str:
    lines = []
    for section, values in table.items():
        lines += [f"[{section}]", *(f"{name} = {value}" for name, value in values.items())]
    return "\n".join(lines)


def are_lines(faults: list[str]) -> bool:
    """Whether these are what an operator is to read: something, one line each."""
    return bool(faults) and all(fault and "\n" not in fault for fault in faults)


def no_file(path: str) -> str:
    raise OSError(2, "No such file", path)


@given(tables.map(as_toml) | st.text(max_size=100))
def test_any_file_of_settings_is_taken_or_refused_by_line(text: str) -> None:
    result = result_of(lambda: parse(text, {}, read_file=no_file), ConfigError)

    assert not isinstance(result, ConfigError) or are_lines(result.faults)


@given(
    st.dictionaries(
        st.tuples(sections, names).map(lambda pair: f"RELAY_{pair[0]}__{pair[1]}".upper()),
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20),
        max_size=5,
    )
)
def test_any_environment_is_taken_or_refused_by_name(environ: dict[str, str]) -> None:
    result = result_of(lambda: parse(None, environ, read_file=no_file), ConfigError)

    assert not isinstance(result, ConfigError) or are_lines(result.faults)
