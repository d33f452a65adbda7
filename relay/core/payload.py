"""JSON as publishers write it: bytes to objects, and objects to the bytes that browsers accept.

orjson does the work. What it refuses but publishers really send (`NaN`, infinities, lone surrogates,
which Python's own json module writes) goes a second, slower way, so that it is put right and not lost.
RFC 8259 is the judge of the rest.
"""

import json
import math
from typing import Any, Final

import orjson

from relay.core.errors import DecodeError, InvalidReason

_INT64: Final = range(-(2**63), 2**64)  # what orjson reads and writes as an integer
_MAX_INT64_CHARACTERS: Final = 20


def parse_object(payload: bytes) -> dict[str, Any]:
    """The JSON object in `payload`; `NaN` and the infinities become None.

    Raises:
        DecodeError: not UTF-8, not JSON, nested too deep, or not an object.
    """
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        if "limit" in error.msg:  # on depth; how deep json goes differs from one Python to the next
            raise DecodeError(InvalidReason.TOO_DEEP) from None
        value = _parse_leniently(payload)
    if type(value) is not dict:
        raise DecodeError(InvalidReason.NOT_OBJECT)
    return value


def encode(value: object) -> bytes:
    """`value` as compact JSON.

    Raises:
        RecursionError: nested deeper than either encoder goes (some hundreds of levels).
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        # More than 254 levels, or a lone surrogate: an escape carries it where UTF-8 cannot.
        return json.dumps(value, separators=(",", ":")).encode()


def _parse_leniently(payload: bytes) -> object:
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        raise DecodeError(InvalidReason.NOT_UTF8) from None
    try:
        return json.loads(
            text,
            parse_constant=lambda _: None,
            parse_float=_finite,
            parse_int=_int64,
        )
    except RecursionError:
        raise DecodeError(InvalidReason.TOO_DEEP) from None
    except ValueError:
        raise DecodeError(InvalidReason.NOT_JSON) from None


def _int64(digits: str) -> int | float | None:
    if len(digits) <= _MAX_INT64_CHARACTERS and (number := int(digits)) in _INT64:
        return number
    return _finite(digits)


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None
