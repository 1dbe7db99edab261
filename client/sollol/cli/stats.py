"""`sollol stats`: counters since the fabric began."""

from __future__ import annotations

import click

from . import output
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import duration

_COLUMNS = (
    Column("NODE"),
    Column("JOBS", "right"),
    Column("SUCCESS", "right"),
    Column("MEAN TIME", "right"),
    Column("PREDICTED WITHIN", "right"),
)


@click.command()
@fabric_options
def stats(url: str, as_json: bool) -> None:
    """Totals since the fabric began: jobs by how they ended, success rate, and the same per node."""
    with open_client(url) as client:
        found = client.stats()
    if as_json:
        output.print_json(found)
        return
    if not found["total_requests"]:
        output.say('No job has been handed in yet. `sollol chat "Hello"` hands one in.')
        return
    ended = ", ".join(f"{number:,} {state}" for state, number in found["jobs"].items() if number)
    output.print_lines(
        [
            ("submitted", f"{found['total_requests']:,}"),
            ("ended", ended or "none yet"),
            ("run again", f"{found['requeued']:,}"),
            ("success", f"{found['success_rate']:.2%}"),
        ]
    )
    if found["hosts"]:
        output.say("")
        output.print_table(
            _COLUMNS,
            [
                (
                    Cell(name, "bold"),
                    f"{node['requests']:,}",
                    f"{node['success_rate']:.2%}" if node["requests"] else "-",
                    duration(node["latency_ms"] / 1000) if node["requests"] else "-",
                    "-" if node["prediction_error"] is None else f"{node['prediction_error']:.0%}",
                )
                for name, node in found["hosts"].items()
            ],
        )
