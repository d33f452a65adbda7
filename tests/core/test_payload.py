"""JSON as publishers write it is understood, and what is written is JSON that a browser takes."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.errors import DecodeError, InvalidReason
from relay.core.payload import encode, parse_object

INT64 = st.integers(-(2**63), 2**64 - 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=10)
VALUES = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=4)


def nested(levels: int) -> bytes:
    return b'{"data":' * levels + b"1" + b"}" * levels


def reason_of(message: bytes) -> InvalidReason:
    with pytest.raises(DecodeError) as caught:
        parse_object(message)
    return caught.value.reason


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", InvalidReason.NOT_JSON),
        (b"{", InvalidReason.NOT_JSON),
        (b"progress 45", InvalidReason.NOT_JSON),
        (b"{'jobId':'a'}", InvalidReason.NOT_JSON),
        (b'{"jobId":"a",}', InvalidReason.NOT_JSON),
        (b'{"jobId":"a"} {}', InvalidReason.NOT_JSON),
        (b'{"jobId":"a\nb"}', InvalidReason.NOT_JSON),
        (b'{"progress":045}', InvalidReason.NOT_JSON),
        (b'\xef\xbb\xbf{"jobId":"a"}', InvalidReason.NOT_JSON),
        (b'{"jobId":"\xff"}', InvalidReason.NOT_UTF8),
        (b'{"jobId":"\xed\xa0\x80"}', InvalidReason.NOT_UTF8),
        (b"[]", InvalidReason.NOT_OBJECT),
        (b'"text"', InvalidReason.NOT_OBJECT),
        (b"45", InvalidReason.NOT_OBJECT),
        (b"null", InvalidReason.NOT_OBJECT),
        (b"NaN", InvalidReason.NOT_OBJECT),
        (nested(10_000), InvalidReason.TOO_DEEP),
        (b'{"x":NaN,"data":' + nested(200_000) + b"}", InvalidReason.TOO_DEEP),
        (b"[" * 1_000_000, InvalidReason.TOO_DEEP),
    ],
)
def test_message_that_is_no_object_is_refused_with_its_reason(
    message: bytes, reason: InvalidReason
) -> None:
    assert reason_of(message) is reason


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400"])
def test_number_that_is_not_finite_becomes_null(number: bytes) -> None:
    message = b'{"progress":%b,"data":[%b,1]}' % (number, number)

    assert parse_object(message) == {"progress": None, "data": [None, 1]}


@pytest.mark.parametrize(
    ("digits", "expected"),
    [
        (b"9007199254740993", 9007199254740993),
        (b"1234567890123456789", 1234567890123456789),
        (b"-9223372036854775808", -(2**63)),
        (b"18446744073709551615", 2**64 - 1),
        (b"18446744073709551616", float(2**64)),
        (b"-9223372036854775809", float(-(2**63))),
        (b"9" * 300, 1e300),
    ],
)
@pytest.mark.parametrize("beside", [b"1", b"NaN"])
def test_integer_is_exact_within_64_bits_and_a_double_beyond(
    digits: bytes, expected: float, beside: bytes
) -> None:
    value = parse_object(b'{"n":%b,"beside":%b}' % (digits, beside))["n"]

    assert (value, type(value)) == (expected, type(expected))


def test_integer_beyond_a_double_becomes_null() -> None:
    assert parse_object(b'{"n":%b}' % (b"9" * 5000)) == {"n": None}


def test_lone_surrogate_of_a_publisher_survives_as_an_escape() -> None:
    message = b'{"result":"\\ud83d"}'

    assert encode(parse_object(message)) == message


@pytest.mark.parametrize("levels", [200, 254, 255, 600])
def test_depth_that_can_be_read_can_be_written(levels: int) -> None:
    message = nested(levels)

    assert encode(parse_object(message)) == message


def test_what_is_too_deep_to_write_says_so() -> None:
    value: list[Any] = []
    for _ in range(200_000):
        value = [value]

    with pytest.raises(RecursionError):
        encode(value)


@given(OBJECTS)
def test_what_is_encoded_is_parsed_back(value: dict[str, Any]) -> None:
    assert parse_object(encode(value)) == value


@given(OBJECTS)
def test_what_pythons_own_json_writes_is_understood(value: dict[str, Any]) -> None:
    message = json.dumps({**value, "eta": math.nan}).encode()

    assert parse_object(message) == {**value, "eta": None}


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_refused(message: bytes) -> None:
    try:
        value = parse_object(message)
    except DecodeError:
        return
    assert type(value) is dict


@given(OBJECTS, st.integers(0, 200), st.binary(max_size=4))
def test_damaged_object_is_an_object_or_refused(
    value: dict[str, Any], position: int, damage: bytes
) -> None:
    whole = encode(value)
    message = whole[:position] + damage + whole[position + len(damage) :]

    try:
        parsed = parse_object(message)
    except DecodeError:
        return
    assert type(parsed) is dict
