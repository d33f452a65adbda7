"""Every series of the contract is there from the start, and says what the core has counted."""

from collections.abc import Mapping

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from relay import __version__
from relay.core.closing import CloseReason
from relay.core.errors import AmendedReason, ErrorCode, InvalidReason
from relay.core.stats import Stats
from relay.core.wire import COMMANDS
from relay.metrics import Metrics, RelayCollector
from tests.fakes import Relay

SERIES = {
    "relay_build_info": {"version", "python"},
    "relay_connections": {"transport"},
    "relay_connections_opened_total": {"transport"},
    "relay_connections_closed_total": {"reason"},
    "relay_handshakes_rejected_total": {"reason"},
    "relay_tokens_refused_total": {"reason"},
    "relay_subscriptions": {"kind"},
    "relay_client_messages_total": {"event"},
    "relay_client_errors_total": {"code"},
    "relay_messages_received_total": set(),
    "relay_messages_unwatched_total": set(),
    "relay_messages_invalid_total": {"reason"},
    "relay_messages_amended_total": {"reason"},
    "relay_duplicates_total": set(),
    "relay_deliveries_total": {"event"},
    "relay_delivered_bytes_total": set(),
    "relay_conflated_total": set(),
    "relay_outbox_bytes": set(),
    "relay_slow_consumers_closed_total": set(),
    "relay_history_jobs": set(),
    "relay_history_bytes": set(),
    "relay_replayed_total": set(),
    "relay_gaps_total": set(),
    "relay_redis_up": set(),
    "relay_redis_reconnects_total": set(),
    "relay_relay_seconds_count": set(),
    "relay_relay_seconds_sum": set(),
    "relay_relay_seconds_bucket": {"le"},
    "relay_delivery_seconds_count": set(),
    "relay_delivery_seconds_sum": set(),
    "relay_delivery_seconds_bucket": {"le"},
    "relay_loop_lag_seconds": set(),
}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def families(stats: Stats, subscriptions: Mapping[str, int] | None = None) -> list[Metric]:
    collector = RelayCollector(stats, Relay().history, lambda: subscriptions or {})
    text = Metrics(collector).render("")[0].decode()
    return list(text_string_to_metric_families(text))


def samples(stats: Stats, subscriptions: Mapping[str, int] | None = None) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families(stats, subscriptions)
        for sample in family.samples
        if sample.name.startswith("relay_")
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def label_values(found: Samples, name: str) -> set[str]:
    return {text for series, labels in found if series == name for _, text in labels}


def test_every_series_is_there_before_anything_happened_with_its_labels() -> None:
    found = samples(Stats())

    names = {name for name, _ in found}
    assert names == SERIES.keys()
    assert all({label for label, _ in labels} == SERIES[name] for name, labels in found)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("relay_connections_closed_total", {reason.label for reason in CloseReason}),
        ("relay_messages_invalid_total", {reason.value for reason in InvalidReason}),
        ("relay_messages_amended_total", {reason.value for reason in AmendedReason}),
        ("relay_client_errors_total", {code.value for code in ErrorCode}),
        ("relay_client_messages_total", {*COMMANDS, "other"}),
        (
            "relay_deliveries_total",
            {"job-progress", "job-completed", "job-failed", "other"},
        ),
        ("relay_subscriptions", {"job", "queue"}),
        ("relay_connections", {"websocket", "sse"}),
    ],
)
def test_all_values_of_a_label_are_there_from_the_start(name: str, known: set[str]) -> None:
    assert label_values(samples(Stats()), name) == known


@pytest.mark.parametrize(
    "attribute",
    [
        "received", "unwatched", "duplicates", "delivered_bytes", "conflated", "outbox_bytes",
        "slow_consumers_closed", "replayed", "gaps", "redis_reconnects", "loop_lag_seconds",
    ],
)  # fmt: skip
def test_number_that_the_core_counts_is_that_of_one_series(attribute: str) -> None:
    stats = Stats()
    before = samples(stats)

    setattr(stats, attribute, 7)

    changed = {key: now for key, now in samples(stats).items() if before[key] != now}
    assert list(changed.values()) == [7]
    ((name, _),) = changed
    assert attribute in name


@pytest.mark.parametrize(
    ("attribute", "name", "label", "text"),
    [
        ("connections", "relay_connections", "transport", "websocket"),
        ("connections_opened", "relay_connections_opened_total", "transport", "websocket"),
        ("connections_closed", "relay_connections_closed_total", "reason", "slow_consumer"),
        ("handshakes_rejected", "relay_handshakes_rejected_total", "reason", "origin"),
        ("handshakes_rejected", "relay_handshakes_rejected_total", "reason", "too_large"),
        ("client_messages", "relay_client_messages_total", "event", "ping"),
        ("client_errors", "relay_client_errors_total", "code", "rate-limited"),
        ("invalid", "relay_messages_invalid_total", "reason", "not_json"),
        ("amended", "relay_messages_amended_total", "reason", "truncated"),
        ("deliveries", "relay_deliveries_total", "event", "job-failed"),
    ],
)
def test_number_by_label_is_that_of_its_series(
    attribute: str, name: str, label: str, text: str
) -> None:
    stats = Stats()

    getattr(stats, attribute)[text] += 3

    assert value(samples(stats), name, **{label: text}) == 3


def test_redis_is_up_or_not() -> None:
    stats = Stats()
    down = value(samples(stats), "relay_redis_up")

    stats.redis_up = True

    assert (down, value(samples(stats), "relay_redis_up")) == (0, 1)


def test_subscriptions_are_those_of_now() -> None:
    found = samples(Stats(), {"job": 2, "queue": 5})

    assert value(found, "relay_subscriptions", kind="job") == 2
    assert value(found, "relay_subscriptions", kind="queue") == 5


def test_history_is_measured_when_it_is_asked_for() -> None:
    relay = Relay()
    metrics = Metrics(RelayCollector(Stats(), relay.history, dict))

    relay.publish(progress=1)
    text = metrics.render("")[0].decode()

    assert "\nrelay_history_jobs 1.0\n" in text
    assert f"\nrelay_history_bytes {float(relay.history.size_bytes)}\n" in text


def test_build_info_tells_the_version() -> None:
    (labels,) = (dict(labels) for name, labels in samples(Stats()) if name == "relay_build_info")

    assert labels["version"] == __version__


@pytest.mark.parametrize("name", ["relay_seconds", "delivery_seconds"])
def test_histogram_is_cumulative_and_adds_up(name: str) -> None:
    stats = Stats()
    histogram = getattr(stats, name)

    histogram.observe(0.0002, 3)
    histogram.observe(99.0)
    found = samples(stats)

    assert value(found, f"relay_{name}_bucket", le="0.0001") == 0
    assert value(found, f"relay_{name}_bucket", le="0.00025") == 3
    assert value(found, f"relay_{name}_bucket", le="10.0") == 3
    assert value(found, f"relay_{name}_bucket", le="+Inf") == 4
    assert value(found, f"relay_{name}_count") == 4
    assert value(found, f"relay_{name}_sum") == pytest.approx(99.0006)


def test_every_series_is_explained_in_a_sentence() -> None:
    for family in families(Stats()):
        assert family.documentation, family.name
        assert family.name.startswith(("process_", "python_")) or family.documentation[-1] == "."


def test_two_relays_in_one_process_do_not_share_their_metrics() -> None:
    busy, idle = Stats(), Stats()

    busy.received = 9

    assert value(samples(busy), "relay_messages_received_total") == 9
    assert value(samples(idle), "relay_messages_received_total") == 0
