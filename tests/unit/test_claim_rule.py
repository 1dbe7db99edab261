"""Which job a worker takes: each branch of the rule, its promises, and its twin in Lua on thousands of states."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lua_twin import function, table
from sollol_broker.claim_rule import (
    DEFAULT_WEIGHTS,
    Bid,
    Choice,
    Offer,
    PaceClass,
    Share,
    Waiting,
    choose,
    classes_of,
    fits,
    share_of,
    together,
    weigh,
)
from sollol_broker.codec import unpack
from sollol_broker.envelope import Requires

# A usual job takes 1,100 ms here, and 5,100 ms on the slow worker: 4.64 times as long.
_JOB = Waiting(offer=0, position=0, prompt_tokens=100, output_tokens=100, waited_ms=0)
_FAST = PaceClass(capacity=2, load_ms=0, prompt_ms=1, output_ms=10)
_FASTER = PaceClass(capacity=2, load_ms=0, prompt_ms=0.5, output_ms=5)
_HERE = Offer(load_ms=0, prompt_ms=1, output_ms=10)
_SLOW = Offer(load_ms=0, prompt_ms=1, output_ms=50, others=(_FAST,))


@pytest.mark.parametrize(
    ("offer", "job", "own", "reference", "ratio"),
    [
        pytest.param(_HERE, _JOB, 1_100, 0, 1, id="1 own price"),
        pytest.param(replace(_HERE, slowdown=0.5, busy=2), _JOB, 2_200, 0, 1, id="1 busy slots slow it down"),
        pytest.param(_HERE, replace(_JOB, cached_tokens=60), 1_040, 0, 1_040 / 1_100, id="1 what is cached is free"),
        pytest.param(_HERE, replace(_JOB, cached_tokens=900), 1_000, 0, 1_000 / 1_100, id="1 but not more than free"),
        pytest.param(replace(_HERE, load_ms=2_200), _JOB, 3_300, 0, 3, id="1 a load for one job"),
        pytest.param(replace(_HERE, load_ms=2_200, waiting=4), _JOB, 1_650, 0, 1.5, id="1 shared by four"),
        pytest.param(replace(_HERE, load_ms=2_200, waiting=99), _JOB, 1_375, 0, 1.25, id="1 by eight at most"),
        pytest.param(_SLOW, _JOB, 5_100, 1_100, 5_100 / 1_100, id="2 compared with the faster ones"),
        pytest.param(
            replace(_SLOW, others=(_FAST, _FASTER)), _JOB, 5_100, 825, 5_100 / 825, id="2 their mean by capacity"
        ),
        pytest.param(
            replace(_SLOW, others=(_FAST, replace(_FASTER, load_ms=9_000))),
            _JOB, 5_100, 1_100, 5_100 / 1_100, id="2 those that must load first are not faster",
        ),
        pytest.param(replace(_HERE, others=(_FAST,)), _JOB, 1_100, 0, 1, id="2 equal ones are not faster"),
        pytest.param(
            replace(_SLOW, others=(replace(_FAST, crowding=1.5),)), _JOB, 5_100, 1_650, 5_100 / 1_650,
            id="2 the delay of those beside it counts",
        ),
    ],
)  # fmt: skip
def test_price(offer: Offer, job: Waiting, own: float, reference: float, ratio: float) -> None:
    bid = weigh(offer, job)
    assert (bid.own_ms, bid.reference_ms, bid.ratio) == pytest.approx((own, reference, ratio))
    assert _lua_weigh(offer, job) == pytest.approx(_flat(bid))


# The slow worker needs (4.64 - 1) x 2 slots / 3 = 2.42 jobs in line.
@pytest.mark.parametrize(
    ("offer", "job", "takes"),
    [
        pytest.param(_HERE, _JOB, True, id="2 nobody is better"),
        pytest.param(replace(_SLOW, backlog=2), _JOB, False, id="3 the better ones are nearly free"),
        pytest.param(replace(_SLOW, backlog=3), _JOB, True, id="3 the line is long"),
        pytest.param(
            replace(_SLOW, output_ms=70, backlog=99), _JOB, False, id="3 too slow, however long the line"
        ),
        pytest.param(
            replace(_SLOW, output_ms=70, backlog=99),
            replace(_JOB, is_batch=True),
            True,
            id="3 but batch work",
        ),
        pytest.param(_SLOW, replace(_JOB, is_bound=True), True, id="2 others may not have it"),
        pytest.param(_SLOW, replace(_JOB, waited_ms=3_999), False, id="4 still patient"),
        pytest.param(_SLOW, replace(_JOB, waited_ms=4_000), True, id="4 leaving it costs more than it saves"),
        pytest.param(
            replace(_SLOW, output_ms=500), replace(_JOB, waited_ms=49_000), True, id="4 even far slower ones"
        ),
    ],
)
def test_takes(offer: Offer, job: Waiting, takes: bool) -> None:
    bid = weigh(offer, job)
    assert bid.takes is takes
    assert _lua_weigh(offer, job) == pytest.approx(_flat(bid))


def test_one_who_declines_knows_when_it_would_not() -> None:
    choice = choose([_SLOW], [_JOB])
    assert choice.index is None
    assert choice.backlog_needed == pytest.approx((5_100 / 1_100 - 1) * 2 / 3)
    assert choice.look_again_ms == pytest.approx(4_000)
    far = replace(_SLOW, output_ms=500)
    patient = choose([far], [_JOB])
    assert (patient.index, patient.backlog_needed) == (None, math.inf)
    assert patient.look_again_ms == pytest.approx(49_000)
    assert choose([far], []) == Choice(None, None, math.inf, math.inf)


_COLD = replace(_HERE, load_ms=10_000)
_LATE = replace(_JOB, offer=1, waited_ms=30_000)


@pytest.mark.parametrize(
    ("offers", "jobs", "chosen"),
    [
        pytest.param([_HERE], [_JOB, replace(_JOB, position=1)], 0, id="5 the first in line"),
        pytest.param(
            [replace(_SLOW, backlog=9)],
            [_JOB, replace(_JOB, position=1, prompt_tokens=5_000, output_tokens=10)],
            1,
            id="5 what it is relatively best at",
        ),
        pytest.param(
            [replace(_SLOW, backlog=9)],
            [_JOB, replace(_JOB, position=1, output_tokens=99)],
            0,
            id="5 but little is no reason to jump the line",
        ),
        pytest.param(
            [_HERE],
            [_JOB, replace(_JOB, position=1, cached_tokens=80)],
            1,
            id="5 what it has in its cache",
        ),
        pytest.param([_HERE, _COLD], [replace(_JOB, offer=1), replace(_JOB)], 1, id="5 what is in memory"),
        pytest.param([_HERE, _COLD], [_LATE, _JOB], 0, id="5 a late job for a cold model is due"),
        pytest.param(
            [_HERE, replace(_COLD, settled_ms=29_999)], [_LATE, _JOB], 1, id="5 but not right after another load"
        ),
        pytest.param(
            [_HERE, replace(_COLD, load_ms=10_001)], [_LATE, _JOB], 1, id="5 nor before three loads' time"
        ),
        pytest.param(
            [_HERE, _HERE], [_JOB, replace(_JOB, offer=1, waited_ms=1)], 1, id="5 of equals the one that waited longest"
        ),
        pytest.param(
            [_HERE, _HERE],
            [replace(_JOB, waited_ms=5_000), replace(_JOB, offer=1, output_tokens=50, waited_ms=2_000)],
            1,
            id="5 for its size: 8 x 600 ms make up for 3,000",
        ),
        pytest.param(
            [_HERE, _HERE],
            [replace(_JOB, waited_ms=7_000), replace(_JOB, offer=1, output_tokens=50, waited_ms=2_000)],
            0,
            id="5 but not for 5,000",
        ),
    ],
)  # fmt: skip
def test_choose(offers: list[Offer], jobs: list[Waiting], chosen: int | None) -> None:
    choice = choose(offers, jobs)
    assert choice.index == chosen
    assert _lua_choose(offers, jobs) == (chosen, math.inf, math.inf)


def test_classes_are_groups_of_like_speed() -> None:
    shares = [
        share_of(load_ms=0, prompt_ms=1, output_ms=10, slots=2),
        share_of(load_ms=0, prompt_ms=1.2, output_ms=10.4, slots=1),
        share_of(load_ms=0, prompt_ms=1, output_ms=50, slots=2, slowdown=0.5),
        share_of(load_ms=5_000, prompt_ms=1, output_ms=10, slots=1),
    ]
    assert [each.group for each in shares] == [20, 20, 26, 25]
    fast, cold, slow = classes_of(shares)
    assert fast.capacity == 3
    assert (fast.prompt_ms, fast.output_ms) == pytest.approx((3.2 / 3, 30.4 / 3), rel=1e-3)
    assert (cold.load_ms, cold.output_ms) == (5_000, 10)
    assert slow.output_ms == 75  # both of its slots at work
    # One more job on that one: 1.5 times its time alone, and half of it again for the job beside it.
    assert (fast.crowding, cold.crowding, slow.crowding) == pytest.approx((1, 1, 2 / 1.5), abs=0.005)


def test_a_worker_with_two_servers_is_one() -> None:
    fast = share_of(load_ms=0, prompt_ms=1, output_ms=10, slots=2)
    slow = share_of(load_ms=0, prompt_ms=9, output_ms=90, slots=1)
    assert together([slow, fast]) == replace(fast, capacity=3)


# --- promises

_NUMBERS = st.sampled_from([0.0, 0.5, 10.0]) | st.floats(0, 1_000)
_CLASSES = st.builds(
    PaceClass,
    capacity=st.integers(1, 40),
    load_ms=st.sampled_from([0.0, 5_000.0]),
    prompt_ms=_NUMBERS,
    output_ms=_NUMBERS,
    crowding=st.floats(1, 2),
)
_OFFERS = st.builds(
    Offer,
    load_ms=st.sampled_from([0.0, 0.0, 5_000.0, 60_000.0]) | st.floats(0, 1e6),
    prompt_ms=_NUMBERS,
    output_ms=_NUMBERS,
    slowdown=st.floats(0, 2),
    busy=st.integers(0, 16),
    waiting=st.integers(0, 100),
    backlog=st.integers(0, 1_000),
    settled_ms=st.sampled_from([math.inf, 0.0, 90_000.0]),
    others=st.lists(_CLASSES, max_size=3).map(tuple),
)


@st.composite
def _states(draw: st.DrawFn) -> tuple[list[Offer], list[Waiting]]:
    offers = draw(st.lists(_OFFERS, min_size=1, max_size=3))
    jobs = st.builds(
        Waiting,
        offer=st.integers(0, len(offers) - 1),
        position=st.integers(0, 31),
        prompt_tokens=st.integers(0, 100_000),
        output_tokens=st.integers(0, 10_000),
        waited_ms=st.sampled_from([0.0, 30_000.0, 180_000.0]) | st.floats(0, 1e6),
        cached_tokens=st.integers(0, 1_000),
        is_batch=st.booleans(),
        is_bound=st.booleans(),
        behind_ms=st.floats(0, 1e5),
    )
    return offers, draw(st.lists(jobs, max_size=6))


@settings(max_examples=100, deadline=None)
@given(_states())
def test_nothing_eligible_waits_past_its_patience(state: tuple[list[Offer], list[Waiting]]) -> None:
    """An idle worker that takes nothing says when it will: at that time it takes the job."""
    offers, jobs = state
    choice = choose(offers, jobs)
    if choice.index is not None or not jobs:
        return
    assert choice.look_again_ms < math.inf
    later = [replace(job, waited_ms=job.waited_ms + choice.look_again_ms * (1 + 1e-9) + 1e-3) for job in jobs]
    assert choose(offers, later).index is not None


@settings(max_examples=100, deadline=None)
@given(_states())
def test_one_that_nobody_beats_takes_what_there_is(state: tuple[list[Offer], list[Waiting]]) -> None:
    offers, jobs = state
    alone = [replace(offer, others=()) for offer in offers]
    assert (choose(alone, jobs).index is None) == (not jobs)


@settings(max_examples=100, deadline=None)
@given(_states())
def test_a_longer_line_never_makes_a_worker_less_willing(state: tuple[list[Offer], list[Waiting]]) -> None:
    offers, jobs = state
    for job in jobs:
        offer = offers[job.offer]
        if weigh(offer, job).takes:
            assert weigh(replace(offer, backlog=offer.backlog + 10), job).takes


@pytest.mark.parametrize(("behind_ms", "index"), [(0, 1), (8_000, 1), (9_100, 0), (300_000, 0)])
def test_what_is_cached_overtakes_only_so_far(behind_ms: float, index: int) -> None:
    """Nine tenths of the second job are saved: that is worth nine tenths of the lead that a whole one is worth."""
    first = Waiting(0, 0, 1_000, 0, 0)
    cached = Waiting(0, 1, 1_000, 0, 0, cached_tokens=900, behind_ms=behind_ms)
    assert choose([Offer(0, 1, 10)], [first, cached]).index == index


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_the_head_of_a_line_goes_to_the_first_of_the_best_workers_that_is_free(seed: int) -> None:
    """So nothing starves: whatever the others pick, the fastest class takes jobs in their order."""
    some = random.Random(seed)
    offer = Offer(0, some.uniform(0.1, 5), some.uniform(1, 100), backlog=32)
    jobs = [
        Waiting(0, position, some.randrange(5_000), 1 + some.randrange(1_000), some.uniform(0, 1e5))
        for position in range(32)
    ]
    assert choose([offer], jobs).index == 0


# --- the twin in Lua

_WEIGH, _CHOOSE = function("_rule.lua", "weigh"), function("_rule.lua", "choose")
_LUA_WEIGHTS: Any = function("_rule.lua", "WEIGHTS")


def test_the_twin_has_the_same_weights() -> None:
    assert dict(_LUA_WEIGHTS.items()) == asdict(DEFAULT_WEIGHTS)


def _lua_offer(offer: Offer) -> dict[str, Any]:
    others = [
        {
            "cap": each.capacity,
            "load": each.load_ms,
            "a": each.prompt_ms,
            "b": each.output_ms,
            "crowding": each.crowding,
        }
        for each in offer.others
    ]
    return {
        **{"load": offer.load_ms, "a": offer.prompt_ms, "b": offer.output_ms, "slow": offer.slowdown},
        **{"busy": offer.busy, "waiting": offer.waiting, "backlog": offer.backlog},
        **{"settled": offer.settled_ms, "others": others},
    }


def _lua_job(job: Waiting) -> dict[str, Any]:
    return {
        **{"offer": job.offer + 1, "position": job.position, "prompt": job.prompt_tokens},
        **{"cached": job.cached_tokens, "output": job.output_tokens, "waited": job.waited_ms},
        **{"batch": job.is_batch, "bound": job.is_bound, "behind": job.behind_ms},
    }


def _flat(bid: Bid) -> tuple[float, ...]:
    return (
        *(bid.own_ms, bid.reference_ms, bid.capacity, bid.ratio, bid.value, bid.takes),
        *(bid.backlog_needed, bid.patience_ms),
    )


def _lua_weigh(offer: Offer, job: Waiting) -> tuple[float, ...]:
    bid = dict(_WEIGH(table(_lua_offer(offer)), table(_lua_job(job)), _LUA_WEIGHTS).items())
    names = ("own", "reference", "capacity", "ratio", "value", "takes", "needed", "left")
    return tuple(bid[name] for name in names)


def _lua_choose(offers: Sequence[Offer], jobs: Sequence[Waiting]) -> tuple[int | None, float, float]:
    found = _CHOOSE(
        table([_lua_offer(offer) for offer in offers]), table([_lua_job(job) for job in jobs]), _LUA_WEIGHTS
    )
    index, _, needed, again = (
        (*found, None, None)[:4] if isinstance(found, tuple) else (found, None, None, None)
    )
    if index is not None:
        return int(index) - 1, math.inf, math.inf
    return None, needed, again


@settings(max_examples=100, deadline=None)
@given(_states())
def test_the_twin_chooses_the_same(state: tuple[list[Offer], list[Waiting]]) -> None:
    _assert_same(*state)


# 100 times 100 states; drawn by Hypothesis one by one, as many would take most of a minute.
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_the_twin_chooses_the_same_on_10_000_states(seed: int) -> None:
    some = random.Random(seed)
    for _ in range(100):
        offers = [_some_offer(some) for _ in range(some.randint(1, 3))]
        jobs = [_some_job(some, len(offers)) for _ in range(some.randint(0, 5))]
        _assert_same(offers, jobs)


def _assert_same(offers: Sequence[Offer], jobs: Sequence[Waiting]) -> None:
    mine = choose(offers, jobs)
    index, needed, again = _lua_choose(offers, jobs)
    assert index == mine.index
    if index is None:
        assert (needed, again) == (mine.backlog_needed, mine.look_again_ms)


def _some_offer(some: random.Random) -> Offer:
    others = tuple(
        PaceClass(
            *(some.randint(1, 9), some.choice((0, 0, 4_000)), some.uniform(0, 2), some.uniform(1, 60)),
            crowding=some.choice((1, some.uniform(1, 2))),
        )
        for _ in range(some.randint(0, 3))
    )
    return Offer(
        load_ms=some.choice((0, 0, some.expovariate(1e-4))),
        prompt_ms=some.uniform(0, 5),
        output_ms=some.uniform(0, 100),
        slowdown=some.choice((0, some.uniform(0, 1))),
        busy=some.randrange(8),
        waiting=some.randrange(12),
        backlog=some.randrange(50),
        settled_ms=some.choice((math.inf, some.uniform(0, 1e5))),
        others=others,
    )


def _some_job(some: random.Random, offers: int) -> Waiting:
    return Waiting(
        offer=some.randrange(offers),
        position=some.randrange(32),
        prompt_tokens=some.choice((0, 512, some.randrange(100_000))),
        output_tokens=some.choice((0, 128, some.randrange(4_000))),
        waited_ms=some.choice((0, 30_000, some.uniform(0, 3e5))),
        cached_tokens=some.choice((0, some.randrange(1_000))),
        is_batch=some.random() < 0.2,
        is_bound=some.random() < 0.1,
        behind_ms=some.choice((0, some.uniform(0, 1e5))),
    )


def test_the_twin_reads_the_shares_that_python_writes() -> None:
    read = function("_classes.lua", "read_share")
    share = Share(21, 3, load_ms=5_000, prompt_us=812, output_us=9_990, context_tokens=8_192, crowding=167)
    expected = {"group": 21, "cap": 3, "load": 5_000, "a": 812, "b": 9_990, "context": 8_192, "crowding": 167}
    assert dict(read(str(share)).items()) == expected


# --- what a job requires

_FITS = function("_fits.lua", "fits")


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
    wanted = table(unpack(data, max_bytes=10_000))
    return bool(_FITS(wanted, table({"labels": labels, "vram_mib": vram_mib}), node))


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
