"""Lines of the live log: which are taken, what they may hold, and who wants them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.errors import InvalidJob
from sollol_broker.live_log import sample_of
from sollol_broker.log_entry import Level, LogEntry, LogFilter, Sampler, from_flat, scrubbed, to_flat


def _entry(**more: object) -> LogEntry:
    usual = {
        "id": "1000-0",
        "at": 1.0,
        "level": "warning",
        "source": "worker",
        "process": "n1.ab",
        "node": "n1",
        "app": "web",
        "event": "attempt failed",
        "fields": {"job": "j1", "attempt": 2, "hedged": True},
        "left_out": 3,
    }
    return LogEntry(**{**usual, **more})  # type: ignore[arg-type]  # a test's shorthand


def _as_redis_has_it(entry: LogEntry, ago_ms: float = 0.0) -> list[bytes]:
    return [str(part).encode() for part in to_flat(entry, ago_ms=ago_ms)]


def test_what_is_written_is_what_is_read() -> None:
    assert from_flat(b"1000-0", _as_redis_has_it(_entry())) == _entry()
    bare = _entry(app="", node="", fields={}, left_out=0)
    assert from_flat(b"1000-0", _as_redis_has_it(bare)) == bare
    assert b"app" not in _as_redis_has_it(bare)


def test_the_time_is_that_of_the_event_not_of_the_batch() -> None:
    assert from_flat(b"1000-0", _as_redis_has_it(_entry(), ago_ms=400)).at == 0.6


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_whatever_somebody_has_put_there_is_read(flat: list[bytes]) -> None:
    entry = from_flat(b"5-1", flat)
    assert entry.level in ("info", "warning", "error")
    LogFilter().wants(entry)


def test_long_lines_are_cut_and_stay_on_one_line() -> None:
    entry = from_flat(b"1-0", _as_redis_has_it(_entry(event="x\ny\x1b " * 500, fields={"a": "b" * 900})))
    assert len(entry.event) == 500
    assert "\n" not in entry.event
    assert len(entry.fields["a"]) == 200
    many = {f"field{number}": number for number in range(100)}
    assert len(from_flat(b"1-0", _as_redis_has_it(_entry(fields=many))).fields) == 16


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach redis://user:CANARY@host:6379/0",
        "http://:CANARY@10.0.0.1:11434 is down",
        "Authorization: Bearer CANARY refused",
        "password=CANARY is wrong",
        "api_key: CANARY",
        "key sk-CANARYCANARY is unknown",
    ],
)
def test_logins_and_keys_are_masked(text: str) -> None:
    assert "CANARY" not in scrubbed(text)
    entry = from_flat(b"1-0", _as_redis_has_it(_entry(event=text, fields={"why": text})))
    assert "CANARY" not in str(entry)
    assert "***" in entry.event


def test_one_info_line_in_ten_and_all_others() -> None:
    sampler = Sampler(0.1)
    taken = [sampler.takes(Level.INFO, "job answered", 0.0) for _ in range(1000)]
    told = [left_out for left_out in taken if left_out is not None]
    assert len(told) == 100
    assert taken[0] == 0, "the first of a kind is news"
    assert sum(told) + len(told) == 1000 - 9, "what was left out is told with the next one"
    for level in (Level.WARNING, Level.ERROR):
        assert [sampler.takes(level, "x", 0.0) for _ in range(50)] == [0] * 50


def test_each_kind_has_its_own_share_and_news_is_always_told() -> None:
    sampler = Sampler(0.1)
    assert sampler.takes(Level.INFO, "a", 0.0) == 0
    assert sampler.takes(Level.INFO, "b", 0.0) == 0
    assert sampler.takes(Level.INFO, "a", 1.0) is None
    assert sampler.takes(Level.INFO, "a", 20.0) == 1


def test_the_ends_of_the_scale() -> None:
    assert [Sampler(1).takes(Level.INFO, "a", 0.0) for _ in range(3)] == [0, 0, 0]
    nothing = Sampler(0)
    assert [nothing.takes(Level.INFO, "a", 99.0 * n) for n in range(3)] == [None] * 3
    assert nothing.takes(Level.ERROR, "a", 0.0) == 0
    with pytest.raises(InvalidJob, match="from 0 to 1"):
        Sampler(1.5)


def test_kinds_are_bounded() -> None:
    sampler = Sampler(0.5)
    for number in range(10_000):
        sampler.takes(Level.INFO, f"kind {number}", 0.0)
    assert len(sampler._kinds) <= 256


@pytest.mark.parametrize(
    ("text", "share"), [("0.1", 0.1), ("1", 1.0), ("0", 0.0), ("off", None), (" OFF ", None)]
)
def test_what_the_command_line_says(text: str, share: float | None) -> None:
    assert sample_of(text) == share


@pytest.mark.parametrize("text", ["", "ten", "-1", "1.1", "nan"])
def test_what_makes_no_sense(text: str) -> None:
    with pytest.raises(InvalidJob, match="from 0 to 1, or off"):
        sample_of(text)


def test_filters() -> None:
    entry = _entry()
    for wanted in (
        LogFilter(),
        LogFilter(Level.WARNING),
        LogFilter(node="n1"),
        LogFilter(app="web", node="n1"),
    ):
        assert wanted.wants(entry)
    for unwanted in (LogFilter(Level.ERROR), LogFilter(node="n2"), LogFilter(app="other")):
        assert not unwanted.wants(entry)
    assert Level.named("Error") is Level.ERROR
    with pytest.raises(InvalidJob, match="info, warning, error"):
        Level.named("loud")
