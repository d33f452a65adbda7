"""Who is measured: how each is started, how its clients talk to it, how it is published to.

A subject that is not installed says what to do about it. All of them hear of the same 200-byte messages. The
floor and nchan take the job from the URL and pass the bare payload on, the others wrap it in an envelope;
nchan is published to by HTTP, Centrifugo in the form of its Redis broker, all others by PUBLISH jobs:<id>.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "bench"
COMPILED = ROOT / ".cache" / "compiled"
_PEERS = Path(__file__).parent / "peers"
_NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
_INSTALL = "make bench-peers"
JWT_SECRET = "only-for-the-benchmark-0123456789abcdef"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one copy of a subject runs."""

    folder: Path
    port: int
    admin_port: int
    redis_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command line and what it needs in its environment."""

    command: list[str]
    environ: dict[str, str] = field(default_factory=dict)


def _relay_dialogue() -> tuple[str, ...]:
    request = '{"event":"subscribe-to-job","data":{"jobId":"%d"}}'
    return "--path", "/job-progress", "--say", request, "--await", '"subscribed"'


def _socketio_dialogue() -> tuple[str, ...]:
    request = '42/job-progress,["subscribe-to-job",{"jobId":"%d"}]'
    return (
        "--path", "/socket.io/?EIO=4&transport=websocket", "--await", '"sid"',
        "--say", "40/job-progress,", "--await", "40/job-progress",
        "--say", request, "--await", "subscribed", "--ping", "2", "--pong", "3",
    )  # fmt: skip


def _centrifugo_dialogue() -> tuple[str, ...]:
    return (
        "--path", "/connection/websocket", "--say", '{"id":1,"connect":{}}', "--await", '"id":1',
        "--say", '{"id":2,"subscribe":{"channel":"jobs:%d"}}', "--await", '"id":2',
        "--ping", "{}", "--pong", "{}",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One server, or several that share a port (`copies`).

    Args:
        subscribes_at_start: whether it is ready once it has subscribed to Redis.
        effort: the share of a workload's events that it is given; a slow one would take minutes.
        is_peer: somebody else's server, or one that stands for what others write.
        needs: a file or command without which it cannot run, and the advice then.
    """

    name: str
    title: str
    launch: Callable[[Place], Launch]
    dialogue: tuple[str, ...]
    publish: tuple[str, ...] = ("publish", "--channel", "jobs:%d")
    publishes_to_server: bool = False
    copies: int = 1
    subscribes_at_start: bool = True
    effort: float = 1.0
    is_peer: bool = False
    needs: tuple[tuple[str | Path, str], ...] = ()

    @property
    def missing(self) -> str | None:
        """What to do before it can be measured; None where nothing is missing."""
        for what, advice in self.needs:
            is_there = what.exists() if isinstance(what, Path) else shutil.which(what) is not None
            if not is_there:
                return advice
        return None


def relay(environ: dict[str, str] | None = None) -> Callable[[Place], Launch]:
    """How a relay is started with its defaults, a channel without a queue, and `environ`."""

    def launch(place: Place) -> Launch:
        settings = {
            "RELAY_SERVER__HOST": "127.0.0.1",
            "RELAY_SERVER__PORT": str(place.port),
            "RELAY_ADMIN__PORT": str(place.admin_port),
            "RELAY_REDIS__URL": f"redis://127.0.0.1:{place.redis_port}/0",
            "RELAY_SOURCE__JOBS__CHANNEL": "jobs:{jobId}",
            "RELAY_LOG__LEVEL": "warning",
        }
        return Launch(
            command=[sys.executable, "-m", "relay", "serve"], environ=settings | (environ or {})
        )

    return launch


def _python(name: str, path: str = "") -> Callable[[Place], Launch]:
    command = [sys.executable, str(_PEERS / name)]
    return lambda _: Launch(command=command, environ={"PYTHONPATH": path})


def _node(name: str) -> Callable[[Place], Launch]:
    environ = {"NODE_ENV": "production", "NODE_FOLDER": str(CACHE / "node")}
    return lambda _: Launch(command=["node", str(_PEERS / name)], environ=environ)


def _nchan(place: Place) -> Launch:
    text = (_PEERS / "nchan.conf").read_text()
    config = place.folder / "nchan.conf"
    config.write_text(
        text.replace("@FOLDER@", str(place.folder)).replace("@PORT@", str(place.port))
    )
    prefix, log = str(place.folder), str(place.folder / "nginx.log")
    return Launch(command=["nginx", "-e", log, "-p", prefix, "-c", str(config)])


def _centrifugo(place: Place) -> Launch:
    config = place.folder / "centrifugo.json"
    namespace = {
        "name": "jobs",
        "allow_subscribe_for_client": True,
        "allow_subscribe_for_anonymous": True,
    }
    settings = {
        "address": "127.0.0.1",
        "port": place.port,
        "engine": "redis",
        "redis_address": f"127.0.0.1:{place.redis_port}",
        "allow_anonymous_connect_without_token": True,
        "client_insecure": False,
        "log_level": "error",
        "namespaces": [namespace],
    }
    config.write_text(json.dumps(settings))
    return Launch(command=[str(CACHE / "centrifugo"), "--config", str(config)])


_NODE_NEEDS = (
    ("node", "install Node.js, then " + _INSTALL),
    (CACHE / "node/node_modules", _INSTALL),
)
_BY_URL = ("--path", "/job/%d")
_TWO = {"RELAY_SERVER__REUSE_PORT": "true"}

_OFF = {"RELAY_HISTORY__BACKEND": "off"}
# A safe path, or the checkout that the benchmark runs in would come first.
_COMPILED = {"PYTHONPATH": str(COMPILED), "PYTHONSAFEPATH": "1"}
_NEEDS_COMPILED = ((COMPILED / ".built", "make bench, which compiles it, or make test-compiled"),)

SUBJECTS = (
    Subject(name="relay", title="relay", launch=relay(), dialogue=_relay_dialogue()),
    Subject(
        name="relay-compiled",
        title="relay, compiled",
        launch=relay(_COMPILED),
        dialogue=_relay_dialogue(),
        needs=_NEEDS_COMPILED,
    ),
    Subject(
        name="relay-compiled-off",
        title="relay, compiled, history off",
        launch=relay(_COMPILED | _OFF),
        dialogue=_relay_dialogue(),
        needs=_NEEDS_COMPILED,
    ),
    Subject(
        name="relay-off",
        title="relay, history off",
        launch=relay(_OFF),
        dialogue=_relay_dialogue(),
    ),
    Subject(
        name="relay-two",
        title="relay × 2 (reuse_port)",
        launch=relay(_TWO),
        dialogue=_relay_dialogue(),
        copies=2,
    ),
    Subject(
        name="floor",
        title="floor (C)",
        launch=lambda _: Launch(command=[str(CACHE / "floor")]),
        dialogue=_BY_URL,
    ),
    Subject(
        name="nchan",
        title="nchan (nginx)",
        launch=_nchan,
        dialogue=_BY_URL,
        publish=("post", "--channel", "/publish/%d", "--window", "64"),
        publishes_to_server=True,
        subscribes_at_start=False,
        is_peer=True,
        needs=(
            ("nginx", "apt-get install nginx-light libnginx-mod-nchan"),
            (_NCHAN_MODULE, "apt-get install libnginx-mod-nchan"),
        ),
    ),
    Subject(
        name="centrifugo",
        title="Centrifugo, Redis engine",
        launch=_centrifugo,
        dialogue=_centrifugo_dialogue(),
        publish=("publish", "--channel", "centrifugo.client.jobs:%d", "--protobuf", "1"),
        subscribes_at_start=False,
        is_peer=True,
        needs=((CACHE / "centrifugo", "install Go, then " + _INSTALL),),
    ),
    Subject(
        name="nest",
        title="NestJS ws gateway",
        launch=_node("nest.mjs"),
        dialogue=_relay_dialogue(),
        is_peer=True,
        needs=_NODE_NEEDS,
    ),
    Subject(
        name="socketio",
        title="Socket.IO",
        launch=_node("socketio.mjs"),
        dialogue=_socketio_dialogue(),
        is_peer=True,
        needs=_NODE_NEEDS,
    ),
    Subject(
        name="naive",
        title="naive (aiohttp)",
        launch=_python("naive.py"),
        dialogue=_relay_dialogue(),
        is_peer=True,
    ),
    Subject(
        name="pysocketio",
        title="python-socketio",
        launch=_python("pysocketio.py", str(CACHE / "python")),
        dialogue=_socketio_dialogue(),
        effort=0.1,
        is_peer=True,
        needs=((CACHE / "python/socketio", _INSTALL),),
    ),
)


def find(name: str) -> Subject:
    """The subject of this name.

    Raises:
        KeyError: there is none.
    """
    return {subject.name: subject for subject in SUBJECTS}[name]


def environ_for(launch: Launch, place: Place) -> dict[str, str]:
    """The whole environment of a copy: ours without a relay's settings, and what it asked for."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    ports = {"PORT": str(place.port), "REDIS_PORT": str(place.redis_port)}
    return inherited | ports | launch.environ
