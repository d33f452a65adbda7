"""One look at the whole relay, for the dashboard: what is there now, and what happened since the last look.

Rates are differences of the counters that the metrics show, divided by the time between two looks; latency is
the quantiles of what the histograms counted in that time. Reads, and changes nothing; a look at 20,000
connections takes some 10 ms.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, Final, NamedTuple

from relay import __version__
from relay.core.stats import Histogram, Stats, quantile
from relay.web.gateway import Gateway, Guest

MAX_BUSIEST: Final = 8
MAX_SLOWEST: Final = 5
TRANSPORTS: Final = ("websocket", "sse", "longpoll")
# To find the busiest jobs each one that is watched is looked at: 100,000 of them take some 25 ms.
BUSIEST_EVERY_SECONDS: Final = 5.0

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the configuration allows history. `backend` is "memory", "redis" or "off"."""

    backend: str
    max_jobs: int
    max_bytes: int


class _Look(NamedTuple):
    """The counters at one time (monotonic seconds)."""

    at: float
    counts: Mapping[str, int]
    relay: Sequence[int]
    delivery: Sequence[int]


class Overview:
    """See the module's promise. `clock` tells monotonic seconds."""

    def __init__(
        self, gateway: Gateway, bounds: Bounds, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._gateway = gateway
        self._bounds = bounds
        self._clock = clock
        self._started_ms = int(time.time() * 1000)
        self._last: _Look | None = None
        self._busiest: Json = {}
        self._busiest_at = 0.0

    def forget(self) -> None:
        """The next look is the first: it has no rates."""
        self._last = None

    def look(self) -> Json:
        """The relay as it stands, in the words of `GET /admin/events`."""
        gateway, stats, history = self._gateway, self._gateway.hub.stats, self._gateway.hub.history
        guests = gateway.guests()
        kinds = Counter(guest.transport_name for guest in guests)
        now = _Look(
            self._clock(),
            _counts(stats),
            tuple(stats.relay_seconds.counts),
            tuple(stats.delivery_seconds.counts),
        )
        last, self._last = self._last, now
        if last is None or now.at - self._busiest_at >= BUSIEST_EVERY_SECONDS:
            self._busiest, self._busiest_at = self._find_busiest(), now.at
        return {
            "at": int(time.time() * 1000),
            "relay": {
                "version": __version__,
                "startedAt": self._started_ms,
                "draining": gateway.draining,
                "loopLagSeconds": stats.loop_lag_seconds,
            },
            "redis": {
                "connected": stats.redis_up,
                "reconnects": stats.redis_reconnects,
                "gaps": stats.gaps,
            },
            "connections": {
                "total": len(guests),
                "max": gateway.max_connections,
                **{name: kinds[name] for name in TRANSPORTS},
            },
            "subscriptions": dict(gateway.hub.index.counts),
            "rates": None if last is None else _rates(last, now),
            "latency": None if last is None else _latency(last, now, stats),
            "slow": {
                "now": sum(guest.session.outbox.congested for guest in guests),
                "closed": stats.slow_consumers_closed,
                "conflated": stats.conflated,
                "pendingBytes": stats.outbox_bytes,
                "slowest": _slowest(guests),
            },
            "history": {
                "backend": self._bounds.backend,
                "jobs": len(history),
                "maxJobs": self._bounds.max_jobs,
                "bytes": history.size_bytes,
                "maxBytes": self._bounds.max_bytes,
            },
            "busiest": self._busiest,
        }

    def _find_busiest(self) -> Json:
        index = self._gateway.hub.index
        return {
            "jobs": [
                {"jobId": job_id, "queueName": queue, "watchers": watchers}
                for (queue, job_id), watchers in index.busiest_jobs(MAX_BUSIEST)
            ],
            "queues": [
                {"queueName": queue, "watchers": watchers}
                for queue, watchers in index.busiest_queues(MAX_BUSIEST)
            ],
        }


def _counts(stats: Stats) -> dict[str, int]:
    return {
        "received": stats.received,
        "unwatched": stats.unwatched,
        "invalid": sum(stats.invalid.values()),
        "events": sum(stats.relay_seconds.counts),
        "deliveries": sum(stats.deliveries.values()),
        "deliveredBytes": stats.delivered_bytes,
        "conflated": stats.conflated,
        "opened": sum(stats.connections_opened.values()),
        "closed": sum(stats.connections_closed.values()),
    }


def _rates(last: _Look, now: _Look) -> dict[str, float]:
    seconds = now.at - last.at
    return {
        name: round((count - last.counts[name]) / seconds, 2) for name, count in now.counts.items()
    }


def _latency(last: _Look, now: _Look, stats: Stats) -> Json:
    return {
        "relay": _quantiles(stats.relay_seconds, last.relay, now.relay),
        "delivery": _quantiles(stats.delivery_seconds, last.delivery, now.delivery),
    }


def _quantiles(histogram: Histogram, last: Sequence[int], now: Sequence[int]) -> Json | None:
    """Of what was counted between two looks, in seconds; None where that is nothing."""
    counts = [after - before for before, after in zip(last, now, strict=True)]
    if not any(counts):
        return None
    return {
        "p50": quantile(histogram.bounds, counts, 0.5),
        "p99": quantile(histogram.bounds, counts, 0.99),
    }


def _slowest(guests: Sequence[Guest]) -> list[Json]:
    """Those for whom most waits."""
    behind = [guest for guest in guests if guest.session.outbox.pending_bytes]
    found = nlargest(MAX_SLOWEST, behind, key=lambda guest: guest.session.outbox.pending_bytes)
    return [
        {
            "connectionId": guest.session.connection_id,
            "remote": guest.remote,
            "pendingBytes": guest.session.outbox.pending_bytes,
        }
        for guest in found
    ]
