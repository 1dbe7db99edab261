"""Pictures leave the request before it travels, and are back when it arrives."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.envelope import MAX_BLOB_BYTES
from sollol_broker.errors import InvalidJob
from sollol_broker.payload import put_blobs_back, take_blobs_out


def _text(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


_PICTURES = st.lists(st.binary(min_size=1, max_size=30), max_size=3)


@given(_PICTURES, st.lists(_PICTURES, max_size=3))
def test_pictures_come_back_where_they_were(top: list[bytes], each: list[list[bytes]]) -> None:
    payload = {
        "prompt": "what is this?",
        "images": [_text(picture) for picture in top],
        "messages": [{"role": "user", "images": [_text(p) for p in pictures]} for pictures in each],
    }
    plain, blobs = take_blobs_out(payload)
    assert list(blobs) == [*top, *(picture for pictures in each for picture in pictures)]
    assert put_blobs_back(plain, [_text(blob) for blob in blobs]) == payload


def test_raw_bytes_are_taken_too() -> None:
    plain, blobs = take_blobs_out({"images": [b"\x89PNG", bytearray(b"GIF8")]})
    assert blobs == (b"\x89PNG", b"GIF8")
    assert plain == {"images": [{"sollol-blob": 0}, {"sollol-blob": 1}]}


def test_the_callers_request_is_left_alone() -> None:
    message = {"role": "user", "content": "hi", "images": [_text(b"x")]}
    payload = {"messages": [message], "images": [_text(b"y")]}
    take_blobs_out(payload)
    assert payload == {"messages": [message], "images": [_text(b"y")]}
    assert message["images"] == [_text(b"x")]


@pytest.mark.parametrize(
    "payload",
    [
        {"prompt": "hi"},
        {"images": []},
        {"images": None},
        {"messages": "text"},
        {"messages": ["text", {"content": "x"}]},
        {"input": ["images"]},
    ],
)
def test_a_request_without_pictures_stays_as_it_is(payload: dict[str, Any]) -> None:
    assert take_blobs_out(payload) == (payload, ())
    assert put_blobs_back(payload, []) == payload


def test_a_message_that_is_no_map_beside_one_with_pictures() -> None:
    payload = {"messages": ["odd", {"images": [_text(b"x")]}]}
    plain, blobs = take_blobs_out(payload)
    assert put_blobs_back(plain, [_text(blob) for blob in blobs]) == payload


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"images": "text"}, "images"),
        ({"images": ["not base64!"]}, "images[0]"),
        ({"images": [_text(b"x"), "ümlaut"]}, "images[1]"),
        ({"images": [7]}, "images[0]"),
        ({"images": [{"sollol-blob": 0}]}, "images[0]"),
        ({"messages": [{}, {"images": ["%"]}]}, "messages[1].images[0]"),
    ],
)
def test_what_is_no_picture_is_named_by_its_place(payload: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        take_blobs_out(payload)
    assert caught.value.field == field
    assert "ümlaut" not in str(caught.value)


def test_a_picture_over_the_limit_is_told_the_limit() -> None:
    with pytest.raises(InvalidJob, match=r"33,554,432 \(32 MiB\)"):
        take_blobs_out({"images": [bytes(MAX_BLOB_BYTES + 1)]})


@pytest.mark.parametrize(
    "reference", [{"sollol-blob": 1}, {"sollol-blob": -1}, {"sollol-blob": "0"}, {}, {"x": 0}]
)
def test_a_reference_that_points_nowhere(reference: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob, match="missing"):
        put_blobs_back({"images": [reference]}, ["AAAA"])
