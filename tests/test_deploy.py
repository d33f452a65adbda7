"""The files of `deploy/` and `systemd/`, judged by the programs they are written for.

Each file is taken as it is shipped; only addresses and paths that this machine does not have are
exchanged in a copy. That the unit starts under a running systemd cannot be shown here.
"""

import asyncio
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from relay.settings import Config
from tests.tools import require_tool

_ROOT = Path(__file__).parent.parent
_NGINX_CONF = _ROOT / "deploy" / "nginx.conf"
_PROMETHEUS_YML = _ROOT / "deploy" / "prometheus.yml"
_UNIT = _ROOT / "systemd" / "relay.service"
_NGINX_HINT = "apt-get install nginx-light"
_SYSTEMD_HINT = "apt-get install systemd"

_TIMEOUT = aiohttp.ClientTimeout(total=15)
_FLOODED = web.AppKey("_FLOODED", asyncio.Event)
_MORE = web.AppKey("_MORE", asyncio.Event)
_DEFAULTS = Config()
_RELAY_ADDRESS = f"127.0.0.1:{_DEFAULTS.server.port}"
# The longest `?wait=` of a long poll.
_LONGEST_WAIT_SECONDS = 60


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


def _exchange(text: str, **replacements: tuple[str, str]) -> str:
    """Replace each of the named things exactly once, so that none is silently left as it was."""
    for name, (old, new) in replacements.items():
        assert text.count(old) == 1, f"{name}: {old!r} must stand there exactly once"
        text = text.replace(old, new)
    return text


def _nginx_main_conf(folder: Path, *, listen: str, relay: str) -> Path:
    """Write a whole nginx configuration around ours that touches nothing outside `folder`."""
    site = folder / "relay.conf"
    site.write_text(
        _exchange(
            _NGINX_CONF.read_text(),
            listen=("listen 80;", f"listen {listen};"),
            relay=(f"server {_RELAY_ADDRESS};", f"server {relay};"),
        )
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temp_paths = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    main = folder / "nginx.conf"
    main.write_text(
        # In the foreground, so that what the test started is what it ends.
        f"daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log stderr;\n"
        "events { worker_connections 64; }\n"
        f"http {{\n    access_log off;\n{temp_paths}    include {site};\n}}\n"
    )
    return main


@pytest.mark.tool
def test_nginx_accepts_the_configuration(tmp_path: Path) -> None:
    nginx = require_tool("nginx", hint=_NGINX_HINT)
    conf = _nginx_main_conf(tmp_path, listen="127.0.0.1:8080", relay=_RELAY_ADDRESS)

    result = _run(nginx, "-t", "-q", "-e", "stderr", "-c", conf)

    assert (result.returncode, result.stdout) == (0, "")


def test_nginx_waits_longer_than_the_relay_stays_silent() -> None:
    text = _NGINX_CONF.read_text()
    heartbeat = _DEFAULTS.heartbeat
    longest_silence_seconds = heartbeat.interval_seconds + heartbeat.timeout_seconds

    read_seconds = [int(value) for value in re.findall(r"proxy_read_timeout (\d+)s;", text)]
    send_seconds = [int(value) for value in re.findall(r"proxy_send_timeout (\d+)s;", text)]

    assert min(read_seconds) > max(longest_silence_seconds, _LONGEST_WAIT_SECONDS)
    assert min(send_seconds) > longest_silence_seconds


async def _echo(request: web.Request) -> web.StreamResponse:
    """Tell a WebSocket client with which headers it came, then send back what it sends."""
    socket_ = web.WebSocketResponse()
    await socket_.prepare(request)
    await socket_.send_json({name.lower(): value for name, value in request.headers.items()})
    async for message in socket_:
        await socket_.send_str(message.data)
    return socket_


async def _stream(request: web.Request) -> web.StreamResponse:
    """Send one event, the next when somebody asks for `/jobs/more`, then hold the stream open."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: first\n\n")
    await request.app[_MORE].wait()
    await response.write(b"data: second\n\n")
    await asyncio.Event().wait()
    return response


async def _flood(request: web.Request) -> web.StreamResponse:
    """Write far more than sockets hold, and say when all of it is gone."""
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        for _ in range(64):
            await response.write(bytes(2**20))
    finally:
        request.app[_FLOODED].set()
    return response


async def _more(request: web.Request) -> web.StreamResponse:
    request.app[_MORE].set()
    return web.Response()


async def _anything(request: web.Request) -> web.StreamResponse:
    return web.Response(text=request.path)


@asynccontextmanager
async def _behind_nginx(
    nginx: Path, folder: Path, *, flooded: asyncio.Event | None = None
) -> AsyncIterator[str]:
    """Run the shipped configuration in front of a small server; yields nginx's address.

    `flooded` is set when nginx has taken all of a flood, or has given it up.
    """
    app = web.Application()
    app.router.add_get(_DEFAULTS.server.path, _echo)
    app.router.add_get("/events", _stream)
    app.router.add_get("/jobs/more", _more)
    app.router.add_get("/jobs/flood/events", _flood)
    app[_MORE] = asyncio.Event()
    app[_FLOODED] = flooded or asyncio.Event()
    app.router.add_route("*", "/{path:.*}", _anything)
    # nginx takes over a socket that already listens (it does so when its binary is replaced), so
    # the port cannot be taken by another and the first request may come before nginx is up.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listen = f"127.0.0.1:{listener.getsockname()[1]}"
        async with TestServer(app, host="127.0.0.1") as server:
            conf = _nginx_main_conf(folder, listen=listen, relay=f"127.0.0.1:{server.port}")
            with subprocess.Popen(
                [nginx, "-e", "stderr", "-c", conf],
                env={**os.environ, "NGINX": f"{listener.fileno()};"},
                pass_fds=[listener.fileno()],
                stderr=subprocess.DEVNULL,
            ) as process:
                # From here on nginx alone holds it: if nginx ends, connecting fails at once.
                listener.close()
                try:
                    yield listen
                finally:
                    process.terminate()


@pytest.mark.tool
async def test_nginx_passes_the_upgrade_and_tells_who_the_client_is(tmp_path: Path) -> None:
    nginx = require_tool("nginx", hint=_NGINX_HINT)
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Relay-Claims": "e30"}

    async with (
        _behind_nginx(nginx, tmp_path) as address,
        aiohttp.ClientSession(timeout=_TIMEOUT) as client,
        client.ws_connect(f"ws://{address}{_DEFAULTS.server.path}", headers=forged) as connection,
    ):
        seen = await connection.receive_json(timeout=_TIMEOUT.total)
        await connection.send_str("through and back")
        echoed = await connection.receive_str(timeout=_TIMEOUT.total)

    assert echoed == "through and back"
    assert seen["host"] == seen["x-forwarded-host"] == address
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert seen["x-forwarded-proto"] == "http"
    assert "x-relay-claims" not in seen


@pytest.mark.tool
async def test_nginx_hands_on_each_server_sent_event_when_it_comes(tmp_path: Path) -> None:
    nginx = require_tool("nginx", hint=_NGINX_HINT)

    async with (
        _behind_nginx(nginx, tmp_path) as address,
        aiohttp.ClientSession(timeout=_TIMEOUT) as client,
        client.get(f"http://{address}/events") as response,
    ):
        first = await response.content.readuntil(b"\n\n")
        await client.get(f"http://{address}/jobs/more")
        second = await response.content.readuntil(b"\n\n")

    assert (first, second) == (b"data: first\n\n", b"data: second\n\n")


@pytest.mark.tool
async def test_nginx_lets_the_relay_feel_a_client_that_does_not_read(tmp_path: Path) -> None:
    nginx = require_tool("nginx", hint=_NGINX_HINT)
    flooded = asyncio.Event()

    async with (
        _behind_nginx(nginx, tmp_path, flooded=flooded) as address,
        aiohttp.ClientSession(timeout=_TIMEOUT) as client,
        client.get(f"http://{address}/jobs/flood/events"),
    ):
        # An nginx that buffers is through with it in a fraction of that time.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flooded.wait(), timeout=1)


@pytest.mark.tool
async def test_nginx_leads_to_jobs_and_to_nothing_that_is_for_operators(tmp_path: Path) -> None:
    nginx = require_tool("nginx", hint=_NGINX_HINT)
    paths = ["/jobs", "/jobs/a%2Fb", "/metrics", "/readyz", "/livez", "/admin/disconnect", "/"]

    async with (
        _behind_nginx(nginx, tmp_path) as address,
        aiohttp.ClientSession(timeout=_TIMEOUT) as client,
    ):
        statuses = {path: (await client.get(f"http://{address}{path}")).status for path in paths}

    assert [path for path, status in statuses.items() if status == 200] == ["/jobs", "/jobs/a%2Fb"]
    assert set(statuses.values()) == {200, 404}


@pytest.mark.tool
def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    analyze = require_tool("systemd-analyze", hint=_SYSTEMD_HINT)
    installed = shutil.which("true")
    assert installed is not None
    unit = tmp_path / "relay.service"
    # `verify` complains about a program that is not installed, which here it is not.
    unit.write_text(
        _exchange(
            _UNIT.read_text(), program=("ExecStart=/opt/relay/bin/relay", f"ExecStart={installed}")
        )
    )

    result = _run(analyze, "verify", unit)

    # It exits with 0 whatever it finds.
    assert result.stdout == ""


@pytest.mark.tool
def test_systemd_rates_the_unit_as_well_confined() -> None:
    analyze = require_tool("systemd-analyze", hint=_SYSTEMD_HINT)

    # The threshold is ten times the exposure that is printed: 2.0 of 10.
    result = _run(analyze, "security", "--offline=true", "--threshold=20", "--no-pager", _UNIT)

    assert result.returncode == 0, result.stdout


def test_systemd_gives_the_relay_time_to_drain() -> None:
    stop_seconds = re.search(r"^TimeoutStopSec=(\d+)$", _UNIT.read_text(), re.MULTILINE)

    assert stop_seconds is not None
    assert int(stop_seconds[1]) > _DEFAULTS.server.drain_seconds


@pytest.mark.tool
def test_prometheus_accepts_the_scrape_configuration() -> None:
    promtool = require_tool("promtool", hint="apt-get install prometheus")

    result = _run(promtool, "check", "config", _PROMETHEUS_YML)

    assert result.returncode == 0, result.stdout


def test_prometheus_scrapes_where_the_relay_serves_its_metrics() -> None:
    admin = _DEFAULTS.admin

    assert f'targets: ["{admin.host}:{admin.port}"]' in _PROMETHEUS_YML.read_text()
