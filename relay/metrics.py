"""Every Prometheus series, named and explained; read from `core/stats` when Prometheus scrapes.

Labels come from our own enums and tables. All their values are there from the start, so that a rate is
right from the first event on.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, get_args

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from relay import __version__
from relay.auth.tokens import TokenFault
from relay.core.closing import CloseReason
from relay.core.errors import AmendedReason, ErrorCode, InvalidReason
from relay.core.event import KNOWN_EVENTS
from relay.core.history import History
from relay.core.stats import Histogram, Stats
from relay.core.wire import COMMANDS, EVENT_STREAM, WEBSOCKET

EVENT_LABELS: Final = (*sorted(KNOWN_EVENTS), "other")
TRANSPORTS: Final = (WEBSOCKET.transport, EVENT_STREAM.transport)
REJECTIONS: Final = (
    "draining", "host", "malformed", "max_connections", "max_connections_per_address", "origin",
    "timeout", "token", "too_large", "version",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RelayCollector(Collector):
    """Turns the relay's own counts into Prometheus metrics. `subscriptions` gives counts by kind."""

    stats: Stats
    history: History
    subscriptions: Callable[[], Mapping[str, int]]

    def collect(self) -> Iterable[Metric]:
        """All series of the relay; called once a scrape."""
        yield from self._connections()
        yield from self._messages()
        yield from self._deliveries()
        yield from self._upstream()

    def _connections(self) -> Iterator[Metric]:
        stats = self.stats
        info = GaugeMetricFamily(
            "relay_build_info", "Always 1; the labels tell what runs.", labels=["version", "python"]
        )
        info.add_metric([__version__, platform.python_version()], 1)
        yield info
        yield _gauges(
            "relay_connections",
            "Open client connections.",
            "transport",
            stats.connections,
            TRANSPORTS,
        )
        yield _counters(
            "relay_connections_opened", "Client connections accepted since the start.",
            "transport", stats.connections_opened, TRANSPORTS,
        )  # fmt: skip
        yield _counters(
            "relay_connections_closed", "Client connections that ended, by why they did.",
            "reason", stats.connections_closed, [reason.label for reason in CloseReason],
        )  # fmt: skip
        yield _counters(
            "relay_handshakes_rejected", "Connections refused before they became a session.",
            "reason", stats.handshakes_rejected, REJECTIONS,
        )  # fmt: skip
        yield _counters(
            "relay_tokens_refused", "Tokens and proxies' claims that were not believed, by why.",
            "reason", stats.tokens_refused, get_args(TokenFault),
        )  # fmt: skip
        yield _gauges(
            "relay_subscriptions", "Subscriptions of all clients to jobs and to queues.",
            "kind", self.subscriptions(), ("job", "queue"),
        )  # fmt: skip
        yield _counters(
            "relay_client_messages", "Messages from clients.",
            "event", stats.client_messages, (*sorted(COMMANDS), "other"),
        )  # fmt: skip
        yield _counters(
            "relay_client_errors", "Messages from clients that were answered with an error.",
            "code", stats.client_errors, [code.value for code in ErrorCode],
        )  # fmt: skip

    def _messages(self) -> Iterator[Metric]:
        stats = self.stats
        yield _counter("relay_messages_received", "Messages read off Redis.", stats.received)
        yield _counter(
            "relay_messages_unwatched", "Messages of jobs that nobody watched.", stats.unwatched
        )
        yield _counters(
            "relay_messages_invalid", "Messages from Redis that were dropped, by why.",
            "reason", stats.invalid, [reason.value for reason in InvalidReason],
        )  # fmt: skip
        yield _counters(
            "relay_messages_amended", "Messages from Redis that were put right and delivered.",
            "reason", stats.amended, [reason.value for reason in AmendedReason],
        )  # fmt: skip
        yield _counter(
            "relay_duplicates",
            "Events that had been told before and were dropped.",
            stats.duplicates,
        )
        yield _gauge("relay_history_jobs", "Jobs held in history.", len(self.history))
        yield _gauge(
            "relay_history_bytes", "Bytes of history in memory, by our own count.",
            self.history.size_bytes,
        )  # fmt: skip

    def _deliveries(self) -> Iterator[Metric]:
        stats = self.stats
        yield _counters(
            "relay_deliveries", "Events handed to client sockets, one for each client.",
            "event", stats.deliveries, EVENT_LABELS,
        )  # fmt: skip
        yield _counter(
            "relay_delivered_bytes", "Bytes handed to client sockets.", stats.delivered_bytes
        )
        yield _counter(
            "relay_conflated", "Unsent events of slow clients that a newer one replaced.",
            stats.conflated,
        )  # fmt: skip
        yield _gauge(
            "relay_outbox_bytes", "Bytes that wait for clients outside their sockets.",
            stats.outbox_bytes,
        )  # fmt: skip
        yield _counter(
            "relay_slow_consumers_closed", "Clients closed because their outbox was full.",
            stats.slow_consumers_closed,
        )  # fmt: skip
        yield _counter(
            "relay_replayed", "Events sent again to clients that came back.", stats.replayed
        )
        yield _histogram(
            "relay_relay_seconds", "From reading a watched event off Redis to its last socket.",
            stats.relay_seconds,
        )  # fmt: skip
        yield _histogram(
            "relay_delivery_seconds", "From the publisher's ts to the event's last socket.",
            stats.delivery_seconds,
        )  # fmt: skip

    def _upstream(self) -> Iterator[Metric]:
        stats = self.stats
        yield _gauge("relay_redis_up", "1 while subscribed to Redis, else 0.", int(stats.redis_up))
        yield _counter(
            "relay_redis_reconnects", "Subscriptions to Redis after the first.",
            stats.redis_reconnects,
        )  # fmt: skip
        yield _counter(
            "relay_gaps", "Times that events may have been missed and nothing filled the gap.",
            stats.gaps,
        )  # fmt: skip
        yield _gauge(
            "relay_loop_lag_seconds", "How late the event loop came to a timer, last time.",
            stats.loop_lag_seconds,
        )  # fmt: skip


class Metrics:
    """The registry of one relay, with the process's own metrics beside it."""

    def __init__(self, collector: Collector) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self._registry = registry

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that an Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counters(
    name: str, text: str, label: str, counts: Mapping[str, int], known: Iterable[str]
) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value in known:
        family.add_metric([value], counts.get(value, 0))
    return family


def _gauges(
    name: str, text: str, label: str, counts: Mapping[str, int], known: Iterable[str]
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value in known:
        family.add_metric([value], counts.get(value, 0))
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=histogram.sum)
