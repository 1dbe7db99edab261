"""The lines in front of the workers: what lengths to expect, and the order of one model's queue.

The rules are the broker's (`fair_order`); here are the sums they need, as Redis keeps them in F:fair and
F:learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sollol_broker.claim_rule import TYPICAL_OUTPUT, TYPICAL_PROMPT, PaceClass
from sollol_broker.fair_order import LEVELS, SIZE_WEIGHT, charged, corrected, head_start_ms, level_of, tag

from .simulate import World
from .trace import Job

# Weight of the newest answer, and what is expected before there is one: as in finish.lua and submit.lua.
_LEARN = 0.1
_USUAL_OUTPUT = 256.0
_NO_FINISHES = (0.0,) * LEVELS


class Lengths:
    """Expects of an application the mean of its own latest answers, of a new one that of all."""

    def __init__(self, world: World) -> None:
        self._own: dict[tuple[str, str], float] = {}
        self._all: dict[str, float] = {}

    def expect(self, job: Job) -> float:
        """Output tokens; an embedding is known to have none."""
        if job.output_tokens == 0:
            return 0.0
        own = self._own.get((job.model, job.app))
        return max(1.0, own if own is not None else self._all.get(job.model, _USUAL_OUTPUT))

    def learn(self, job: Job) -> None:
        """An answer has come."""
        if job.output_tokens > 0:
            key = (job.model, job.app)
            self._own[key] = _blend(self._own.get(key), job.output_tokens)
            self._all[job.model] = _blend(self._all.get(job.model), job.output_tokens)


class ExactLengths(Lengths):
    """Knows every length beforehand: what no fabric can."""

    def expect(self, job: Job) -> float:
        """The length itself."""
        return float(job.output_tokens)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else (1 - _LEARN) * old + _LEARN * new


@dataclass(frozen=True, slots=True)
class LineRule:
    """How a queue is ordered.

    Attributes:
        size_weight: of the fair order. head_start: factor of the priorities' head starts.
        is_fair: applications take turns; otherwise the order of coming counts.
        shortest_first: by cost alone.
    """

    size_weight: float = SIZE_WEIGHT
    head_start: float = 1.0
    is_fair: bool = True
    shortest_first: bool = False


@dataclass(slots=True)
class _Turn:
    cost: float
    start: float


class Line:
    """The virtual time of one model's queue, and the tags of its applications."""

    def __init__(self, rule: LineRule) -> None:
        self._rule = rule
        self._prompt_ms, self._output_ms, self._speed = 1.0, 20.0, 1.0
        self._now = 0.0
        self._finishes: dict[str, tuple[float, ...]] = {}
        self._unfinished: dict[str, int] = {}
        self._turns: dict[int, _Turn] = {}
        self._usual: float | None = None  # cost of the latest jobs

    def set_pace(self, classes: Sequence[PaceClass]) -> None:
        """The workers that serve the queue have changed."""
        if not classes:
            return
        usual = [TYPICAL_PROMPT * each.prompt_ms + TYPICAL_OUTPUT * each.output_ms for each in classes]
        best = min(range(len(classes)), key=usual.__getitem__)
        self._prompt_ms, self._output_ms = classes[best].prompt_ms, classes[best].output_ms
        self._speed = sum(each.capacity * usual[best] / ms for each, ms in zip(classes, usual, strict=True))

    def enter(self, job: int, each: Job, expected: float) -> float:
        """A job's rank."""
        cost = self._cost(each, expected)
        if self._rule.shortest_first:
            self._turns[job] = _Turn(cost, 0.0)
            self._unfinished[each.app] = self._unfinished.get(each.app, 0) + 1
            return cost
        self._unfinished[each.app] = self._unfinished.get(each.app, 0) + 1
        finishes, level = self._finishes.get(each.app, _NO_FINISHES), level_of(each.priority)
        made = tag(
            now=self._now if self._rule.is_fair else 1000 * each.arrival_s * self._speed,
            finish=finishes[level] if self._rule.is_fair else 0.0,
            cost_ms=cost,
            head_start=self._rule.head_start * head_start_ms(each.priority),
            speed=self._speed,
            weights=float(len(self._unfinished)) if self._rule.is_fair else 1.0,
            usual_ms=cost if self._usual is None else self._usual,
            size_weight=self._rule.size_weight,
        )
        self._finishes[each.app] = charged(self._now, finishes, level, cost)
        self._turns[job] = _Turn(cost, made.start)
        return made.rank

    def leave(self, job: int) -> None:
        """A worker has taken the job."""
        self._now = max(self._now, self._turns[job].start)

    def settle(self, job: int, each: Job) -> None:
        """A job has ended: its real cost is known."""
        turn = self._turns.pop(job)
        self._usual = _blend(self._usual, turn.cost)
        app, finishes = each.app, self._finishes.get(each.app, _NO_FINISHES)
        used = self._cost(each, each.output_tokens)
        self._finishes[app] = corrected(self._now, finishes, level_of(each.priority), used - turn.cost)
        self._unfinished[app] -= 1
        if self._unfinished[app] == 0:
            del self._unfinished[app]
            if max(self._finishes[app]) <= self._now:
                del self._finishes[app]
        if not self._unfinished:
            self._now = 0.0
            self._finishes.clear()

    def _cost(self, each: Job, output_tokens: float) -> float:
        return self._prompt_ms * each.prompt_tokens + self._output_ms * output_tokens
