"""`sollol queues`: what waits and runs, per model."""

from __future__ import annotations

import click

from . import output
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import duration

_COLUMNS = (
    Column("MODEL"),
    Column("WAITING", "right"),
    Column("RUNNING", "right"),
    Column("OLDEST", "right"),
    Column("WORKERS", "right"),
)
_NO_QUEUES = (
    "No queues: no worker serves a model and no job waits. `sollol up` starts a worker here, "
    "`sollol doctor` looks for what is wrong."
)


@click.command()
@fabric_options
def queues(url: str, as_json: bool) -> None:
    """What waits and runs, per model; the longest queue first."""
    with open_client(url) as client:
        views = client.queues()
    if as_json:
        output.print_json(views)
    elif not views:
        output.say(_NO_QUEUES)
    else:
        output.print_table(
            _COLUMNS,
            [
                (
                    Cell(view.model, "bold"),
                    f"{view.waiting:,}",
                    f"{view.running:,}",
                    duration(view.oldest_seconds) if view.waiting else "-",
                    Cell(str(view.workers), "" if view.workers else "red"),
                )
                for view in views
            ],
        )
        stuck = [view.model for view in views if view.waiting and not view.workers]
        if stuck:
            output.aside(
                f"nobody serves {', '.join(stuck)} now: those jobs wait until a worker that does comes"
            )
