"""Vectors cross Redis as float32 and come back with every bit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.codec import pack, unpack
from sollol_broker.errors import InvalidJob
from sollol_broker.vectors import pack_vectors, unpack_vectors


@given(st.integers(0, 6), st.integers(0, 8), st.data())
def test_vectors_come_back_as_they_were(count: int, width: int, data: st.DataObject) -> None:
    one = st.lists(st.floats(width=32, allow_nan=False), min_size=width, max_size=width)
    vectors = data.draw(st.lists(one, min_size=count, max_size=count))
    packed = unpack(pack(pack_vectors(vectors)), max_bytes=100_000)
    assert unpack_vectors(packed) == vectors
    assert len(packed["f32"]) == 4 * count * width


def test_the_bytes_are_little_endian() -> None:
    assert pack_vectors([[1.0, -2.0]]) == {"n": 1, "f32": b"\0\0\x80\x3f\0\0\0\xc0"}


def test_empty_vectors_are_lists_of_their_own() -> None:
    one, other = unpack_vectors(pack_vectors([[], []]))
    assert one == other == []
    assert one is not other


@pytest.mark.parametrize("vectors", [[[1.0], [1.0, 2.0]], [[], [1.0]], [["a"]], [[None]]])
def test_what_are_no_vectors_is_refused(vectors: Any) -> None:
    with pytest.raises(InvalidJob):
        pack_vectors(vectors)


@pytest.mark.parametrize(
    "packed",
    [
        {},
        {"n": 1},
        {"f32": b""},
        {"n": 1, "f32": b"123"},
        {"n": 2, "f32": b"1234"},
        {"n": -1, "f32": b"1234"},
        {"n": 0, "f32": b"1234"},
        {"n": 1, "f32": "1234"},
        {"n": 1.0, "f32": b"1234"},
        {"n": float("inf"), "f32": b"1234"},
        {"n": "x", "f32": b"1234"},
        {"n": 10**9, "f32": b""},
    ],
)
def test_what_is_malformed_is_refused(packed: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob, match="malformed"):
        unpack_vectors(packed)
