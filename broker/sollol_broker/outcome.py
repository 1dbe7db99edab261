"""How a job ended, as its terminal entry carries it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from . import errors
from .codec import pack, unpack
from .envelope import MAX_ANSWER_BYTES
from .errors import SollolError
from .words import JobState

# A long generation's `context`, or the logprobs of each token, are long lists.
_MAX_ITEMS = 2_000_000


@dataclass(frozen=True, slots=True)
class Seam:
    """Where an attempt went on with what an earlier one had said.

    Attributes:
        offset: characters of the text that came from earlier attempts.
        how: "continued" (the model went on behind them), "repeated" (it began anew, said the same again, and went on),
            or "complete" (nothing was left to say).
    """

    attempt: int
    node: str
    offset: int
    how: str


@dataclass(frozen=True, slots=True)
class Routing:
    """Where an answer came from and what it took. Times in ms, all of them measured.

    Attributes:
        attempt: 1 = the first worker that took the job also answered it.
        queue_wait_ms: from submit to the claim of this attempt.
        run_ms: from the claim to the last token.
        first_token_ms: from the claim to the first token; 0 for embeddings.
        predicted_ms: what the claim rule expected run_ms to be. reference_ms: what it expected of the faster
            workers; 0 = there were none. score: their ratio; 1 = nobody would have been faster.
        hedged: the answer is that of a second copy.
        cached: "local" or "shared" where an earlier request of the same kind had this answer, and the rest tells of
            that one; "" = it was made for this one.
        seams: where attempts went on with the text of earlier ones; empty = one attempt said it all. Times and speed
            are of the last attempt.
    """

    node: str
    worker: str
    backend: str
    attempt: int
    task_type: str
    queue_wait_ms: float
    run_ms: float
    first_token_ms: float = 0.0
    load_ms: float = 0.0
    tokens_per_second: float = 0.0
    predicted_ms: float = 0.0
    reference_ms: float = 0.0
    score: float = 1.0
    hedged: bool = False
    cached: str = ""
    seams: tuple[Seam, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {**plain, "seams": [asdict(seam) for seam in self.seams]}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Routing:
        """What `as_dict` gave; fields of other releases are left out.

        Raises:
            TypeError: it is something else.
        """
        known = {name: value for name, value in given.items() if name in cls.__slots__}
        return cls(**{**known, "seams": tuple(Seam(**seam) for seam in known.get("seams") or ())})


def pack_answer(answer: Mapping[str, Any], routing: Routing) -> bytes:
    """The terminal entry of a job that is done."""
    return pack({"answer": dict(answer), "routing": routing.as_dict()})


def pack_error(error: SollolError) -> bytes:
    """The terminal entry of a job that failed."""
    return pack(errors.to_wire(error))


def read_outcome(
    job_id: str, state: JobState, data: bytes, attempts: int = 0
) -> dict[str, Any] | SollolError:
    """What a terminal entry says: {"answer", "routing"}, or the error to raise.

    Raises:
        InvalidJob: the entry is malformed.
    """
    if state is JobState.CANCELLED:
        return errors.JobCancelled(f"job {job_id} was cancelled")
    if state is JobState.EXPIRED:
        return errors.DeadlineExceeded(
            f"job {job_id} had no answer when its deadline passed: allow more time, or add nodes"
        )
    if state is JobState.DEAD:
        return errors.JobDead(
            f"job {job_id} lies in the dead letters: every worker that took it died. Look at those workers' "
            "logs (out of memory?) before you send it again",
            attempts=attempts,
        )
    plain = unpack(data, max_bytes=MAX_ANSWER_BYTES, max_items=_MAX_ITEMS)
    if not isinstance(plain, dict):
        raise errors.InvalidJob(f"the outcome of job {job_id} is not a map")
    if state is JobState.FAILED:
        return errors.from_wire(plain)
    return plain
