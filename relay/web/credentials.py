"""Where a request carries its token: header, subprotocol, cookie or query; pure.

RFC 6750 §2 (`Authorization: Bearer`; one way at a time), RFC 6455 §1.9 (a subprotocol is all that a page can
add to a handshake), RFC 6265 §5.4 (cookies). What carries two tokens that differ is refused rather than
decided for: which one was meant, and who added the other, cannot be told. Knows no key and judges no token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from relay.auth.tokens import TokenError
from relay.web.request import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Carriers:
    """Which carriers are open beside `Authorization` and the subprotocol.

    `cookie` is the name of the one that may hold a token, empty for none.
    """

    cookie: str = ""
    allow_query_token: bool = False


def token_of(head: Head, carriers: Carriers) -> str | None:
    """The token of a request; None where it carries none.

    Raises:
        TokenError: a carrier is there without a token in it (`malformed`), or two of them differ
            (`ambiguous`).
    """
    tokens = set(_carried(head, carriers))
    if "" in tokens:
        raise TokenError("malformed", "there should be a token behind bearer")
    if len(tokens) > 1:
        raise TokenError("ambiguous", "the request should carry one token, not two that differ")
    return tokens.pop() if tokens else None


def bearer(authorization: Sequence[str]) -> Iterator[str]:
    """The tokens in the values of `Authorization`; other schemes are somebody else's."""
    for value in authorization:
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            yield token.strip()


def _carried(head: Head, carriers: Carriers) -> Iterator[str]:
    yield from bearer(head.all("authorization"))
    offered = head.tokens("sec-websocket-protocol")
    if offered[:1] == ["bearer"]:
        yield offered[1] if len(offered) > 1 else ""
    if carriers.cookie:
        for pair in ";".join(head.all("cookie")).split(";"):
            name, _, value = pair.strip().partition("=")
            # An empty one is how sites take a cookie back.
            if name == carriers.cookie and value:
                yield value.strip('"')
    if carriers.allow_query_token:
        for name, value in parse_qsl(head.query, keep_blank_values=True):
            if name == "token":
                yield value
