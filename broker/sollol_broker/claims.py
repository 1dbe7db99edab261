"""What a worker asks for, what it is given, and what it gives back: as the functions in Redis take and tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .codec import pack
from .seal import key_of
from .told import text


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to answer a job: whoever shows a newer fence, or another nonce, has lost it.

    Attributes:
        key_id: of the key that the job was sealed with, and so what is said of it; empty = it was not.
    """

    job_id: str
    fence: int
    nonce: str
    key_id: bytes = b""

    def arguments(self) -> tuple[object, ...]:
        """As every fenced verb wants them."""
        return (self.job_id, self.fence, self.nonce)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that is now ours to run.

    Attributes:
        waited_ms: since it was submitted. deadline_ms: left until its deadline; None = it has none.
        blobs: how many large inputs lie beside the envelope.
        predicted_ms: what the claim rule expects it to take here. reference_ms: at the workers that would be
            faster; 0 = there are none.
        is_hedge: another worker runs it, too; the first answer counts. alone: it has killed workers; run nothing
            beside it. task, affinity: as submitted.
    """

    lease: Lease
    attempt: int
    waited_ms: float
    deadline_ms: float | None
    blobs: int
    envelope: bytes
    predicted_ms: float = 0.0
    reference_ms: float = 0.0
    is_hedge: bool = False
    alone: bool = False
    task: str = "generation"
    affinity: str = ""


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """A model and what it costs on the worker that asks, in ms; see `claim_rule.Offer`.

    Attributes:
        context_tokens: that it can take; 0 = not known.
        price: the factor that the costs contain, since some jobs fail there; what is predicted is without it.
    """

    model_key: str
    load_ms: float
    prompt_ms: float
    output_ms: float
    slowdown: float = 0.0
    context_tokens: int = 0
    price: float = 1.0


@dataclass(frozen=True, slots=True)
class LaneOffer:
    """One LLM server: how many jobs it could start now, of which models.

    Attributes:
        busy: jobs that it runs. settled_ms: since it last loaded a model.
        cached: prompt tokens that it still holds, by affinity.
    """

    free: int
    models: tuple[ModelOffer, ...]
    busy: int = 0
    settled_ms: float = 1e12
    cached: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a worker asks for; field by field what claim.lua takes.

    Attributes:
        nonce: new for each request, of [0-9a-z]; the same nonce again gives the same jobs again.
        lanes: all of the worker's, full ones too. most: jobs it could start in all.
        price: the factor that the offers' costs contain by an operator's wish; what is predicted is without it.
    """

    worker: str
    node: str
    nonce: str
    lease_ms: int
    lanes: tuple[LaneOffer, ...]
    most: int
    labels: tuple[str, ...] = ()
    vram_mib: int = 0
    depth: int = 32
    price: float = 1.0

    def arguments(self) -> tuple[object, ...]:
        """As claim.lua wants them."""
        offers = {
            "labels": self.labels,
            "vram_mib": self.vram_mib,
            "most": self.most,
            "price": self.price,
            "lanes": [
                {
                    "free": lane.free,
                    "busy": lane.busy,
                    "settled": lane.settled_ms,
                    "cached": dict(lane.cached),
                    "models": [
                        (
                            *(m.model_key, m.load_ms, m.prompt_ms, m.output_ms),
                            *(m.slowdown, m.context_tokens, m.price),
                        )
                        for m in lane.models
                    ],
                }
                for lane in self.lanes
            ],
        }
        return (self.worker, self.node, self.nonce, self.lease_ms, self.depth, pack(offers))


@dataclass(frozen=True, slots=True)
class Claims:
    """What came of a claim.

    Attributes:
        jobs: now ours to run. look_again_ms: until a waiting job may suit us; None = a bell will tell.
    """

    jobs: list[Claimed] = field(default_factory=list)
    look_again_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Used:
    """What a job really took: tokens as the backend reports them, ms from claim to answer; -1 = not known."""

    prompt_tokens: int = -1
    output_tokens: int = -1
    run_ms: float = -1.0


@dataclass(frozen=True, slots=True)
class Finished:
    """What came of a finish: whether the answer was taken, and the next jobs (None: advertise first)."""

    taken: bool
    claims: Claims | None = field(default_factory=Claims)


def read_claims(reply: Any) -> Claims | None:
    """What claim.lua replies; None = it does not know the worker."""
    if text(reply[0]) == "unknown":
        return None
    look_again_ms = float(reply[2])
    return Claims([_claimed(row) for row in reply[1]], None if look_again_ms < 0 else look_again_ms)


def _claimed(row: Any) -> Claimed:
    left = float(row[5])
    return Claimed(
        lease=Lease(text(row[0]), int(row[1]), text(row[2]), key_of(bytes(row[7]))),
        attempt=int(row[3]),
        waited_ms=float(row[4]),
        deadline_ms=None if left < 0 else left,
        blobs=int(row[6]),
        envelope=bytes(row[7]),
        predicted_ms=float(row[8]),
        reference_ms=float(row[9]),
        is_hedge=row[10] == 1,
        alone=row[11] == 1,
        task=text(row[12]),
        affinity=text(row[13]),
    )
