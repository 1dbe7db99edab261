"""`sollol logs`: what the fabric's processes say, as it is said."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from sollol_broker.log_entry import Level

from . import output
from .options import APP, fabric_options
from .output import Cell

if TYPE_CHECKING:
    from sollol_broker.log_entry import LogEntry

_STYLES = {"error": "red", "warning": "yellow"}
_NOTHING = (
    "Nothing has been said yet. Workers, gateways and coordinators tell here of errors, of warnings, and of one in ten "
    "of the rest; `sollol logs -f` waits for it."
)
_NOTHING_LIKE_IT = "No line of the log is like that: without --level, --node and --app there may be some."


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what is said from now on, until Ctrl-C.")
@click.option("-n", "--limit", type=click.IntRange(0, 10_000), default=50, show_default=True, metavar="N",
              help="Lines from before.")  # fmt: skip
@click.option("--level", type=click.Choice([each.word for each in Level], case_sensitive=False),
              default="info", show_default=True, help="That, and worse.")  # fmt: skip
@click.option("--node", default="", metavar="NAME", help="Only what is said on this node.")
@click.option("--app", default="", metavar="NAME", help="Only what is about this application.")
@fabric_options
def logs(url: str, as_json: bool, follow: bool, limit: int, level: str, node: str, app: str) -> None:
    """What workers, gateways and coordinators say: failures always, of the rest one line in ten.

    With --json each line is one JSON object.
    """
    show = _as_json if as_json else _as_line
    asyncio.run(_show(url, show, limit, follow=follow, level=level, node=node, app=app))


async def _show(
    url: str, show: Callable[[LogEntry], None], limit: int, *, follow: bool, level: str, node: str, app: str
) -> None:
    from sollol_client import AsyncClient

    async with AsyncClient(url, app=APP) as client:
        lines = await client.logs(limit, level=level, node=node, app=app)
        for line in lines:
            show(line)
        if not follow:
            if not lines and show is _as_line and limit:
                is_whole = level == Level.INFO.word and not node and not app
                output.aside(_NOTHING if is_whole else _NOTHING_LIKE_IT)
            return
        after = lines[-1].id if lines else ""
        async for line in client.follow_logs(level=level, node=node, app=app, after=after):
            show(line)


def _as_json(line: LogEntry) -> None:
    click.echo(json.dumps(line.as_dict(), ensure_ascii=False))


def _as_line(line: LogEntry) -> None:
    clock = time.strftime("%H:%M:%S", time.localtime(line.at))
    who = line.node or line.process
    about = [f"app={line.app}"] if line.app else []
    about += [f"{name}={value}" for name, value in line.fields.items()]
    if line.left_out:
        about.append(f"(+{line.left_out:,} like it)")
    output.print_lines(
        [
            (
                Cell(clock, "dim"),
                Cell(f"{line.level:<7}", _STYLES.get(line.level, "dim")),
                f"{line.source} {who}",
                f"{line.event}  {' '.join(about)}".rstrip(),
            )
        ]
    )
