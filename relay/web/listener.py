"""Sockets to listen on: a host's every address with one port, or a unix socket."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import Final

BACKLOG: Final = 4096
_TRIES: Final = 20  # to find a free port that is free on every address of the host


def bind(
    host: str, port: int, *, reuse_port: bool = False, unsent_bytes: int = 0
) -> list[socket.socket]:
    """Sockets bound to `host`, all on one port; `localhost` is both loopback addresses.

    Args:
        port: 0 means a free one. unsent_bytes: TCP_NOTSENT_LOWAT for accepted connections, where the
            system has it; 0 leaves it alone.

    Raises:
        OSError: the port is taken, the address not ours, or not allowed to us.
    """
    addresses = ["127.0.0.1", "::1"] if host == "localhost" else [host]
    for _ in range(_TRIES):
        bound: list[socket.socket] = []
        try:
            wanted = port
            for address in addresses:
                try:
                    found = _bind_one(address, wanted, reuse_port, unsent_bytes)
                except OSError as error:
                    if bound and address == "::1" and _has_no_ipv6(error):
                        continue
                    raise
                bound.append(found)
                wanted = found.getsockname()[1]
        except OSError as error:
            for found in bound:
                found.close()
            if port == 0 and error.errno == errno.EADDRINUSE:
                continue  # free on one address, taken on the other: another one
            raise
        return bound
    raise OSError(errno.EADDRINUSE, "no port is free on all loopback addresses")


def bind_unix(path: str) -> socket.socket:
    """A unix socket at `path`; one that a dead process left there is replaced.

    Raises:
        OSError: something else is there, or somebody listens on it.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
                else:
                    raise OSError(errno.EADDRINUSE, f"somebody listens on {path}")
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(path)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def accepts() -> bool:
    """Whether one more connection could be accepted: whether a file descriptor is left for it.

    uvloop keeps quiet when there is none: it closes what it cannot accept, and goes on.
    """
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY)
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    os.close(descriptor)
    return True


def url(sockets: Sequence[socket.socket]) -> str:
    """The address as people and clients write it; for the first socket."""
    first = sockets[0]
    if first.family == socket.AF_UNIX:
        return f"unix:{first.getsockname()}"
    host, port = first.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind_one(host: str, port: int, reuse_port: bool, unsent_bytes: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        low_water = getattr(socket, "TCP_NOTSENT_LOWAT", None)
        if unsent_bytes and low_water is not None:
            # Accepted sockets inherit it, which spares a call for each.
            listening.setsockopt(socket.IPPROTO_TCP, low_water, unsent_bytes)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from None
    listening.setblocking(False)
    return listening


def _has_no_ipv6(error: OSError) -> bool:
    return isinstance(error, socket.gaierror) or error.errno in (
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
    )
