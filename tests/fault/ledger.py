"""The ledger: what became of each job, and every way in which that may break the promise. Pure.

The promise: each job is answered once, whole and with its own text, or lies in the dead letters; whoever waits is told
so; and nobody ever reads what an attempt wrote that had lost its lease.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """One way to break the promise."""

    LOST = "lost"  # no end stands in the job's events
    DOUBLED = "doubled"  # more than one does
    STALE = "stale"  # something was written behind the end, or by an attempt that another had replaced
    TORN = "torn"  # the winning attempt's pieces lack one, double one, or are not what the answer says
    MIXED = "mixed"  # the text is another job's
    ENDED_BADLY = "ended badly"  # failed, cancelled or expired, where nobody wanted that
    SILENT = "silent"  # a client that waited was told nothing
    CONTRADICTED = "contradicted"  # a client was told something else than what stands in the events


@dataclass(frozen=True, slots=True)
class Written:
    """One entry of a job's events.

    Attributes:
        kind: "start", "piece" or "end".
        state: of an end. text: of a piece, or of the answer at the end of a job that is done.
        at: where a piece's text stands in the answer: an attempt may go on with what an earlier one has shown.
    """

    kind: str
    fence: int
    seq: int = 0
    text: str = ""
    state: str = ""
    at: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """What one client was told.

    Attributes:
        text: the answer; None = it got none.
        error: the name of the error it got instead.
        streamed: all pieces that its stream showed, in one; None = it did not stream.
        broken: its stream ended with an error, which tells that `streamed` is not the whole.
    """

    text: str | None = None
    error: str = ""
    streamed: str | None = None
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Account:
    """One submitted job.

    Attributes:
        own_text: what it has to be answered with; None = any text will do.
        streams: False = pieces are kept only for the next attempt, and need not make up the answer.
        may_end: the states it may end in.
        may_lack_last: its last pieces may be gone, since only the end is kept safe; readers get the rest with the end.
        may_be_forgotten: its end may be gone once all who waited have its answer: a power cut took Redis' last second.
    """

    job_id: str
    written: Sequence[Written]
    told: Sequence[Told] = ()
    own_text: str | None = None
    streams: bool = True
    may_end: frozenset[str] = frozenset({"done"})
    may_lack_last: bool = False
    may_be_forgotten: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken promise."""

    fault: Fault
    job_id: str
    detail: str

    def __str__(self) -> str:
        return f"{self.fault}: job {self.job_id}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Ledger:
    """The sum over all jobs: submitted = answered + dead letters + those that `findings` names."""

    submitted: int
    ends: Counter[str]
    findings: tuple[Finding, ...]

    def count(self, fault: Fault) -> int:
        """How many jobs have it."""
        return len({finding.job_id for finding in self.findings if finding.fault is fault})

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {state}" for state, count in sorted(self.ends.items()))
        lines = [f"{self.submitted} jobs: {ends or 'none ended'}; {len(self.findings)} findings"]
        return "\n".join([*lines, *map(str, self.findings[:20])])


def balance(accounts: Iterable[Account]) -> Ledger:
    """Add all accounts up."""
    findings: list[Finding] = []
    ends: Counter[str] = Counter()
    submitted = 0
    for account in accounts:
        submitted += 1
        findings += (Finding(fault, account.job_id, detail) for fault, detail in examine(account))
        if (end := _end(account)) is not None:
            ends[end.state] += 1
    return Ledger(submitted, ends, tuple(findings))


def examine(account: Account) -> Iterator[tuple[Fault, str]]:
    """Everything that is wrong with one job."""
    end = _end(account)
    yield from _out_of_turn(account.written)
    if end is None:
        answered = bool(account.told) and all(told.text is not None for told in account.told)
        if not (account.may_be_forgotten and answered):
            yield Fault.LOST, f"no end among {len(account.written)} entries"
    else:
        if end.state not in account.may_end:
            yield Fault.ENDED_BADLY, end.state
        if end.state == "done":
            yield from _text(account, end)
    for told in account.told:
        yield from _telling(account, told, end)


def _end(account: Account) -> Written | None:
    return next((entry for entry in account.written if entry.kind == "end"), None)


def _out_of_turn(written: Sequence[Written]) -> Iterator[tuple[Fault, str]]:
    highest, ends = 0, 0
    for entry in written:
        if entry.kind == "end":
            ends += 1
        elif ends:
            yield Fault.STALE, f"a {entry.kind} of fence {entry.fence} behind the end"
        if entry.fence < highest:
            yield Fault.STALE, f"a {entry.kind} of fence {entry.fence} after one of {highest}"
        highest = max(highest, entry.fence)
    if ends > 1:
        yield Fault.DOUBLED, f"{ends} ends"


def _text(account: Account, end: Written) -> Iterator[tuple[Fault, str]]:
    pieces = [entry for entry in account.written if entry.kind == "piece"]
    numbers = [piece.seq for piece in pieces if piece.fence == end.fence]
    if numbers != list(range(1, len(numbers) + 1)):
        yield Fault.TORN, f"the pieces of fence {end.fence} are numbered {numbers[:20]}"
    elif (
        pieces
        and account.streams
        and (shown := _shown(pieces)) != end.text
        and not (account.may_lack_last and end.text.startswith(shown))
    ):
        yield Fault.TORN, f"{len(shown)} characters were shown of {len(end.text)}, or other ones"
    if account.own_text is not None and end.text != account.own_text:
        yield Fault.MIXED, f"answered with {len(end.text)} characters that are not its own"


def _shown(pieces: Sequence[Written]) -> str:
    """What a reader of all pieces has seen; it is shown nothing more once one leaves a gap or differs from the text."""
    shown, fence = "", 0
    for piece in pieces:
        if piece.fence < fence:
            continue  # a dead attempt's leftover; readers drop it
        fence = piece.fence
        known = shown[piece.at : piece.at + len(piece.text)]
        if piece.at > len(shown) or not piece.text.startswith(known):
            break
        shown += piece.text[len(known) :]
    return shown


def _telling(account: Account, told: Told, end: Written | None) -> Iterator[tuple[Fault, str]]:
    if told.text is None and not told.error:
        yield Fault.SILENT, "a client waited in vain"
        return
    if told.text is not None and account.own_text is not None and told.text != account.own_text:
        yield Fault.MIXED, "a client was told another text"
    if told.text is not None and told.streamed not in (None, told.text) and not told.broken:
        yield Fault.TORN, "a stream that ended well did not show the whole answer"
    if end is None:
        return
    if (told.text is not None) != (end.state == "done"):
        yield Fault.CONTRADICTED, f"{end.state}, but a client was told {told.error or 'an answer'}"
    elif told.text is not None and told.text != end.text:
        yield Fault.CONTRADICTED, "a client was told another answer than the one that stands"
