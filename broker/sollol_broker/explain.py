"""Why a job is where it is: its way so far, and what each node makes of it now. Pure; explain_reader.py reads.

The reasons follow the order in which `claim.lua` decides, so the first one that holds is the one that keeps a
node from the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .claim_rule import Offer, Share, Waiting, classes_of, weigh
from .controls import Controls
from .envelope import Requires
from .history import Moment, Refusal, Taken, span
from .names import key_part
from .words import JobState

# Codes of reasons that only waiting can change.
_PASSING = ("ready", "full", "cheaper", "preferred", "quarantine", "degraded")
# As long as `_heads.lua` keeps a job for the nodes that it prefers.
_PREFER_PATIENCE_MS = 10_000.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live worker, as far as it matters to one job.

    Attributes:
        serves: it has the model now. down: why a backend of it does not answer; "" = all do.
        has: other models that it has. failed: its node has failed this job within the last half minute.
        share: what it adds to the model's capacity; None = nothing now.
        short_mib: by which its memory is too small for the model, where it has it on disk.
    """

    worker: str
    node: str
    controls: Controls
    state: str
    serves: bool
    slots: int
    busy: int
    down: str = ""
    has: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    vram_mib: int = 0
    failed: bool = False
    share: Share | None = None
    short_mib: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A waiting job's place, and what the rule knows of it.

    Attributes:
        position: jobs before it. waiting: jobs in line, itself included.
        alone: it has killed workers and runs only where nothing else does.
        is_bound: only some workers may have it, so it is not compared with the others.
        prefers: key parts of the nodes that should have it.
    """

    model: str
    prompt_tokens: float
    output_tokens: float
    waited_ms: float
    position: int
    waiting: int
    context_tokens: float = 0.0
    is_batch: bool = False
    alone: bool = False
    is_bound: bool = False
    prefers: tuple[str, ...] = ()
    requires: Requires | None = None


@dataclass(frozen=True, slots=True)
class NodeReason:
    """Why a live node does not run the job at this moment.

    Attributes:
        code: cordoned, draining, stopping, denied, down, absent, memory, node, vram, labels, degraded, context, failed,
            preferred, quarantine, full, cheaper, or ready: nothing but the jobs before it.
        number: MiB (memory, vram), tokens (context), or ms until it takes the job anyway (cheaper, preferred); else 0.
    """

    node: str
    worker: str
    code: str
    text: str
    number: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """A job's history and present.

    Attributes:
        summary: where it is, in a sentence.
        taken: why it was claimed the last time; None = never.
        refusals: who looked at it and left it. nodes: what each live node makes of it; while it waits.
        position: jobs before it. start_in_seconds: until it should begin; None = not known, or it does not wait.
        task: as guessed from its words. prompt_tokens, output_tokens: as predicted; None once it has ended.
        size: simple, medium or complex, by those. wants_gpu: one would rather not run it without one.
    """

    id: str
    state: JobState
    model: str
    app: str
    priority: int
    attempt: int
    summary: str
    timeline: tuple[Moment, ...]
    taken: Taken | None = None
    refusals: tuple[Refusal, ...] = ()
    nodes: tuple[NodeReason, ...] = ()
    position: int | None = None
    start_in_seconds: float | None = None
    task: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    size: str = ""
    wants_gpu: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "state": str(self.state)}


def start_in_ms(
    *, position: int, waiting: int, backlog_ms: float, speed: float, has_free_slot: bool
) -> float | None:
    """When a waiting job should begin, from the work ahead of it and what all nodes serve together.

    Args:
        backlog_ms: predicted time of all `waiting` jobs on the fastest worker. speed: how many of those workers
            the fabric is worth; 0 = nobody serves the model.
    """
    if speed <= 0 or waiting <= 0:
        return None
    each_ms = max(0.0, backlog_ms) / waiting
    ahead = position + (0 if has_free_slot and position == 0 else 1)
    return ahead * each_ms / speed


def reasons(line: Line, candidates: Sequence[Candidate]) -> tuple[NodeReason, ...]:
    """What keeps each live node from a waiting job; of a node's workers, the one that is nearest to taking it."""
    by_node: dict[str, NodeReason] = {}
    for candidate in candidates:
        others = [each for each in candidates if each.worker != candidate.worker and each.share is not None]
        reason = _reason(line, candidate, others)
        best = by_node.get(reason.node)
        if best is None or _CODES.index(reason.code) > _CODES.index(best.code):
            by_node[reason.node] = reason
    return tuple(by_node[node] for node in sorted(by_node))


def can_any(nodes: Sequence[NodeReason]) -> bool:
    """Whether some node needs nothing but time."""
    return any(each.code in _PASSING for each in nodes)


# From the farthest to the nearest.
_CODES = (
    *(
        "stopping",
        "absent",
        "memory",
        "down",
        "denied",
        "draining",
        "cordoned",
        "node",
        "labels",
        "vram",
        "degraded",
    ),
    *("context", "failed", "preferred", "quarantine", "full", "cheaper", "ready"),
)


def _reason(line: Line, candidate: Candidate, others: Sequence[Candidate]) -> NodeReason:
    """1. closed by an operator, or stopping, 2. denied, 3. not there, 4. unfit, 5. for others, 6. busy, 7. rule."""
    closed = _closed(candidate)  # 1
    denied = candidate.controls.forbids(line.model)
    if closed:
        code, text, number = *closed, 0.0
    elif denied:  # 2
        code, text, number = "denied", f"it may not serve the model: {denied}", 0.0
    elif not candidate.serves:  # 3
        code, text, number = _absent(candidate)
    elif unfit := _unfit(line, candidate):  # 4
        code, text, number = unfit
    elif candidate.share is not None and candidate.share.capacity == 0:
        code, text, number = (
            "degraded",
            "its backend fails jobs: none go there until checks succeed again",
            0.0,
        )
    elif left := _left(line, candidate, others):  # 5
        code, text, number = left
    elif candidate.busy >= candidate.slots:  # 6
        code, text, number = "full", f"all its slots are busy ({candidate.busy} of {candidate.slots})", 0.0
    else:  # 7
        code, text, number = _ruled(line, candidate, others)
    return NodeReason(candidate.node, candidate.worker, code, text, round(number, 1))


def _closed(candidate: Candidate) -> tuple[str, str] | None:
    if candidate.controls.draining:
        return "draining", "an operator drains it: it takes no new jobs"
    if candidate.controls.cordoned:
        return "cordoned", "an operator has cordoned it: it takes no new jobs"
    if candidate.state == "draining":
        return "stopping", "its worker is stopping"
    return None


def _absent(candidate: Candidate) -> tuple[str, str, float]:
    if candidate.short_mib:
        text = f"{candidate.short_mib:,} MiB of memory, VRAM included, too little for the model"
        return "memory", text, candidate.short_mib
    if candidate.down:
        return "down", f"its backend is down: {candidate.down}", 0.0
    has = ", ".join(candidate.has[:8]) or "no model at all"
    return "absent", f"it does not have the model; it has {has}", 0.0


def _unfit(line: Line, candidate: Candidate) -> tuple[str, str, float] | None:
    wanted = line.requires
    if wanted is None:
        return None
    if wanted.node and wanted.node != candidate.node:
        return "node", f"the job asks for the node {wanted.node}", 0.0
    missing = sorted(set(wanted.labels) - set(candidate.labels))
    if missing:
        return "labels", f"it lacks the label{'s' if len(missing) > 1 else ''} {', '.join(missing)}", 0.0
    short = wanted.vram_mib - candidate.vram_mib
    if short > 0:
        return (
            "vram",
            f"{short:,} MiB of VRAM too little: {wanted.vram_mib:,} wanted, {candidate.vram_mib:,} there",
            short,
        )
    return None


def _left(line: Line, candidate: Candidate, others: Sequence[Candidate]) -> tuple[str, str, float] | None:
    """What it leaves to others, as long as there are others for it."""
    context = candidate.share.context_tokens if candidate.share is not None else 0
    needed = max(line.prompt_tokens, line.context_tokens)
    longer = any(_context(each) == 0 or _context(each) > context for each in others)
    if context and needed > context and longer:
        return (
            "context",
            f"its context of {context:,} tokens is {needed - context:,.0f} too short",
            needed - context,
        )
    if candidate.failed and any(not each.failed for each in others):
        return "failed", "it has just failed there: other nodes come first", 0.0
    left_ms = _PREFER_PATIENCE_MS - line.waited_ms
    preferred = [each.node for each in others if each.serves and key_part(each.node) in line.prefers]
    if preferred and left_ms > 0 and key_part(candidate.node) not in line.prefers:
        return "preferred", f"it prefers {', '.join(preferred)}, for {span(left_ms)} more", left_ms
    if line.alone and candidate.busy:
        return "quarantine", "the job has killed workers and runs only where nothing else does", 0.0
    return None


def _ruled(line: Line, candidate: Candidate, others: Sequence[Candidate]) -> tuple[str, str, float]:
    share = candidate.share
    if share is None:
        return "ready", _first(line), 0.0
    job = Waiting(
        offer=0,
        position=line.position,
        prompt_tokens=line.prompt_tokens,
        output_tokens=line.output_tokens,
        waited_ms=line.waited_ms,
        is_batch=line.is_batch,
        is_bound=line.is_bound,
    )
    shares = [each.share for each in others if each.share is not None and each.share.capacity > 0]
    offer = Offer(
        load_ms=share.load_ms,
        prompt_ms=share.prompt_us / 1000,
        output_ms=share.output_us / 1000,
        waiting=line.waiting,
        backlog=line.waiting,
        others=classes_of(shares),
    )
    bid = weigh(offer, job)
    if bid.takes:
        return "ready", _first(line), 0.0
    quickest, ms = min(
        ((each.node, _run_ms(line, each.share)) for each in others if each.share is not None),
        key=lambda pair: pair[1],
    )
    crowd = f", or once {bid.backlog_needed:.0f} jobs wait" if bid.backlog_needed < 1e6 else ""
    return (
        "cheaper",
        f"slower: about {span(bid.own_ms)} here, {span(ms)} on {quickest}; "
        f"takes it in {span(bid.patience_ms)}{crowd}",
        bid.patience_ms,
    )


def _first(line: Line) -> str:
    if line.position == 0:
        return "it can take the job at its next look"
    return f"{line.position:,} job{'' if line.position == 1 else 's'} come{'s' * (line.position == 1)} first"


def _context(candidate: Candidate) -> int:
    return candidate.share.context_tokens if candidate.share is not None else 0


def _run_ms(line: Line, share: Share) -> float:
    return (
        share.load_ms + (share.prompt_us * line.prompt_tokens + share.output_us * line.output_tokens) / 1000
    )
