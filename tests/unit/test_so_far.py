"""What a worker makes of the pieces that earlier attempts left."""

from __future__ import annotations

from typing import Any

from sollol_broker.codec import pack
from sollol_broker.outcome import Seam
from sollol_worker_agent.so_far import so_far


def piece(fence: int, seq: int, text: str, at: int = 0, **more: Any) -> dict[bytes, bytes]:
    data = pack({"text": text, **({"at": at} if at else {}), **more})
    return {b"t": b"piece", b"f": b"%d" % fence, b"s": b"%d" % seq, b"d": data}


SEAM = {"attempt": 2, "node": "n2", "offset": 8, "how": "continued"}


def test_nothing() -> None:
    found = so_far([])
    assert (found.said.text, found.said.tokens, found.is_whole) == ("", 0, True)


def test_the_pieces_of_one_attempt() -> None:
    found = so_far([piece(1, 1, "one ", ids=[7]), piece(1, 2, "two three ", 4, tokens=2, ids=[8, 9])])
    assert (found.said.text, found.said.tokens, found.said.ids) == ("one two three ", 3, (7, 8, 9))
    assert found.is_whole


def test_ids_are_known_of_all_tokens_or_of_none() -> None:
    assert so_far([piece(1, 1, "a", ids=[7]), piece(1, 2, "b", 1)]).said.ids == ()


def test_attempts_that_went_on() -> None:
    entries = [
        piece(1, 1, "one two "),
        piece(2, 1, "", 8, tokens=0, seam=SEAM),
        piece(2, 2, "three ", 8),
        piece(4, 1, "four", 14, seam={**SEAM, "attempt": 3, "offset": 14}),
    ]
    found = so_far(entries)
    assert (found.said.text, found.said.tokens, found.is_whole) == ("one two three four", 3, True)
    assert found.seams == (Seam(2, "n2", 8, "continued"), Seam(3, "n2", 14, "continued"))


def test_an_attempt_that_began_anew_is_all_there_is() -> None:
    found = so_far([piece(1, 1, "one "), piece(2, 1, "eins ")])
    assert (found.said.text, found.is_whole) == ("eins ", True)


def test_a_dead_attempts_leftover_does_not_count() -> None:
    found = so_far([piece(1, 1, "one "), piece(2, 1, "two ", 4), piece(1, 2, "zombie ", 4)])
    assert (found.said.text, found.is_whole) == ("one two ", True)


def test_an_entry_that_came_twice_counts_once() -> None:
    assert so_far([piece(1, 1, "one "), piece(1, 1, "one "), piece(1, 2, "two", 4)]).said.text == "one two"


def test_pieces_that_are_trimmed_are_missed() -> None:
    whole = [piece(1, 1, "one "), piece(1, 2, "two ", 4), piece(2, 1, "three ", 8), piece(2, 2, "four", 14)]
    for first in range(1, len(whole)):
        assert not so_far(whole[first:]).is_whole
    assert not so_far([whole[0], *whole[2:]]).is_whole
    assert so_far(whole).is_whole
