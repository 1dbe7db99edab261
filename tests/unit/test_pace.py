"""What a worker learns of a model's speed: pure sums."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_worker_agent.aged import Line, Mean
from sollol_worker_agent.occupancy import Occupancy
from sollol_worker_agent.pace import Expected, Pace

DAY = 86_400.0
FAST = Expected(prompt_ms=0.5, output_ms=10.0, load_ms=3000.0)


def closing(
    prompt: float = 100, prompt_ms: float = 50.0, output: float = 100, output_ms: float = 1000.0
) -> dict[str, Any]:
    """Closing fields of a job; times for all tokens together."""
    return {
        "prompt_eval_count": prompt,
        "prompt_eval_duration": round(prompt_ms * 1e6),
        "eval_count": output,
        "eval_duration": round(output_ms * 1e6),
        "load_duration": 0,
        "total_duration": round((prompt_ms + output_ms) * 1e6),
    }


def at_busy(busy: int, alone_ms: float, slowdown: float) -> dict[str, Any]:
    """A job of 100 + 100 tokens on a node that this describes."""
    slow = 1 + slowdown * (busy - 1)
    return closing(prompt_ms=100 * slow, output_ms=100 * alone_ms * slow)


def test_before_any_job_it_is_what_was_expected() -> None:
    pace = Pace(FAST)
    assert (pace.prompt_ms, pace.output_ms, pace.load_ms) == (0.5, 10.0, 3000.0)
    assert (pace.slowdown, pace.success_rate, pace.error, pace.jobs_seen) == (0.1, 1.0, 0.0, 0)


def test_one_job_already_outweighs_the_expectation_by_far() -> None:
    pace = Pace(FAST).after(closing(prompt_ms=400.0, output_ms=5000.0))
    assert pace.prompt_ms > 2.5
    assert pace.output_ms > 40.0
    assert pace.jobs_seen == 1


def learned(alone_ms: float, slowdown: float, levels: list[int]) -> Pace:
    """After thirty rounds of jobs at these numbers of busy slots."""
    pace = Pace(FAST)
    for busy in levels * 30:
        pace = pace.after(at_busy(busy, alone_ms, slowdown), busy=busy)
    return pace


@settings(max_examples=40)
@given(
    st.floats(0.5, 500), st.floats(0, 1.5), st.lists(st.integers(2, 8), min_size=1, max_size=7, unique=True)
)
def test_it_finds_speed_and_slowdown_of_a_steady_node(
    alone_ms: float, slowdown: float, levels: list[int]
) -> None:
    pace = learned(alone_ms, slowdown, [*levels, 1])
    assert pace.prompt_ms == pytest.approx(1.0, rel=0.1)
    assert pace.output_ms == pytest.approx(alone_ms, rel=0.2)
    assert pace.prompt_ms + pace.output_ms == pytest.approx(1 + alone_ms, rel=0.05)
    assert 1 + pace.slowdown == pytest.approx(1 + slowdown, rel=0.06)


@pytest.mark.parametrize("alone_ms", [1.0, 20.0, 400.0])
@pytest.mark.parametrize("slowdown", [0.0, 0.3, 1.2])
@pytest.mark.parametrize("levels", [[2, 3], [4], [3, 5, 8]])
def test_a_node_that_is_never_idle_is_known_as_it_is_then(
    alone_ms: float, slowdown: float, levels: list[int]
) -> None:
    pace = learned(alone_ms, slowdown, levels)
    for busy in levels:
        found = (pace.prompt_ms + pace.output_ms) * (1 + pace.slowdown * (busy - 1))
        assert found == pytest.approx((1 + alone_ms) * (1 + slowdown * (busy - 1)), rel=0.25)


def test_noise_does_not_hide_the_slowdown() -> None:
    pace, noise = Pace(FAST), random.Random(7)
    for _ in range(200):
        busy = noise.randint(1, 4)
        pace = pace.after(at_busy(busy, 20 * noise.lognormvariate(0, 0.1), 0.4), busy=busy)
    assert pace.slowdown == pytest.approx(0.4, abs=0.2)
    assert pace.output_ms == pytest.approx(20, rel=0.15)


def test_at_one_level_only_the_usual_slowdown_is_taken_out() -> None:
    pace = Pace(FAST)
    for _ in range(50):
        pace = pace.after(at_busy(4, 20, 0.1), busy=4)
    assert pace.slowdown == pytest.approx(0.1)
    assert pace.output_ms == pytest.approx(20, rel=0.02)


def test_a_node_that_slows_down_is_believed_within_ten_jobs() -> None:
    pace = Pace(FAST)
    for _ in range(100):
        pace = pace.after(closing(output_ms=1000))
    for _ in range(10):
        pace = pace.after(closing(output_ms=6000))
    assert pace.output_ms > 40


def test_a_laptop_that_slept_through_a_job_is_not_remembered_for_long() -> None:
    pace = Pace(FAST)
    for _ in range(20):
        pace = pace.after(closing(output_ms=1000))
    pace = pace.after(closing(output_ms=8 * 3600 * 1000))
    assert pace.output_ms < 20
    for _ in range(20):
        pace = pace.after(closing(output_ms=1000))
    assert pace.output_ms == pytest.approx(10, rel=0.1)


def test_a_few_tokens_teach_little() -> None:
    pace = Pace(FAST)
    for _ in range(10):
        pace = pace.after(closing(prompt=1000, prompt_ms=500))
    after_few = pace.after(closing(prompt=3, prompt_ms=15))
    assert after_few.prompt_ms == pytest.approx(0.5, rel=0.06)
    assert pace.after(closing(prompt=1000, prompt_ms=5000)).prompt_ms > 0.6


def test_cached_tokens_do_not_count_as_work() -> None:
    pace = Pace(FAST)
    for _ in range(10):
        pace = pace.after(closing(prompt=2000, prompt_ms=100), cached_tokens=1800)
    assert pace.prompt_ms == pytest.approx(0.5, rel=0.01)
    assert pace.after(closing(prompt=2000, prompt_ms=1), cached_tokens=2000).prompt == pace.prompt


def test_embeddings_tell_only_their_whole_time() -> None:
    fields = {"total_duration": 500_000_000, "load_duration": 400_000_000, "prompt_eval_count": 1000}
    pace = Pace(FAST)
    for _ in range(20):
        pace = pace.after(fields)
    assert pace.prompt_ms == pytest.approx(0.1, rel=0.1)
    bare = Pace(FAST).after({"total_duration": 0, "prompt_eval_count": 1000}, actual_ms=5000)
    assert bare.prompt_ms > 3


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"eval_count": None, "eval_duration": None},
        {"eval_count": "12", "eval_duration": [1]},
        {"eval_count": 10, "eval_duration": 0},
        {"eval_count": -3, "eval_duration": 10_000_000},
        {"eval_count": True, "eval_duration": math.nan, "prompt_eval_count": math.inf},
    ],
)
def test_odd_fields_teach_nothing_but_that_it_worked(odd: dict[str, Any]) -> None:
    pace = Pace(FAST).after(odd, predicted_ms=10, actual_ms=0)
    assert (pace.prompt_ms, pace.output_ms, pace.error) == (0.5, 10.0, 0.0)
    assert pace.jobs_seen == 1


def test_loads_failures_and_errors_of_prediction() -> None:
    pace = Pace(FAST)
    for _ in range(10):
        pace = pace.load_seen(9000)
    assert pace.load_ms == pytest.approx(9000, rel=0.05)
    assert pace.load_seen(math.nan) == pace.load_seen(-1) == pace
    for worked in (True, False) * 20:
        pace = pace.after(closing()) if worked else pace.failed()
    assert pace.success_rate == pytest.approx(0.5, abs=0.1)
    assert pace.jobs_seen == 20
    assert Pace().failed().success_rate > 0.6, "one failure alone condemns nobody"
    for predicted in (500, 2000):
        assert Pace().after({}, predicted_ms=predicted, actual_ms=1000).error == pytest.approx(math.log(2))


def test_after_a_week_it_is_mostly_what_was_expected() -> None:
    pace = Pace(FAST).aged(1000 * DAY)
    for _ in range(50):
        pace = pace.after(closing(output_ms=11_000)).load_seen(30_000).failed()
    assert pace.output_ms > 100
    assert pace.aged(1001 * DAY).output_ms > 100, "a day later it still knows"
    later = pace.aged(1007 * DAY)
    assert later.output_ms < 60
    assert later.load_ms < 16_000
    assert later.success_rate > pace.success_rate
    assert later.jobs_seen == 50
    assert later.as_of == 1007 * DAY


def test_a_clock_that_was_set_back_makes_nothing_younger() -> None:
    pace = Pace(FAST).aged(1000 * DAY).after(closing())
    back = pace.aged(900 * DAY)
    assert back.output == pace.output
    assert back.aged(901 * DAY).output.weight == pytest.approx(pace.output.weight / 2)


def test_it_survives_the_way_through_redis() -> None:
    pace = Pace(FAST).aged(123.5)
    for busy in (1, 2, 3, 2):
        pace = pace.after(at_busy(busy, 33, 0.3), busy=busy, predicted_ms=900, actual_ms=1200)
    pace = pace.load_seen(7777).failed()
    back = Pace.from_fields(pace.to_fields(), FAST)
    assert (back.jobs_seen, back.as_of, back.expected) == (4, 123.5, FAST)
    for name in ("prompt_ms", "output_ms", "slowdown", "load_ms", "success_rate", "error"):
        assert getattr(back, name) == pytest.approx(getattr(pace, name), rel=1e-6)


_NAMES = ("prompt", "output", "load", "success", "errors", "jobs_seen", "as_of", "unknown")
_RUBBISH = st.one_of(
    st.text(max_size=20),
    st.lists(st.floats(), max_size=6).map(lambda numbers: " ".join(map(str, numbers))),
)


@given(st.dictionaries(st.sampled_from(_NAMES), _RUBBISH))
def test_rubbish_from_redis_leaves_sane_figures(given: dict[str, str]) -> None:
    pace = Pace.from_fields(given, FAST).aged(2e9)
    pace = pace.after(closing()).load_seen(100).failed()
    for value in (pace.prompt_ms, pace.output_ms, pace.slowdown, pace.load_ms, pace.success_rate):
        assert 0 <= value < math.inf
    if "as_of" not in given:
        assert Pace.from_fields(given, FAST) == Pace(FAST)


def test_a_line_through_nothing_and_through_one_point() -> None:
    assert Line().fitted_slope(0.1, 2) == 0.1
    assert Line().plus(2.0, 12.0).fitted_slope(0.1, 2) == pytest.approx(0.1)
    assert Mean().value(7.0, 0.0) == 7.0


def test_occupancy_is_the_mean_over_the_time_of_a_job() -> None:
    lane = Occupancy(0.0)
    lane.change(1, 10.0)
    lane.change(3, 12.0)
    lane.change(2, 14.0)
    assert lane.mean(10.0, 14.0) == pytest.approx(2.0)
    assert lane.mean(13.0, 16.0) == pytest.approx((3 + 2 * 2) / 3)
    assert lane.mean(16.0, 16.0) == 2.0
    for step in range(5000):
        lane.change(step % 2, 14.0 + step)
    assert lane.mean(4000.0, 5000.0) == pytest.approx(0.5, abs=0.01)
    assert lane.mean(0.0, 5000.0) == pytest.approx(0.5, abs=0.01), (
        "of what is no longer known nothing is said"
    )
