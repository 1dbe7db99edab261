"""Which job a worker takes: the rule's table, and its twin in Lua on thousands of states."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lupa import lua51  # type: ignore[import-untyped]  # it ships no stubs

from sollol_broker.claim_rule import (
    COLD_PATIENCE_LOADS,
    COLD_PATIENCE_MS,
    Offer,
    Waiting,
    choose,
    fits,
    head_start_ms,
)
from sollol_broker.codec import unpack
from sollol_broker.envelope import Requires

_NOW = 1_800_000_000_000.0
_WARM = Offer(load_ms=0, prompt_ms=1, output_ms=10)
_SLOW = Offer(load_ms=0, prompt_ms=2, output_ms=50)
_COLD = Offer(load_ms=5_000, prompt_ms=1, output_ms=10)
_HUGE = Offer(load_ms=60_000, prompt_ms=1, output_ms=10)


def _job(
    offer: int = 0, *, rank: float = 0.0, prompt: int = 100, output: int = 100, waited: float = 1_000.0
) -> Waiting:
    return Waiting(offer, _NOW + rank, prompt, output, _NOW - waited)


@pytest.mark.parametrize(
    ("offers", "jobs", "chosen"),
    [
        pytest.param([_WARM], [], None, id="nothing waits"),
        pytest.param([_COLD], [_job()], 0, id="a cold job is better than none"),
        # 1. Price
        pytest.param([_WARM], [_job(prompt=5_000), _job(rank=10)], 1, id="1 a long prompt costs"),
        pytest.param([_WARM], [_job(output=900), _job(rank=10)], 1, id="1 a long answer costs"),
        pytest.param([_WARM, _SLOW], [_job(1), _job(0, rank=10)], 1, id="1 a slow model costs"),
        pytest.param([_WARM], [_job(output=900), _job(rank=9_000)], 0, id="1 but rank counts as much"),
        # 2. Late
        pytest.param(
            [_WARM, _COLD],
            [_job(1, rank=-20_000, waited=COLD_PATIENCE_MS - 1), _job(0)],
            1,
            id="2 cold, not yet late",
        ),
        pytest.param(
            [_WARM, _COLD],
            [_job(1, rank=-20_000, waited=COLD_PATIENCE_MS), _job(0)],
            0,
            id="2 cold and late",
        ),
        pytest.param(
            [_WARM, _HUGE],
            [_job(1, rank=-200_000, waited=COLD_PATIENCE_LOADS * 60_000 - 1), _job(0)],
            1,
            id="2 a long load is waited for longer",
        ),
        pytest.param(
            [_WARM, _HUGE],
            [_job(1, rank=-200_000, waited=COLD_PATIENCE_LOADS * 60_000), _job(0)],
            0,
            id="2 but not for ever",
        ),
        pytest.param(
            [_WARM, _COLD],
            [_job(1, rank=-1_000, waited=COLD_PATIENCE_MS), _job(0)],
            1,
            id="2 late, but load counts",
        ),
        # 3. Warm first, then least rank + price, then the first in the list
        pytest.param([_WARM, _COLD], [_job(1, rank=-100_000), _job(0)], 1, id="3 warm before cold"),
        pytest.param([_COLD, _HUGE], [_job(1), _job(0)], 1, id="3 among cold ones the cheaper"),
        pytest.param([_WARM], [_job(rank=1), _job(rank=0), _job(rank=2)], 1, id="3 least rank"),
        pytest.param([_WARM], [_job(), _job(), _job()], 0, id="3 equal: the first"),
        pytest.param([_COLD], [_job(), _job()], 0, id="3 equal and cold: the first"),
    ],
)  # fmt: skip
def test_choose(offers: list[Offer], jobs: list[Waiting], chosen: int | None) -> None:
    assert choose(offers, jobs, _NOW) == chosen
    assert _lua_choose(offers, jobs, _NOW) == chosen


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


_LUA = lua51.LuaRuntime()


def _lua(file: str, name: str) -> Callable[..., Any]:
    code = (files("sollol_broker") / "lua" / file).read_text("utf-8")
    function: Callable[..., Any] = _LUA.execute(f"{code}\nreturn {name}")
    return function


_CHOOSE, _FITS = _lua("_rule.lua", "choose"), _lua("_fits.lua", "fits")


def _lua_choose(offers: Sequence[Offer], jobs: Sequence[Waiting], now_ms: float) -> int | None:
    table = _LUA.table
    chosen = _CHOOSE(
        table(*(table(load=o.load_ms, a=o.prompt_ms, b=o.output_ms) for o in offers)),
        table(
            *(
                table(
                    offer=j.offer + 1,
                    rank=j.rank_ms,
                    prompt=j.prompt_tokens,
                    output=j.output_tokens,
                    submitted=j.submitted_ms,
                )
                for j in jobs
            )
        ),
        now_ms,
    )
    return None if chosen is None else int(chosen) - 1


_OFFERS = st.builds(
    Offer,
    load_ms=st.sampled_from([0.0, 0.0, 1.0, 5_000.0, 60_000.0]) | st.floats(0, 1e6),
    prompt_ms=st.sampled_from([0.0, 0.5]) | st.floats(0, 100),
    output_ms=st.sampled_from([0.0, 10.0]) | st.floats(0, 1000),
)


@st.composite
def _states(draw: st.DrawFn) -> tuple[list[Offer], list[Waiting]]:
    offers = draw(st.lists(_OFFERS, min_size=1, max_size=4))
    jobs = st.builds(
        Waiting,
        offer=st.integers(0, len(offers) - 1),
        rank_ms=st.sampled_from([_NOW, _NOW - 15_000]) | st.floats(_NOW - 1e6, _NOW + 4e5),
        prompt_tokens=st.integers(0, 100_000),
        output_tokens=st.integers(0, 10_000),
        submitted_ms=st.sampled_from([_NOW, _NOW - 30_000, _NOW - 180_000])
        | st.floats(_NOW - 1e6, _NOW + 1e4),
    )
    return offers, draw(st.lists(jobs, max_size=8))


@settings(max_examples=150, deadline=None)
@given(_states())
def test_the_twin_in_lua_chooses_the_same(state: tuple[list[Offer], list[Waiting]]) -> None:
    offers, jobs = state
    assert _lua_choose(offers, jobs, _NOW) == choose(offers, jobs, _NOW)


# 100 times 100 states; drawn by Hypothesis one by one, as many would take most of a minute.
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_the_twin_in_lua_chooses_the_same_on_10_000_states(seed: int) -> None:
    some = random.Random(seed)
    for _ in range(100):
        offers = [
            Offer(some.choice((0, 0, some.expovariate(1e-4))), some.uniform(0, 5), some.uniform(0, 100))
            for _ in range(some.randint(1, 4))
        ]
        jobs = [
            Waiting(
                offer=some.randrange(len(offers)),
                rank_ms=_NOW + some.choice((0, 15_000, some.uniform(-1e5, 1e5))),
                prompt_tokens=some.choice((0, 512, some.randrange(100_000))),
                output_tokens=some.choice((128, some.randrange(4_000))),
                submitted_ms=_NOW - some.choice((0, COLD_PATIENCE_MS, some.uniform(0, 3e5))),
            )
            for _ in range(some.randint(0, 8))
        ]
        assert _lua_choose(offers, jobs, _NOW) == choose(offers, jobs, _NOW)


@given(_states())
def test_somebody_is_always_chosen(state: tuple[list[Offer], list[Waiting]]) -> None:
    offers, jobs = state
    assert (choose(offers, jobs, _NOW) is None) == (not jobs)


@pytest.mark.parametrize(
    ("requires", "answer"),
    [
        (Requires(), True),
        (Requires(vram_gb=8), True),
        (Requires(vram_gb=8.001), False),
        (Requires(labels=["eu"]), True),
        (Requires(labels=["eu", "fast"]), True),
        (Requires(labels=["eu", "us"]), False),
        (Requires(node="gpu-1"), True),
        (Requires(node="gpu-2"), False),
        (Requires(node=""), True),
        (Requires(vram_gb=4, labels=["eu"], node="gpu-1"), True),
        (Requires(vram_gb=4, labels=["eu"], node="gpu-2"), False),
    ],
)
def test_fits(requires: Requires, answer: bool) -> None:
    assert fits(requires, node="gpu-1", labels=["eu", "fast"], vram_mib=8192) is answer
    assert _lua_fits(requires, "gpu-1", ["eu", "fast"], 8192) is answer


def _lua_fits(requires: Requires, node: str, labels: list[str], vram_mib: int) -> bool:
    # As claim.lua does: what is not required is not on the wire at all.
    data = requires.to_bytes()
    if not data:
        return True
    wanted = unpack(data, max_bytes=10_000)
    if "labels" in wanted:
        wanted["labels"] = _LUA.table(*wanted["labels"])
    offer = _LUA.table(labels=_LUA.table(*labels), vram_mib=vram_mib)
    return bool(_FITS(_LUA.table_from(wanted), offer, node))


_LABELS = st.lists(st.sampled_from(["eu", "us", "fast", ""]), max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        Requires,
        vram_gb=st.none() | st.sampled_from([0.0, 0.0001, 8.0, 24.0]) | st.floats(0, 200),
        labels=_LABELS,
        node=st.none() | st.sampled_from(["", "gpu-1", "gpu-2"]),
    ),
    st.sampled_from(["gpu-1", "gpu-2"]),
    _LABELS,
    st.sampled_from([0, 8192]) | st.integers(0, 200_000),
)
def test_the_twin_in_lua_fits_the_same(
    requires: Requires, node: str, labels: list[str], vram_mib: int
) -> None:
    mine = fits(requires, node=node, labels=labels, vram_mib=vram_mib)
    assert _lua_fits(requires, node, labels, vram_mib) == mine
