"""What comes out of Redis may have been written by anyone."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no stubs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.codec import pack, unpack
from sollol_broker.errors import InvalidJob

_MIB = 1024 * 1024

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    assert unpack(pack(value), max_bytes=_MIB) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_as_invalid(data: bytes) -> None:
    with contextlib.suppress(InvalidJob):
        unpack(data, max_bytes=_MIB)


def test_the_limit_counts_before_anything_is_read() -> None:
    with pytest.raises(InvalidJob, match="101 bytes, the limit is 100"):
        unpack(b"\xc4\x63" + b"x" * 99, max_bytes=100)


# Each is about 1 MiB on the wire.
_BOMBS = {
    "empty maps": b"\xdd" + (_MIB).to_bytes(4, "big") + b"\x80" * _MIB,
    "lists of empty maps": b"\x9a" + (b"\xdd" + (99_999).to_bytes(4, "big") + b"\x80" * 99_999) * 10,
    "lists of empty lists": b"\x9a" + (b"\xdd" + (99_999).to_bytes(4, "big") + b"\x90" * 99_999) * 10,
    "a map of many keys": b"\xdf" + (100_000).to_bytes(4, "big") + b"\xa0\xc0" * 100_000,
    "a list that promises more than it holds": b"\xdd\xff\xff\xff\xff",
    "depth": b"\x91" * 2000 + b"\xc0",
    "depth of maps": b"\x81\xa1a" * 2000 + b"\xc0",
}


@pytest.mark.parametrize("name", _BOMBS)
def test_a_bomb_is_refused_before_it_grows(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidJob):
            unpack(_BOMBS[name], max_bytes=2 * _MIB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * _MIB + 8 * len(_BOMBS[name])


def test_a_refusal_is_quick() -> None:
    began = time.process_time()
    with pytest.raises(InvalidJob):
        unpack(_BOMBS["lists of empty maps"], max_bytes=2 * _MIB)
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91",
        b"\xa5abc",
        pack(1) + pack(2),
        b"\xa1\xff",
        msgpack.packb({1: 2}),
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb(msgpack.ExtType(5, b"")),
        msgpack.packb(msgpack.Timestamp(1)),
    ],
    ids=["nothing", "reserved", "cut", "cut text", "two", "not UTF-8", "int key", "ext", "empty ext", "time"],
)
def test_malformed_data_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidJob, match="malformed"):
        unpack(data, max_bytes=_MIB)


def test_what_is_malformed_is_not_quoted() -> None:
    with pytest.raises(InvalidJob) as caught:
        unpack(pack("hunter2") + b"hunter2", max_bytes=_MIB)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", ["\ud800", {"a": ["fine", "caf\udce9"]}])
def test_a_text_that_is_none_is_told_without_it(value: Any) -> None:
    with pytest.raises(InvalidJob, match="not Unicode") as caught:
        pack(value)
    assert "udce9" not in str(caught.value)


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**64, {"a": {"b": print}}])
def test_only_plain_data_can_be_packed(value: Any) -> None:
    with pytest.raises(InvalidJob, match="only plain data"):
        pack(value)


def test_a_list_without_end_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidJob):
        pack(endless)
