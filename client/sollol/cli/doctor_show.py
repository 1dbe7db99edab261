"""How findings are shown, and the exit codes that they give."""

from __future__ import annotations

from collections.abc import Sequence

from . import output
from .doctor_facts import Finding, Severity
from .units import count

EXIT_CODES = {Severity.OK: 0, Severity.NOTE: 0, Severity.WARNING: 1, Severity.ERROR: 2}
_COLOURS = {Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.ERROR: "red"}


def show(findings: Sequence[Finding]) -> None:
    """A line for each finding, one more for what to do, and a sum."""
    rows: list[tuple[output.Cell | str, ...]] = []
    for finding in findings:
        colour = _COLOURS[finding.severity]
        word = finding.severity.upper() if finding.severity is Severity.ERROR else finding.severity
        rows.append((output.Cell(word, colour), finding.id, finding.found))
        if finding.todo:
            rows.append(("", "", output.Cell(f"→ {finding.todo}", colour)))
    output.print_lines(rows)
    tally = {each: sum(1 for finding in findings if finding.severity is each) for each in Severity}
    notes = count(tally[Severity.NOTE], "note")
    if tally[Severity.ERROR] or tally[Severity.WARNING]:
        output.say(
            f"\n{count(tally[Severity.ERROR], 'error')}, {count(tally[Severity.WARNING], 'warning')}, {notes}"
        )
    else:
        output.say("\nAll is well" + (f"; {notes}." if tally[Severity.NOTE] else "."))
