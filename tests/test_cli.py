"""The commands: what they print, where they print it, and how they exit."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import redis
from click.testing import CliRunner, Result
from redis.client import PubSub

from relay import __version__
from relay.app import Addresses
from relay.build import is_compiled
from relay.cli import main
from relay.config import ConfigError
from relay.demo.embedded import EmbeddedRedis, EmbeddedRedisError
from relay.settings import Config, HistoryConfig
from tests.test_terminal import FakeRelay, Visitor, complete, failed, progress

RELAY = [sys.executable, "-m", "relay"]
CLOSED_REDIS = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but those of the test: neither a file nor a variable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    for name in [name for name in os.environ if name.startswith("RELAY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def subscriber(shared_redis: EmbeddedRedis) -> Iterator[PubSub]:
    """Gets whatever is published."""
    with redis.Redis.from_url(shared_redis.url) as client, client.pubsub() as pubsub:
        pubsub.psubscribe("*")
        pubsub.get_message(timeout=5)
        yield pubsub


def received(subscriber: PubSub) -> tuple[str, dict[str, Any]]:
    message = subscriber.get_message(timeout=5)
    assert message is not None
    return message["channel"].decode(), json.loads(message["data"])


def relay(*arguments: str, input: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=input)


# --- the command itself ------------------------------------------------------------


def test_help_names_every_command_with_examples() -> None:
    result = relay("--help")

    assert result.exit_code == 0
    for command in ("check-config", "demo", "publish", "serve", "token", "watch"):
        assert f"\n  {command} " in result.output
    assert "relay publish similarity-ABC123 --queue" in result.output
    assert "..." not in result.output.partition("Commands:")[2]  # no summary is too long


def test_help_is_there_at_once_because_nothing_heavy_is_imported() -> None:
    heavy = {
        "aiohttp",
        "asyncio",
        "cryptography",
        "jwt",
        "pydantic",
        "redis",
        "rich",
        "structlog",
        "uvloop",
        "orjson",
    }
    script = f"import sys, relay.cli; print(*{heavy} & sys.modules.keys())"

    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)

    assert shown.stdout == b"\n"


def test_the_version_is_shown() -> None:
    built = " (compiled)" if is_compiled() else ""

    assert relay("--version").output == f"relay, version {__version__}{built}\n"


# --- settings ------------------------------------------------------------


def test_the_file_in_the_working_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[server]\nport = 4444\n")

    result = relay("check-config")

    assert result.exit_code == 0
    assert "port = 4444\n" in result.stdout


def test_without_a_file_there_are_the_defaults() -> None:
    assert "port = 3001\n" in relay("check-config").stdout


def test_the_environment_beats_a_named_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.toml").write_text("[server]\nport = 4444\n[admin]\nport = 5555\n")
    monkeypatch.setenv("RELAY_SERVER__PORT", "6666")

    shown = relay("check-config", "--config", "other.toml").stdout

    assert "port = 6666\n" in shown
    assert "port = 5555\n" in shown


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_REDIS__PASSWORD", "hidden")

    assert "hidden" not in relay("check-config").output


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_every_fault_of_the_settings_is_a_line_and_the_exit_code_2(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text("[server]\nport = 70000\nprot = 1\n")

    result = relay(command)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert [line.split(" ")[0] for line in result.stderr.splitlines()] == ["config.toml:"] * 2


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_a_named_file_that_is_missing_is_one_line_and_the_exit_code_2(command: str) -> None:
    result = relay(command, "--config", "missing.toml")

    assert result.exit_code == 2
    assert result.stderr == "missing.toml: cannot be read: No such file or directory\n"


def test_a_file_that_is_not_utf8_is_one_line_and_the_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff")

    result = relay("check-config")

    assert result.exit_code == 2
    assert result.stderr == "config.toml: cannot be read: it is not UTF-8 text\n"


# --- serve and demo ------------------------------------------------------------


class FakeApp:
    """Stands in for `relay.service.serve`: is ready at once, does `then`, and is done."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self._then = then
        self.config: Config | None = None
        self.reload: Callable[[], Config] | None = None

    async def serve(
        self,
        config: Config,
        *,
        on_ready: Callable[[Addresses], None],
        reload: Callable[[], Config],
    ) -> None:
        self.config, self.reload = config, reload
        on_ready(Addresses(public="http://127.0.0.1:1", admin="http://127.0.0.1:2"))
        self._then()


@pytest.fixture
def configured_logs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What logging was set up with, in place of setting it up."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr("relay.logs.configure", lambda *call: calls.append(call))
    return calls


def serve(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, then: Callable[[], None] = lambda: None
) -> tuple[Result, FakeApp]:
    fake = FakeApp(then)
    monkeypatch.setattr("relay.service.serve", fake.serve)
    return relay("serve", *arguments), fake


def raiser(error: Exception) -> Callable[[], None]:
    def then() -> None:
        raise error

    return then


def test_serving_takes_settings_and_logs_from_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, configured_logs: list[tuple[str, str]]
) -> None:
    (tmp_path / "config.toml").write_text(
        '[server]\nport = 0\n[log]\nlevel = "debug"\nformat = "json"\n'
    )

    result, fake = serve(monkeypatch)

    assert result.exit_code == 0
    assert fake.config is not None
    assert fake.config.server.port == 0
    assert configured_logs == [("debug", "json")]


@pytest.mark.usefixtures("configured_logs")
def test_the_ready_file_has_the_addresses_and_nothing_lies_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result, _ = serve(monkeypatch, "--ready-file", "ready.json")

    assert result.exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ready.json"]
    assert json.loads((tmp_path / "ready.json").read_text()) == {
        "public": "http://127.0.0.1:1", "admin": "http://127.0.0.1:2", "pid": os.getpid()
    }  # fmt: skip


@pytest.mark.usefixtures("configured_logs")
def test_a_ready_file_of_an_earlier_run_is_gone_before_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready_file = tmp_path / "ready.json"
    ready_file.write_text("old")

    async def never_ready(*_: object, **__: object) -> None:
        assert not ready_file.exists()

    monkeypatch.setattr("relay.service.serve", never_ready)

    assert relay("serve", "--ready-file", str(ready_file)).exit_code == 0


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_ready_file_in_no_folder_is_refused_before_the_start(command: str) -> None:
    result = relay(command, "--ready-file", "missing/ready.json")

    assert result.exit_code == 2
    assert "no such folder" in result.stderr


@pytest.mark.usefixtures("configured_logs")
def test_a_reload_reads_the_file_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    _, fake = serve(monkeypatch)
    assert fake.reload is not None

    file.write_text("[limits]\nmax_errors = 7\n")
    reloaded = fake.reload()
    file.write_text("[limits]\nmax_errors = 0\n")

    assert reloaded.limits.max_errors == 7
    with pytest.raises(ConfigError):
        fake.reload()


@pytest.mark.usefixtures("configured_logs")
def test_settings_that_only_the_relay_can_judge_are_faults_like_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, _ = serve(monkeypatch, then=raiser(ConfigError(["one", "two"])))

    assert (result.exit_code, result.stderr) == (2, "one\ntwo\n")


@pytest.mark.usefixtures("configured_logs")
def test_a_port_that_is_taken_is_one_line_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = OSError(errno.EADDRINUSE, "port 3001 is in use")

    result, _ = serve(monkeypatch, then=raiser(taken))

    assert result.exit_code == 1
    assert result.stderr == f"Error: {taken}: choose another port, or end what holds this one\n"


def test_the_demo_runs_on_the_ports_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    async def run(**options: object) -> None:
        asked.update(options)

    monkeypatch.setattr("relay.demo.run.run", run)

    assert relay("demo", "--port", "0", "--ready-file", "r").exit_code == 0
    assert asked == {"port": 0, "admin_port": 9301, "ready_file": "r"}


def test_a_demo_without_a_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(**_: object) -> None:
        raise EmbeddedRedisError("pip install 'relay[demo]'")

    monkeypatch.setattr("relay.demo.run.run", run)

    result = relay("demo")

    assert (result.exit_code, result.stderr) == (1, "Error: pip install 'relay[demo]'\n")


# --- publish ------------------------------------------------------------


def publish(server: EmbeddedRedis, *arguments: str, input: str | bytes | None = None) -> Result:
    return relay("publish", *arguments, "--redis", server.url, input=input)


@pytest.mark.parametrize(
    ("options", "payload"),
    [
        (["--progress", "45"], {"event": "job-progress", "progress": 45}),
        (["--progress", "4.5"], {"event": "job-progress", "progress": 4.5}),
        (["--event", "progress"], {"event": "job-progress"}),
        (["--event", "job-stalled"], {"event": "job-stalled"}),
        (["--status", "done"], {"status": "done"}),
        (["--result", "null"], {"event": "job-completed", "result": None}),
        (["--result", '{"n": 1}'], {"event": "job-completed", "result": {"n": 1}}),
        (["--event", "completed"], {"event": "job-completed"}),
        (["--error", "x"], {"event": "job-failed", "error": "x"}),
        (
            ["--error", "x", "--progress", "45", "--status", "cancelled"],
            {"event": "job-failed", "error": "x", "progress": 45, "status": "cancelled"},
        ),
        (
            ["--event", "job-failed", "--error", "x"],
            {"event": "job-failed", "error": "x"},
        ),
    ],
)
def test_options_become_a_flat_payload(
    options: list[str], payload: dict[str, Any], shared_redis: EmbeddedRedis, subscriber: PubSub
) -> None:
    result = publish(shared_redis, "a", "--queue", "q", *options)

    assert result.exit_code == 0
    assert received(subscriber) == ("jobs:q:a", {"jobId": "a", "queueName": "q", **payload})


def test_it_says_what_was_sent_and_how_many_got_it(
    shared_redis: EmbeddedRedis, subscriber: PubSub
) -> None:
    result = publish(shared_redis, "a", "--queue", "q", "--progress", "45")

    assert result.stdout.startswith("Published on jobs:q:a, received by 1 subscriber: {")
    assert result.stderr == ""


def test_it_says_so_when_nobody_listens(shared_redis: EmbeddedRedis) -> None:
    result = publish(shared_redis, "a", "--queue", "q", "--progress", "45")

    assert result.exit_code == 0
    assert "received by 0 subscribers" in result.stdout
    assert "is the relay running" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["a"], "--progress 45"),
        (["a", "--result", "1", "--error", "x"], "give one of them"),
        (["a", "--result", "done"], "--result '\"done\"'"),
        (["a", "--event", "done", "--progress", "1"], "progress, completed, failed or job-"),
        (["a", "--event", "failed"], "--error TEXT"),
        (["a", "--event", "progress", "--error", "x"], "leave one of them out"),
        (["a", "--event", "failed", "--result", "1"], "leave one of them out"),
        (["a", "--progress", "101"], "0<=x<=100"),
        (["a\nb", "--queue", "q", "--progress", "45"], "1 to 256 characters"),
        (["-", "--progress", "45"], "leave --progress out"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(arguments: list[str], advice: str) -> None:
    result = relay("publish", *arguments)

    assert result.exit_code == 2
    assert advice in result.stderr


def test_a_redis_that_is_away_is_exit_code_1() -> None:
    result = relay("publish", "a", "--queue", "q", "--progress", "1", "--redis", CLOSED_REDIS)

    assert result.exit_code == 1
    assert "redis.url" in result.stderr
    assert "Traceback" not in result.output


def test_a_redis_url_that_is_none_is_exit_code_2() -> None:
    result = relay("publish", "a", "--queue", "q", "--progress", "1", "--redis", "http://x")

    assert result.exit_code == 2
    assert "redis://" in result.stderr


def test_redis_and_channel_come_from_the_settings(
    tmp_path: Path, shared_redis: EmbeddedRedis, subscriber: PubSub
) -> None:
    (tmp_path / "config.toml").write_text(
        f'[redis]\nurl = "{shared_redis.url}"\n'
        '[source.tasks]\nkind = "celery"\n'
        '[source.own]\nchannel = "own.{event}.{jobId}"\n'
    )

    result = relay("publish", "a", "--progress", "45")

    assert result.exit_code == 0
    assert received(subscriber)[0] == "own.job-progress.a"


def test_settings_without_a_channel_have_nothing_to_publish_on(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[source.tasks]\nkind = "celery"\n')

    result = relay("publish", "a", "--progress", "45")

    assert result.exit_code == 2
    assert "channel" in result.stderr


def test_another_redis_is_not_shown_the_configured_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RELAY_REDIS__PASSWORD", "hidden")

    with EmbeddedRedis(("--requirepass", "hidden")) as server:
        result = publish(server, "a", "--queue", "q", "--progress", "45")

    assert result.exit_code == 1
    assert "Authentication required" in result.stderr


def test_lines_that_fail_are_reported_by_number_and_the_others_are_sent(
    shared_redis: EmbeddedRedis, subscriber: PubSub
) -> None:
    lines = [
        b'{"jobId": "a", "queueName": "q", "progress": 1}',
        b"{",
        b"",
        b'{"queueName": "q"}',
        b'{"jobId": "b", "queue": "r", "progress": 2}',
        b"[]",
        b"\xff",
        b'{"jobId": "c"}',
        b'{"jobId": 7, "queueName": "q", "progress": 3}',
    ]

    result = publish(shared_redis, "-", input=b"\n".join(lines))

    assert result.exit_code == 1
    assert [received(subscriber)[0] for _ in range(4)] == [
        "jobs:q:a", "jobs:r:b", "jobs:default:c", "jobs:q:7"
    ]  # fmt: skip
    reports = result.stderr.splitlines()
    assert [report.split(":")[0] for report in reports[:-1]] == [
        "line 2", "line 4", "line 6", "line 7"
    ]  # fmt: skip
    assert reports[-1] == "4 published, 4 failed"


def test_lines_are_sent_as_they_are_with_the_queue_where_they_name_none(
    shared_redis: EmbeddedRedis, subscriber: PubSub
) -> None:
    lines = '{"jobId": "a", "own": [1]}\n{"jobId": "a", "queue": "r"}\n'

    result = publish(shared_redis, "-", "--queue", "q", input=lines)

    assert result.exit_code == 0
    assert received(subscriber) == ("jobs:q:a", {"jobId": "a", "own": [1], "queueName": "q"})
    assert received(subscriber) == ("jobs:r:a", {"jobId": "a", "queue": "r"})


def test_a_line_stays_as_it_is_where_the_channel_needs_no_queue(
    monkeypatch: pytest.MonkeyPatch, shared_redis: EmbeddedRedis, subscriber: PubSub
) -> None:
    monkeypatch.setenv("RELAY_SOURCE__JOBS__CHANNEL", "own.{jobId}")

    publish(shared_redis, "-", input='{"jobId": "a"}')

    assert received(subscriber) == ("own.a", {"jobId": "a"})


def test_a_line_is_sent_before_the_next_one_is_there(
    shared_redis: EmbeddedRedis, subscriber: PubSub
) -> None:
    with subprocess.Popen(
        [*RELAY, "publish", "-", "--redis", shared_redis.url],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b'{"jobId": "a", "queueName": "q"}\n')

        assert received(subscriber)[0] == "jobs:q:a"

        process.stdin.close()
        assert process.stderr.read() == b"1 published, 0 failed\n"
    assert process.returncode == 0


@pytest.fixture
def durable_settings(monkeypatch: pytest.MonkeyPatch) -> HistoryConfig:
    """The settings that the command finds have this durable history."""
    history = HistoryConfig(backend="redis", prefix="cli:", max_events=2, ttl_seconds=50)
    config = Config(history=history)
    monkeypatch.setattr("relay.config.parse", lambda *_, **__: config)
    return history


@pytest.fixture
def client(shared_redis: EmbeddedRedis) -> Iterator[redis.Redis]:
    """Sees what lies in Redis, and nothing of an earlier test."""
    with redis.Redis.from_url(shared_redis.url, protocol=2, decode_responses=True) as client:
        client.flushall()
        yield client


def test_durable_history_of_the_settings_keeps_what_nobody_listens_to(
    durable_settings: HistoryConfig, shared_redis: EmbeddedRedis, client: redis.Redis
) -> None:
    results = [publish(shared_redis, "a", "--queue", "q", "--progress", str(n)) for n in range(3)]

    kept: list[tuple[str, dict[str, str]]] = client.xrange("cli:a")  # type: ignore[assignment]
    assert [result.exit_code for result in results] == [0, 0, 0]
    assert [json.loads(fields["payload"])["progress"] for _, fields in kept] == [1, 2]
    assert f"as event {kept[-1][0]}: {{" in results[-1].stdout
    assert results[-1].stderr == ""
    assert 0 < client.ttl("cli:a") <= durable_settings.ttl_seconds
    assert client.zrange("cli:queue:q", 0, -1) == ["a"]


@pytest.mark.usefixtures("durable_settings")
def test_lines_are_kept_in_durable_history_too(
    shared_redis: EmbeddedRedis, client: redis.Redis
) -> None:
    lines = '{"jobId": "a", "progress": 1}\n[]\n{"jobId": "b", "status": "done"}\n'

    result = publish(shared_redis, "-", input=lines)

    assert result.stderr.splitlines()[-1] == "2 published, 1 failed"
    assert sorted(client.keys("cli:*")) == ["cli:a", "cli:b", "cli:queue:default"]


# --- tokens ------------------------------------------------------------

SECRET = "a secret of thirty-two bytes or so"


@pytest.fixture
def with_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_AUTH__JWT_SECRET", SECRET)


def claims(result: Result) -> dict[str, Any]:
    """What the only line on standard output says."""
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    told: dict[str, Any] = jwt.decode(
        line, SECRET, algorithms=["HS256"], options={"verify_aud": False}
    )
    return told


@pytest.mark.usefixtures("with_secret")
def test_a_token_allows_everything_unless_it_is_told_what() -> None:
    told = claims(relay("token"))

    assert (told["jobs"], told["queues"], told["sub"]) == (["*"], ["*"], "developer")
    assert told["exp"] - told["iat"] == 3600


@pytest.mark.usefixtures("with_secret")
@pytest.mark.parametrize(
    ("options", "jobs", "queues"),
    [
        (["--jobs", "a-*", "--jobs", "b"], ["a-*", "b"], []),
        (["--queues", "images"], [], ["images"]),
        (["--jobs", "a", "--queues", "q"], ["a"], ["q"]),
    ],
)
def test_a_token_allows_what_is_named_and_nothing_more(
    options: list[str], jobs: list[str], queues: list[str]
) -> None:
    told = claims(relay("token", *options, "--subject", "ann", "--ttl", "60"))

    assert (told["jobs"], told["queues"], told["sub"]) == (jobs, queues, "ann")
    assert told["exp"] - told["iat"] == 60


def test_a_token_follows_the_settings_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "dev.toml").write_text(
        f'[auth]\nmode = "jwt"\njwt_secret = "{SECRET}"\naudience = "relay"\njobs_claim = "watch"\n'
    )

    told = claims(relay("token", "--config", "dev.toml", "--jobs", "a"))

    assert (told["aud"], told["watch"]) == ("relay", ["a"])


def test_without_a_secret_it_suggests_one_and_the_exit_code_is_2() -> None:
    result = relay("token")

    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("auth.jwt_secret: is not set")


@pytest.mark.usefixtures("with_secret")
@pytest.mark.parametrize(
    "options", [["--ttl", "0"], ["--jobs", "a" * 300 + "*"], ["--subject", ""]]
)
def test_a_token_that_would_not_be_believed_is_a_usage_error(options: list[str]) -> None:
    result = relay("token", *options)

    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_key_file_without_a_public_key_is_a_fault_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.pem").write_text("nothing")
    monkeypatch.setenv("RELAY_AUTH__MODE", "jwt")
    monkeypatch.setenv("RELAY_AUTH__JWT_PUBLIC_KEY_FILE", "key.pem")

    for command in ("check-config", "serve"):
        result = relay(command)
        assert result.exit_code == 2
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("auth.")]
        assert line.startswith("auth.jwt_public_key_file: key.pem should hold a public key as PEM")


# --- watch ------------------------------------------------------------


class Watch:
    """`relay watch` as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdout is not None
        self.stdout = process.stdout

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    async def end(self) -> tuple[int, str, str]:
        stdout, stderr = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, stdout.decode(), stderr.decode()


async def start_watch(*arguments: str) -> Watch:
    return Watch(
        await asyncio.create_subprocess_exec(
            *RELAY, "watch", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    )


@pytest.fixture
async def watched_relay() -> AsyncIterator[str]:
    """A relay where the first to come sees its jobs completed."""
    async with FakeRelay(complete).at_port() as url:
        yield url


async def test_watching_jobs_that_complete_is_exit_code_0(watched_relay: str) -> None:
    watching = await start_watch("a", "b", "--url", watched_relay)

    assert await watching.end() == (0, "a  100%  completed\nb  100%  completed\n", "")


async def test_watching_a_job_that_fails_is_exit_code_1() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.subscribe()
        await visitor.say(*failed("a", "disk full"))

    async with FakeRelay(visit).at_port() as url:
        watching = await start_watch("a", "--url", url)
        assert await watching.end() == (1, "a  0%  failed  disk full\n", "")


async def test_watching_where_no_relay_is_is_exit_code_2() -> None:
    async with FakeRelay(404).at_port() as url:
        code, stdout, stderr = await (await start_watch("a", "--url", url)).end()

    assert (code, stdout) == (2, "")
    assert "there is no relay" in stderr
    assert len(stderr.splitlines()) == 1


async def test_the_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_TOKEN", "secret")
    fake = FakeRelay(complete)

    async with fake.at_port() as url:
        await (await start_watch("a", "--url", url)).end()

    assert fake.authorizations == ["Bearer secret"]


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """For what is started: a shell that runs the tests in its background has them ignore Ctrl-C, and all they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
async def test_ctrl_c_ends_watching_with_130_and_no_traceback() -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.subscribe()
        await visitor.say(*progress("a", 45))

    async with FakeRelay(visit).at_port() as url:
        watching = await start_watch("a", "--url", url)
        first = await watching.stdout.readline()
        watching.interrupt()
        code, _, stderr = await watching.end()

    assert (first, code, stderr) == (b"a  45%  active\n", 130, "")


def test_a_url_that_is_none_is_exit_code_2() -> None:
    result = relay("watch", "a", "--url", "localhost:3001")

    assert result.exit_code == 2
    assert "http://localhost:3001" in result.stderr


def test_watching_nothing_is_a_usage_error() -> None:
    assert relay("watch").exit_code == 2


@pytest.mark.e2e
def test_what_is_published_is_watched_through_a_served_relay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared_redis: EmbeddedRedis
) -> None:
    monkeypatch.setenv("RELAY_REDIS__URL", shared_redis.url)
    monkeypatch.setenv("RELAY_SERVER__PORT", "0")
    monkeypatch.setenv("RELAY_ADMIN__PORT", "0")
    command = [*RELAY, "serve", "--ready-file", "ready.json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert any(b"redis_subscribed" in line for line in server.stdout)
            ready = json.loads((tmp_path / "ready.json").read_text())
            published = relay("publish", "cli-a", "--queue", "q", "--result", '{"n": 1}')
            watch = [*RELAY, "watch", "cli-a", "--url", ready["public"]]
            watched = subprocess.run(watch, check=False, capture_output=True, timeout=20)
        finally:
            server.terminate()

    assert ready["pid"] == server.pid
    assert published.exit_code == 0
    assert watched.returncode == 0
    assert watched.stdout == b'cli-a  100%  completed  {"n":1}\n'
    assert server.returncode == 0
