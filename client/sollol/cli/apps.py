"""`sollol apps`: the applications, and what has become of their jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from . import output
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import duration

if TYPE_CHECKING:
    from sollol_broker.apps import AppView

_COLUMNS = (
    Column("APPLICATION", folds=True),
    Column("VERSION"),
    Column("HOST"),
    Column("JOBS", "right"),
    Column("A MINUTE", "right"),
    Column("FAILED", "right"),
    Column("TOKENS", "right"),
    Column("SEEN", "right"),
)
_NONE = (
    "No application is there. Each `Client` and `OllamaPool` shows itself under its app name; `--all` lists those of "
    "the last 7 days."
)


@click.command()
@click.option("--all", "all_", is_flag=True, help="Also those that are silent now, of the last 7 days.")
@fabric_options
def apps(url: str, as_json: bool, all_: bool) -> None:
    """The applications that are there: version, jobs, failures, tokens, and when they were seen last."""
    with open_client(url) as client:
        views = client.apps(silent=all_)
    if as_json:
        output.print_json(views)
    elif not views:
        output.say(_NONE)
    else:
        output.print_table(_COLUMNS, [_row(view) for view in views])


def _row(view: AppView) -> tuple[str | Cell, ...]:
    failed = f"{view.error_rate:.1%}" if view.done + view.failed else "-"
    return (
        Cell(view.name, "bold" if view.is_live else "dim"),
        view.own_version or "-",
        view.host or "-",
        f"{view.submitted:,}",
        f"{view.per_minute:g}",
        Cell(failed, "red" if view.failed else ""),
        f"{view.tokens_in + view.tokens_out:,}",
        f"{duration(view.seen_seconds_ago)} ago",
    )
