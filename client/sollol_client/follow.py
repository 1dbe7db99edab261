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
    answer whole. Pieces are numbered without gaps: after one that passed us by, none is shown until it has
    come from the job's own events, or the answer has brought the rest of the text.

    Attributes:
        state: the last state seen.
        outcome: the answer or the error, once the job has ended.
        broken: the error that a stream's reader gets instead of the rest.
        news: counts entries taken in, for whoever wants to know that it goes on.
        lacks_pieces: some have passed us by; nothing is shown until they have come.
    """

    job_id: str
    state: JobState = JobState.QUEUED
    outcome: Answer | SollolError | None = None
    broken: SollolError | None = None
    node: str = ""
    news: int = 0
    lacks_pieces: bool = False
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
            return self._end(JobState(entry[b"x"].decode()), entry[b"d"], fence)
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
        self.lacks_pieces = seq > self._seq + 1
        if self.lacks_pieces:
            return None
        self._seq = seq
        return self._piece(unpack(entry[b"d"], max_bytes=MAX_ANSWER_BYTES))

    def end(self, outcome: SollolError) -> None:
        """End it from our side: it was refused, or lost, or we leave."""
        if self.outcome is None:
            self.outcome = outcome
            self.state = JobState.CANCELLED if self.state is JobState.CANCELLED else JobState.FAILED

    def restart(self, job_id: str = "") -> None:
        """Count attempts from the beginning: Redis has lost the job and gets it anew, or another takes its place.

        Args:
            job_id: of that other one.
        """
        self.job_id = job_id or self.job_id
        self.state, self.outcome = JobState.QUEUED, None
        self._fence = 0

    def _begin(self, fence: int) -> None:
        self.state = JobState.RUNNING
        self._fence, self._seq, self.lacks_pieces = fence, 0, False
        self._to_repeat = "".join(self._shown)

    def _piece(self, data: Mapping[str, Any]) -> Delta | None:
        delta = Delta.of(data)
        if self._to_repeat:
            known = min(len(delta), len(self._to_repeat))
            if delta[:known] != self._to_repeat[:known]:
                self._break()
                return None
            self._to_repeat = self._to_repeat[known:]
            delta = Delta.of({**data, "text": delta[known:]})
            if not delta and not delta.tool_calls:
                return None
        if delta:
            self._shown.append(str(delta))
        return delta

    def _end(self, state: JobState, data: bytes, fence: int) -> Delta | None:
        self.state = state
        outcome = read_outcome(self.job_id, state, data, attempts=fence)
        if isinstance(outcome, SollolError):
            self.outcome = outcome
            return None
        self.outcome = make_answer(outcome)
        return self._rest(self.outcome.text)

    def _rest(self, text: str) -> Delta | None:
        """What the answer says beyond the pieces that were shown, if some were."""
        shown = "".join(self._shown)
        if not shown or shown == text or self.broken is not None:
            return None
        if not text.startswith(shown):
            self._break()
            return None
        return Delta.of({"text": text[len(shown) :]})

    def _break(self) -> None:
        self.broken = BackendError(
            f"job {self.job_id}: its node went away in mid-answer and another one answers differently; "
            "result() has the new answer whole",
            partial="".join(self._shown),
        )
