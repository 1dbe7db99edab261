"""Numbers over time: what a point of a series holds, and what is computed from many of them. Pure.

Durations lie in buckets of a fixed scale, so that points of several workers, models and moments can be added up and a
quantile be read from the sum. `lua/_series.lua` adds points up in Redis; it is the twin of `Point.add`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from .told import whole

Count = Literal["requests", "errors", "tokens_in", "tokens_out"]
Time = Literal["ttft", "gap", "wait", "latency", "run"]
Gauge = Literal["vram_used_mib", "ram_used_mib", "load", "gpu_percent", "busy", "slots"]
Peak = Literal["waiting", "oldest_seconds"]
COUNTS: Final[tuple[Count, ...]] = get_args(Count)
TIMES: Final[tuple[Time, ...]] = get_args(Time)
GAUGES: Final[tuple[Gauge, ...]] = get_args(Gauge)
PEAKS: Final[tuple[Peak, ...]] = get_args(Peak)
# Gauges and peaks travel as whole numbers; these are told in hundredths, or in ms.
_PARTS: Final = {"load": 100, "busy": 100, "oldest_seconds": 1000}

# Two buckets for each doubling, from an eighth of a millisecond to half an hour: a quantile is off by a fifth at most.
PER_DOUBLING: Final = 2
LEAST_MS: Final = 0.125
MOST_BUCKET: Final = 48

# Points that lie together under one key. With so few, small ones, Redis keeps them packed.
CHUNK: Final = 120


@dataclass(frozen=True, slots=True)
class Step:
    """Points so many seconds long are kept for so long."""

    seconds: int
    kept_seconds: int


STEPS: Final = (Step(1, 10 * 60), Step(10, 6 * 3600), Step(300, 7 * 24 * 3600))


# Workers ask for the bucket of each token.
_log2 = math.log2
_LEAST_AT: Final = PER_DOUBLING * math.log2(LEAST_MS)
_MOST_MS: Final = LEAST_MS * 2 ** (MOST_BUCKET / PER_DOUBLING)


def bucket_of(ms: float) -> int:
    """The bucket in which a duration is counted."""
    if ms <= LEAST_MS:
        return 0
    if ms >= _MOST_MS:
        return MOST_BUCKET
    return int(PER_DOUBLING * _log2(ms) - _LEAST_AT)


def edge_ms(bucket: int) -> float:
    """Where a bucket begins, in ms; the first one holds everything below its end, too."""
    return float(LEAST_MS * 2 ** (bucket / PER_DOUBLING))


def quantile_ms(buckets: dict[int, int], q: float) -> float | None:
    """The duration that a share `q` of all do not exceed, in ms; None = there are none."""
    total = sum(buckets.values())
    if not total:
        return None
    wanted, seen = q * total, 0
    for bucket, count in sorted(buckets.items()):
        if seen + count >= wanted:
            inside = min(1.0, max(0.0, (wanted - seen) / count))
            return edge_ms(bucket) * 2 ** (inside / PER_DOUBLING)
        seen += count
    return edge_ms(max(buckets) + 1)


@dataclass(slots=True)
class Point:
    """What happened in one step of a series.

    Attributes:
        counts: in the order of COUNTS. sums_us: of the durations, in the order of TIMES, in microseconds.
        times: how many durations fell into each bucket, in the order of TIMES.
        gauges: how often each was looked at, and the sum of what was seen, in the order of GAUGES; () = not at all.
        peaks: the most that was seen, in the order of PEAKS; () = not looked at.
    """

    counts: list[int] = field(default_factory=lambda: [0] * len(COUNTS))
    sums_us: list[int] = field(default_factory=lambda: [0] * len(TIMES))
    times: list[dict[int, int]] = field(default_factory=lambda: [{} for _ in TIMES])
    gauges: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def count(self, name: Count, amount: int = 1) -> None:
        """Count something."""
        self.counts[COUNTS.index(name)] += amount

    def time(self, name: Time, ms: float) -> None:
        """Note how long something took."""
        self.note(TIMES.index(name), ms)

    def note(self, at: int, ms: float) -> None:
        """The same by the place in TIMES."""
        self.sums_us[at] += int(ms * 1000 + 0.5)
        bucket = bucket_of(ms)
        buckets = self.times[at]
        buckets[bucket] = buckets.get(bucket, 0) + 1

    def note_all(self, at: int, times_ms: Sequence[float]) -> None:
        """The same for many: workers do it for all tokens."""
        self.sums_us[at] += int(sum(times_ms) * 1000 + 0.5)
        buckets = self.times[at]
        for bucket, count in Counter(map(bucket_of, times_ms)).items():
            buckets[bucket] = buckets.get(bucket, 0) + count

    def add(self, other: Point) -> None:
        """Take in what happened elsewhere, or in another step."""
        self.counts = _sum(self.counts, other.counts)
        self.sums_us = _sum(self.sums_us, other.sums_us)
        for mine, theirs in zip(self.times, other.times, strict=True):
            for bucket, count in theirs.items():
                mine[bucket] = mine.get(bucket, 0) + count
        self.gauges = _sum(self.gauges, other.gauges)
        self.peaks = [max(pair) for pair in _pairs(self.peaks, other.peaks)]

    def plain(self) -> list[list[int]]:
        """As it lies in Redis: counts with sums, each kind of duration as bucket and count in turns, gauges, peaks."""
        flat = [[part for pair in buckets.items() for part in pair] for buckets in self.times]
        return [[*self.counts, *self.sums_us], *flat, self.gauges, self.peaks]

    @classmethod
    def from_plain(cls, plain: Any) -> Point:
        """Read it; what is malformed counts as nothing."""
        point = cls()
        if not isinstance(plain, list) or len(plain) != len(TIMES) + 3:
            return point
        # An empty list of Lua's may come as a map.
        rows = [[whole(each) for each in row] if isinstance(row, list) else [] for row in plain]
        numbers, *times, gauges, peaks = rows
        point.counts = _sum(point.counts, numbers[: len(COUNTS)])
        point.sums_us = _sum(point.sums_us, numbers[len(COUNTS) :])
        point.times = [
            {
                bucket: count
                for bucket, count in zip(row[::2], row[1::2], strict=False)
                if 0 <= bucket <= MOST_BUCKET and count > 0
            }
            for row in times
        ]
        point.gauges, point.peaks = gauges, peaks
        return point

    def value(self, name: Count | Gauge | Peak) -> float | None:
        """What was counted; the mean of what was seen (None = nobody looked); the most that waited."""
        if name in COUNTS:
            return float(self.counts[COUNTS.index(name)])
        if name in PEAKS:
            return self.peaks[PEAKS.index(name)] / _PARTS.get(name, 1) if self.peaks else 0.0
        at = 2 * GAUGES.index(name)
        if len(self.gauges) <= at or not self.gauges[at]:
            return None
        return round(self.gauges[at + 1] / self.gauges[at] / _PARTS.get(name, 1), 3)


def looked(seen: dict[Gauge, float | None]) -> list[int]:
    """One look at the gauges, as `Point.gauges` holds it."""
    return [
        part
        for name in GAUGES
        for value in (seen.get(name),)
        for part in ((0, 0) if value is None else (1, round(value * _PARTS.get(name, 1))))
    ]


@dataclass(frozen=True, slots=True)
class History:
    """A series over a span of time: points of equal length, oldest first, without holes.

    Attributes:
        start: when the first point begins, in seconds since the epoch, by Redis' clock.
        step: length of a point in seconds.
        until: up to when as much has been told as the points hold; the last point may be shorter than a step.
    """

    start: float
    step: float
    until: float
    points: tuple[Point, ...]

    def by(self, seconds: float) -> History:
        """The same in longer steps: a multiple of the present one, whole ones counted from the epoch."""
        times = max(1, round(seconds / self.step))
        first = int(self.start // self.step)
        joined: dict[int, Point] = {}
        for at, point in enumerate(self.points, first):
            joined.setdefault(at // times, Point()).add(point)
        step = self.step * times
        return History((first // times) * step, step, self.until, tuple(joined.values()))

    def times(self) -> list[float]:
        """When each point begins."""
        return [self.start + at * self.step for at in range(len(self.points))]

    def values(self, name: Count | Gauge | Peak) -> list[float | None]:
        """Per point: a count; a gauge's mean (None = not known); the most that waited."""
        return [point.value(name) for point in self.points]

    def rates(self, name: Count) -> list[float]:
        """Per point: how many per second."""
        counts = [point.counts[COUNTS.index(name)] for point in self.points]
        lengths = [max(1.0, min(self.step, self.until - began)) for began in self.times()]
        return [round(count / length, 3) for count, length in zip(counts, lengths, strict=True)]

    def quantiles(self, name: Time, q: float) -> list[float | None]:
        """Per point: the duration in seconds that a share `q` did not exceed; None = there were none."""
        return [_seconds(quantile_ms(point.times[TIMES.index(name)], q)) for point in self.points]

    def whole(self) -> Point:
        """All points as one."""
        whole = Point()
        for point in self.points:
            whole.add(point)
        return whole

    def total(self, name: Count) -> int:
        """How many over the whole span."""
        at = COUNTS.index(name)
        return sum(point.counts[at] for point in self.points)

    def quantile(self, name: Time, q: float) -> float | None:
        """Over the whole span: the duration in seconds that a share `q` did not exceed; None = there were none."""
        return _seconds(quantile_ms(self.whole().times[TIMES.index(name)], q))


def step_for(seconds: float) -> Step:
    """The shortest step that is kept for so long."""
    return next((step for step in STEPS if step.kept_seconds >= seconds), STEPS[-1])


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else round(ms / 1000, 6)


def _pairs(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int]]:
    most = max(len(ours), len(theirs))
    pad = [0] * most
    return list(zip([*ours, *pad][:most], [*theirs, *pad][:most], strict=True))


def _sum(ours: Sequence[int], theirs: Sequence[int]) -> list[int]:
    return [mine + other for mine, other in _pairs(ours, theirs)]
