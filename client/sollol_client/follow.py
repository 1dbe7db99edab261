"""Follows one job by its entries: which attempt counts, which pieces are new, how it ends. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sollol_broker.codec import unpack
from sollol_broker.envelope import MAX_ANSWER_BYTES
from sollol_broker.errors import BackendError, SollolError
from sollol_broker.outcome import read_outcome
from sollol_broker.words import Entry, JobState

from .answer import Answer, Delta, make_answer


@dataclass(slots=True)
class Follower:
    """What is known of one job. Entries may come twice or late; an ended job stays ended.

    A new attempt begins its text anew. As long as it repeats what was already shown, nothing is shown
    twice; where it says something else, the stream breaks with an error, and only `outcome` has the new
    answer whole.

    Attributes:
        state: the last state seen.
        outcome: the answer or the error, once the job has ended.
        broken: the error that a stream's reader gets instead of the rest.
        news: counts entries taken in, for whoever wants to know that it goes on.
    """

    job_id: str
    state: JobState = JobState.QUEUED
    outcome: Answer | SollolError | None = None
    broken: SollolError | None = None
    node: str = ""
    news: int = 0
    _fence: int = 0
    _seq: int = 0
    _shown: list[str] = field(default_factory=list)
    _to_repeat: str = ""

    def take(self, entry: Mapping[bytes, bytes]) -> Delta | None:
        """Take an entry in; gives the piece to show, if it holds one."""
        if self.outcome is not None:
            return None
        self.news += 1
        kind, fence = entry[b"t"].decode(), int(entry[b"f"])
        if kind == Entry.END:
            self._end(JobState(entry[b"x"].decode()), entry[b"d"], fence)
            return None
        if fence < self._fence:
            return None
        if fence > self._fence:
            self._begin(fence)
        if kind == Entry.START:
            self.node = entry[b"n"].decode()
            return None
        seq = int(entry[b"s"])
        if seq <= self._seq or self.broken is not None:
            return None
        self._seq = seq
        return self._piece(unpack(entry[b"d"], max_bytes=MAX_ANSWER_BYTES))

    def end(self, outcome: SollolError) -> None:
        """End it from our side: it was refused, or lost, or we leave."""
        if self.outcome is None:
            self.outcome = outcome
            self.state = JobState.CANCELLED if self.state is JobState.CANCELLED else JobState.FAILED

    def _begin(self, fence: int) -> None:
        self.state = JobState.RUNNING
        self._fence, self._seq = fence, 0
        self._to_repeat = "".join(self._shown)

    def _piece(self, data: Mapping[str, Any]) -> Delta | None:
        delta = Delta.of(data)
        if self._to_repeat:
            known = min(len(delta), len(self._to_repeat))
            if delta[:known] != self._to_repeat[:known]:
                self.broken = BackendError(
                    f"job {self.job_id}: its node went away in mid-answer and another one answers differently; "
                    "result() has the new answer whole",
                    partial="".join(self._shown),
                )
                return None
            self._to_repeat = self._to_repeat[known:]
            delta = Delta.of({**data, "text": delta[known:]})
            if not delta and not delta.tool_calls:
                return None
        if delta:
            self._shown.append(str(delta))
        return delta

    def _end(self, state: JobState, data: bytes, fence: int) -> None:
        self.state = state
        outcome = read_outcome(self.job_id, state, data, attempts=fence)
        self.outcome = outcome if isinstance(outcome, SollolError) else make_answer(outcome)
