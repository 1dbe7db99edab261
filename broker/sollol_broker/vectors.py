"""Vectors on their way through Redis: float32 in little-endian order, a quarter of their decimal text."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import InvalidJob

_MOST_EMPTY = 10_000


def pack_vectors(vectors: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Pack n vectors of equal length: {"n": n, "f32": bytes}.

    Raises:
        InvalidJob: they differ in length, or hold something else than numbers.
    """
    width = len(vectors[0]) if vectors else 0
    flat = array("f")
    for vector in vectors:
        if len(vector) != width:
            raise InvalidJob("the vectors differ in length")
        try:
            flat.extend(vector)
        except TypeError:
            raise InvalidJob("a vector holds something else than numbers") from None
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
        count, data = packed["n"], packed["f32"]
        if not isinstance(count, int):
            raise TypeError
        flat.frombytes(data)
        width = len(flat) // count if count else 0
        # Vectors of no width are possible, a billion of them is an attack.
        if count < 0 or width * count != len(flat) or (count > _MOST_EMPTY and not width):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise InvalidJob("the vectors are malformed") from None
    if sys.byteorder == "big":
        flat.byteswap()
    return [list(flat[index * width : (index + 1) * width]) for index in range(count)]
