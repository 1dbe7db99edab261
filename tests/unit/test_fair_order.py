"""A job's place in line: head starts, fair shares and their bounds, and the twin in Lua."""

from __future__ import annotations

import heapq
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lua_twin import function, table
from sollol_broker.fair_order import (
    LEVELS,
    SIZE_WEIGHT,
    Tag,
    charged,
    corrected,
    head_start_ms,
    level_of,
    moved,
    tag,
)


@pytest.mark.parametrize(
    ("priority", "seconds"),
    [(10, 0), (9, 3), (7, 9), (5, 15), (3, 157.5), (1, 300), (0, 360)],
)
def test_head_start(priority: int, seconds: float) -> None:
    assert math.isclose(head_start_ms(priority), seconds * 1000)


def test_a_higher_priority_never_starts_later() -> None:
    starts = [head_start_ms(priority) for priority in range(11)]
    assert starts == sorted(starts, reverse=True)


@pytest.mark.parametrize("priority", [-1, 11])
def test_a_priority_that_does_not_exist(priority: int) -> None:
    with pytest.raises(ValueError, match=r"not in 0\.\.10"):
        head_start_ms(priority)


def test_a_tag() -> None:
    made = tag(
        **{"now": 1_000.0, "finish": 4_000.0, "cost_ms": 500.0, "head_start": 300_000.0},
        **{"speed": 3.0, "weights": 5.0, "usual_ms": 200.0},
    )
    assert made.start == 4_000
    assert made.rank == pytest.approx(4_000 + (285_000 + SIZE_WEIGHT * 300) * 3 / 5)


def test_an_application_without_work_has_no_credit() -> None:
    late = tag(now=9_000, finish=1_000, cost_ms=10, head_start=0, speed=1, weights=1)
    assert late.start == 9_000


@pytest.mark.parametrize(
    ("priority", "level"), [(0, 0), (1, 0), (2, 1), (5, 1), (6, 1), (7, 2), (9, 2), (10, 2)]
)
def test_levels(priority: int, level: int) -> None:
    assert level_of(priority) == level


@pytest.mark.parametrize(
    ("level", "finishes"),
    [(0, (9_500, 6_000, 0)), (1, (9_500, 6_500, 0)), (2, (9_500, 6_500, 4_600))],
)
def test_work_is_charged_to_its_level_and_those_below(level: int, finishes: tuple[float, ...]) -> None:
    assert charged(4_100, (9_000, 6_000, 0), level, 500) == finishes


@pytest.mark.parametrize(("more", "finish"), [(0, 5_000), (1_000, 6_000), (-250, 4_750), (-9e9, 4_100)])
def test_what_was_really_used_counts(more: float, finish: float) -> None:
    assert corrected(4_100, (5_000, 5_000, 70), 1, more) == (finish, finish, 70)


class _Queue:
    """One queue and one worker of speed 1, in virtual time."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights
        self.now = 0.0
        self.finishes: dict[str, tuple[float, ...]] = dict.fromkeys(weights, (0.0,) * LEVELS)
        self.heap: list[tuple[float, int, str, float, float]] = []
        self.served = dict.fromkeys(weights, 0.0)
        self.count = 0

    def submit(self, app: str, cost: float, priority: int = 5) -> int:
        level = level_of(priority)
        made = tag(
            **{"now": self.now, "finish": self.finishes[app][level], "cost_ms": cost},
            **{"head_start": head_start_ms(priority), "speed": 1.0, "weights": sum(self.weights.values())},
            usual_ms=cost,
        )
        self.finishes[app] = charged(self.now, self.finishes[app], level, cost / self.weights[app])
        self.count += 1
        heapq.heappush(self.heap, (made.rank, self.count, app, cost, made.start))
        return self.count

    def serve(self) -> tuple[int, str]:
        _, number, app, cost, start = heapq.heappop(self.heap)
        self.now = max(self.now, start)
        self.served[app] += cost
        return number, app


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=5), st.integers(0, 2**32))
def test_backlogged_applications_share_by_weight_within_one_job_each(weights: list[float], seed: int) -> None:
    """|served i / weight i - served j / weight j| <= longest i / weight i + longest j / weight j (Goyal et al.)."""
    some = random.Random(seed)
    queue = _Queue({f"app{number}": weight for number, weight in enumerate(weights)})
    longest = 1_000.0
    for app in queue.weights:
        for _ in range(60):
            queue.submit(app, some.uniform(10, longest))
    for _ in range(50):
        queue.serve()
        shares = [queue.served[app] / weight for app, weight in queue.weights.items()]
        for i, one in enumerate(weights):
            for j, other in enumerate(weights):
                assert abs(shares[i] - shares[j]) <= longest / one + longest / other + 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10), st.integers(0, 2**32))
def test_no_priority_waits_beyond_its_bound(priority: int, seed: int) -> None:
    """Work of others served before a job <= its head start + one job of each application (equal weights)."""
    some = random.Random(seed)
    queue = _Queue({"mine": 1.0, "rush": 1.0})
    cost = 1_000.0
    mine = queue.submit("mine", cost, priority)
    for _ in range(8_000):
        while len(queue.heap) < 20:
            queue.submit("rush", some.uniform(100, cost), 10)
        number, _ = queue.serve()
        if number == mine:
            break
    assert number == mine, "it starved"
    assert queue.served["rush"] <= head_start_ms(priority) + 3 * cost


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 6), st.integers(0, 120), st.integers(0, 2**32))
def test_an_application_does_not_starve_its_own_less_urgent_work(
    priority: int, before: int, seed: int
) -> None:
    """Newer urgent work served first <= head start + what of the application stood in line before + one job."""
    some, cost = random.Random(seed), 1_000.0
    queue = _Queue({"mine": 1.0})
    for _ in range(before):
        queue.submit("mine", cost, priority)
    mine, urgent = queue.submit("mine", cost, priority), 0.0
    for _ in range(8_000):
        if sum(1 for each in queue.heap if each[1] > mine) < 3:
            queue.submit("mine", some.uniform(100, cost), 10)
        number, _ = queue.serve()
        if number == mine:
            break
        urgent = queue.served["mine"] - cost * (before - sum(1 for each in queue.heap if each[1] < mine))
    assert number == mine, "it starved"
    assert urgent <= head_start_ms(priority) + before * cost + 3 * cost


@pytest.mark.parametrize(("own", "first"), [(1, False), (5, True), (10, True)])
def test_urgent_work_does_not_wait_for_its_applications_batch(own: int, first: bool) -> None:
    queue = _Queue({"mine": 1.0})
    for _ in range(1_000):
        queue.submit("mine", 1_000.0, 1)
    mine = queue.submit("mine", 1_000.0, own)
    assert (queue.serve()[0] == mine) == first


def test_what_an_application_jumps_is_charged_to_its_batch() -> None:
    """Once the batch that stood in line is done, both have had the same."""
    queue = _Queue({"mixed": 1.0, "plain": 1.0})
    for _ in range(20):
        queue.submit("mixed", 1_000.0, 1)
    for _ in range(100):
        queue.submit("mixed", 1_000.0, 5)
    for _ in range(400):
        queue.submit("mixed", 1_000.0, 1)
        queue.submit("plain", 1_000.0, 1)
    for _ in range(600):
        queue.serve()
    assert abs(queue.served["mixed"] - queue.served["plain"]) <= 20_000 + 2_000


def test_a_short_job_goes_before_long_ones_that_came_little_earlier() -> None:
    made = [
        tag(now=0, finish=0, cost_ms=cost, head_start=15_000, speed=1, weights=1, usual_ms=1_000)
        for cost in (100, 1_000, 5_000)
    ]
    assert [each.rank for each in made] == [SIZE_WEIGHT * -900, 0, SIZE_WEIGHT * 4_000]


_TAG, _LEVEL_OF = function("_order.lua", "tag"), function("_order.lua", "level_of")
_CHARGED, _CORRECTED = function("_order.lua", "charged"), function("_order.lua", "corrected")
_AMOUNTS = st.floats(0, 1e9) | st.sampled_from([0.0, 1.0])


@settings(max_examples=150, deadline=None)
@given(
    *(_AMOUNTS, st.tuples(_AMOUNTS, _AMOUNTS, _AMOUNTS), _AMOUNTS),
    *(st.sampled_from(range(11)), st.floats(0.01, 1e4), st.floats(0, 1e3), _AMOUNTS),
)
def test_the_twin_in_lua_tags_the_same(
    now: float, finishes: tuple[float, ...], cost: float,
    priority: int, speed: float, weights: float, usual: float,
) -> None:  # fmt: skip
    head_start, level = head_start_ms(priority), level_of(priority)
    assert _LEVEL_OF(priority) == level + 1
    mine = tag(
        **{"now": now, "finish": finishes[level], "cost_ms": cost, "head_start": head_start},
        **{"speed": speed, "weights": weights, "usual_ms": usual},
    )
    assert _TAG(now, finishes[level], cost, head_start, speed, weights, usual) == (mine.start, mine.rank)
    for theirs, ours, more in ((_CHARGED, charged, cost), (_CORRECTED, corrected, usual - cost)):
        found = theirs(now, table(finishes), level + 1, more)
        assert tuple(found.values()) == ours(now, finishes, level, more)


# --- another priority for a job that waits


def _move(priority: int, other: int, **more: Any) -> tuple[Tag, tuple[float, ...]]:
    state: dict[str, Any] = {
        "tag": Tag(2_000.0, 2_500.0),
        "now": 1_000.0,
        "finishes": (9_000.0, 5_000.0, 1_500.0),
        "share_ms": 500.0,
        "behind_ms": head_start_ms(other) - head_start_ms(5),
    }
    return moved(
        level=level_of(priority), new_level=level_of(other), is_sooner=other > priority, **(state | more)
    )


def test_on_the_same_level_it_keeps_its_turn() -> None:
    found, finishes = _move(5, 6)
    assert (found.start, found.rank) == (2_000.0, 2_000.0 - 3_000.0)
    assert finishes == (9_000.0, 5_000.0, 1_500.0)


def test_on_another_level_it_takes_its_turn_and_its_charge_there() -> None:
    found, finishes = _move(5, 10)
    assert (found.start, finishes) == (1_500.0, (9_000.0, 5_000.0, 2_000.0))
    found, finishes = _move(5, 1)
    assert (found.start, finishes) == (8_500.0, (9_000.0, 4_500.0, 1_500.0))
    assert found.rank == 8_500.0 + 285_000.0


_MOVED = function("_order.lua", "moved")


@settings(max_examples=150, deadline=None)
@given(
    *(
        st.sampled_from(range(11)),
        st.sampled_from(range(11)),
        _AMOUNTS,
        st.tuples(_AMOUNTS, _AMOUNTS, _AMOUNTS),
    ),
    *(_AMOUNTS, st.floats(-1e9, 1e9), st.floats(0, 1e6), st.floats(-1e9, 1e9)),
)
def test_more_urgent_is_never_later_and_the_twin_agrees(
    priority: int, other: int, now: float, finishes: tuple[float, ...],
    start: float, rank: float, share: float, behind: float,
) -> None:  # fmt: skip
    old = Tag(start, rank)
    new, after = _move(priority, other, tag=old, now=now, finishes=finishes, share_ms=share, behind_ms=behind)
    if other > priority:
        assert new.rank <= rank
        assert new.start <= start
    else:
        assert new.rank >= rank
        assert new.start >= start
    level, new_level = level_of(priority) + 1, level_of(other) + 1
    theirs = _MOVED(start, rank, level, new_level, other > priority, now, table(finishes), share, behind)
    assert theirs[:2] == (new.start, new.rank)
    assert tuple(theirs[2].values()) == after
