from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from sollol_worker_agent.rpc.frames import REPLY_HEAD, REQUEST_HEAD, Frames


def request(payload: bytes) -> bytes:
    return struct.pack("<BQ", 6, len(payload)) + payload


def test_a_message_goes_on_when_it_is_whole() -> None:
    frames, message = Frames(REQUEST_HEAD), request(b"abc")

    assert frames.whole(message[:1]) == b""
    assert frames.whole(message[1:9]) == b""
    assert frames.whole(message[9:]) == message


def test_several_at_once_go_on_at_once() -> None:
    frames = Frames(REQUEST_HEAD)
    both = request(b"abc") + request(b"")

    assert frames.whole(both + request(b"xyz")[:4]) == both
    assert frames.whole(request(b"xyz")[4:]) == request(b"xyz")


def test_a_large_message_is_not_held_back() -> None:
    frames, message = Frames(REQUEST_HEAD), request(bytes(200_000))

    assert frames.whole(message[:9]) == message[:9]
    assert frames.whole(message[9:150_000]) == message[9:150_000]
    assert frames.whole(message[150_000:] + request(b"a")) == message[150_000:] + request(b"a")


def test_replies_have_no_command() -> None:
    frames, message = Frames(REPLY_HEAD), struct.pack("<Q", 2) + b"ok"

    assert frames.whole(message[:8]) == b""
    assert frames.whole(message[8:]) == message


def test_what_is_held_back_is_given_at_the_end() -> None:
    frames = Frames(REQUEST_HEAD)
    frames.whole(b"\x06\x01")

    assert frames.rest() == b"\x06\x01"
    assert frames.rest() == b""


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.just(bytes(70_000))), max_size=6),
    st.lists(st.integers(1, 50_000), max_size=12),
)
def test_nothing_is_lost_nor_put_in_another_order(payloads: list[bytes], cuts: list[int]) -> None:
    data, frames, out, at = b"".join(map(request, payloads)), Frames(REQUEST_HEAD), b"", 0
    for size in cuts:
        out += frames.whole(data[at : at + size])
        at += size
    out += frames.whole(data[at:])

    assert out == data
    assert frames.rest() == b""
