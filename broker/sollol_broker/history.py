"""What a job's hash tells of its way so far: attempts, who left it and why, why it was taken. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .words import JobState


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that ended without an answer.

    Attributes:
        how: "crash" (the worker's lease ran out), "error" (of the backend) or "released" (handed back).
        claimed, first, ended: seconds since the epoch, by Redis' clock; first: of its first piece, 0 = there was none.
    """

    number: int
    node: str
    claimed: float
    ended: float
    how: str
    first: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that looked at the job and left it, most lately at `at`.

    Attributes:
        code: cheaper, requires, context, failed, quarantine, full or cordoned.
        number: ms that others save (cheaper), MiB (requires) or tokens (context) that lack; else 0.
    """

    node: str
    code: str
    number: float
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Taken:
    """How the claim rule saw the job when it was taken last.

    Attributes:
        own_ms: predicted there. reference_ms: at the better workers, `capacity` slots in all; 0 = nobody was better.
        backlog: jobs that waited for the model. position: jobs before it, of `looked` that were weighed.
    """

    own_ms: float
    reference_ms: float
    ratio: float
    capacity: float
    backlog: int
    position: int
    looked: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened to the job; `at` in seconds since the epoch."""

    at: float
    what: str


def span(ms: float) -> str:
    """Milliseconds for people: "80 ms", "2.1 s", "4 min"."""
    if ms < 1000:
        return f"{max(0.0, ms):.0f} ms"
    if ms < 10_000:
        return f"{ms / 1000:.1f} s"
    return f"{ms / 1000:.0f} s" if ms < 120_000 else f"{ms / 60_000:.0f} min"


def attempts(fields: Mapping[str, str]) -> tuple[Attempt, ...]:
    """The attempts that `past` lists; what is malformed is left out."""
    found = []
    for row in fields.get("past", "").split(";"):
        head, *times = row.rsplit(",", 3)  # a node's name may have commas
        number, comma, node = head.partition(",")
        if comma and number.isdigit() and len(times) == 3:
            claimed, ended, how = times
            how, _, first = how.partition("@")
            found.append(Attempt(int(number), node, _seconds(claimed), _seconds(ended), how, _seconds(first)))
    return tuple(found)


def refusals(fields: Mapping[str, str]) -> tuple[Refusal, ...]:
    """The nodes that left the job, the latest last."""
    found = []
    for name, value in fields.items():
        parts = value.split("|")
        if name.startswith("no:") and len(parts) == 3:
            code, number, at = parts[0], _number(parts[1]), _seconds(parts[2])
            found.append(Refusal(name[3:], code, number, at, _refused(code, number)))
    return tuple(sorted(found, key=lambda refusal: (refusal.at, refusal.node)))


def taken(fields: Mapping[str, str]) -> Taken | None:
    """Why the last claim took it; None = it was never claimed."""
    parts = fields.get("why", "").split("|")
    if len(parts) != 7:
        return None
    own, reference, ratio, capacity, *counts = (_number(part) for part in parts)
    backlog, position, looked = (int(count) for count in counts)
    return Taken(
        own, reference, ratio, capacity, backlog, position, looked,
        text=_why(own, reference, capacity, backlog, position),
    )  # fmt: skip


def timeline(fields: Mapping[str, str]) -> tuple[Moment, ...]:
    """All that is known to have happened, in order."""
    submitted, born = _seconds(fields.get("submitted")), _seconds(fields.get("born"))
    found = [Moment(born or submitted, f"handed in by {fields.get('app', '')}")]
    back = [Moment(submitted, "an operator put it back in line")] if born else []
    found += [Moment(each.at, f"{each.node} {each.text}") for each in refusals(fields)]
    past, seams = attempts(fields), _seams(fields)
    for attempt in past:
        if attempt.ended > submitted:  # of its new life
            found, back = found + back, []
        found.append(Moment(attempt.claimed, f"attempt {attempt.number}: taken by {attempt.node}"))
        own = [(number, each) for number, each in seams if number == str(attempt.number)]
        own = [(number, each) for number, each in own if attempt.claimed <= each.at <= attempt.ended]
        found += [each for _, each in own]
        seams = [each for each in seams if each not in own]
        found.append(Moment(attempt.first, f"attempt {attempt.number}: first piece of the answer"))
        found.append(Moment(attempt.ended, f"attempt {attempt.number}: {_ended(attempt)}"))
    found += back
    found += _present(fields, past, [each for _, each in seams])
    # Of one moment, the cause comes before its effect: the order in which they were found.
    return tuple(sorted((moment for moment in found if moment.at), key=lambda moment: moment.at))


def _seams(fields: Mapping[str, str]) -> list[tuple[str, Moment]]:
    """Where attempts went on with the text of earlier ones, by the attempt's number."""
    found = []
    for row in fields.get("seams", "").split(";"):
        head, *facts = row.rsplit(",", 3)
        number, comma, node = head.partition(",")
        if comma and len(facts) == 3:
            at, offset, how = facts
            what = f"attempt {number}: {node} goes on at character {int(_number(offset)):,} ({how})"
            found.append((number, Moment(_seconds(at), what)))
    return found


def _present(fields: Mapping[str, str], past: tuple[Attempt, ...], seams: list[Moment]) -> list[Moment]:
    """The attempt that runs or was the last one, and the end."""
    found = []
    claimed, node, number = _seconds(fields.get("claimed")), fields.get("node", ""), fields.get("attempt")
    first, ended = _seconds(fields.get("first")), _seconds(fields.get("ended"))
    if claimed and not any(each.claimed == claimed and each.node == node for each in past):
        found.append(
            Moment(claimed, f"attempt {number}: taken by {node} (worker {fields.get('worker', '')})")
        )
        found += seams
        if first >= claimed:
            found.append(Moment(first, f"attempt {number}: first piece of the answer"))
    else:
        found += seams
    if fields.get("hclaimed"):
        found.append(
            Moment(_seconds(fields["hclaimed"]), f"late: {fields.get('hnode', '')} began a second copy")
        )
    if ended:
        found.append(Moment(ended, _END.get(fields.get("state", ""), fields.get("state", ""))))
    return found


_END = {
    str(JobState.DONE): "answered",
    str(JobState.FAILED): "failed for good",
    str(JobState.CANCELLED): "cancelled",
    str(JobState.EXPIRED): "its deadline passed",
    str(JobState.DEAD): "given up: every worker that took it died",
}


def _ended(attempt: Attempt) -> str:
    return {
        "crash": f"{attempt.node} was lost, its lease ran out",
        "error": f"the backend on {attempt.node} failed",
        "released": f"{attempt.node} handed it back",
    }.get(attempt.how, attempt.how)


def _refused(code: str, number: float) -> str:
    needs = f"lacks {number:.0f} MiB of VRAM" if number else "does not have what it requires"
    return {
        "cheaper": f"left it to faster nodes, which save it about {span(number)}",
        "requires": f"left it: it {needs}",
        "context": f"left it to longer contexts: its own is {number:.0f} tokens too short",
        "failed": "left it to others: it has failed there before",
        "preferred": "left it to a node that it prefers",
        "quarantine": "left it: it must run alone, and others ran there",
        "full": "left it: all slots were busy",
        "cordoned": "left it: an operator keeps new jobs away",
    }.get(code, f"left it: {code}")


def _why(own: float, reference: float, capacity: float, backlog: int, position: int) -> str:
    place = "it was first in line" if not position else f"{position} before it suited other nodes better"
    if not reference:
        return f"no node was expected to be faster than {span(own)}; {place}"
    crowd = f"{backlog:,} waited for" if backlog > 1 else "it had waited long enough for"
    return (
        f"{span(own)} expected, {span(reference)} on the faster nodes, but {crowd} "
        f"their {capacity:.0f} slot{'' if capacity == 1 else 's'}; {place}"
    )


def _number(text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return 0.0
    return value if value == value and abs(value) < 1e18 else 0.0


def _seconds(text: Any) -> float:
    return round(_number(text) / 1000, 3)
