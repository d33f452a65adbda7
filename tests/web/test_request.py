"""A request head is read strictly or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.web.request import Head, parse_head


def head(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin-1")


def parsed(*lines: str) -> Head:
    found = parse_head(head("GET / HTTP/1.1", *lines))
    assert found is not None
    return found


def test_request_line_is_taken_apart() -> None:
    assert parse_head(b"GET /job-progress?token=a?b&c HTTP/1.1") == Head(
        "GET", "/job-progress", "token=a?b&c", 1, ()
    )


def test_minor_version_is_told() -> None:
    found = parse_head(b"POST / HTTP/1.0")

    assert found is not None
    assert (found.method, found.minor_version) == ("POST", 0)


@pytest.mark.parametrize(
    ("line", "header"),
    [
        ("Host: relay.example", ("host", "relay.example")),
        ("HOST:relay.example", ("host", "relay.example")),
        ("x-a:\t b c \t", ("x-a", "b c")),
        ("X-Empty:", ("x-empty", "")),
        ("X-Latin: caf\xe9", ("x-latin", "caf\xe9")),
        ("X-Colon: a:b", ("x-colon", "a:b")),
    ],
)
def test_header_is_read_with_its_name_in_lower_case(line: str, header: tuple[str, str]) -> None:
    assert parsed(line).headers == (header,)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "GET /",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / http/1.1",
        "get / HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET job-progress HTTP/1.1",
        "GET http://relay.example/ HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /\xe9 HTTP/1.1",
        "GET /\x00 HTTP/1.1",
        "GET / HTTP/1.1\nHost: a",
    ],
)
def test_odd_request_line_is_no_head(line: str) -> None:
    assert parse_head(head(line, "Host: a")) is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Host",
        ": a",
        "Ho st: a",
        "Host : a",  # RFC 9112 §5.1: a proxy and we might read it differently
        " Host: a",  # a folded line, which §5.2 lets a server refuse
        "Host: a\nX: b",
        "Host: a\rX: b",
        "Host: a\x00",
        "H\xf6st: a",
    ],
)
def test_odd_header_line_makes_the_whole_head_odd(line: str) -> None:
    assert parse_head(head("GET / HTTP/1.1", "Good: yes", line)) is None


def test_header_that_stands_there_twice_has_no_one_value() -> None:
    found = parsed("Host: a", "X: 1", "host: b")

    assert (found.get("host"), found.get("x"), found.get("absent")) == (None, "1", None)
    assert found.all("host") == ["a", "b"]


def test_members_of_a_list_are_gathered_over_lines_and_empty_ones_left_out() -> None:
    found = parsed("Connection: keep-alive, Upgrade", "Connection: ,x ,")

    assert found.tokens("connection") == ["keep-alive", "Upgrade", "x"]
    assert found.tokens("absent") == []


@given(st.binary())
def test_any_bytes_are_a_head_or_none(data: bytes) -> None:
    assert isinstance(parse_head(data), Head | None)


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF), max_size=20)


@given(st.lists(st.tuples(NAMES, VALUES.filter(lambda value: value == value.strip()))))
def test_what_was_written_is_read(headers: list[tuple[str, str]]) -> None:
    found = parsed(*(f"{name}: {value}" for name, value in headers))

    assert found.headers == tuple((name.lower(), value) for name, value in headers)
