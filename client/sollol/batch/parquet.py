"""A matrix with its errors as a Parquet table, in bounded memory. Needs pyarrow: pip install 'sollol[parquet]'."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .items import Source
from .npy import read_header

_ROWS = 10_000
_HEADER_BYTES = 128


def write(table: Path, matrix: Path, errors: Path, source: Source) -> None:
    """Write the table of a matrix.

    Args:
        errors: JSON lines, by index. source: has the items' ids.
    """
    failed = _Errors(errors)
    schema = pa.schema(
        [
            ("index", pa.int64()),
            ("id", pa.string()),
            ("embedding", pa.list_(pa.float32())),
            ("error", pa.string()),
        ]
    )
    items, index = source.items(), 0
    with matrix.open("rb") as file, pq.ParquetWriter(table, schema) as out:
        known = read_header(file.read(_HEADER_BYTES))
        width = known[1] if known else 0
        while ids := [item.id for item in islice(items, _ROWS)]:
            numbers = pa.py_buffer(file.read(4 * width * len(ids)))
            flat = pa.Array.from_buffers(pa.float32(), width * len(ids), [None, numbers])
            told = [failed.at(index + number) for number in range(len(ids))]
            offsets = pa.array([width * number for number in range(len(ids) + 1)], pa.int32())
            vectors = pa.ListArray.from_arrays(
                offsets, flat, mask=pa.array([each is not None for each in told])
            )
            out.write_table(
                pa.table(
                    {
                        "index": pa.array(range(index, index + len(ids)), pa.int64()),
                        "id": pa.array([None if each is None else str(each) for each in ids], pa.string()),
                        "embedding": vectors,
                        "error": pa.array(told, pa.string()),
                    },
                    schema=schema,
                )
            )
            index += len(ids)


class _Errors:
    """The errors of items, asked for in order."""

    def __init__(self, path: Path) -> None:
        self._lines = self._read(path)
        self._next: dict[str, Any] | None = next(self._lines, None)

    def at(self, index: int) -> str | None:
        """Why an item failed; None = it did not."""
        if self._next is None or self._next["index"] != index:
            return None
        told, self._next = self._next, next(self._lines, None)
        return f"{told['error']}: {told['message']}"

    @staticmethod
    def _read(path: Path) -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            for line in file:
                yield json.loads(line)
