"""What a worker counts: by model and second, until an advert has told the fabric, and in all.

Nothing is sent from here, and nothing waits: counting costs a job a few microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sollol_broker.codec import pack
from sollol_broker.names import key_part
from sollol_broker.series import Gauge, Point, looked

# Seconds of a model that wait to be told. With Redis away no job ends, so there are few; the oldest ones go first.
_MOST_WAITING = 4096


@dataclass(frozen=True, slots=True)
class Done:
    """What is counted of an answered job.

    Attributes:
        more_tokens: of the answer, beyond those that its pieces had.
        wait_ms, ttft_ms, latency_ms: from when it was handed in until it was claimed, its answer began (None = it
            has no beginning) and its answer was delivered. run_ms: from the claim to the answer.
    """

    prompt_tokens: int
    more_tokens: int
    wait_ms: float
    ttft_ms: float | None
    run_ms: float
    latency_ms: float


class Figures:
    """The counts of one worker.

    Args:
        is_on: whether anything is counted at all.
        clock: monotonic seconds.
    """

    def __init__(self, *, is_on: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_on = is_on
        self._clock = clock
        self._ahead = 0.0
        self._points: dict[tuple[str, int], Point] = {}
        # Of what the points do not hold any more.
        self._totals: dict[str, Point] = {}
        self._number = 0
        # What an advert carries that has not come back: the same, under the same number, if it must be told again.
        self._on_the_way: list[object] | None = None

    def set_clock(self, redis_ms: float) -> None:
        """Learn what Redis' clock shows now: the seconds are counted by it."""
        self._ahead = redis_ms / 1000 - self._clock()

    def piece(self, model: str, tokens: int, gap_ms: float | None) -> None:
        """An answer went on, so long after its last piece; None = this is its first."""
        if self._is_on:
            point = self._now(model)
            point.count("tokens_out", tokens)
            if gap_ms is not None:
                point.time("gap", gap_ms / max(1, tokens))

    def answered(self, model: str, done: Done) -> None:
        """A job has its answer."""
        if not self._is_on:
            return
        point = self._now(model)
        point.count("requests")
        point.count("tokens_in", max(0, done.prompt_tokens))
        point.count("tokens_out", done.more_tokens)
        point.time("wait", done.wait_ms)
        point.time("run", done.run_ms)
        point.time("latency", done.latency_ms)
        if done.ttft_ms is not None:
            point.time("ttft", done.ttft_ms)

    def failed(self, model: str) -> None:
        """An attempt ended with an error."""
        if self._is_on:
            point = self._now(model)
            point.count("requests")
            point.count("errors")

    def totals(self) -> dict[str, Point]:
        """All that was counted since the worker began, by model."""
        found: dict[str, Point] = {}
        waiting = ((model, point) for (model, _), point in self._points.items())
        for model, point in (*self._totals.items(), *waiting):
            found.setdefault(model, Point()).add(point)
        return found

    def tell(self, gauges: dict[Gauge, float | None]) -> bytes:
        """What the next advert says: what was counted since the last one, and one look at the node."""
        if not self._is_on:
            return b""
        if self._on_the_way is None:
            self._number += 1
            rows: dict[str, list[object]] = {}
            for model, second in sorted(self._points):
                point = self._points.pop((model, second))
                self._keep(model, point)
                rows.setdefault(model, []).append([second, point.plain()])
            self._on_the_way = [[key_part(model), model, points] for model, points in rows.items()]
        return pack([self._number, looked(gauges), *self._on_the_way])

    def told(self, taken: str) -> None:
        """The advert has come back: what it said need not be said again, if it was taken."""
        if taken == str(self._number):
            self._on_the_way = None

    def _now(self, model: str) -> Point:
        """Where it is counted at this moment."""
        key = (model, int(self._clock() + self._ahead))
        point = self._points.get(key)
        if point is None:
            if len(self._points) >= _MOST_WAITING:
                oldest = next(iter(self._points))
                self._keep(oldest[0], self._points.pop(oldest))
            point = self._points[key] = Point()
        return point

    def _keep(self, model: str, point: Point) -> None:
        self._totals.setdefault(model, Point()).add(point)
