"""`relay demo`: the embedded server, the worker, the relay and a first analysis, started and ended together.

The order of the end is the reverse of the start: the relay drains, then the worker goes, then the
server with its folder. What the terminal shows of the first analysis came over the relay's own
WebSocket, as it would to any client.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import redis.asyncio
import redis.exceptions
from rich.console import Console
from yarl import URL

from relay import config, logs
from relay.app import Addresses
from relay.demo import api, jobs
from relay.demo.embedded import EmbeddedRedis
from relay.demo.line import Line
from relay.demo.outages import Outages
from relay.demo.similarity import Request, example_wallets
from relay.demo.tether import tethered
from relay.service import serve
from relay.terminal import WatchError, watch

# About ten seconds of work.
_FIRST_ANALYSIS_WALLETS = 160
_BACKOFF_FIRST_SECONDS = 0.5
_BACKOFF_MAX_SECONDS = 15.0
# A worker that lived this long was a good one: its next end starts the backoff anew.
_STEADY_SECONDS = 30.0

_SETTINGS = """\
[server]
host = "localhost"
port = {port}
drain_seconds = 0.5
[admin]
host = "127.0.0.1"
port = {admin_port}
[redis]
url = "{redis_url}"
# What the Lab's buttons break should be seen at once, and mended as soon.
health_check_seconds = 3
backoff_max_seconds = 1
[log]
level = "warning"
format = "console"
"""


async def run(*, port: int, admin_port: int, ready_file: str | None) -> None:
    """Run the demo until SIGINT or SIGTERM; nothing of it is left when this returns.

    The environment's settings are not looked at: the demo is the same everywhere.

    Args:
        port: the public port on both loopback addresses; 0 takes a free one.
        admin_port: the admin listener's port on 127.0.0.1; 0 takes a free one.
        ready_file: where to write the addresses as JSON once everything accepts; None writes none.

    Raises:
        EmbeddedRedisError: no Redis-compatible server is installed, or it did not start.
        OSError: a port is taken, or the ready file cannot be written.
    """
    console = Console(highlight=False, markup=False)
    if ready_file is not None:
        _remove_ready_file(Path(ready_file))
    running = asyncio.current_task()
    assert running is not None
    interrupted = asyncio.Event()

    def interrupt() -> None:
        interrupted.set()
        running.cancel()

    # Until the relay takes the signals over: an end during the start is an end in order, too.
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        with EmbeddedRedis() as server:
            await _run(server, port, admin_port, ready_file, console)
    except asyncio.CancelledError:
        if not interrupted.is_set():
            raise
    except BaseExceptionGroup as group:
        # One fault has ended the others; alone it is what the command line knows how to tell.
        raise group.exceptions[0] from group
    console.print("Ended: the relay, the worker and the server are gone.")


async def _run(
    server: EmbeddedRedis, port: int, admin_port: int, ready_file: str | None, console: Console
) -> None:
    redis_url = server.url
    settings = config.parse(
        _SETTINGS.format(port=port, admin_port=admin_port, redis_url=redis_url),
        {},
        read_file=_no_file,
    )
    logs.configure(settings.log.level, settings.log.format)
    ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
    async with (
        contextlib.aclosing(api.connect(redis_url)) as connection,
        Line() as line,
        asyncio.TaskGroup() as tasks,
    ):
        beside = [
            tasks.create_task(_keep_worker(redis_url, console)),
            tasks.create_task(_present(ready, redis_url, connection, ready_file, console)),
        ]
        outages = Outages(server, line)

        def on_ready(addresses: Addresses) -> None:
            line.target = addresses.public
            ready.set_result(addresses)

        await serve(
            settings,
            routes=[*api.routes(connection), *line.routes(), *outages.routes()],
            on_ready=on_ready,
        )
        for task in beside:
            task.cancel()


async def _present(
    ready: asyncio.Future[Addresses],
    redis_url: str,
    connection: redis.asyncio.Redis,
    ready_file: str | None,
    console: Console,
) -> None:
    """Say where everything is, then run the first analysis before the user's eyes."""
    addresses = await ready
    console.print(_welcome(addresses, redis_url), soft_wrap=True)
    if ready_file is not None:
        _write_ready_file(Path(ready_file), addresses, redis_url)
    wallets = example_wallets(_FIRST_ANALYSIS_WALLETS, seed="first analysis")
    try:
        job_id = await api.submit(connection, Request(wallets=wallets))
        await watch([job_id], url=addresses.public, token="", console=console, notes=console)
    except (WatchError, redis.exceptions.RedisError) as error:
        console.print(f"The first analysis cannot be shown: {error}")


async def _keep_worker(redis_url: str, console: Console) -> None:
    """Have one worker running, always; when cancelled, none."""
    command = tethered([sys.executable, "-m", "relay.demo.worker", "--redis", redis_url])
    backoff_seconds = _BACKOFF_FIRST_SECONDS
    while True:
        started_at = time.monotonic()
        # In a session of its own, or Ctrl-C would end it before the relay has told its clients.
        process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        try:
            exit_code = await process.wait()
        finally:
            if process.returncode is None:
                # It has nothing to save, and unlike SIGTERM this reaches a stopped one.
                process.kill()
                await process.wait()
        if time.monotonic() - started_at > _STEADY_SECONDS:
            backoff_seconds = _BACKOFF_FIRST_SECONDS
        console.print(
            f"The worker has ended with exit code {exit_code};"
            f" another starts in {backoff_seconds:g} s."
        )
        await asyncio.sleep(backoff_seconds)
        backoff_seconds = min(_BACKOFF_MAX_SECONDS, 2 * backoff_seconds)


def _welcome(addresses: Addresses, redis_url: str) -> str:
    here = f"localhost:{URL(addresses.public).port}"
    subscribe = {
        "event": "subscribe-to-queue",
        "data": {"queueName": jobs.QUEUE_NAME, "snapshot": True},
    }
    return f"""\
The relay is running, with a Redis-compatible server and a worker of its own. Ctrl-C ends it all.

  Lab      http://{here}/
  metrics  {addresses.admin}/metrics
  Redis    {redis_url}

Watch every analysis: connect, then paste the second line.
  wscat -c ws://{here}/job-progress
  {json.dumps(subscribe, separators=(",", ":"))}

Submit one more:
  curl -s http://{here}{api.EXAMPLE_PATH} | \\
    curl -s -H "Content-Type: application/json" -d @- http://{here}{api.SUBMIT_PATH}

The first analysis, as it arrives over the WebSocket:
"""


def _remove_ready_file(path: Path) -> None:
    # One that an earlier run left tells of addresses long gone.
    path.unlink(missing_ok=True)


def _write_ready_file(path: Path, addresses: Addresses, redis_url: str) -> None:
    document = {
        "public": addresses.public,
        "admin": addresses.admin,
        "pid": os.getpid(),
        "redis": redis_url,
    }
    # Renamed into place: who waits for the file never reads half of it.
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document), encoding="utf-8")
    partial.replace(path)


def _no_file(path: str) -> str:
    raise FileNotFoundError(path)
