"""Figures in which the old fades: a mean, and a straight line. Pure arithmetic on a few sums."""

from __future__ import annotations

from dataclasses import dataclass, fields

# What one observation of full weight leaves of those before it: about the last ten count for a mean, and the
# last thirty for a line, which has to have seen several x.
_KEEP_MEAN, _KEEP_LINE = 0.9, 0.97
# Spread of x, times observations, that the expected slope is worth. One observation at another x outweighs it.
_SLOPE_TRUST = 0.25


def blend(found: float, weight: float, expected: float, trust: float) -> float:
    """What was found, when `expected` counts like a first observation of weight `trust`, and ever less later.

    So an expectation that was wrong by a factor of ten leaves no trace once there is enough to go by.
    """
    left = trust / (1 + weight)
    return (found * weight + expected * left) / (weight + left)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean, as the sum of weights and the sum of weighted values."""

    weight: float = 0.0
    total: float = 0.0

    def plus(self, value: float, weight: float = 1.0) -> Mean:
        """With one more value; one of little weight also pushes out little of the old."""
        keep = _KEEP_MEAN**weight
        return Mean(self.weight * keep + weight, self.total * keep + weight * value)

    def faded(self, factor: float) -> Mean:
        """With all that is known counting `factor` times as much."""
        return Mean(self.weight * factor, self.total * factor)

    def value(self, expected: float, trust: float) -> float:
        """The mean, with what was expected; see `blend`."""
        return blend(self.total / self.weight, self.weight, expected, trust) if self.weight > 0 else expected


@dataclass(frozen=True, slots=True)
class Line:
    """y = base x (1 + slope x), fitted by least squares, as five weighted sums."""

    weight: float = 0.0
    x: float = 0.0
    xx: float = 0.0
    y: float = 0.0
    xy: float = 0.0

    def plus(self, x: float, y: float, weight: float = 1.0) -> Line:
        """With one more point."""
        keep = _KEEP_LINE**weight
        return Line(
            self.weight * keep + weight,
            self.x * keep + weight * x,
            self.xx * keep + weight * x * x,
            self.y * keep + weight * y,
            self.xy * keep + weight * x * y,
        )

    def faded(self, factor: float) -> Line:
        """With all that is known counting `factor` times as much."""
        return Line(*(getattr(self, each.name) * factor for each in fields(self)))

    def fitted_slope(self, expected: float, most: float) -> float:
        """From 0 to `most`; `expected` where all points lie at one x, and it counts a little everywhere else."""
        if self.weight <= 0:
            return expected
        mean_x, mean_y = self.x / self.weight, self.y / self.weight
        spread = max(0.0, self.xx - self.x * mean_x)
        expected_rise = expected * mean_y / (1 + expected * mean_x)
        rise = (self.xy - self.x * mean_y + _SLOPE_TRUST * expected_rise) / (spread + _SLOPE_TRUST)
        base = mean_y - rise * mean_x
        return most if base <= 0 else min(max(rise / base, 0.0), most)
