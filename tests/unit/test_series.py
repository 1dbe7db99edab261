"""Points of a series: buckets, quantiles, sums, and what is computed from a history."""

from __future__ import annotations

import random
from typing import get_args

import pytest

from sollol_broker.rates import quantiles_over_time, rates
from sollol_broker.series import (
    LEAST_MS,
    MOST_BUCKET,
    STEPS,
    History,
    Point,
    Time,
    bucket_of,
    edge_ms,
    looked,
    step_for,
)


def _points(seed: int, many: int) -> list[Point]:
    chance = random.Random(seed)
    points = []
    for _ in range(many):
        point = Point(gauges=looked({"load": chance.random(), "busy": 2, "slots": 4}))
        for _ in range(chance.randrange(5)):
            point.count("requests")
            point.count("tokens_out", chance.randrange(100))
            for name in get_args(Time):
                point.time(name, chance.lognormvariate(4, 2))
        points.append(point)
    return points


@pytest.mark.parametrize("ms", [0.0, 0.05, 0.125, 0.13, 1.0, 1.5, 999.0, 1e6, 1e12])
def test_a_duration_lies_within_its_bucket(ms: float) -> None:
    bucket = bucket_of(ms)
    assert 0 <= bucket <= MOST_BUCKET
    assert edge_ms(bucket) <= max(ms, LEAST_MS)
    assert ms <= edge_ms(bucket + 1) or bucket == MOST_BUCKET


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_a_quantile_is_off_by_a_fifth_at_most(q: float) -> None:
    chance = random.Random(7)
    times = sorted(chance.lognormvariate(5, 1.5) for _ in range(500))
    points = tuple(Point() for _ in range(10))
    for at, ms in enumerate(times):
        points[at % 10].time("wait", ms)
    read = History(0, 1, 10, points).quantile("wait", q)
    assert read is not None
    assert 1 / 1.2 < read * 1000 / times[int(q * 500)] < 1.2


def test_nothing_has_no_quantile() -> None:
    assert History(0, 1, 1, (Point(),)).quantile("wait", 0.5) is None
    assert History(0, 1, 1, ()).quantiles("wait", 0.5) == []


def test_the_order_in_which_points_are_added_does_not_matter() -> None:
    points = _points(1, 12)
    one, other = Point(), Point()
    for point in points:
        one.add(point)
    for point in reversed(points):
        other.add(point)
    assert one == other


def test_a_point_comes_back_as_it_was_written() -> None:
    for point in _points(2, 10):
        assert Point.from_plain(point.plain()) == point


@pytest.mark.parametrize("plain", [[], [[1]], [{}] * 8])
def test_what_is_malformed_counts_as_nothing(plain: object) -> None:
    assert Point.from_plain(plain).counts == [0, 0, 0, 0]


def test_longer_steps_hold_the_same() -> None:
    points = _points(3, 60)
    history = History(95.0, 1.0, 155.0, tuple(points))
    minutes = history.by(30)
    assert (minutes.start, minutes.step, len(minutes.points)) == (90.0, 30.0, 3)
    assert minutes.total("tokens_out") == history.total("tokens_out")
    assert minutes.whole() == history.whole()
    assert minutes.times() == [90.0, 120.0, 150.0]


def test_rates_are_per_second_that_is_known() -> None:
    points = tuple(Point(counts=[30, 0, 0, 0]) for _ in range(2))
    assert History(0, 10, 15, points).rates("requests") == [3.0, 6.0]


def test_gauges_are_means_and_peaks_the_most() -> None:
    point = Point(gauges=looked({"load": 1.0, "gpu_percent": None}), peaks=[3, 2500])
    point.add(Point(gauges=looked({"load": 2.0}), peaks=[7, 100]))
    assert point.value("load") == 1.5
    assert point.value("gpu_percent") is None
    assert (point.value("waiting"), point.value("oldest_seconds")) == (7, 2.5)
    assert (Point().value("waiting"), Point().value("load")) == (0, None)


@pytest.mark.parametrize(
    ("seconds", "step"), [(60, 1), (600, 1), (601, 10), (21600, 10), (86400, 300), (1e9, 300)]
)
def test_the_shortest_step_that_reaches_back_so_far(seconds: float, step: int) -> None:
    assert step_for(seconds).seconds == step
    assert [each.kept_seconds for each in STEPS] == [600, 21600, 604800]


def test_rates_of_now_are_of_the_last_minute_and_durations_of_all_five() -> None:
    now = tuple(Point() for _ in range(300))
    for at, point in enumerate(now):
        point.count("requests", 5 if at < 240 else 2)
        point.count("tokens_out", 10)
        point.time("ttft", 1000.0 if at < 200 else 10.0)
    now[-1].count("errors", 30)
    hour = (Point(), Point())
    for point in hour:
        point.count("requests", 7)
        point.count("errors")
    found = rates(History(0, 1, 300, now), History(0, 1800, 3600, hour))
    assert (found["requests"], found["tokens"], found["errors"]) == (2.0, 10.0, 0.5)
    assert found["ttft_p50"] is not None
    assert 0.5 < found["ttft_p50"] < 2.0
    assert found["latency_p50"] is found["latency_p95"] is None
    assert (found["requests_hour"], found["errors_hour"]) == (14, 2)
    drawn = quantiles_over_time(History(0, 1, 300, now))
    assert set(drawn) == {"ttft_p50", "ttft_p95", "latency_p50", "latency_p95"}
    assert drawn["latency_p50"] == [None] * 300


def test_a_history_without_points_has_no_rates() -> None:
    nothing = History(0, 1, 0, ())
    assert set(rates(nothing, nothing).values()) == {0.0, None}
