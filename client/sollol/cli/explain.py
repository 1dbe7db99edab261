"""`sollol explain`: why a job is where it is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from . import output
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import duration

if TYPE_CHECKING:
    from sollol_broker.explain import Explanation

_STYLES = {
    "ready": "green",
    "full": "yellow",
    "cheaper": "yellow",
    "quarantine": "yellow",
    "context": "yellow",
}
_NODES = (Column("NODE"), Column("NOW", folds=True))


@click.command()
@click.argument("job_id", metavar="ID")
@fabric_options
def explain(url: str, as_json: bool, job_id: str) -> None:
    """Why the job ID is where it is: what has happened to it, and what each node makes of it now."""
    with open_client(url) as client:
        told = client.explain(job_id)
    if as_json:
        output.print_json(told.as_dict())
        return
    output.print_lines(
        [(Cell(name, "dim"), value) for name, value in _facts(told)],
    )
    output.say("")
    output.print_lines(_timeline(told))
    if told.nodes:
        output.say("")
        output.print_table(_NODES, [_node(each.node, each.code, each.text) for each in told.nodes])


def _facts(told: Explanation) -> list[tuple[str, str]]:
    facts = [
        ("job", told.id),
        ("state", f"{told.state}: {told.summary}"),
        ("asks for", f"{told.model}, for {told.app}, priority {told.priority}"),
    ]
    if told.prompt_tokens is not None:
        wants = ", better with a GPU" if told.wants_gpu else ""
        predicted = f"{told.prompt_tokens:,} tokens to read, about {told.output_tokens:,} to write"
        facts.append(("is", f"{told.task}, {told.size}: {predicted}{wants}"))
    if told.taken is not None:
        facts.append(("why taken", told.taken.text))
    return facts


def _timeline(told: Explanation) -> list[tuple[Cell, Cell, str]]:
    start = told.timeline[0].at if told.timeline else 0.0
    rows = []
    for moment in told.timeline:
        clock = time.strftime("%H:%M:%S", time.localtime(moment.at))
        rows.append((Cell(clock, "dim"), Cell(f"+{duration(moment.at - start)}", "dim"), moment.what))
    return rows


def _node(node: str, code: str, text: str) -> tuple[Cell, Cell]:
    return Cell(node, "bold"), Cell(text, _STYLES.get(code, "red"))
