"""A growing matrix of float32 in NumPy's format (.npy, version 1.0), written row by row; NumPy is not needed.

The header has a fixed length, so that it can be written again when the number of rows is known.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER_BYTES = 128
_SHAPE = re.compile(rb"'descr': '<f4', 'fortran_order': False, 'shape': \((\d+), (\d+)\)")
_NAN = float("nan")


def header(rows: int, width: int) -> bytes:
    """The header of a matrix."""
    told = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    room = _HEADER_BYTES - len(_MAGIC) - 2
    return _MAGIC + struct.pack("<H", room) + told.ljust(room - 1).encode("ascii") + b"\n"


def read_header(begin: bytes) -> tuple[int, int] | None:
    """Rows and width by a header of ours; None = it is none."""
    found = _SHAPE.search(begin[:_HEADER_BYTES])
    if not begin.startswith(_MAGIC) or len(begin) < _HEADER_BYTES or found is None:
        return None
    return int(found[1]), int(found[2])


class NpyFile:
    """The matrix on its way.

    Args:
        path: goes on where a run before was broken off, behind its last whole row.

    Attributes:
        rows: that are in the file. width: numbers in each; 0 = not known before the first vector.
    """

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file: BinaryIO = path.open("r+b")
        known = read_header(self._file.read(_HEADER_BYTES))
        self.width = known[1] if known else 0
        size = os.fstat(self._file.fileno()).st_size - _HEADER_BYTES
        self.rows = size // (4 * self.width) if self.width and size > 0 else 0
        self._missing = 0
        self._cut(self.rows)

    def append(self, vectors: Sequence[bytes | None]) -> None:
        """Add rows of float32 in little-endian order; None becomes a row of NaN.

        Raises:
            ValueError: a vector has another length than those before.
        """
        for vector in vectors:
            if vector is None and not self.width:
                self._missing += 1  # how long a row is, the first vector will tell
            else:
                self._add(vector)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write how many rows there are, and see that all is on the disk."""
        if self._missing:  # not a single vector came
            self.rows, self._missing = self._missing, 0
        self._file.seek(0)
        self._file.write(header(self.rows, self.width))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _add(self, vector: bytes | None) -> None:
        if vector is not None and not self.width:
            self.width = len(vector) // 4
            self._file.write(header(0, self.width) + self._nan * self._missing)
            self.rows, self._missing = self._missing, 0
        if vector is not None and len(vector) != 4 * self.width:
            raise ValueError(f"a vector has {len(vector) // 4} numbers, those before {self.width}")
        self._file.write(self._nan if vector is None else vector)
        self.rows += 1

    @property
    def _nan(self) -> bytes:
        return struct.pack("<f", _NAN) * self.width

    def _cut(self, rows: int) -> None:
        self.rows = rows
        end = _HEADER_BYTES + 4 * self.width * rows if self.width else 0
        self._file.truncate(end)
        self._file.seek(end)
