"""What a worker counts: by model and second, until an advert has told the fabric, and in all.

Nothing is sent from here, and nothing waits: counting costs a job a few microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sollol_broker.codec import pack
from sollol_broker.names import key_part
from sollol_broker.series import COUNTS, TIMES, Gauge, Point, looked

_REQUESTS, _ERRORS = COUNTS.index("requests"), COUNTS.index("errors")
_TOKENS_IN, _TOKENS_OUT = COUNTS.index("tokens_in"), COUNTS.index("tokens_out")
_TTFT, _GAP, _WAIT = TIMES.index("ttft"), TIMES.index("gap"), TIMES.index("wait")
_LATENCY, _RUN = TIMES.index("latency"), TIMES.index("run")
# The tokens of one answer are counted so often.
_COUNT_SECONDS = 0.5
# Seconds of a model that wait to be told. With Redis away no job ends, so there are few; the oldest ones go first.
_MOST_WAITING = 4096


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
        # Where it was counted last: most often it is counted there again.
        self._last: tuple[str, int, Point] = ("", 0, Point())
        # Of what the points do not hold any more.
        self._totals: dict[str, Point] = {}
        self._number = 0
        # What an advert carries that has not come back: the same, under the same number, if it must be told again.
        self._on_the_way: list[object] | None = None

    def set_clock(self, redis_ms: float) -> None:
        """Learn what Redis' clock shows now: the seconds are counted by it."""
        self._ahead = redis_ms / 1000 - self._clock()

    def pieces(self, model: str, tokens: int, gaps_ms: Sequence[float]) -> None:
        """An answer went on by so many tokens, so long after the one before each."""
        if not self._is_on:
            return
        point = self._now(model)
        point.counts[_TOKENS_OUT] += tokens
        if gaps_ms:
            point.note_all(_GAP, gaps_ms)

    def answered(
        self,
        model: str,
        *,
        prompt_tokens: int,
        more_tokens: int,
        wait_ms: float,
        ttft_ms: float | None,
        run_ms: float,
        latency_ms: float,
    ) -> None:
        """A job has its answer.

        Args:
            more_tokens: of the answer, beyond those that its pieces had.
            wait_ms, ttft_ms, latency_ms: from when it was handed in until it was claimed, its answer began (None = it
                has no beginning) and its answer was delivered. run_ms: from the claim to the answer.
        """
        if not self._is_on:
            return
        point = self._now(model)
        point.counts[_REQUESTS] += 1
        point.counts[_TOKENS_IN] += max(0, prompt_tokens)
        point.counts[_TOKENS_OUT] += more_tokens
        point.note(_WAIT, wait_ms)
        point.note(_RUN, run_ms)
        point.note(_LATENCY, latency_ms)
        if ttft_ms is not None:
            point.note(_TTFT, ttft_ms)

    def failed(self, model: str) -> None:
        """An attempt ended with an error."""
        if self._is_on:
            point = self._now(model)
            point.counts[_REQUESTS] += 1
            point.counts[_ERRORS] += 1

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
            self._last = ("", 0, Point())
            self._on_the_way = [[key_part(model), model, points] for model, points in rows.items()]
        return pack([self._number, looked(gauges), *self._on_the_way])

    @property
    def is_told(self) -> bool:
        """Whether the fabric knows all that was counted."""
        return not self._points and not self._on_the_way

    def told(self, taken: str) -> None:
        """The advert has come back: what it said need not be said again, if it was taken."""
        if taken == str(self._number):
            self._on_the_way = None

    def _now(self, model: str) -> Point:
        """Where it is counted at this moment."""
        second = int(self._clock() + self._ahead)
        last_model, last_second, point = self._last
        if second == last_second and model == last_model:
            return point
        found = self._points.get((model, second))
        if found is None:
            if len(self._points) >= _MOST_WAITING:
                oldest = next(iter(self._points))
                self._keep(oldest[0], self._points.pop(oldest))
            found = self._points[model, second] = Point()
        self._last = (model, second, found)
        return found

    def _keep(self, model: str, point: Point) -> None:
        self._totals.setdefault(model, Point()).add(point)


class Flow:
    """The pieces of one answer as they come; they are counted a few at a time.

    Attributes:
        tokens: that all of them had.
    """

    def __init__(self, figures: Figures, model: str) -> None:
        self._figures = figures
        self._model = model
        self._gaps_ms: list[float] = []
        self._counted = 0
        self._last_at = 0.0
        self._due_at = 0.0
        self.tokens = 0

    def add(self, tokens: int, now: float) -> None:
        """A piece came at this monotonic time."""
        if self.tokens:
            gap_ms = (now - self._last_at) * 1000
            self._gaps_ms.append(gap_ms if tokens <= 1 else gap_ms / tokens)
        self.tokens += tokens
        self._last_at = now
        if now >= self._due_at:
            self._due_at = now + _COUNT_SECONDS
            self.count()

    def count(self) -> None:
        """Count what has not been counted yet."""
        if self.tokens > self._counted:
            self._figures.pieces(self._model, self.tokens - self._counted, self._gaps_ms)
            self._counted, self._gaps_ms = self.tokens, []
