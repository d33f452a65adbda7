"""How to reach a server, with TLS too; and the loops to run on.

The subscription takes a transport over, and the loops' transports differ: its tests run on both.
"""

import asyncio
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.demo.embedded import EmbeddedRedis
from relay.upstream.connection import RedisSettings
from tests.tools import require_tool

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

_ON_EVERY_LOOP = ("tests.upstream.test_subscription", "tests.upstream.test_connection")


def _uvloop() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop")  # no wheel on Windows and PyPy
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    loops: dict[str, LoopFactory] = {"asyncio": asyncio.SelectorEventLoop}
    module = item.getparent(pytest.Module)
    if module is not None and module.obj.__name__ in _ON_EVERY_LOOP:
        loops["uvloop"] = _uvloop
    return loops


def redis_settings(url: str, **more: Any) -> RedisSettings:
    """Settings with no credentials but those given."""
    blank = RedisSettings(
        url=url, username="", password="", tls_ca_file="", connect_timeout_seconds=5.0
    )
    return replace(blank, **more)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cert.pem`, which is its own authority, and `key.pem`."""
    openssl = require_tool("openssl", hint="apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = [str(openssl), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def tls_redis(certificates: Path) -> Iterator[RedisSettings]:
    """A server that speaks TLS beside plain TCP, and how to reach it."""
    binary = require_tool("redis-server", hint="apt-get install redis-server")
    with EmbeddedRedis(binary=str(binary)) as lender:
        port = lender.port  # free once the lender has gone
    arguments = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    arguments += ["--tls-cert-file", str(certificates / "cert.pem")]
    arguments += ["--tls-key-file", str(certificates / "key.pem")]
    with EmbeddedRedis(arguments, binary=str(binary)):
        ca_file = str(certificates / "cert.pem")
        yield redis_settings(f"rediss://127.0.0.1:{port}/0", tls_ca_file=ca_file)
