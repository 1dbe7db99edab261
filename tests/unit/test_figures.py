"""What a worker counts: under which second, told once, and never lost while it lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sollol_broker.codec import unpack
from sollol_broker.series import Point
from sollol_worker_agent import figures as module
from sollol_worker_agent.figures import Figures, Flow


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def _answered(figures: Figures, model: str = "m") -> None:
    figures.answered(model, prompt_tokens=7, more_tokens=2, wait_ms=5, ttft_ms=None, run_ms=20, latency_ms=25)


def _told(data: bytes) -> tuple[int, dict[str, list[tuple[int, Point]]]]:
    number, _, *models = unpack(data, max_bytes=100_000)
    return number, {
        name: [(second, Point.from_plain(plain)) for second, plain in rows] for _, name, rows in models
    }


def _requests(told: dict[str, list[tuple[int, Point]]]) -> dict[str, list[tuple[int, int]]]:
    return {name: [(second, point.counts[0]) for second, point in rows] for name, rows in told.items()}


def test_seconds_are_those_of_redis() -> None:
    clock = Clock()
    figures = Figures(clock=clock)
    figures.set_clock(1_700_000_000_900)
    _answered(figures)
    clock.now += 0.2
    _answered(figures)
    _answered(figures, "n")
    number, told = _told(figures.tell({}))
    assert number == 1
    assert _requests(told) == {
        "m": [(1_700_000_000, 1), (1_700_000_001, 1)],
        "n": [(1_700_000_001, 1)],
    }


def test_what_did_not_arrive_is_told_again_under_its_number() -> None:
    figures = Figures(clock=Clock())
    _answered(figures)
    first = figures.tell({})
    _answered(figures)  # while the advert is on its way
    assert figures.tell({}) == first
    figures.told("")  # Redis had no room
    assert figures.tell({}) == first
    figures.told("1")
    number, told = _told(figures.tell({}))
    assert (number, _requests(told)) == (2, {"m": [(100, 1)]})
    figures.told("2")
    assert figures.is_told
    assert _told(figures.tell({})) == (3, {})


def test_totals_hold_all_that_was_ever_counted() -> None:
    clock = Clock()
    figures = Figures(clock=clock)
    _answered(figures)
    figures.tell({})
    figures.told("1")
    _answered(figures)
    figures.failed("m")
    whole = figures.totals()["m"]
    assert whole.counts == [3, 1, 14, 4]
    assert [sum(each.values()) for each in whole.times] == [0, 0, 2, 2, 2]


def test_of_too_many_seconds_the_oldest_are_left_out_but_stay_in_the_totals(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 3)
    clock = Clock()
    figures = Figures(clock=clock)
    for _ in range(5):
        _answered(figures)
        clock.now += 1
    _, told = _told(figures.tell({}))
    assert [second for second, _ in told["m"]] == [102, 103, 104]
    assert figures.totals()["m"].counts[0] == 5


def test_pieces_are_counted_as_they_come() -> None:
    clock = Clock()
    figures = Figures(clock=clock)
    flow = Flow(figures, "m")
    for at, tokens in ((10.0, 1), (10.1, 1), (10.3, 4), (11.0, 1)):
        flow.add(tokens, at)
    assert figures.totals()["m"].counts[3] == 7
    flow.count()
    flow.count()
    point = figures.totals()["m"]
    assert (flow.tokens, point.counts[3]) == (7, 7)
    assert sum(point.times[1].values()) == 3
    assert point.sums_us[1] == 100_000 + 50_000 + 700_000


def test_where_nothing_is_to_be_counted_nothing_is() -> None:
    figures = Figures(is_on=False)
    _answered(figures)
    figures.failed("m")
    figures.pieces("m", 3, [1.0])
    assert figures.totals() == {}
    assert figures.tell({"busy": 1}) == b""
