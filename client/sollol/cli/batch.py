"""`sollol batch`: embeds or answers a whole file, and shows and cancels batches."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from sollol_broker.words import BatchState, JobKind

from . import output
from .batch_files import file_command, run_file
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import duration

if TYPE_CHECKING:
    from sollol_broker.batch_record import BatchView


_COLUMNS = (
    Column("ID"),
    Column("STATE"),
    Column("KIND"),
    Column("MODEL", folds=True),
    Column("APPLICATION"),
    Column("DONE", "right"),
    Column("OF", "right"),
    Column("FAILED", "right"),
    Column("AGE", "right"),
)
_STYLES = {
    BatchState.PENDING: "yellow",
    BatchState.RUNNING: "cyan",
    BatchState.COMPLETED: "green",
    BatchState.CANCELLED: "dim",
}
_SHOWN = (
    "id",
    "state",
    "kind",
    "model",
    "app",
    "priority",
    "completed",
    "failed",
    "total",
    "fed",
    "why",
    "metadata",
)
_TIMES = ("created_at", "started_at", "ended_at")
_ERRORS_SHOWN = 10
_LISTED = 20


@click.group(invoke_without_command=True)
@fabric_options
@click.pass_context
def batch(ctx: click.Context, url: str, as_json: bool) -> None:
    """Many items as one piece of work, behind everybody who waits at a prompt. Alone: list them.

    \b
    sollol batch embed texts.jsonl -m nomic-embed-text -o vectors.npy
    sollol batch chat prompts.jsonl -m llama3.2 -o answers.jsonl
    """
    if ctx.invoked_subcommand is None:
        _list(url, _LISTED, as_json=as_json)


@batch.command()
@file_command
@click.option("--chunk", type=click.IntRange(1, 2048), metavar="N",
              help="Texts of one call.  [default: as many as take a second]")  # fmt: skip
@click.pass_context
def embed(ctx: click.Context, /, chunk: int | None, **asked: Any) -> None:
    """Turn each text of FILE (.txt, .jsonl, .csv) into a vector: a row of .npy, .parquet or .jsonl.

    Interrupted and started again, it goes on where it was. A text that fails is a row of NaN in .npy, and its error
    stands in OUTPUT.errors.jsonl.
    """
    run_file(ctx, JobKind.EMBED, {"chunk": chunk} if chunk else {}, **asked)


@batch.command()
@file_command
@click.pass_context
def chat(ctx: click.Context, /, **asked: Any) -> None:
    """Answer each line of FILE (.txt, .jsonl, .csv) into a line of .jsonl.

    A line is a text, a list of messages, or an object with `messages` or a text. Interrupted and started again, it goes
    on where it was.
    """
    run_file(ctx, JobKind.CHAT, {}, **asked)


@batch.command()
@file_command
@click.pass_context
def generate(ctx: click.Context, /, **asked: Any) -> None:
    """Continue each prompt of FILE (.txt, .jsonl, .csv) into a line of .jsonl; as `chat`."""
    run_file(ctx, JobKind.GENERATE, {}, **asked)


@batch.command(name="list")
@click.option("--limit", type=click.IntRange(min=1), default=_LISTED, show_default=True, metavar="N",
              help="At most so many, the newest first.")  # fmt: skip
@fabric_options
def list_(url: str, as_json: bool, limit: int) -> None:
    """The batches of the fabric, the newest first."""
    _list(url, limit, as_json=as_json)


def _list(url: str, limit: int, *, as_json: bool) -> None:
    with open_client(url) as client:
        views = client.batches(limit)
    if as_json:
        output.print_json([_fields(view) for view in views])
    elif not views:
        output.say("No batches yet. `sollol batch embed FILE -m MODEL -o vectors.npy` begins one.")
    else:
        now = time.time()
        output.print_table(_COLUMNS, [_cells(view, now) for view in views])


@batch.command()
@click.argument("batch_id", metavar="ID")
@fabric_options
def show(url: str, as_json: bool, batch_id: str) -> None:
    """How the batch ID stands, and the first of its errors, while they are kept."""
    with open_client(url) as client:
        found = client.attach_batch(batch_id)
        view, errors = found.refresh(), found.errors()
    told = [{"index": index, "error": type(error).__name__, "message": str(error)} for index, error in errors]
    if as_json:
        output.print_json({**_fields(view), "errors": told})
        return
    output.print_lines([(Cell(name, "dim"), value) for name, value in _told(view) if value])
    for each in told[:_ERRORS_SHOWN]:
        output.say(f"item {each['index']}: {each['error']}: {each['message']}")
    if len(told) > _ERRORS_SHOWN:
        output.aside(f"and {len(told) - _ERRORS_SHOWN:,} more: --json shows all")


@batch.command()
@click.argument("batch_id", metavar="ID")
@fabric_options
def cancel(url: str, as_json: bool, batch_id: str) -> None:
    """End the batch ID: nothing of it starts any more, and what runs is stopped."""
    with open_client(url) as client:
        found = client.attach_batch(batch_id)
        was_cancelled = found.cancel()
        state = found.state
    if as_json:
        output.print_json({"batch": batch_id, "cancelled": was_cancelled, "state": str(state)})
    elif was_cancelled:
        output.say(f"batch {batch_id} is cancelled")
    else:
        output.say(f"batch {batch_id} had already ended: it is {state.value}")


def _fields(view: BatchView) -> dict[str, Any]:
    told = {name: getattr(view, name) for name in (*_SHOWN, *_TIMES)}
    return {**told, "percent": view.percent, "duration_seconds": view.duration_seconds}


def _cells(view: BatchView, now: float) -> list[str | Cell]:
    return [
        view.id,
        Cell(view.state.value, _STYLES.get(view.state, "red")),
        view.kind.value,
        view.model,
        view.app,
        f"{view.completed:,}",
        "?" if view.total is None else f"{view.total:,}",
        f"{view.failed:,}",
        duration(now - view.created_at),
    ]


def _told(view: BatchView) -> list[tuple[str, str]]:
    total = f"{view.fed:,} so far" if view.total is None else f"{view.total:,}"
    names = ", ".join(f"{name}={value}" for name, value in view.metadata.items())
    return [
        ("batch", view.id),
        ("state", view.state.value + (f": {view.why}" if view.why else "")),
        ("kind", view.kind.value),
        ("model", view.model),
        ("application", view.app),
        ("priority", str(view.priority)),
        ("items", f"{total}, {view.completed:,} answered, {view.failed:,} failed"),
        ("created", _moment(view.created_at)),
        ("started", _moment(view.started_at)),
        ("ended", _moment(view.ended_at)),
        ("took", "" if view.duration_seconds is None else duration(view.duration_seconds)),
        ("metadata", names),
    ]


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
