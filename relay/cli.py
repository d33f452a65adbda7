"""The `relay` command: what can be asked of it, and which exit code answers.

0 is success, 1 that something did not work out, 2 that the question was wrong (usage, settings, an
address without a relay), 130 Ctrl-C. The only place that prints and the only one that exits.
Nothing heavy is imported before a command needs it, so that `--help` is there at once.
"""

import contextlib
import errno
import json
import os
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn

import click

from relay import __version__
from relay.build import is_compiled

if TYPE_CHECKING:
    from relay.app import Addresses
    from relay.settings import Config
    from relay.upstream.durable import DurableHistory
    from relay.upstream.publisher import SyncPublisher

_DEFAULT_CONFIG: Final = "config.toml"
_WRONG: Final = 2
_INTERRUPTED: Final = 128 + signal.SIGINT
_WATCH_URL: Final = "http://localhost:3001"
# On a terminal the count is drawn again after so many lines.
_LINES_A_STEP: Final = 100

_config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help=f"The settings; by default {_DEFAULT_CONFIG} in the working directory, if there is one.",
)


def _in_a_folder(_: click.Context, __: click.Parameter, ready_file: str | None) -> str | None:
    """Refuse at once what could only fail after the start."""
    if ready_file is not None and not Path(ready_file).parent.is_dir():
        raise click.BadParameter(f"{ready_file}: there is no such folder; make it first")
    return ready_file


_ready_file_option = click.option(
    "--ready-file",
    metavar="FILE",
    callback=_in_a_folder,
    help="Write the addresses in use here, as JSON, once connections are accepted.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__ + " (compiled)" * is_compiled(), prog_name="relay")
def main() -> None:
    """Bring the progress of background jobs from Redis to browsers.

    \b
    See it run, without a Redis of your own:
        relay demo
    Serve, then follow a job in the terminal and tell of it:
        relay serve
        relay watch similarity-ABC123
        relay publish similarity-ABC123 --queue similarity-operations --progress 45
    """


@main.command()
@_config_option
@_ready_file_option
def serve(config_file: str | None, ready_file: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C.

    SIGTERM tells every client to come back later and ends with 0; a second one ends at once. SIGHUP
    reads the settings again.
    """
    from relay import logs
    from relay.config import ConfigError
    from relay.service import serve as serve_until_stopped

    config = _config_or_exit(config_file)
    logs.configure(config.log.level, config.log.format)
    if ready_file is not None:
        # One that an earlier run left would tell whoever waits for it of addresses long gone.
        Path(ready_file).unlink(missing_ok=True)

    def on_ready(addresses: "Addresses") -> None:
        if ready_file is not None:
            ready = {"public": addresses.public, "admin": addresses.admin, "pid": os.getpid()}
            _write_whole(Path(ready_file), json.dumps(ready) + "\n")

    try:
        _run(
            serve_until_stopped(config, on_ready=on_ready, reload=lambda: _read_config(config_file))
        )
    except ConfigError as error:
        _exit_with_faults(error.faults)


@main.command("check-config")
@_config_option
def check_config(config_file: str | None) -> None:
    """Check the settings, print those in effect.

    Secrets are masked. If anything is wrong, a line for each fault says so and the exit code is 2.
    """
    from relay.config import ConfigError, effective

    config = _config_or_exit(config_file)
    if config.auth.mode == "jwt":
        from relay.auth.tokens import check_keys

        try:
            check_keys(config.auth)
        except ConfigError as error:
            _exit_with_faults(error.faults)
    click.echo(effective(config), nl=False)


@main.command()
@click.argument("job")
@click.option(
    "--queue",
    metavar="NAME",
    help="The job's queue; with -, of lines that name none. Where the channel needs one: default.",
)
@click.option("--event", metavar="NAME", help="progress, completed, failed, or any job-… name.")
@click.option("--progress", type=click.FloatRange(0, 100), metavar="N", help="Percent done.")
@click.option("--status", metavar="TEXT", help='Such as "active", "queued" or "cancelled".')
@click.option("--result", metavar="JSON", help="The job has completed, with this result.")
@click.option("--error", metavar="TEXT", help="The job has failed, for this reason.")
@_config_option
@click.option("--redis", "redis_url", metavar="URL", help="Beats redis.url of the settings.")
def publish(
    job: str,
    queue: str | None,
    event: str | None,
    progress: float | None,
    status: str | None,
    result: str | None,
    error: str | None,
    config_file: str | None,
    redis_url: str | None,
) -> None:
    """Tell of a job, as its worker would.

    With - in place of the job, every line of standard input is one payload; a line that fails is
    reported with its number, the others are sent, and the exit code is 1.

    \b
        relay publish thumbs-7 --queue images --progress 45
        relay publish thumbs-7 --queue images --result '{"files": 12}'
        relay publish thumbs-7 --queue images --error "disk full"
        relay publish - < events.jsonl
    """
    fields = {
        "event": event, "progress": progress, "status": status, "result": result, "error": error
    }  # fmt: skip
    given = {name: value for name, value in fields.items() if value is not None}
    if job == "-":
        if given:
            raise click.UsageError(f"with - the lines say everything: leave --{min(given)} out")
        payload = None
    else:
        payload = _payload(job, queue, given)
    with _interruptible(), _publisher(_config_or_exit(config_file), redis_url) as publisher:
        if payload is None:
            failed = _publish_lines(publisher, sys.stdin.buffer, queue)
        else:
            failed = not _publish_one(publisher, payload)
    sys.exit(1 if failed else 0)


@main.command()
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@click.option("--url", default=_WATCH_URL, show_default=True, help="Where the relay is.")
@click.option(
    "--token",
    default="",
    envvar="RELAY_TOKEN",
    show_envvar=True,
    help="What it asks for; others on this machine can read a command line, not the environment.",
)
def watch(jobs: tuple[str, ...], url: str, token: str) -> None:
    """Follow jobs until they have ended.

    Bars on a terminal, else a line for each change. The exit code is 0 if all have completed, 1 if
    one has failed. A relay that is away is waited for.

    \b
        relay watch similarity-ABC123
        relay watch job-1 job-2 --url https://relay.example.org
    """
    import asyncio

    from rich.console import Console

    from relay import terminal

    with _interruptible():
        try:
            code = asyncio.run(
                terminal.watch(
                    jobs, url=url, token=token, console=Console(), notes=Console(stderr=True)
                )
            )
        except (terminal.WatchError, ValueError) as error:
            _exit_with_faults([f"relay: {error}"])
    sys.exit(code)


@main.command()
@click.option("--jobs", metavar="GLOB", multiple=True, help="Jobs that may be watched: thumbs-*")
@click.option("--queues", metavar="GLOB", multiple=True, help="Queues, and the jobs in them.")
@click.option(
    "--subject", metavar="NAME", default="developer", show_default=True, help="Whom it names."
)
@click.option(
    "--ttl",
    "ttl_seconds",
    metavar="SECONDS",
    type=click.IntRange(1, 31_536_000),
    default=3600,
    show_default=True,
    help="How long it is valid.",
)
@_config_option
def token(
    jobs: tuple[str, ...],
    queues: tuple[str, ...],
    subject: str,
    ttl_seconds: int,
    config_file: str | None,
) -> None:
    """Print a token for development.

    It is signed with auth.jwt_secret. --jobs and --queues may be repeated; * is any run of characters,
    ? one. With neither of them it allows everything, else what they name and nothing more.

    \b
        relay token
        relay token --jobs 'thumbs-*' --queues images --ttl 86400
        RELAY_TOKEN=$(relay token) relay watch thumbs-7
    """
    import time

    from relay.auth.mint import mint
    from relay.config import ConfigError

    if not jobs and not queues:
        jobs = queues = ("*",)
    config = _config_or_exit(config_file)
    try:
        minted = mint(
            config.auth,
            jobs=jobs,
            queues=queues,
            subject=subject,
            ttl_seconds=ttl_seconds,
            now=time.time(),
        )
    except ConfigError as error:
        _exit_with_faults(error.faults)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    click.echo(minted)


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=3001, show_default=True)
@click.option("--admin-port", type=click.IntRange(0, 65535), default=9301, show_default=True)
@_ready_file_option
def demo(port: int, admin_port: int, ready_file: str | None) -> None:
    """See it all at work; nothing else is needed.

    A Redis-compatible server of its own, a worker with real work, the relay and a page to try.
    Ctrl-C ends it and leaves nothing behind. Port 0 takes one that is free.
    """
    from relay.demo import run
    from relay.demo.embedded import EmbeddedRedisError

    try:
        _run(run.run(port=port, admin_port=admin_port, ready_file=ready_file))
    except EmbeddedRedisError as error:
        raise click.ClickException(str(error)) from None


def _read_config(config_file: str | None) -> "Config":
    """The settings of the file and the environment. Raises ConfigError, for a missing file too."""
    from relay.config import ConfigError, parse

    path = Path(config_file or _DEFAULT_CONFIG)
    try:
        text = None if config_file is None and not path.exists() else _read_text(str(path))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    return parse(text, os.environ, file_name=str(path), read_file=_read_text)


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise OSError(0, "it is not UTF-8 text") from None


def _config_or_exit(config_file: str | None) -> "Config":
    from relay.config import ConfigError

    try:
        return _read_config(config_file)
    except ConfigError as error:
        _exit_with_faults(error.faults)


def _exit_with_faults(faults: list[str]) -> NoReturn:
    for fault in faults:
        click.echo(fault, err=True)
    sys.exit(_WRONG)


def _run(work: Coroutine[Any, Any, None]) -> None:
    import asyncio

    run = asyncio.run
    with contextlib.suppress(ImportError):  # Windows and PyPy have no uvloop
        import uvloop

        run = uvloop.run
    try:
        run(work)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        advice = ": choose another port, or end what holds this one" if taken else ""
        raise click.ClickException(f"{error}{advice}") from None


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends with the exit code that shells know, without a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _write_whole(path: Path, text: str) -> None:
    """Write so that a reader finds the whole text or no file, never half of it."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    # mkstemp lets only us read it; whoever waits for the addresses may be another user.
    os.chmod(name, 0o644)
    os.replace(name, path)


def _payload(job: str, queue: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The flat payload that the options describe; contradictions are a usage error."""
    event = _event(given)
    payload: dict[str, Any] = {"jobId": job, "queueName": queue, "event": event}
    payload |= {name: given[name] for name in ("progress", "status", "error") if name in given}
    if "progress" in given and given["progress"].is_integer():
        payload["progress"] = int(given["progress"])
    if "result" in given:
        try:
            payload["result"] = json.loads(given["result"])
        except ValueError as error:
            raise click.UsageError(
                f"--result is no JSON ({error}); quote a text twice: --result '\"done\"'"
            ) from None
    return {name: value for name, value in payload.items() if value is not None or name == "result"}


def _event(given: dict[str, Any]) -> str | None:
    """The event's full name; None leaves it to the status, as the relay reads it."""
    from relay.core.event import COMPLETED, FAILED, PROGRESS, event_name

    if not given:
        raise click.UsageError("say what to tell: --progress 45, --result JSON or --error TEXT")
    if "result" in given and "error" in given:
        raise click.UsageError("--result says completed and --error failed: give one of them")
    told = COMPLETED if "result" in given else FAILED if "error" in given else None
    if "event" not in given:
        return told or (PROGRESS if "progress" in given else None)
    event = event_name(given["event"])
    if event is None:
        raise click.UsageError(
            f"--event {given['event']} is none: progress, completed, failed or job-… are"
        )
    if told not in (None, event):
        option = "--result" if told == COMPLETED else "--error"
        raise click.UsageError(f"{option} says {told}, --event {event}: leave one of them out")
    if event == FAILED and "error" not in given:
        raise click.UsageError("--event failed needs the reason: --error TEXT")
    return event


@contextlib.contextmanager
def _publisher(config: "Config", redis_url: str | None) -> "Iterator[SyncPublisher]":
    """Publishes where the configured relay listens, or on another Redis."""
    from relay.upstream.publisher import SyncPublisher

    channels = {
        name: source.channel for name, source in config.source.items() if source.kind == "channel"
    }
    if not channels:
        _exit_with_faults(['relay: the settings have no source of kind "channel" to publish for'])
    redis = config.redis
    # Another server must not be shown the configured one's credentials.
    own = redis_url is None
    try:
        publisher = SyncPublisher(
            redis_url or redis.url.get_secret_value(),
            channel=channels.get("jobs") or next(iter(channels.values())),
            history=_durable_history(config),
            username=redis.username if own else "",
            password=redis.password.get_secret_value() if own else "",
            tls_ca_file=redis.tls_ca_file,
            timeout_seconds=redis.connect_timeout_seconds,
        )
    except ValueError as error:
        _exit_with_faults([f"relay: {error}"])
    with publisher:
        yield publisher


def _durable_history(config: "Config") -> "DurableHistory | None":
    """Where the configured relay looks for what it has missed; None where it looks nowhere."""
    from relay.upstream.durable import DurableHistory

    history = config.history
    if history.backend != "redis":
        return None
    return DurableHistory(
        prefix=history.prefix, max_events=history.max_events, ttl_seconds=history.ttl_seconds
    )


def _publish_one(publisher: "SyncPublisher", payload: dict[str, Any]) -> bool:
    """Send one payload and say what became of it; False if Redis did not take it."""
    from redis.exceptions import RedisError

    try:
        message = publisher.compose(payload)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        receipt = publisher.send(message)
    except RedisError as error:
        click.echo(f"relay: not published: {error}; see redis.url or pass --redis URL", err=True)
        return False
    many = "1 subscriber" if receipt.receivers == 1 else f"{receipt.receivers} subscribers"
    # Durable history keeps the event whether or not somebody listens.
    told = f"as event {receipt.event_id}" if receipt.event_id else f"received by {many}"
    click.echo(f"Published on {message.channel}, {told}: {message.payload.decode()}")
    if receipt.receivers == 0:
        click.echo(
            "Nobody listens there: is the relay running, on this Redis and with this channel?",
            err=True,
        )
    return True


def _publish_lines(publisher: "SyncPublisher", lines: BinaryIO, queue: str | None) -> bool:
    """Send each line as it comes; returns whether any failed."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    sent = failed = 0
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    # Where the lines are typed in by hand, a moving count would be in the way.
    quiet = not console.is_terminal or lines.isatty()
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("")
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            fault = _publish_line(publisher, line, queue)
            if fault is None:
                sent += 1
            else:
                failed += 1
                console.print(f"line {number}: {fault}", markup=False, soft_wrap=True)
            if number % _LINES_A_STEP == 0:
                bar.update(task, description=f"{sent:,} published, {failed:,} failed")
    click.echo(f"{sent} published, {failed} failed", err=True)
    return failed > 0


def _publish_line(publisher: "SyncPublisher", line: bytes, queue: str | None) -> str | None:
    """What is wrong with the line, or None where it was sent."""
    from redis.exceptions import RedisError

    from relay.core.errors import DecodeError
    from relay.core.payload import parse_object

    try:
        payload = parse_object(line)
        if queue is not None and not {"queueName", "queue_name", "queue"} & payload.keys():
            payload["queueName"] = queue
        publisher.publish(payload)
    except DecodeError as error:
        return f"{error.reason.value.replace('_', ' ')}: a line is one JSON object in UTF-8"
    except (ValueError, RedisError) as error:
        return str(error)
    return None
