"""A job's place in line, written once when it is submitted: start-time fair queueing with head starts.

Pure; `lua/_order.lua` is the twin inside Redis. Time here is *virtual*: milliseconds of the fastest worker's
service, shared out by weight. One queue, that of a model, has one virtual time V, the start of what was
claimed last; an application's next job starts where its last one ends, or at V if that is later (Goyal,
Vin, Cheng: Start-time Fair Queuing, 1996). Work of the application that is less urgent by a level does not
count there, lest its own batch keep people waiting; it is charged to the batch work that comes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .words import Priority

# How many of its own lengths a job yields to shorter ones that come later.
SIZE_WEIGHT = 8.0
# Head start in ms by priority: a job of priority 5 yields to newer ones of priority 10 for 15 s, and then
# never again.
_NORMAL_MS = 15_000.0
_HEAD_START_KNOTS = ((0, 360_000.0), (1, 300_000.0), (5, _NORMAL_MS), (10, 0.0))


@dataclass(frozen=True, slots=True)
class Tag:
    """A job's tags, in virtual ms.

    Attributes:
        start: when its application's turn for it begins. rank: the score in the queue.
    """

    start: float
    rank: float


# Batch work, usual work, urgent work.
LEVELS = 3


def level_of(priority: int) -> int:
    """Which turns of its application a job waits for: 0 those of all its work, 1 not those of batch work, 2 those
    of urgent work only."""
    if priority >= Priority.HIGH:
        return 2
    return 0 if priority <= Priority.BATCH else 1


def head_start_ms(priority: int) -> float:
    """How far behind the newest urgent work a job of this priority enters the line, in ms of the whole queue.

    Linear between the knots: 10 → 0 s, 5 → 15 s, 1 → 300 s, 0 → 360 s. It is an aging bound as well: the
    queue serves at most so much newer work of other priorities first.
    """
    for (low, low_ms), (high, high_ms) in pairwise(_HEAD_START_KNOTS):
        if low <= priority <= high:
            return low_ms + (high_ms - low_ms) * (priority - low) / (high - low)
    raise ValueError(f"priority {priority} is not in 0..{int(Priority.CRITICAL)}")


def tag(
    *,
    now: float,
    finish: float,
    cost_ms: float,
    head_start: float,
    speed: float,
    weights: float,
    usual_ms: float = 0.0,
    size_weight: float = SIZE_WEIGHT,
) -> Tag:
    """The tags of a new job.

    Args:
        now: V, the queue's virtual time. finish: of the application's job before, of this level or above; 0 for none.
        cost_ms: predicted service on the fastest worker.
        head_start: of its priority, in ms. speed: what all workers serve per second, in the fastest one's
            seconds. weights: sum over the applications with work in this queue.
        usual_ms: cost of a usual job here.

    rank = start + (head start beyond normal + size weight x (cost - usual)) x speed / weights: in that time
    the queue as a whole moves on by so many virtual ms. Usual jobs of normal priority are neither before nor
    behind, so it does not matter to them how many applications there were when they came.
    """
    start = max(now, finish)
    behind = (head_start - _NORMAL_MS + size_weight * (cost_ms - usual_ms)) * speed / max(1.0, weights)
    return Tag(start, start + behind)


def moved(
    *,
    tag: Tag,
    level: int,
    new_level: int,
    is_sooner: bool,
    now: float,
    finishes: Sequence[float],
    share_ms: float,
    behind_ms: float,
) -> tuple[Tag, tuple[float, ...]]:
    """A waiting job's tags, and its application's finish tags, once it has another priority.

    Args:
        tag: what it had. level, new_level: before and after. is_sooner: whether the new priority is the higher one.
        now, finishes: as for `tag` and `charged`.
        share_ms: its cost / weight. behind_ms: rank - start that a new job of that priority would get.

    1. On the same level its turn stays; on another one it takes its turn there, and its work is charged there.
    2. More urgent never means a later turn or place, less urgent never an earlier one, though the fabric's speed and
       the number of applications have changed since the job came.
    """
    choose = min if is_sooner else max
    start, after = tag.start, tuple(finishes)
    if level != new_level:  # 1
        after = corrected(now, after, level, -share_ms)
        start = choose(start, max(now, after[new_level]))
        after = charged(now, after, new_level, share_ms)
    return Tag(start, choose(tag.rank, start + behind_ms)), after  # 2


def charged(now: float, finishes: Sequence[float], level: int, more_ms: float) -> tuple[float, ...]:
    """An application's finish tags by level, with so much more work of one level: cost / weight.

    It delays the next job of its own level, and of those below.
    """
    return tuple(max(now, each) + more_ms if at <= level else each for at, each in enumerate(finishes))


def corrected(now: float, finishes: Sequence[float], level: int, more_ms: float) -> tuple[float, ...]:
    """An application's finish tags once a job's real cost is known: (actual - predicted) / weight."""
    return tuple(max(now, each + more_ms) if at <= level else each for at, each in enumerate(finishes))
