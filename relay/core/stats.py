"""The plain integers the core counts in; `metrics.py` reads them when Prometheus scrapes.

Adding to an attribute costs a thirtieth of what a Prometheus counter does, and the core stays free of
any metrics library. Labelled counters are dicts whose keys come from our own enums and tables, never
from a client or a publisher.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

# From a lone event on an idle machine (some 100 µs) to a client that gave up long ago.
SECONDS_BUCKETS: Final[Sequence[float]] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


class Histogram:
    """Counts of durations in seconds by upper bound, cumulated only when read."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count `seconds` `times` times; a negative duration (clocks differ) counts as zero."""
        seconds = max(seconds, 0.0)
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.sum += seconds * times


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The duration that `share` of those counted stay within, as Prometheus' `histogram_quantile` reckons it.

    Spread evenly within its bucket; above the last bound it is that bound. None where nothing was counted.
    """
    rank = share * sum(counts)
    if not rank:
        return None
    lower = 0.0
    for upper, count in zip(bounds, counts, strict=False):
        if rank <= count:
            return lower + (upper - lower) * rank / count
        rank -= count
        lower = upper
    return lower


class Stats:
    """What happened since the start. Gauges are kept in step by those who own the thing counted."""

    __slots__ = (
        "amended", "client_errors", "client_messages", "conflated", "connections",
        "connections_closed", "connections_opened", "delivered_bytes", "deliveries",
        "delivery_seconds", "duplicates", "gaps", "handshakes_rejected", "invalid",
        "loop_lag_seconds", "outbox_bytes", "received", "redis_reconnects", "redis_up",
        "relay_seconds", "replayed", "slow_consumers_closed", "tokens_refused", "unwatched",
    )  # fmt: skip

    def __init__(self) -> None:
        self.received = 0
        self.unwatched = 0
        self.invalid: Counter[str] = Counter()
        self.amended: Counter[str] = Counter()
        self.duplicates = 0
        self.deliveries: Counter[str] = Counter()
        self.delivered_bytes = 0
        self.conflated = 0
        self.outbox_bytes = 0
        self.slow_consumers_closed = 0
        self.replayed = 0
        self.gaps = 0
        self.client_messages: Counter[str] = Counter()
        self.client_errors: Counter[str] = Counter()
        self.connections: Counter[str] = Counter()
        self.connections_opened: Counter[str] = Counter()
        self.connections_closed: Counter[str] = Counter()
        self.handshakes_rejected: Counter[str] = Counter()
        self.tokens_refused: Counter[str] = Counter()
        self.redis_up = False
        self.redis_reconnects = 0
        self.relay_seconds = Histogram(SECONDS_BUCKETS)
        self.delivery_seconds = Histogram(SECONDS_BUCKETS)
        self.loop_lag_seconds = 0.0
