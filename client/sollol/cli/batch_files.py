"""What the commands of `sollol batch` share that work from file to file: their options, the bar, the report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sollol_broker.words import JobKind, Priority

from . import output
from .app import missing_extra
from .failures import BatchInterrupted
from .options import APP, fabric_options, options_value, priority_value
from .units import count, duration

if TYPE_CHECKING:
    from sollol_broker.batch_record import BatchProgress

    from ..batch.run import Done, Wanted

_FAILED_ITEMS = 5


def file_command(command: Callable[..., None]) -> Callable[..., None]:
    """FILE, --model, --output and what else these commands take."""
    options = (
        click.argument("file", metavar="FILE", type=click.Path(path_type=Path)),
        click.option("-m", "--model", required=True, metavar="NAME", help="As Ollama names it."),
        click.option("-o", "--output", "out", required=True, metavar="FILE", type=click.Path(path_type=Path),
                     help="Where the results go; its ending says in what form."),
        click.option("--field", metavar="NAME", help="Where a line of .jsonl or .csv has its text."),
        click.option("--priority", callback=priority_value, default="batch", show_default=True, metavar="0-10|NAME",
                     help=f"How soon: {', '.join(f'{each.name.lower()}={each.value}' for each in Priority)}."),
        click.option("--option", "options", callback=options_value, multiple=True, metavar="KEY=VALUE",
                     help="For the model, with Ollama's names: temperature=0, num_predict=64. May be repeated."),
        click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
                     help="How long one call to a backend may take."),
        click.option("--stop-on-error", is_flag=True, help="End with the first item that fails."),
        click.option("--wait-for-node", is_flag=True, help="Begin even if no node serves the model now."),
        click.option("--fresh", is_flag=True, help="Throw away what an earlier run has left unfinished."),
        fabric_options,
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def run_file(
    ctx: click.Context,
    kind: JobKind,
    more: dict[str, Any],
    *,
    url: str,
    as_json: bool,
    file: Path,
    model: str,
    out: Path,
    field: str | None,
    priority: int,
    options: dict[str, Any],
    timeout: float | None,
    stop_on_error: bool,
    wait_for_node: bool,
    fresh: bool,
) -> None:
    """Run a batch from file to file, and end with the exit code for it."""
    from ..batch.items import survey
    from ..batch.outputs import check_output
    from ..batch.run import Wanted

    try:
        check_output(out, kind)
    except ModuleNotFoundError as error:
        raise missing_extra(error, "batch", "parquet") from None
    wanted = Wanted(
        survey(file, kind, field),
        out,
        model,
        {"options": options} if options else {},
        {
            "priority": priority,
            "timeout": timeout,
            "on_error": "stop" if stop_on_error else "collect",
            "wait_for_node": wait_for_node,
            **more,
        },
        fresh,
    )
    began = time.monotonic()
    done = asyncio.run(_shown(url, wanted, as_json=as_json))
    _report(done, time.monotonic() - began, as_json=as_json)
    if done.failed:
        ctx.exit(_FAILED_ITEMS)


async def _shown(url: str, wanted: Wanted, *, as_json: bool) -> Done:
    """Run it, with a bar where somebody looks.

    Raises:
        BatchInterrupted: Ctrl-C; what is written stays.
    """
    from sollol_client import AsyncClient

    from ..batch.run import run

    batch_id, written, total = "", 0, wanted.source.count
    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with ExitStack() as shown:
        bar = Progress(*columns, console=console)
        task = bar.add_task("", total=total, note="")
        if console.is_terminal and not as_json:
            shown.enter_context(bar)

        def on_start(started: str, before: int) -> None:
            nonlocal batch_id, written
            batch_id, written = started, before
            bar.update(task, completed=before)
            if not as_json:
                after = (
                    f", behind the {count(before, 'item')} that an earlier run has written" if before else ""
                )
                bar.console.print(
                    f"batch {started}: {count(total, 'item')}{after}", style="dim", soft_wrap=True
                )

        def on_progress(rows: int, progress: BatchProgress) -> None:
            nonlocal written
            written = rows
            failed = f" · {progress.failed:,} failed" if progress.failed else ""
            left = (
                f" · {duration((total - rows) / progress.rate)} left"
                if progress.rate > 0 and rows < total
                else ""
            )
            bar.update(task, completed=rows, note=f"{progress.rate:,.1f}/s{left}{failed}")

        try:
            async with AsyncClient(url, app=APP) as client:
                return await run(client, wanted, on_start=on_start, on_progress=on_progress)
        except asyncio.CancelledError:
            # Ctrl-C comes as this inside of asyncio.run.
            raise BatchInterrupted(batch_id, written, total) from None


def _report(done: Done, seconds: float, *, as_json: bool) -> None:
    files = [str(each) for each in done.files]
    if as_json:
        told = {
            "batch": done.batch,
            "items": done.items,
            "written_before": done.before,
            "failed": done.failed,
        }
        output.print_json({**told, "files": files, "seconds": round(seconds, 3)})
        return
    rate = (done.items - done.before) / seconds if seconds > 0 else 0.0
    output.say(f"{count(done.items, 'item')} in {files[0]} ({duration(seconds)}, {rate:,.1f}/s)")
    if done.failed:
        where = files[1] if len(files) > 1 else f'the lines with "error" in {files[0]}'
        output.complain(f"{count(done.failed, 'item')} failed: see {where}")
