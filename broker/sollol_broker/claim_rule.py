"""Which waiting job a worker takes: a pure rule. `lua/_rule.lua` is its twin inside Redis.

Plain data in, plain data out: no clock, no Redis, no log. A property test runs both on the same states and
compares what they choose; `sollol bench replay` runs these very functions in virtual time.

The idea is comparative advantage: a worker takes the job that it is *relatively* least bad at, and a slow
worker helps the sooner, the longer the queue in front of the fast ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from .envelope import Requires

# A usual job, to tell fast workers from slow ones before any job is known.
TYPICAL_PROMPT, TYPICAL_OUTPUT = 512, 128
# Where nobody is better, a place further back in line costs as if four slots were.
_ALONE_CAPACITY = 4.0
# Jobs over which the loading of their model is spread at most.
_MOST_SHARING_A_LOAD = 8
_MOST_CLASS = 40


@dataclass(frozen=True, slots=True)
class Weights:
    """The numbers of the rule; docs/routing.md says how they were found.

    Attributes:
        backlog: φ: how readily a slower worker helps, per job in line and slot of the better ones.
        regret: cost of overtaking, in ratios, per place in line and slot of the better ones.
        patience: κ: a job is left to better workers at most this many times what that would save it.
        most_ratio: r_max: a worker slower than this leaves all but batch work alone until patience ends.
        cold_patience_ms, cold_patience_loads: a job whose model is not in memory comes first once it has
            waited this long, and this many loads, on a worker that has served as long since its last load.
        overtaking_ms: the lead in rank that counts as much as a whole prompt and answer saved: what is cached lets
            a job overtake so far at most.
        size: of jobs that suit a worker equally well, as those for several models in memory do, one yields to
            shorter ones for so many times its own time. Within a queue the order sees to that.
        batch_yields_ms: batch work is passed over by what else is for models in memory, until it has waited so long:
            what its lower head start is in the order of one queue, for the jobs of several.
    """

    backlog: float = 3.0
    regret: float = 0.03
    patience: float = 1.0
    most_ratio: float = 6.0
    cold_patience_ms: float = 30_000.0
    cold_patience_loads: float = 3.0
    overtaking_ms: float = 10_000.0
    size: float = 8.0
    batch_yields_ms: float = 285_000.0


DEFAULT_WEIGHTS = Weights()


@dataclass(frozen=True, slots=True)
class PaceClass:
    """Workers of like speed, seen together.

    Attributes:
        capacity: jobs that they run at once.
        load_ms: to bring the model into memory; 0 where it is. prompt_ms, output_ms: per token, all slots busy.
        crowding: what one more job costs then, in its own time: the delay of those beside it included.
    """

    capacity: float
    load_ms: float
    prompt_ms: float
    output_ms: float
    crowding: float = 1.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What one model costs on the worker that asks.

    Attributes:
        load_ms: to bring it into memory; 0 when it is there.
        prompt_ms, output_ms: per token when nothing else runs.
        slowdown: share by which each busy slot slows a job down.
        busy: slots at work now.
        waiting: jobs in line for this model. backlog: jobs in line in front of the same workers.
        settled_ms: since this worker last loaded a model.
        others: the other workers that serve it.
    """

    load_ms: float
    prompt_ms: float
    output_ms: float
    slowdown: float = 0.0
    busy: int = 0
    waiting: int = 1
    backlog: int = 1
    settled_ms: float = math.inf
    others: tuple[PaceClass, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job near the head of a queue.

    Attributes:
        offer: index of its model's offer.
        position: jobs before it in its queue.
        prompt_tokens: of its prompt; cached_tokens: of those, already in this worker's cache.
        output_tokens: expected of its answer.
        waited_ms: since it came.
        is_batch: nobody waits for it at a prompt, so any worker will do.
        is_bound: only some workers may have it, so what the others would need does not matter.
        behind_ms: by how much its rank is above that of the first job in its queue.
    """

    offer: int
    position: int
    prompt_tokens: float
    output_tokens: float
    waited_ms: float
    cached_tokens: float = 0.0
    is_batch: bool = False
    is_bound: bool = False
    behind_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Bid:
    """What one worker makes of one job; times in ms.

    Attributes:
        own_ms: predicted here, load included.
        reference_ms: predicted at the better workers; 0 when nobody is better. capacity: their slots.
        ratio: own to reference. value: the lower, the better the choice.
        backlog_needed: jobs in line at which this worker would take it.
        patience_ms: until it takes it in any case; 0 = now.
    """

    own_ms: float
    reference_ms: float
    capacity: float
    ratio: float
    value: float
    takes: bool
    backlog_needed: float = 0.0
    patience_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What a worker does now.

    Attributes:
        index: of the job to take; None = none of them.
        bid: for that job.
        backlog_needed: with no job taken: the backlog at which one would be; inf = none ever.
        look_again_ms: with no job taken: until the first one's patience ends; inf = never.
    """

    index: int | None
    bid: Bid | None = None
    backlog_needed: float = math.inf
    look_again_ms: float = math.inf


def load_share_ms(offer: Offer) -> float:
    """The part of a load that one job has to bear: others that wait for the model share it."""
    return offer.load_ms / min(max(offer.waiting, 1), _MOST_SHARING_A_LOAD)


def weigh(offer: Offer, job: Waiting, weights: Weights = DEFAULT_WEIGHTS) -> Bid:
    """Price one job, and compare with the workers that would need less time.

    1. own = share of the load + (prompt tokens not cached x pace + expected output tokens x pace) x slowdown
       of the busy slots.
    2. Over the classes that it would cost less than `own` (for a bound job none): capacity = sum of theirs,
       reference = their mean cost, weighted by capacity; a class's cost is its time x crowding. Nobody is
       better: take it; its ratio is that to our own time with the model in memory and nothing cached.
    3. ratio = own / reference. Take it if ratio - 1 <= backlog weight x backlog / capacity, and ratio <= the
       most.
    4. Whatever the ratio, take it once it has waited patience x (own - reference).
    5. value = ratio + regret x position / capacity; where nobody is better, ranks count as well, lest jobs
       with a cached prompt keep the others waiting. A job whose model is cold and that is due goes before all.
    """
    slow = 1.0 + offer.slowdown * offer.busy
    prompt = max(0.0, job.prompt_tokens - job.cached_tokens)
    service = slow * (offer.prompt_ms * prompt + offer.output_ms * job.output_tokens)
    uncached = slow * (offer.prompt_ms * job.prompt_tokens + offer.output_ms * job.output_tokens)
    own = load_share_ms(offer) + service
    capacity = total = 0.0
    for each in () if job.is_bound else offer.others:
        alone = each.prompt_ms * job.prompt_tokens + each.output_ms * job.output_tokens
        theirs = each.load_ms + each.crowding * alone
        if theirs < own:
            capacity += each.capacity
            total += each.capacity * theirs
    is_due = _is_due(offer, job, weights)
    if capacity <= 0:
        ratio = own / uncached if uncached > 0 else 1.0
        overtaken = weights.regret * job.position / _ALONE_CAPACITY + job.behind_ms / weights.overtaking_ms
        value = 0.0 if is_due else ratio + overtaken
        return Bid(own, 0.0, 0.0, ratio, value, takes=True)
    reference = total / capacity
    ratio = own / reference if reference > 0 else math.inf
    needed = (ratio - 1.0) * capacity / weights.backlog
    left = max(0.0, weights.patience * (own - reference) - job.waited_ms)
    helps = needed <= offer.backlog and (job.is_batch or ratio <= weights.most_ratio)
    value = 0.0 if is_due else ratio + weights.regret * job.position / capacity
    if helps or left <= 0:
        return Bid(own, reference, capacity, ratio, value, takes=True)
    if not (job.is_batch or ratio <= weights.most_ratio):
        needed = math.inf
    return Bid(own, reference, capacity, ratio, value, takes=False, backlog_needed=needed, patience_ms=left)


def choose(offers: Sequence[Offer], jobs: Sequence[Waiting], weights: Weights = DEFAULT_WEIGHTS) -> Choice:
    """The job to take of those that pass: the least value; of equal ones, the one that waited longest for its size.

    Batch work that has not waited for `batch_yields_ms` goes behind all else for other models in memory; within a queue
    its rank sees to that. When none passes: at which backlog, and after which time, one would.
    """
    best: int | None = None
    best_bid: Bid | None = None
    needed = again = math.inf
    for index, job in enumerate(jobs):
        bid = weigh(offers[job.offer], job, weights)
        if not bid.takes:
            needed, again = min(needed, bid.backlog_needed), min(again, bid.patience_ms)
        elif best is None or best_bid is None:
            best, best_bid = index, bid
        else:
            rival = jobs[best]
            first = _is_first(offers[job.offer], job, bid, weights)
            if job.offer != rival.offer and first != _is_first(offers[rival.offer], rival, best_bid, weights):
                is_better = first
            else:
                turn = (-bid.value, _age(job, bid, weights))
                is_better = turn > (-best_bid.value, _age(rival, best_bid, weights))
            if is_better:
                best, best_bid = index, bid
    if best is not None:
        return Choice(best, best_bid)
    return Choice(None, None, needed, again)


def _is_first(offer: Offer, job: Waiting, bid: Bid, weights: Weights) -> bool:
    """Whether it goes before those for other models that are batch work, or wait for a load.

    Its model is in memory, and somebody waits for it, or it was passed over for long enough; or it is due.
    """
    yields = job.is_batch and job.waited_ms < weights.batch_yields_ms
    return bid.value == 0 or (offer.load_ms == 0 and not yields)


def _age(job: Waiting, bid: Bid, weights: Weights) -> float:
    return job.waited_ms - weights.size * bid.own_ms


def _is_due(offer: Offer, job: Waiting, weights: Weights) -> bool:
    loads_ms = weights.cold_patience_loads * offer.load_ms
    return (
        offer.load_ms > 0
        and job.waited_ms >= max(weights.cold_patience_ms, loads_ms)
        and offer.settled_ms >= loads_ms
    )


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker adds to the others' view of a model: whole numbers, so that sums stay exact.

    Attributes:
        group: number of its class. capacity: its slots.
        load_ms: rounded. prompt_us, output_us: per token with all slots busy, in µs.
        context_tokens: the longest context it takes; 0 = not known.
        crowding: as in `PaceClass`, in per cent.
    """

    group: int
    capacity: int
    load_ms: int
    prompt_us: int
    output_us: int
    context_tokens: int = 0
    crowding: int = 100

    def __str__(self) -> str:
        """As `_classes.lua` reads it."""
        return "|".join(map(str, astuple(self)))


def share_of(
    *,
    load_ms: float,
    prompt_ms: float,
    output_ms: float,
    slowdown: float = 0.0,
    slots: int = 1,
    context_tokens: int = 0,
) -> Share:
    """A worker's share of a model's capacity. Its class: log2 of a usual job's time there, load included.

    Workers that hold the model in memory have even numbers, the others odd ones.
    """
    beside = slowdown * max(0, slots - 1)
    full = 1.0 + beside
    prompt_us, output_us = round(prompt_ms * full * 1000), round(output_ms * full * 1000)
    usual_ms = load_ms + (TYPICAL_PROMPT * prompt_us + TYPICAL_OUTPUT * output_us) / 1000
    group = 2 * min(_MOST_CLASS, int(math.log2(max(1.0, usual_ms)))) + (load_ms > 0)
    # Each of the jobs beside it loses `slowdown` x its time alone while it runs.
    crowding = round(100 * (full + beside) / full)
    return Share(group, slots, round(load_ms), prompt_us, output_us, context_tokens, crowding)


def together(shares: Sequence[Share]) -> Share:
    """One worker's share when several of its servers have the model: all their slots, at the best one's pace."""
    best = min(shares, key=lambda share: (share.capacity == 0, share.group))
    return replace(best, capacity=sum(share.capacity for share in shares))


def classes_of(shares: Sequence[Share]) -> tuple[PaceClass, ...]:
    """The classes that these workers form, by number."""
    sums: dict[int, list[int]] = {}
    for share in shares:
        total = sums.setdefault(share.group, [0, 0, 0, 0, 0])
        for index, part in enumerate((1, share.load_ms, share.prompt_us, share.output_us, share.crowding)):
            total[index] += share.capacity * part
    return tuple(
        PaceClass(
            capacity,
            load / capacity,
            prompt / capacity / 1000,
            output / capacity / 1000,
            crowding / capacity / 100,
        )
        for _, (capacity, load, prompt, output, crowding) in sorted(sums.items())
        if capacity > 0
    )


def fits(requires: Requires, *, node: str, labels: Sequence[str], vram_mib: int) -> bool:
    """Whether a node has what a job requires (its twin is `lua/_fits.lua`)."""
    if requires.vram_gb is not None and requires.vram_mib > vram_mib:
        return False
    if requires.node and requires.node != node:
        return False
    return set(requires.labels) <= set(labels)
