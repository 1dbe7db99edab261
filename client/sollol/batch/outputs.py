"""Writes the results of a batch in order. A file is there when it is whole; until then it grows beside its place, as
NAME.part, and a run that was broken off goes on behind what has been written.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sollol_broker.errors import InvalidJob
from sollol_broker.words import JobKind

from .items import Source
from .npy import NpyFile

_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one item.

    Attributes:
        vector: of a text: float32, little-endian. fields: of an answer.
        error: why there is neither, as `errors.to_wire` tells it.
    """

    index: int
    id: str | int | None = None
    vector: bytes | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As a line of .jsonl."""
        told: dict[str, Any] = {"index": self.index}
        if self.id is not None:
            told["id"] = self.id
        if self.error is not None:
            return {**told, **self.error}
        if self.vector is not None:
            told["embedding"] = list(struct.unpack(f"<{len(self.vector) // 4}f", self.vector))
        return {**told, **self.fields}


class Output(Protocol):
    """Where results go.

    Attributes:
        rows: that have been written, by earlier runs, too.
    """

    @property
    def rows(self) -> int:
        """See above."""

    def add(self, rows: Sequence[Row]) -> None:
        """Write the next results; when it returns, they lie on the disk."""

    def finish(self) -> list[Path]:
        """Put what is whole into its place; gives the files."""

    def close(self) -> None:
        """Leave what there is for the next run."""


def part_of(path: Path) -> Path:
    """Where a file grows."""
    return path.with_name(f"{path.name}.part")


def errors_of(path: Path) -> Path:
    """Where errors are told that the file itself has no room for."""
    return path.with_name(f"{path.name}.errors.jsonl")


class JsonlOutput:
    """One line for each item, of an error, too."""

    def __init__(self, path: Path, source: Source) -> None:
        self._path = path
        self._lines = _Lines(part_of(path))

    @property
    def rows(self) -> int:
        """See Output."""
        return self._lines.count

    def add(self, rows: Sequence[Row]) -> None:
        """See Output."""
        self._lines.add([row.as_dict() for row in rows])

    def finish(self) -> list[Path]:
        """See Output."""
        return [self._lines.move_to(self._path)]

    def close(self) -> None:
        """See Output."""
        self._lines.close()


class NpyOutput:
    """A matrix with one row for each item; of one that failed it is NaN, and its error is told in a second file."""

    def __init__(self, path: Path, source: Source) -> None:
        self._path = path
        self._matrix = NpyFile(part_of(path))
        self._errors = _Lines(part_of(errors_of(path)), keep=lambda line: line["index"] < self._matrix.rows)

    @property
    def rows(self) -> int:
        """See Output."""
        return self._matrix.rows

    def add(self, rows: Sequence[Row]) -> None:
        """See Output."""
        # First why, then the row: what lies in the matrix has been told of.
        if failed := [row.as_dict() for row in rows if row.error is not None]:
            self._errors.add(failed)
        self._matrix.append([row.vector for row in rows])

    def finish(self) -> list[Path]:
        """See Output."""
        self._matrix.close()
        os.replace(part_of(self._path), self._path)
        if not self._errors.count:
            self._errors.drop()
            errors_of(self._path).unlink(missing_ok=True)  # of an earlier batch
            return [self._path]
        return [self._path, self._errors.move_to(errors_of(self._path))]

    def close(self) -> None:
        """See Output."""
        self._matrix.close()
        self._errors.close()


class ParquetOutput(NpyOutput):
    """A table with `index`, `id`, `embedding` and `error`; made of a matrix at the end, as its format wants."""

    def __init__(self, path: Path, source: Source) -> None:
        self._source = source
        super().__init__(path, source)

    def finish(self) -> list[Path]:
        """See Output."""
        self._matrix.close()
        self._errors.close()
        matrix, errors = part_of(self._path), part_of(errors_of(self._path))
        table = self._path.with_name(f"{self._path.name}.whole")
        from . import parquet

        parquet.write(table, matrix, errors, self._source)
        os.replace(table, self._path)
        matrix.unlink()
        errors.unlink()
        return [self._path]


_KINDS: dict[str, tuple[Callable[[Path, Source], Output], tuple[JobKind, ...]]] = {
    ".npy": (NpyOutput, (JobKind.EMBED,)),
    ".parquet": (ParquetOutput, (JobKind.EMBED,)),
    ".jsonl": (JsonlOutput, (JobKind.EMBED, JobKind.CHAT, JobKind.GENERATE)),
    ".ndjson": (JsonlOutput, (JobKind.EMBED, JobKind.CHAT, JobKind.GENERATE)),
}


def check_output(path: Path, kind: JobKind) -> None:
    """See whether a batch's results could go there.

    Raises:
        InvalidJob: not to a file of that sort, or there is no such folder.
        ModuleNotFoundError: a package for it is not installed.
    """
    known = [ending for ending, (_, kinds) in _KINDS.items() if kind in kinds]
    if path.suffix.lower() not in known:
        what = "vectors" if kind is JobKind.EMBED else "answers"
        raise InvalidJob(f"{path}: {what} go into files that end with {', '.join(known)}", field="output")
    if not path.parent.is_dir():
        raise InvalidJob(f"{path}: there is no folder {path.parent}", field="output")
    if path.suffix.lower() == ".parquet":
        from . import parquet  # noqa: F401  # its package may be missing: better known now than in the morning


def open_output(path: Path, source: Source) -> Output:
    """The writer of a file, by its ending; it goes on where an earlier run was broken off.

    Raises:
        InvalidJob, ModuleNotFoundError: see `check_output`.
    """
    check_output(path, source.kind)
    return _KINDS[path.suffix.lower()][0](path, source)


class _Lines:
    """JSON lines in a growing file; a last one without its end is cut off."""

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool] | None = None) -> None:
        self._path = path
        path.touch()
        self._file: BinaryIO = path.open("r+b")
        self.count, end = self._whole(keep)
        self._file.truncate(end)
        self._file.seek(end)

    def add(self, values: Sequence[Mapping[str, Any]]) -> None:
        for value in values:
            self._file.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self.count += len(values)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def move_to(self, path: Path) -> Path:
        self.close()
        os.replace(self._path, path)
        return path

    def drop(self) -> None:
        self._file.close()
        self._path.unlink()

    def _whole(self, keep: Callable[[dict[str, Any]], bool] | None) -> tuple[int, int]:
        """How many lines are whole and wanted, and where they end."""
        count = end = 0
        if keep is None:
            # Long files: blocks are quicker than lines.
            at = 0
            while block := self._file.read(_BLOCK):
                if (last := block.rfind(b"\n")) >= 0:
                    count, end = count + block.count(b"\n"), at + last + 1
                at += len(block)
            return count, end
        for line in self._file:
            if not line.endswith(b"\n") or not keep(json.loads(line)):
                break
            count, end = count + 1, end + len(line)
        return count, end
