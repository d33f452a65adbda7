"""The workloads: what is opened, what is published, and what that cost a unit.

A unit is what the user pays for: a delivery, an event that nobody watches, a connection, a handshake. CPU time
is counted from before the first event until the subject is quiet again, while the clients stay connected.
`size` is what grows in a workload that is run at several sizes; 0 in the others.
"""

import contextlib
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.stage import Numbers, Stage, StageError
from tests.bench.subjects import JWT_SECRET, ROOT, Place, environ_for, relay

# Beyond these many seconds a run is cut and what arrived until then is what counts.
LIMIT_SECONDS = 15
IDLE_SECONDS = 3
# A number of a job that no event is about.
ELSEWHERE = 1_000_000

Measure = Callable[[Stage, int, float], Numbers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A workload and who takes part.

    Args:
        connections: how many one run needs beside its size, where its size is a number of connections.
        only: the names of those who take part; empty means the relay, the floor and all peers.
        also: further ones.
        environ: more for the subject's environment.
        is_fresh: on a process that has served nothing before: each size, where there are several. Else what one
            size left in history would count as growth of the next.
        is_long: left out of a quick run.
        asks_for_tokens: with authentication, where the relay has it.
    """

    name: str
    measure: Measure
    connections: int
    sizes: tuple[int, ...] = (0,)
    grows_connections: bool = False
    only: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    environ: tuple[tuple[str, str], ...] = ()
    is_fresh: bool = False
    is_long: bool = False
    asks_for_tokens: bool = False

    def connections_at(self, size: int) -> int:
        """How many connections a run of this size opens."""
        return self.connections + size * self.grows_connections


def _delivered(
    stage: Stage, clients: Sequence[object], events: Sequence[object], expected: int
) -> Numbers:
    """Publish to clients; CPU time a delivery, and when they arrived."""
    with stage.watchers(*clients, *_expecting(expected)) as watchers:
        return _published(stage, watchers.result, events, expected)


def _expecting(expected: int) -> tuple[object, ...]:
    """How long clients wait for their events. It begins when they are connected, and before the first
    event the subject may take a while to become quiet: hence twice the limit."""
    limits = "--limit-seconds", 2 * LIMIT_SECONDS, "--idle-seconds", IDLE_SECONDS
    return "--expect", expected, *limits


def _published(
    stage: Stage, result: Callable[[], Numbers], events: Sequence[object], expected: int
) -> Numbers:
    stage.settle()
    before, redis_before = stage.cpu(), stage.redis_cpu()
    published = stage.publish(*events, "--limit-seconds", LIMIT_SECONDS)
    arrived = result()
    stage.settle()
    used, redis_used = stage.cpu().since(before), stage.redis_cpu().since(redis_before)
    frames = arrived["frames"]
    if not frames:
        raise StageError(f"no event arrived; Redis cut it off {stage.cut_off()} times")
    parts = used.user + used.system
    seconds = max(1e-9, (arrived["last_ns"] - published["begun_ns"]) / 1e9)
    return {
        "cpu_us": used.total / frames * 1e6,
        "kernel_share": used.system / parts if parts else 0.0,
        "cpu_seconds": used.total,
        "redis_cpu_us": redis_used.total / max(1, published["published"]) * 1e6,
        "per_second": frames / seconds,
        "lost_share": 1 - frames / expected,
        "cut_off": stage.cut_off(),
        "published": published["published"],
        **{name: arrived[name] for name in ("frames", "disordered", "closed", "p50_us", "p90_us")},
        **{name: arrived[name] for name in ("p99_us", "p999_us", "max_us")},
    }


def burst(watchers: int, events: int) -> Measure:
    """One job, all clients watch it, events as fast as Redis takes them."""

    def measure(stage: Stage, size: int, effort: float) -> Numbers:
        count = max(2, int(events * effort))
        return _delivered(stage, ("--clients", watchers), ("--count", count), watchers * count)

    return measure


def paced(watchers: int, events: int, per_second: float) -> Measure:
    """One job, all clients watch it, each event alone."""

    def measure(stage: Stage, size: int, effort: float) -> Numbers:
        count = max(2, int(events * effort))
        told = ("--count", count, "--rate", per_second)
        return _delivered(stage, ("--clients", watchers), told, watchers * count)

    return measure


def each_his_own(clients: int, events: int, per_second: float) -> Measure:
    """As many jobs as clients, one each, events evenly over all."""

    def measure(stage: Stage, size: int, effort: float) -> Numbers:
        count = max(2, int(events * effort))
        told = ("--count", count, "--jobs", clients, "--rate", per_second)
        return _delivered(stage, ("--clients", clients, "--jobs", clients), told, count)

    return measure


def sparse(events: int, jobs: int) -> Measure:
    """Events over many jobs of which one in a hundred is watched: CPU time an event.

    Of a subject that lost some, by what it handled: as many as it delivered, times a hundred.
    """

    def measure(stage: Stage, size: int, effort: float) -> Numbers:
        count, watched = max(jobs, int(events * effort)), jobs // 100
        clients = ("--clients", watched, "--jobs", watched, "--stride", 100)
        expected = sum(len(range(job, count, jobs)) for job in range(0, jobs, 100))
        numbers = _delivered(stage, clients, ("--count", count, "--jobs", jobs), expected)
        return _an_event(numbers, expected, count)

    return measure


def _an_event(numbers: Numbers, expected: int, count: int) -> Numbers:
    """The figures of deliveries as figures of the events that were handled."""
    handled = numbers["frames"] / expected * count
    numbers["cpu_us"] = numbers["cpu_seconds"] / handled * 1e6
    numbers["per_second"] *= count / expected
    return numbers


def handshakes(connections: int) -> Measure:
    """Connections that each subscribe to a job of their own, then idle: CPU time and memory of one."""

    def measure(stage: Stage, size: int, effort: float) -> Numbers:
        wanted = max(10, int(connections * effort))
        stage.settle()
        before, empty_kib = stage.cpu(), stage.pss_kib()
        with stage.watchers("--clients", wanted, "--jobs", wanted) as watchers:
            stage.settle()
            used, full_kib = stage.cpu().since(before), stage.pss_kib()
        ready = max(1, watchers.handshakes["ready"])
        return {
            "cpu_us": used.total / ready * 1e6,
            "kib": (full_kib - empty_kib) / ready,
            "empty_kib": empty_kib,
            "per_second": ready / watchers.handshakes["seconds"],
            "ready": ready,
            "failed": watchers.handshakes["failed"],
        }

    return measure


# --- growth: the same work beside more and more that it does not concern -----------------------------


def paced_beside_connections(stage: Stage, size: int, effort: float) -> Numbers:
    """100 watchers of one job, `size` idle connections, each subscribed to another job."""
    with _idle(stage, size):
        return paced(100, 25, 25)(stage, size, effort)


def paced_beside_subscriptions(stage: Stage, size: int, effort: float) -> Numbers:
    """100 watchers of one job, 100 idle connections with `size` subscriptions together."""
    each = max(1, size // 100)
    job_ids = ",".join(f'"%d-{number}"' for number in range(each))
    request = f'{{"event":"subscribe-to-jobs","data":{{"jobIds":[{job_ids}]}}}}'
    path = stage.subject.dialogue[:2]
    talk = (*path, "--say", request, "--await", '"subscribed"')
    with stage.others(
        *talk, "--clients", 100, "--jobs", 100, "--base", stage.first_job + ELSEWHERE
    ):
        return paced(100, 25, 25)(stage, size, effort)


def sparse_beside_connections(stage: Stage, size: int, effort: float) -> Numbers:
    """Events over 10,000 jobs of which one in a hundred is watched, `size` idle connections."""
    with _idle(stage, size):
        return sparse(100_000, 10_000)(stage, size, effort)


def sparse_over_jobs(stage: Stage, size: int, effort: float) -> Numbers:
    """Events over `size` jobs, each heard of before, of which the last is watched."""
    count = max(size, int(100_000 * effort) // size * size)
    stage.publish("--count", size, "--jobs", size, "--warm-up", 1)
    stage.settle()
    events, expected = ("--count", count, "--jobs", size), count // size
    numbers = _delivered(
        stage, ("--clients", 1, "--base", stage.first_job + size - 1), events, expected
    )
    return _an_event(numbers, expected, count)


@contextlib.contextmanager
def _idle(stage: Stage, connections: int) -> Iterator[None]:
    with stage.watchers(
        "--clients", connections, "--jobs", connections, "--base", stage.first_job + ELSEWHERE
    ):
        yield


# --- everything on ---------------------------------------------------------------------------------

STALLED_SHARE = 0.1
# What fills a stalled client's socket buffers on both ends, whatever they are.
WARM_UP_EVENTS, WARM_UP_BYTES = 100, 4000


AUTH = {"RELAY_AUTH__MODE": "jwt", "RELAY_AUTH__JWT_SECRET": JWT_SECRET}


def token() -> str:
    """A token for all jobs; none where this relay cannot make one."""
    place = Place(folder=ROOT, port=0, admin_port=0, redis_port=6379)
    launch = relay(AUTH)(place)
    command = [*launch.command[:-1], "token", "--jobs", "*", "--ttl", "86400"]
    environ = environ_for(launch, place)
    done = subprocess.run(
        command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False
    )
    words = done.stdout.split()
    return words[-1] if done.returncode == 0 and words else ""


def everything(*, one_job: bool) -> Measure:
    """1,000 clients of whom a tenth has stopped reading, and metrics scraped every second."""

    def measure(stage: Stage, size: int, effort: float) -> Numbers:
        clients, stalled = 1000, int(1000 * STALLED_SHARE)
        jobs = 1 if one_job else clients
        events, per_second = (50, 25) if one_job else (4000, 2000)
        count = max(jobs, int(events * effort) // jobs * jobs)
        healthy = clients - stalled
        expected = count // jobs * healthy
        watch = ("--clients", clients, "--jobs", jobs, "--stalled", stalled)
        with stage.watchers(*watch, *_expecting(expected)) as watchers, _scraping(stage):
            first, filled = (0, 1) if one_job else (healthy, stalled)
            warm_up = ("--warm-up", 1, "--size", WARM_UP_BYTES, "--count", WARM_UP_EVENTS * filled)
            stage.publish("--base", stage.first_job + first, "--jobs", filled, *warm_up)
            told = ("--count", count, "--jobs", jobs, "--rate", per_second)
            numbers = _published(stage, watchers.result, told, expected)
            return numbers | {"conflated": _metric(stage, "relay_conflated_total")}

    return measure


@contextlib.contextmanager
def _scraping(stage: Stage) -> Iterator[None]:
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(1.0):
            _metrics(stage)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _metrics(stage: Stage) -> str:
    url = f"http://127.0.0.1:{stage.admin_ports[0]}/metrics"
    with urllib.request.urlopen(url, timeout=LIMIT_SECONDS) as answer:
        text: str = answer.read().decode()
        return text


def _metric(stage: Stage, name: str) -> float:
    lines = (line.split() for line in _metrics(stage).splitlines() if line.startswith(name))
    return sum(float(line[-1]) for line in lines)


# No ping is due while these are measured: heartbeats cost by the second, not by the event.
_NO_HEARTBEAT = (("RELAY_HEARTBEAT__INTERVAL_SECONDS", "600"),)
_CONNECTIONS = (10, 100, 1_000, 10_000)
_THINGS = (100, 1_000, 10_000, 100_000)
_RELAY = ("relay",)
_COMPILED = ("relay-compiled",)
_FURTHER = ("relay-compiled", "relay-two")

WORKLOADS = (
    Workload(
        name="handshakes",
        measure=handshakes(5000),
        connections=5000,
        also=_COMPILED,
        is_fresh=True,
    ),
    Workload(
        name="idle",
        measure=handshakes(15_000),
        connections=15_000,
        only=("relay", "floor"),
        is_fresh=True,
        is_long=True,
    ),
    Workload(name="burst-1000", measure=burst(1000, 200), connections=1000, also=_COMPILED),
    Workload(name="burst-5000", measure=burst(5000, 40), connections=5000, also=_FURTHER),
    Workload(name="paced", measure=paced(1000, 50, 25), connections=1000, also=_FURTHER),
    Workload(
        name="all-paced",
        measure=everything(one_job=True),
        connections=1000,
        only=_RELAY,
        is_fresh=True,
        asks_for_tokens=True,
    ),
    Workload(name="each", measure=each_his_own(1000, 4000, 2000), connections=1000, also=_COMPILED),
    Workload(
        name="all-each",
        measure=everything(one_job=False),
        connections=1000,
        only=_RELAY,
        is_fresh=True,
        asks_for_tokens=True,
    ),
    Workload(
        name="sparse",
        measure=sparse(200_000, 10_000),
        connections=100,
        also=("relay-off", "relay-compiled-off", *_FURTHER),
    ),
    Workload(
        name="growth-paced-connections",
        measure=paced_beside_connections,
        connections=100,
        sizes=_CONNECTIONS,
        grows_connections=True,
        only=_RELAY,
        environ=_NO_HEARTBEAT,
    ),
    Workload(
        name="growth-paced-subscriptions",
        measure=paced_beside_subscriptions,
        connections=200,
        sizes=_THINGS,
        only=_RELAY,
        environ=_NO_HEARTBEAT,
    ),
    Workload(
        name="growth-sparse-connections",
        measure=sparse_beside_connections,
        connections=100,
        sizes=_CONNECTIONS,
        grows_connections=True,
        only=_RELAY,
        environ=_NO_HEARTBEAT,
        is_fresh=True,
    ),
    Workload(
        name="growth-sparse-jobs",
        measure=sparse_over_jobs,
        connections=1,
        sizes=_THINGS,
        only=_RELAY,
        environ=_NO_HEARTBEAT,
        is_fresh=True,
    ),
)
