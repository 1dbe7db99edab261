"""What a benchmark gives back: tables of figures, and the aims it was run for."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Aim:
    """A figure that we want to reach.

    Attributes:
        what: the figure in words. limit: the worst value that is good enough.
        higher_is_better: whether `limit` is a lower bound.
    """

    what: str
    value: float
    limit: float
    unit: str = ""
    higher_is_better: bool = False

    @property
    def is_reached(self) -> bool:
        """Whether the value is at least as good as the limit."""
        return self.value >= self.limit if self.higher_is_better else self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.higher_is_better else "<="
        word = "reached" if self.is_reached else "MISSED "
        return f"{word}  {self.what}: {self.value:,.4g}{self.unit} (aim {sign} {self.limit:,.4g}{self.unit})"


@dataclass(frozen=True, slots=True)
class Table:
    """Figures by row; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]

    def __str__(self) -> str:
        texts = [self.columns, *(tuple(_text(cell) for cell in row) for row in self.rows)]
        widths = [max(len(row[at]) for row in texts) for at in range(len(self.columns))]
        lines = [_line(row, widths) for row in texts]
        return "\n".join([self.title, lines[0], "-" * len(lines[0]), *lines[1:]])


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that one benchmark found."""

    name: str
    tables: tuple[Table, ...]
    aims: tuple[Aim, ...]
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "name": self.name,
            "tables": [
                {
                    "title": table.title,
                    "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows],
                }
                for table in self.tables
            ],
            "aims": [
                {"what": aim.what, "value": aim.value, "limit": aim.limit, "is_reached": aim.is_reached}
                for aim in self.aims
            ],
            "notes": list(self.notes),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])


def _text(cell: str | float) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:,.0f}" if abs(cell) >= 1000 or cell == int(cell) else f"{cell:,.3g}"
