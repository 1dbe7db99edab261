"""What a follower makes of entries that come twice, late, from the middle, or from a Redis that has lost some."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.codec import pack
from sollol_broker.errors import BackendError, InvalidJob, StreamGap
from sollol_broker.outcome import Routing, pack_answer
from sollol_client.answer import Answer
from sollol_client.follow import Follower, check_entry_id, entry_order

Entry = dict[bytes, bytes]


def start(at: int, fence: int = 1) -> Entry:
    return {b"e": b"%d-0" % at, b"t": b"start", b"f": b"%d" % fence, b"n": b"n1", b"w": b"w1"}


def piece(at: int, seq: int, text: str, fence: int = 1, behind: int | None = None) -> Entry:
    """Behind so many characters; unless told otherwise, of pieces of one character each."""
    data = pack({"text": text, "at": seq - 1 if behind is None else behind})
    return {b"e": b"%d-0" % at, b"t": b"piece", b"f": b"%d" % fence, b"s": b"%d" % seq, b"d": data}


def end(at: int, text: str, fence: int = 1) -> Entry:
    data = pack_answer({"response": text}, Routing("n1", "w1", "echo", 1, "generation", 0.0, 0.0))
    return {b"e": b"%d-0" % at, b"t": b"end", b"x": b"done", b"f": b"%d" % fence, b"d": data}


def read(follower: Follower, *entries: Entry) -> list[tuple[str, str]]:
    """What it shows: texts with their ids."""
    taken = (follower.take(entry) for entry in entries)
    return [(str(delta), delta.entry_id) for delta in taken if delta is not None]


WHOLE = (start(10), piece(11, 1, "a"), piece(12, 2, "b"), piece(13, 3, "c"), end(14, "abcd"))
SHOWN = [("a", "11-0"), ("b", "12-0"), ("c", "13-0"), ("d", "14-0")]


def test_each_piece_says_where_it_stands() -> None:
    assert read(Follower("j"), *WHOLE) == SHOWN


@given(st.integers(0, 4))
def test_behind_any_entry_the_stream_goes_on_with_the_rest(cut: int) -> None:
    follower = Follower("j", after=entry_order(WHOLE[cut][b"e"]))
    assert read(follower, *WHOLE) == SHOWN[cut:]
    assert follower.broken is None
    assert isinstance(follower.outcome, Answer)
    assert follower.outcome.text == "abcd"


def test_a_resumed_stream_knows_what_was_shown_before_it() -> None:
    follower = Follower("j", after=(12, 0))
    again = (start(20, 2), piece(21, 1, "abc", 2), piece(22, 2, "d", 2, behind=3), end(23, "abcd", 2))
    assert read(follower, *WHOLE[:3], *again) == [("c", "21-0"), ("d", "22-0")]
    follower = Follower("j", after=(12, 0))
    assert read(follower, *WHOLE[:3], start(20, 2), piece(21, 1, "xyz", 2)) == []
    assert isinstance(follower.broken, BackendError)


@pytest.mark.parametrize(
    ("after", "entries"),
    [
        ((12, 5), WHOLE),  # never was there
        ((12, 0), (WHOLE[0], *WHOLE[3:])),  # trimmed
        ((12, 0), WHOLE[2:]),  # there, but what was shown before it is not known any more
        ((99, 0), WHOLE),  # lost by Redis
    ],
)
def test_a_resume_that_would_leave_a_gap_says_so(after: tuple[int, int], entries: tuple[Entry, ...]) -> None:
    follower = Follower("j", after=after)
    assert read(follower, *entries) == []
    assert isinstance(follower.broken, StreamGap)
    assert isinstance(follower.outcome, Answer)
    assert follower.outcome.text == "abcd"


def test_what_was_trimmed_comes_with_the_answer() -> None:
    assert read(Follower("j"), *WHOLE[:2], *WHOLE[3:]) == [("a", "11-0"), ("bcd", "14-0")]


def test_an_attempt_of_equal_or_lower_number_behind_a_newer_one_counts_since_redis_was_rolled_back() -> None:
    for fence in (3, 2):
        follower = Follower("j")
        shown = read(follower, start(10, 3), piece(11, 1, "a", 3), piece(12, 2, "b", 3))
        # Redis lost entries 10 to 12; a reader that did not notice would mix two texts.
        shown += read(follower, start(20, fence), *(piece(20 + n, n, "abc"[n - 1], fence) for n in (1, 2, 3)))
        assert [text for text, _ in shown] == ["a", "b", "c"], fence


def test_leftovers_of_a_dead_attempt_do_not_count() -> None:
    follower = Follower("j")
    read(follower, start(10), piece(11, 1, "a"), start(20, 2), piece(21, 1, "a", 2))
    assert read(follower, piece(12, 2, "x"), start(10), piece(11, 1, "a")) == []
    assert read(follower, piece(22, 2, "b", 2)) == [("b", "22-0")]


def test_entries_that_do_not_say_where_they_stand_are_taken_by_their_fence() -> None:
    follower = Follower("j")
    bare = [{name: value for name, value in entry.items() if name != b"e"} for entry in WHOLE]
    assert read(follower, *bare, *bare) == [(text, "") for text, _ in SHOWN]


@pytest.mark.parametrize("say_where", [True, False])
def test_an_attempt_that_goes_on_is_shown_behind_the_one_before(say_where: bool) -> None:
    entries = [start(10), piece(11, 1, "ab"), start(20, 2), piece(21, 1, "c", 2, behind=2), end(22, "abc", 2)]
    if not say_where:
        entries = [{name: value for name, value in entry.items() if name != b"e"} for entry in entries]
    follower = Follower("j")
    assert [text for text, _ in read(follower, *entries, *entries)] == ["ab", "c"]
    assert follower.broken is None


def test_a_leftover_that_comes_late_is_not_shown_behind_the_attempt_that_went_on() -> None:
    follower = Follower("j")
    read(follower, start(10), piece(11, 1, "a"), start(20, 2), piece(21, 1, "b", 2, behind=1))
    assert read(follower, piece(12, 2, "B", 1), piece(22, 2, "c", 2, behind=2)) == [("c", "22-0")]


def test_what_passed_by_before_the_new_attempt_is_waited_for() -> None:
    follower, missed = Follower("j"), piece(12, 2, "b")
    later = (start(20, 2), piece(21, 1, "c", 2, behind=2), piece(22, 2, "d", 2, behind=3))
    assert read(follower, start(10), piece(11, 1, "a"), *later) == [("a", "11-0")]
    assert follower.lacks_pieces
    again = read(follower, start(10), piece(11, 1, "a"), missed, *later)
    assert [text for text, _ in again] == ["b", "c", "d"]
    assert not follower.lacks_pieces


def test_an_attempt_that_begins_anew_shows_only_what_is_new_and_breaks_where_it_differs() -> None:
    follower = Follower("j")
    anew = (start(20, 2), piece(21, 1, "a", 2), piece(22, 2, "bcd", 2))
    assert [text for text, _ in read(follower, start(10), piece(11, 1, "abc"), *anew)] == ["abc", "d"]
    assert read(follower, start(30, 3), piece(31, 1, "ax", 3)) == []
    assert isinstance(follower.broken, BackendError)
    assert follower.broken.partial == "abcd"


def test_a_piece_that_only_says_where_it_goes_on_is_nothing_to_show() -> None:
    follower = Follower("j")
    entries = (piece(11, 1, "a"), piece(21, 1, "", 2, behind=1), piece(22, 2, "b", 2, behind=1))
    assert [text for text, _ in read(follower, *entries)] == ["a", "b"]


@pytest.mark.parametrize("bad", ["x", "1", "1-", "-1", "1-2-3", "1 - 2", "$", "+", "1-0\n", "\u0661-0"])
def test_what_is_no_entry_id_is_refused(bad: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        check_entry_id(bad)
    assert caught.value.field == "after"
