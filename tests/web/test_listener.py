"""Sockets to listen on: one port on every address of a host, and nothing of anybody else's."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from relay.app import Relay
from relay.config import parse
from relay.demo.embedded import EmbeddedRedis
from relay.web.listener import bind, bind_unix, url


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def path() -> Iterator[str]:
    with TemporaryDirectory() as folder:  # a short one: a unix socket's path has few bytes
        yield str(Path(folder) / "s")


def test_localhost_is_both_loopback_addresses_on_one_port(closing: ExitStack) -> None:
    bound = [closing.enter_context(each) for each in bind("localhost", 0)]

    names = [each.getsockname()[:2] for each in bound]
    port = names[0][1]
    assert port > 0
    assert names in ([("127.0.0.1", port), ("::1", port)], [("127.0.0.1", port)])


def test_free_port_is_free_on_all_addresses(
    closing: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = closing.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
    offered = [taken.getsockname()[1]]
    bind_to = socket.socket.bind

    class Offering(socket.socket):
        """The system's first offer is a port that is taken on the other address."""

        def bind(self, address: tuple[str, int]) -> None:  # type: ignore[override]
            port = offered.pop() if offered and address[1] == 0 else address[1]
            bind_to(self, (address[0], port, *address[2:]))

    monkeypatch.setattr(socket, "socket", Offering)
    bound = [closing.enter_context(each) for each in bind("localhost", 0)]

    ports = {each.getsockname()[1] for each in bound}
    assert not offered
    assert len(ports) == 1
    assert taken.getsockname()[1] not in ports


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_port_that_is_taken_is_said(closing: ExitStack, host: str) -> None:
    taken = closing.enter_context(socket.create_server(("127.0.0.1", 0)))

    with pytest.raises(OSError, match="in use"):
        bind(host, taken.getsockname()[1])


def test_address_that_is_not_ours_is_said() -> None:
    with pytest.raises(OSError, match="assign"):
        bind("192.0.2.1", 0)


def test_port_may_be_shared_where_that_is_asked_for(closing: ExitStack) -> None:
    (first,) = bind("127.0.0.1", 0, reuse_port=True)
    closing.enter_context(first)

    (second,) = bind("127.0.0.1", first.getsockname()[1], reuse_port=True)
    closing.enter_context(second)

    assert first.getsockname() == second.getsockname()


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="a system without it")
def test_accepted_connections_inherit_how_much_may_stay_unsent(closing: ExitStack) -> None:
    (listening,) = bind("127.0.0.1", 0, unsent_bytes=12345)
    closing.enter_context(listening).listen()
    closing.enter_context(socket.create_connection(listening.getsockname()))
    listening.setblocking(True)
    accepted = closing.enter_context(listening.accept()[0])

    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 12345


def test_unix_socket_is_bound(closing: ExitStack, path: str) -> None:
    listening = closing.enter_context(bind_unix(path))

    assert url([listening]) == f"unix:{path}"


def test_unix_socket_of_a_dead_process_is_replaced(closing: ExitStack, path: str) -> None:
    bind_unix(path).close()

    listening = closing.enter_context(bind_unix(path))
    listening.listen()
    client = closing.enter_context(socket.socket(socket.AF_UNIX))
    client.connect(path)

    assert client.getpeername() == path


def test_unix_socket_that_somebody_listens_on_is_left_alone(closing: ExitStack, path: str) -> None:
    closing.enter_context(bind_unix(path)).listen()

    with pytest.raises(OSError, match="somebody listens"):
        bind_unix(path)

    closing.enter_context(socket.socket(socket.AF_UNIX)).connect(path)


def test_unix_socket_of_another_kind_is_left_alone(closing: ExitStack, path: str) -> None:
    closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(path)

    with pytest.raises(OSError, match=r"."):
        bind_unix(path)

    closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).connect(path)


def test_file_that_is_no_socket_is_left_alone(path: str) -> None:
    Path(path).write_text("precious")

    with pytest.raises(OSError, match="in use"):
        bind_unix(path)

    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize(
    ("host", "start"),
    [
        ("127.0.0.1", "http://127.0.0.1:"),
        ("0.0.0.0", "http://127.0.0.1:"),
        ("::1", "http://[::1]:"),
    ],
)
def test_url_is_one_that_a_client_on_this_machine_can_use(
    closing: ExitStack, host: str, start: str
) -> None:
    bound = bind(host, 0)
    closing.enter_context(bound[0])

    assert url(bound) == f"{start}{bound[0].getsockname()[1]}"


async def test_relay_serves_on_a_unix_socket(shared_redis: EmbeddedRedis, path: str) -> None:
    environ = {
        "RELAY_SERVER__UNIX_SOCKET": path,
        "RELAY_ADMIN__PORT": "0",
        "RELAY_REDIS__URL": shared_redis.url,
    }
    relay = Relay(parse(None, environ, read_file=str))
    addresses = await relay.start()
    reader, writer = await asyncio.open_unix_connection(path)

    writer.write(b"GET /jobs/unknown HTTP/1.1\r\nHost: anything\r\n\r\n")
    status = await reader.readline()
    writer.close()
    await relay.stop()

    assert addresses.public == f"unix:{path}"
    assert status == b"HTTP/1.1 404 Not Found\r\n"


@pytest.mark.parametrize("turns", range(0, 24, 3))
async def test_relay_may_be_ended_however_far_it_has_come(
    shared_redis: EmbeddedRedis, turns: int
) -> None:
    environ = {
        "RELAY_SERVER__PORT": "0",
        "RELAY_ADMIN__PORT": "0",
        "RELAY_REDIS__URL": shared_redis.url,
    }
    relay = Relay(parse(None, environ, read_file=str))
    await relay.start()
    running = asyncio.create_task(relay.run())
    for _ in range(turns):
        await asyncio.sleep(0)

    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=5)
    await relay.stop()

    assert done == {running}
