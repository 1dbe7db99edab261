"""Everything that a command shows: tables for people, JSON for programs, asides on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

# Where no terminal says how wide it is, a row stays on one line, so that grep finds it whole.
_WIDE = 1000


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `folds`: it gives way when the terminal is narrow."""

    name: str
    justify: Literal["left", "right"] = "left"
    folds: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell with a style of its own."""

    text: str
    style: str = ""


def print_json(value: object) -> None:
    """One JSON value on stdout; dataclasses become objects."""
    click.echo(json.dumps(_plain(value), ensure_ascii=False, indent=2, default=str))


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]]) -> None:
    """A table on stdout."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column.name,
            justify=column.justify,
            no_wrap=not column.folds,
            overflow="fold" if column.folds else "ellipsis",
        )
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    print_picture(table)


def print_lines(rows: Sequence[Sequence[str | Cell]]) -> None:
    """Rows without a header on stdout; the last column is wrapped where the terminal ends."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for index in range(len(rows[0])):
        table.add_column(no_wrap=index < len(rows[0]) - 1)
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    print_picture(table)


def print_picture(picture: RenderableType) -> None:
    """What rich draws, on stdout; for a file or a pipe no line is filled up with spaces."""
    shown = console()
    if shown.is_terminal:
        shown.print(picture)
        return
    with shown.capture() as told:
        shown.print(picture)
    click.echo("".join(f"{line.rstrip()}\n" for line in told.get().splitlines()), nl=False)


def say(text: str) -> None:
    """A sentence on stdout."""
    click.echo(printable(text))


def aside(text: str, *, end: str = "\n") -> None:
    """Something besides the answer, dim, on stderr."""
    click.echo(click.style(printable(text), dim=True), err=True, nl=False)
    click.echo(end, err=True, nl=False)


def complain(text: str) -> None:
    """An error, on stderr."""
    click.echo(click.style("error: ", fg="red", bold=True) + printable(text), err=True)


def write_answer(text: str) -> None:
    """Part of an answer on stdout, as it comes; a terminal is spared its control characters."""
    click.echo(printable(text) if sys.stdout.isatty() else text, nl=False)


def printable(text: str) -> str:
    """Text without the control characters by which a stranger could take over the terminal."""
    return "".join(char for char in text if char in "\n\t" or not _is_control(char))


def _is_control(char: str) -> bool:
    return char < " " or "\x7f" <= char <= "\x9f"


def _text(cell: str | Cell) -> Text:
    # A Text, since a string would be read as rich's markup.
    return Text(printable(cell.text), style=cell.style) if isinstance(cell, Cell) else Text(printable(cell))


def console() -> Console:
    """Where tables are printed."""
    made = Console(highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _WIDE
    return made


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
