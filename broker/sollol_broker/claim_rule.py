"""Which waiting job a worker takes: a pure rule. `lua/_rule.lua` is its twin inside Redis.

Plain data in, plain data out: no clock, no Redis, no log. A property test runs both on the same
states and compares what they choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .envelope import Requires
from .words import Priority

# A cold model is left to others, or for later, this long at most: a job waits for a load, not for ever.
COLD_PATIENCE_MS = 30_000.0
# Loading costs everybody on the node: a model must be wanted for a few loads' time to be worth a swap.
COLD_PATIENCE_LOADS = 3.0

# Head start in ms by priority: a job of priority 5 yields to newer ones of priority 10 for 15 s, and then
# never again.
_HEAD_START_KNOTS = ((0, 360_000.0), (1, 300_000.0), (5, 15_000.0), (10, 0.0))


@dataclass(frozen=True, slots=True)
class Offer:
    """What one model costs on the worker that asks.

    Attributes:
        load_ms: to bring it into memory; 0 when it is there.
        prompt_ms: per prompt token.
        output_ms: per output token.
    """

    load_ms: float
    prompt_ms: float
    output_ms: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job near the head of a queue.

    Attributes:
        offer: index of its model's offer.
        rank_ms: its place in line; lower is sooner.
        prompt_tokens: of its prompt.
        output_tokens: expected of its answer.
        submitted_ms: when it came.
    """

    offer: int
    rank_ms: float
    prompt_tokens: int
    output_tokens: int
    submitted_ms: float


def head_start_ms(priority: int) -> float:
    """How far behind the newest urgent work a job of this priority enters the line, in ms.

    Linear between the knots: 10 → 0 s, 5 → 15 s, 1 → 300 s, 0 → 360 s. It is an aging bound as well:
    no job is overtaken by anything that comes later than this.
    """
    for (low, low_ms), (high, high_ms) in pairwise(_HEAD_START_KNOTS):
        if low <= priority <= high:
            return low_ms + (high_ms - low_ms) * (priority - low) / (high - low)
    raise ValueError(f"priority {priority} is not in 0..{int(Priority.CRITICAL)}")


def choose(offers: Sequence[Offer], jobs: Sequence[Waiting], now_ms: float) -> int | None:
    """The index of the job to take, or None when there is none.

    1. Price: load + prompt tokens x pace + expected output tokens x pace, in ms.
    2. A job for a cold model is late once it has waited 30 s, or three loads if that is longer.
    3. Warm models first, and late jobs as if warm; among those the least rank + price. Equal values: the
       first in the list.
    """
    best: int | None = None
    best_key = (True, 0.0)
    for index, job in enumerate(jobs):
        offer = offers[job.offer]
        key = (offer.load_ms > 0 and not _is_late(offer, job, now_ms), job.rank_ms + _price(offer, job))
        if best is None or key < best_key:
            best, best_key = index, key
    return best


def _price(offer: Offer, job: Waiting) -> float:  # 1
    return offer.load_ms + offer.prompt_ms * job.prompt_tokens + offer.output_ms * job.output_tokens


def _is_late(offer: Offer, job: Waiting, now_ms: float) -> bool:  # 2
    return now_ms - job.submitted_ms >= max(COLD_PATIENCE_MS, COLD_PATIENCE_LOADS * offer.load_ms)


def fits(requires: Requires, *, node: str, labels: Sequence[str], vram_mib: int) -> bool:
    """Whether a node has what a job requires (its twin is `lua/_fits.lua`)."""
    if requires.vram_gb is not None and requires.vram_mib > vram_mib:
        return False
    if requires.node and requires.node != node:
        return False
    return set(requires.labels) <= set(labels)
