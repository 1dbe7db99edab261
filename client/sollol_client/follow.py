"""Follows one job by its entries: which attempt counts, which pieces are new, how it ends. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sollol_broker.codec import unpack
from sollol_broker.envelope import MAX_ANSWER_BYTES
from sollol_broker.errors import BackendError, InvalidJob, SollolError, StreamGap
from sollol_broker.outcome import read_outcome
from sollol_broker.words import Entry, JobState

from .answer import Answer, Delta, make_answer

# Of an entry in a stream: milliseconds, and a counter within them.
EntryOrder = tuple[int, int]


def entry_order(entry_id: bytes | str) -> EntryOrder:
    """Where an entry stands in its stream."""
    at, _, number = (entry_id.decode() if isinstance(entry_id, bytes) else entry_id).partition("-")
    return int(at), int(number)


def check_entry_id(entry_id: str | None) -> None:
    """Check what a caller gives as the id of an entry.

    Raises:
        InvalidJob: it is none.
    """
    if entry_id and not re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}", entry_id, re.ASCII):
        raise InvalidJob(
            "after is no entry id: give the entry_id of a piece, such as 1700000000000-0", field="after"
        )


@dataclass(slots=True)
class Follower:
    """What is known of one job. Entries may come twice or late; an ended job stays ended.

    Each piece tells where in the text it belongs. A new attempt goes on behind what earlier ones said, or begins
    anew; as long as it repeats what was already shown, nothing is shown twice. Where it says something else, the
    stream breaks with an error, and only `outcome` has the new answer whole. Pieces are numbered without gaps:
    after one that passed us by, none is shown until it has come from the job's own events, or the answer has
    brought the rest of the text.

    Fences only grow, unless Redis has lost its last moments: then attempts of lower or equal number begin behind
    what was seen, and count.

    Attributes:
        after: what another reader has shown ends with this entry: it is taken in, and not shown again.
        state: the last state seen.
        outcome: the answer or the error, once the job has ended.
        broken: the error that a stream's reader gets instead of the rest.
        fence: of the present attempt.
        entry_id: of the entry taken last; "" = none, or its writer did not say.
        news: counts entries taken in, for whoever wants to know that it goes on.
        note: what is being done for it meanwhile, as its fabric tells; "" = nothing in particular.
        lacks_pieces: some have passed us by; nothing is shown until they have come.
        is_resuming: `after` has not come yet.
    """

    job_id: str
    state: JobState = JobState.QUEUED
    outcome: Answer | SollolError | None = None
    broken: SollolError | None = None
    node: str = ""
    after: EntryOrder | None = None
    fence: int = 0
    entry_id: str = ""
    news: int = 0
    note: str = ""
    lacks_pieces: bool = False
    is_resuming: bool = field(init=False)
    _newest: EntryOrder = (0, 0)
    _began: EntryOrder = (0, 0)
    # The last piece taken in: where it stands, its attempt, its number.
    _last: tuple[EntryOrder, int, int] = ((0, 0), 0, 0)
    _shown: list[str] = field(default_factory=list)
    _chars: int = 0

    def __post_init__(self) -> None:
        self.is_resuming = self.after is not None

    def take(self, entry: Mapping[bytes, bytes]) -> Delta | None:
        """Take an entry in; gives the piece to show, if it holds one."""
        if self.outcome is not None:
            return None
        kind, fence, at = entry[b"t"].decode(), int(entry[b"f"]), (0, 0)
        is_start, is_new = kind == Entry.START, False
        if b"e" in entry:
            at = entry_order(entry[b"e"])
            is_new = at > self._newest
            self._newest, self.entry_id = max(at, self._newest), entry[b"e"].decode()
            if self.is_resuming and self.after is not None and at > self.after:
                self._break_off()
        if kind == Entry.NOTE:
            self.news, self.note = self.news + 1, entry[b"x"].decode(errors="replace")
            return None
        if kind == Entry.END:
            piece = self._end(JobState(entry[b"x"].decode()), entry[b"d"], fence, at)
        else:
            self.news += 1
            if fence > self.fence or is_new:
                self.state, self.fence = JobState.RUNNING, fence
                if is_start:
                    self.node, self._began = entry[b"n"].decode(), at
            piece = None if is_start else self._take_piece(at, fence, int(entry[b"s"]), entry[b"d"])
        is_known = self.after is not None and at <= self.after
        if self.after is not None and at == self.after:
            self.is_resuming = False
        return None if is_known else piece

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
        self.fence, self._newest, self._began, self._last = 0, (0, 0), (0, 0), ((0, 0), 0, 0)

    def _take_piece(self, at: EntryOrder, fence: int, seq: int, packed: bytes) -> Delta | None:
        """1. seen before, or left over from a dead attempt; 2. one that does not follow the last; 3. the next."""
        last_at, last_fence, last_seq = self._last
        is_known = at <= last_at if at > (0, 0) else (fence, seq) <= (last_fence, last_seq)
        if is_known or self.broken is not None:  # 1
            return None
        # Fences of a Redis that has lost its last moments come again.
        is_same = fence == last_fence and seq > last_seq and not last_at < self._began < at
        data = unpack(packed, max_bytes=MAX_ANSWER_BYTES)
        follows = seq == (last_seq + 1 if is_same else 1)
        self.lacks_pieces = not follows or data.get("at", 0) > self._chars
        if self.lacks_pieces:  # 2
            if self.is_resuming:  # its first entries are gone, and with them what was shown
                self._break_off()
            return None
        self._last = at, fence, seq  # 3
        return self._piece(data)

    def _piece(self, data: Mapping[str, Any]) -> Delta | None:
        """What of it is new; None when all of it is shown already."""
        delta, at = Delta.of(data, self.entry_id), data.get("at", 0)
        if at < self._chars:
            known = self._text()[at : at + len(delta)]
            if delta[: len(known)] != known:
                self._break()
                return None
            delta = Delta.of({**data, "text": delta[len(known) :]}, self.entry_id)
            if not delta and not delta.tool_calls:
                return None
        if not (delta or delta.thinking or delta.tool_calls or delta.logprobs):
            return None
        self._shown.append(str(delta))
        self._chars += len(delta)
        return delta

    def _text(self) -> str:
        """All that was shown."""
        self._shown = ["".join(self._shown)]
        return self._shown[0]

    def _end(self, state: JobState, data: bytes, fence: int, at: EntryOrder) -> Delta | None:
        self.state = state
        outcome = read_outcome(self.job_id, state, data, attempts=fence)
        if self.is_resuming and at != self.after:
            self._break_off()
        if isinstance(outcome, SollolError):
            self.outcome = outcome
            return None
        self.outcome = make_answer(outcome)
        return self._rest(self.outcome.text)

    def _rest(self, text: str) -> Delta | None:
        """What the answer says beyond the pieces that were shown, if some were."""
        shown = self._text()
        if shown == text or self.broken is not None or not (shown or self.after):
            return None
        if not text.startswith(shown):
            self._break()
            return None
        return Delta.of({"text": text[len(shown) :]}, self.entry_id)

    def _break(self) -> None:
        self.broken = BackendError(
            f"job {self.job_id}: its node went away in mid-answer and another one answers differently; "
            "result() has the new answer whole",
            partial=self._text(),
        )

    def _break_off(self) -> None:
        self.is_resuming = self.lacks_pieces = False
        if self.broken is None:
            self.broken = StreamGap(
                f"job {self.job_id}: what follows the entry to resume from is no longer in Redis; result() has the "
                "answer whole, attach() without `after` reads from the beginning"
            )
