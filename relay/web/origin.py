"""Who may speak to us from a browser: Origin and Host checks, and the client's real address; pure.

RFC 6454 (origins), RFC 6455 §10.2. A page of another site may open a WebSocket to any server its user can
reach, so the check is on by default; DNS rebinding is met by looking at `Host` where nothing else
protects a loopback listener.

A page that DNS rebinding led here may add `X-Forwarded-Host` to a request, and comes from loopback like a local
proxy. What it cannot do is leave our own port out of `Host`; whoever asks a proxy names the proxy's.
"""

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import urlsplit

# Names that were taken apart and are kept: all clients name the same few, whoever means no harm.
_MAX_NAMES: Final = 256
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
GetHeader = Callable[[str], str | None]  # a header's only value, by lower-case name


class Refused(NamedTuple):
    """Why a request is refused, for the answer and the log: which header, and what was compared."""

    what: str
    value: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginPolicy:
    """What `server.allowed_origins`, `allowed_hosts` and `trusted_proxies` allow on one listener.

    `loopback` and `unix` say what is listened on, at which `port` (0 while that is not known); `check_host` is
    on in mode `none`.
    """

    allowed_origins: Sequence[str]
    allowed_hosts: Sequence[str]
    trusted_proxies: Sequence[Network]
    loopback: bool
    unix: bool = False
    port: int = 0
    check_host: bool = True
    _origins: frozenset[tuple[str, str, int | None]] = field(init=False)

    def __post_init__(self) -> None:
        origins = (_origin(origin) for origin in self.allowed_origins if origin != "*")
        parsed = frozenset(origin for origin in origins if origin is not None)
        object.__setattr__(self, "_origins", parsed)

    def trusts(self, peer: str) -> bool:
        """Whether the peer's `X-Forwarded-*` headers are believed. An empty peer is a unix socket's."""
        if not peer:
            return self.unix
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        return any(address in network for network in self.trusted_proxies)

    def judge(self, peer: str, get: GetHeader) -> Refused | None:
        """Why this request is refused, or None."""
        host = get("host") or ""
        forwarded = get("x-forwarded-host")
        if forwarded is not None and not self.trusts(peer):
            forwarded = None
        if self.loopback and self.check_host and not self.unix:
            name, port = _host(host, "http")
            if (forwarded is None or port == self.port) and not (
                is_loopback(name) or name in self.allowed_hosts or host in self.allowed_hosts
            ):
                return Refused("host", host, "a loopback name or one of server.allowed_hosts")
        origin = get("origin")
        if origin is None or "*" in self.allowed_origins:
            return None
        parsed = _origin(origin)
        named = forwarded or host
        if parsed is not None:
            scheme, name, port = parsed
            proto = get("x-forwarded-proto") if forwarded is not None else None
            same_scheme = proto is None or proto.split(",")[0].strip().lower() == scheme
            if same_scheme and _host(named, scheme) == (name, port):
                return None
            if parsed in self._origins:
                return None
            if self.loopback and not self.allowed_origins and is_loopback(name):
                return None
        return Refused("origin", origin, named)

    def client_address(self, peer: str, forwarded_for: Sequence[str]) -> str:
        """The address nearest to the client that is believed: trusted proxies are skipped from the
        right of `X-Forwarded-For`."""
        address = peer
        hops = [hop.strip() for value in forwarded_for for hop in value.split(",")]
        while hops and self.trusts(address):
            hop = hops.pop()
            if "%" in hop:
                break  # a scope id: any text may stand there, and it means something on that machine only
            try:
                address = str(ipaddress.ip_address(hop))
            except ValueError:
                break  # not an address: believe no further
        return address


@lru_cache(maxsize=_MAX_NAMES)
def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def may_name_admin(host: str, allowed_hosts: Sequence[str]) -> bool:
    """Whether a `Host` header names the admin listener by an address, `localhost` or an allowed name."""
    name = _host(host, None)[0].rstrip(".")
    if name == "localhost" or name in allowed_hosts:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _origin(text: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port of a serialised origin (RFC 6454 §6.2); None where it is none."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname, port or _DEFAULT_PORTS.get(parts.scheme)


@lru_cache(maxsize=_MAX_NAMES)
def _host(text: str, scheme: str | None) -> tuple[str, int | None]:
    """Name and port of a `Host` header, the port defaulting to the scheme's."""
    try:
        parts = urlsplit(f"//{text}")
        return parts.hostname or "", parts.port or _DEFAULT_PORTS.get(scheme or "")
    except ValueError:
        return "", None
