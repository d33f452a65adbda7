"""A request head as bytes → what it asks, strictly (RFC 9112 §2-5); no I/O.

Only what an upgrade needs is read here. Whatever is odd makes `parse_head` return None, and aiohttp,
which answers all other requests, gets the bytes and says what is wrong with them. What aiohttp has read is
told in the same form (`head_of`), so that both roads are judged by the same rules.
"""

import re
from typing import Final, NamedTuple

from aiohttp import web

_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.([01])")
_HEADER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00\r\n]*)")


class Head(NamedTuple):
    """A request head. Header names are lower case; values are text as Latin-1 gives it."""

    method: str
    path: str
    query: str
    minor_version: int
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """The header's value; None where it is absent or stands there twice."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None

    def all(self, name: str) -> list[str]:
        """All values of a header, in order."""
        return [value for header, value in self.headers if header == name]

    def tokens(self, name: str) -> list[str]:
        """The comma-separated members of a list header, as they are written."""
        parts = ",".join(self.all(name)).split(",")
        return [part.strip() for part in parts if part.strip()]


def parse_head(head: bytes) -> Head | None:
    """The head in `head`, which ends before its empty line; None where it is not well formed."""
    first, *lines = head.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        return None
    headers: list[tuple[str, str]] = []
    for text in lines:
        header = _HEADER.fullmatch(text)
        if header is None:
            return None
        headers.append((header[1].decode().lower(), header[2].decode("latin-1").rstrip(" \t")))
    path, _, query = line[2].decode().partition("?")
    return Head(line[1].decode(), path, query, int(line[3]), tuple(headers))


def head_of(request: web.BaseRequest) -> Head:
    """The head of a request that aiohttp has read."""
    raw = request.raw_headers
    headers = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw)
    path, _, query = request.raw_path.partition("?")
    return Head(request.method, path, query, request.version.minor, tuple(headers))
