"""What the core counts in: a histogram's buckets hold what Prometheus expects of `le`."""

import pytest

from relay.core.stats import SECONDS_BUCKETS, Histogram, Stats, quantile


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [
        (-1.0, [1, 0, 0]),
        (0.0, [1, 0, 0]),
        (1.0, [1, 0, 0]),
        (1.001, [0, 1, 0]),
        (2.0, [0, 1, 0]),
        (2.001, [0, 0, 1]),
    ],
)
def test_duration_counts_in_the_first_bucket_that_is_not_below_it(
    seconds: float, counts: list[int]
) -> None:
    histogram = Histogram((1.0, 2.0))

    histogram.observe(seconds)

    assert histogram.counts == counts


def test_sum_and_counts_take_many_observations_at_once() -> None:
    histogram = Histogram((1.0, 2.0))

    histogram.observe(1.5, 3)
    histogram.observe(-5.0)

    assert (histogram.counts, histogram.sum) == ([1, 3, 0], 4.5)


def test_bounds_rise() -> None:
    assert sorted(set(SECONDS_BUCKETS)) == list(SECONDS_BUCKETS)
    assert Stats().relay_seconds.bounds == SECONDS_BUCKETS


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [
        ([0, 0, 0], 0.5, None),
        ([4, 0, 0], 0.5, 0.5),  # half of the first bucket, which begins at 0
        ([1, 3, 0], 0.25, 1.0),
        ([1, 3, 0], 0.5, 1 + 1 / 3),
        ([0, 1, 0], 0.99, 1.99),
        ([1, 0, 1], 0.5, 1.0),
        ([1, 0, 1], 0.99, 2.0),  # nothing is known above the last bound
    ],
)
def test_quantile_is_where_that_share_of_what_was_counted_ends(
    counts: list[int], share: float, seconds: float | None
) -> None:
    assert quantile((1.0, 2.0), counts, share) == pytest.approx(seconds)


def test_two_instances_share_nothing() -> None:
    one, other = Stats(), Stats()

    one.invalid["not_json"] += 1
    one.relay_seconds.observe(0.1)

    assert other.invalid["not_json"] == 0
    assert sum(other.relay_seconds.counts) == 0
