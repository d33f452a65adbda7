"""How many connections each client address has, and which of them it can spare.

Every accepted connection counts once, whatever has become of it: still silent, idle between requests, a stream or
a WebSocket. An address beyond its share loses a connection on which nothing is under way before anything is
refused to it, so that a browser's spare connections never keep its own WebSocket out.

An IPv6 client has a whole /64 to choose addresses from (RFC 4291 §2.5.4), so that counts as one address. A trusted
proxy's own addresses are not counted: clients from everywhere share them.
"""

import ipaddress
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_CLIENT_PREFIX_BITS: Final = 64
# Each connection's address is looked at several times, which costs some 10 µs; that of a proxy's clients again and again.
_REMEMBERED: Final = 4096


class Spare(Protocol):
    """A connection that may have nothing under way."""

    @property
    def is_spare(self) -> bool:
        """Whether nobody would miss it now."""

    def dismiss(self) -> None:
        """End it."""


class Shares:
    """See the module's promise. `is_exempt` tells which addresses are not counted; it must not change its mind."""

    __slots__ = ("_counts", "_share", "_spares", "is_exempt")

    def __init__(self) -> None:
        self.is_exempt: Callable[[str], bool] = lambda _: False
        self._counts: Counter[str] = Counter()
        self._spares: dict[str, dict[Spare, None]] = {}  # oldest first
        self._share = lru_cache(_REMEMBERED)(self._find_share)

    def count(self, address: str) -> int:
        """How many connections the address has."""
        share = self._share(address)
        return 0 if share is None else self._counts.get(share, 0)

    def add(self, address: str, spare: Spare | None = None) -> None:
        """Count a connection of the address; `spare` is given where it may have nothing under way."""
        share = self._share(address)
        if share is None:
            return
        self._counts[share] += 1
        if spare is not None:
            self._spares.setdefault(share, {})[spare] = None

    def remove(self, address: str, spare: Spare | None = None) -> None:
        """Forget a connection that was added so."""
        share = self._share(address)
        if share is None:
            return
        self._counts[share] -= 1
        if not self._counts[share]:
            del self._counts[share]
        if spare is not None:
            del self._spares[share][spare]
            if not self._spares[share]:
                del self._spares[share]

    def make_room(self, address: str, limit: int, but: Spare) -> None:
        """End spare connections of the address, the oldest first, until it has at most `limit`; `but` stays."""
        share = self._share(address)
        excess = self.count(address) - limit
        if share is None or excess <= 0:
            return
        for spare in list(self._spares.get(share, ())):
            if excess and spare is not but and spare.is_spare:
                spare.dismiss()
                excess -= 1

    def _find_share(self, address: str) -> str | None:
        return None if self.is_exempt(address) else share_of(address)


def share_of(address: str) -> str:
    """What the address is counted as."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _CLIENT_PREFIX_BITS), strict=False))
