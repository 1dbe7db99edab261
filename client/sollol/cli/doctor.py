"""`sollol doctor`: looks (doctor_look.py), judges (doctor_checks.py), and tells."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict

import click

from sollol_broker.url import parse

from . import output
from .doctor_checks import examine, worst
from .doctor_facts import Finding, Severity
from .doctor_look import look
from .options import fabric_options
from .units import count

_EXIT_CODES = {Severity.OK: 0, Severity.NOTE: 0, Severity.WARNING: 1, Severity.ERROR: 2}
_COLOURS = {Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.ERROR: "red"}


@click.command()
@fabric_options
def doctor(url: str, as_json: bool) -> None:
    """Check Redis, workers and backends, and say what to do.

    It changes nothing, except that it loads SOLLOL's functions into Redis if they are missing. Each finding has
    an id that stays the same between releases; docs/doctor.md explains them all.

    Exit codes: 0 all is well, perhaps with notes, 1 there are warnings, 2 there are errors.
    """
    findings = examine(asyncio.run(look(parse(url, environ=os.environ))))
    if as_json:
        output.print_json({"worst": worst(findings), "findings": [asdict(each) for each in findings]})
    else:
        _show(findings)
    raise click.exceptions.Exit(_EXIT_CODES[worst(findings)])


def _show(findings: list[Finding]) -> None:
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
