"""Vectors on their way through Redis: float32 in little-endian order, a quarter of their decimal text."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import InvalidJob


def pack_vectors(vectors: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Pack n vectors of equal length: {"n": n, "f32": bytes}.

    Raises:
        InvalidJob: they differ in length.
    """
    width = len(vectors[0]) if vectors else 0
    flat = array("f")
    for vector in vectors:
        if len(vector) != width:
            raise InvalidJob("the vectors differ in length")
        flat.extend(vector)
    if sys.byteorder == "big":
        flat.byteswap()
    return {"n": len(vectors), "f32": flat.tobytes()}


def unpack_vectors(packed: Mapping[str, Any]) -> list[list[float]]:
    """Undo `pack_vectors`.

    Raises:
        InvalidJob: not what pack_vectors made.
    """
    flat = array("f")
    try:
        count, data = int(packed["n"]), packed["f32"]
        flat.frombytes(data)
        width = len(flat) // count if count else 0
        if count < 0 or width * count != len(flat):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise InvalidJob("the vectors are malformed") from None
    if sys.byteorder == "big":
        flat.byteswap()
    return [list(flat[start : start + width]) for start in range(0, width * count, width)] if width else [[]] * count
