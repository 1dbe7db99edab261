"""What holds for whatever comes: the real functions in a real Redis, on states that Hypothesis draws.

A job of 400 characters and 100 tokens takes 1,108 ms here, 1 per prompt token and 10 per output token.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric_kit import Fabric, fabric_at
from mutants import mutant
from sollol_broker import LaneOffer, ModelOffer, Requires
from sollol_broker.claim_rule import DEFAULT_WEIGHTS, fits, share_of
from sollol_broker.fair_order import SIZE_WEIGHT, head_start_ms
from sollol_broker.library import Library
from sollol_broker.operations import Operations

_EXAMPLES = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_MODELS = ("m", "other")
_LABELS = ("eu", "fast")
# Longer than any patience: the slowest worker needs some minutes for the longest job.
_LONG_MS = 3_600_000
_COST_MS, _PROMPT_TOKENS = 1_108.0, 108


def in_fabric(
    url: str, act: Callable[[Fabric], Coroutine[Any, Any, None]], functions: Library | None = None
) -> None:
    """Do something with an empty fabric."""

    async def doing() -> None:
        async with fabric_at(url, functions=functions) as fabric:
            await act(fabric)

    with redis.Redis.from_url(url) as raw:
        raw.flushall()
        try:
            asyncio.run(doing())
        except AssertionError:
            raw.flushall()  # what a test stopped in the middle leaves tells nothing
            raise


# --- no eligible job waits past its hold while an eligible worker idles


@dataclass(frozen=True, slots=True)
class Node:
    """One machine; `speed`: by how much it is slower than the fastest there may be."""

    speed: float
    slots: int
    models: tuple[str, ...]
    cold: bool
    labels: tuple[str, ...]
    context: int

    def lane(self, busy: int) -> LaneOffer:
        loads = {name: 5_000.0 if self.cold and name == "other" else 0.0 for name in self.models}
        offers = (
            ModelOffer(name, load, self.speed, 10 * self.speed, 0.2, self.context)
            for name, load in loads.items()
        )
        return LaneOffer(self.slots - busy, tuple(offers), busy=busy)


@dataclass(frozen=True, slots=True)
class Ask:
    """One job."""

    model: str
    priority: int
    app: str
    chars: int
    output: int
    labels: tuple[str, ...]


_LABEL_SETS = st.sampled_from([(), (), (), ("eu",), ("eu", "fast")])
_NODES = st.builds(
    Node,
    speed=st.sampled_from([1.0, 1.5, 6.0, 40.0]),
    slots=st.integers(1, 3),
    models=st.sampled_from([("m",), ("other",), _MODELS]),
    cold=st.booleans(),
    labels=_LABEL_SETS,
    context=st.sampled_from([0, 512, 4_096]),
)
_ASKS = st.builds(
    Ask,
    model=st.sampled_from(_MODELS),
    priority=st.integers(0, 10),
    app=st.sampled_from(["a", "b"]),
    chars=st.sampled_from([40, 400, 8_000]),
    output=st.sampled_from([1, 100, 1_000]),
    labels=_LABEL_SETS,
)
_TOWNS = st.tuples(st.lists(_NODES, min_size=1, max_size=4), st.lists(_ASKS, min_size=1, max_size=16))


@_EXAMPLES
@given(_TOWNS)
def test_no_job_waits_past_its_hold_while_a_worker_that_may_have_it_idles(
    redis_url: str, town: tuple[list[Node], list[Ask]]
) -> None:
    in_fabric(redis_url, lambda fabric: _nothing_is_skipped(fabric, *town))


def test_a_rule_without_patience_is_noticed(redis_url: str) -> None:
    no_patience = mutant(
        "(needed <= offer.backlog and is_near) or left <= 0", "needed <= offer.backlog and is_near"
    )
    nodes = [Node(speed, 1, ("m",), False, (), 0) for speed in (1.0, 40.0)]
    asks = [Ask("m", 5, "a", 400, 100, ())] * 2
    with pytest.raises(AssertionError, match="waits past its hold"):
        in_fabric(redis_url, lambda fabric: _nothing_is_skipped(fabric, nodes, asks), no_patience)


def test_a_queue_whose_head_hides_the_rest_is_noticed(redis_url: str) -> None:
    heads_only = mutant("  if goes_on then worker.next_stretch", "  if false then worker.next_stretch")
    nodes = [Node(1.0, 1, ("m",), False, (), 0)]
    asks = [*([Ask("m", 10, "a", 40, 1, ("eu",))] * 130), Ask("m", 0, "b", 40, 1, ())]
    in_fabric(redis_url, lambda fabric: _nothing_is_skipped(fabric, nodes, asks))
    with pytest.raises(AssertionError, match="waits past its hold"):
        in_fabric(redis_url, lambda fabric: _nothing_is_skipped(fabric, nodes, asks), heads_only)


async def _nothing_is_skipped(fabric: Fabric, nodes: Sequence[Node], asks: Sequence[Ask]) -> None:
    for at, node in enumerate(nodes):
        shares = {
            offer.model_key: share_of(
                load_ms=offer.load_ms,
                prompt_ms=node.speed,
                output_ms=10 * node.speed,
                slowdown=0.2,
                slots=node.slots,
                context_tokens=node.context,
            )
            for offer in node.lane(0).models
        }
        await fabric.worker(f"w{at}", models=shares)
    for at, ask in enumerate(asks):
        await fabric.submit(
            f"j{at}",
            model=ask.model,
            priority=ask.priority,
            app=ask.app,
            prompt_chars=ask.chars,
            output_cap=ask.output,
            requires=Requires(labels=list(ask.labels)),
        )
    busy = [0] * len(nodes)
    await _all_look(fabric, nodes, busy)
    for model in _MODELS:
        await _make_older(fabric, model)
    await _all_look(fabric, nodes, busy)
    for at, ask in enumerate(asks):
        if await fabric.state(f"j{at}") != "queued":
            continue
        for number, node in enumerate(nodes):
            is_idle = busy[number] < node.slots
            may = ask.model in node.models and fits(
                Requires(labels=list(ask.labels)), node=f"w{number}", labels=node.labels, vram_mib=0
            )
            longest = max(other.context or 10**9 for other in nodes if ask.model in other.models)
            is_short_of_context = 0 < node.context < ask.chars / 4 + 8 and longest > node.context
            assert not (is_idle and may and not is_short_of_context), (
                f"job {at} waits past its hold, worker {number} idles"
            )


async def _all_look(fabric: Fabric, nodes: Sequence[Node], busy: list[int]) -> None:
    """Each worker looks as often as it finds something, and twice more, as it does every second or two."""
    in_vain = 0
    while in_vain < 2:
        found = 0
        for at, node in enumerate(nodes):
            if busy[at] < node.slots:
                taken = await fabric.claim(f"w{at}", lanes=(node.lane(busy[at]),), labels=node.labels, most=1)
                busy[at] += len(taken)
                found += len(taken)
        in_vain = 0 if found else in_vain + 1


async def _make_older(fabric: Fabric, model: str) -> None:
    """As if all that waits had come long ago."""
    key = fabric.keys.queue(model)
    flat = await fabric.call("ZRANGE", key, 0, -1, "WITHSCORES")
    for member, score in zip(flat[::2], flat[1::2], strict=True):
        parts = member.decode().split("|")
        parts[3] = str(int(parts[3]) - _LONG_MS)
        await fabric.call("ZREM", key, member)
        await fabric.call("ZADD", key, score, "|".join(parts))


# --- nothing starves


_FLOODS = st.fixed_dictionaries(
    {
        "priority": st.integers(1, 9),
        "apps": st.integers(1, 3),
        "is_own_app": st.booleans(),
        "output": st.sampled_from([100, 400]),
        "cached": st.booleans(),
    }
)


@_EXAMPLES
@given(_FLOODS)
def test_a_flood_of_urgent_jobs_cannot_keep_one_waiting_beyond_the_bound(
    redis_url: str, flood: dict[str, Any]
) -> None:
    in_fabric(redis_url, lambda fabric: _patient_job_gets_its_turn(fabric, **flood))


def test_priorities_that_are_bands_are_noticed(redis_url: str) -> None:
    bands = mutant("return start, start + behind_of(", "return start, start + 1e9 * behind_of(")
    with pytest.raises(AssertionError, match="starves"):
        in_fabric(
            redis_url,
            lambda fabric: _patient_job_gets_its_turn(
                fabric, priority=3, apps=1, is_own_app=False, output=100, cached=False
            ),
            bands,
        )


def test_a_cache_that_always_wins_is_noticed(redis_url: str) -> None:
    always = mutant("job.behind / w.overtaking_ms", "0")
    with pytest.raises(AssertionError, match="starves"):
        in_fabric(
            redis_url,
            lambda fabric: _patient_job_gets_its_turn(
                fabric, priority=9, apps=1, is_own_app=False, output=100, cached=True
            ),
            always,
        )


async def _patient_job_gets_its_turn(
    fabric: Fabric, *, priority: int, apps: int, is_own_app: bool, output: int, cached: bool
) -> None:
    """One slot; each application always has two urgent jobs in line, cached here or not."""
    await fabric.worker("w1")
    lane = LaneOffer(1, (ModelOffer("m", 0.0, 1.0, 10.0),), cached={"abcd": 400} if cached else {})
    names = [f"app{at}" for at in range(apps)]
    count = 0

    async def more(app: str) -> None:
        nonlocal count
        count += 1
        await fabric.submit(f"{app}-{count}", app=app, priority=10, affinity="abcd")

    async def serve() -> str:
        (taken,) = await fabric.claim(lanes=(lane,))
        await fabric.broker.finish(taken.lease, b"x", used=fabric.used())
        return taken.lease.job_id

    for app in names:
        await more(app)
        await more(app)
    await more((await serve()).split("-")[0])  # so that the usual job is known
    await fabric.submit(
        "patient", app=names[0] if is_own_app else "other", priority=priority, output_cap=output
    )
    cost_ms = _PROMPT_TOKENS + 10 * output
    all_apps = apps if is_own_app else apps + 1
    behind_ms = head_start_ms(priority) + SIZE_WEIGHT * (cost_ms - _COST_MS)
    # Beside its head start: three of its own application's are ahead of it at most, and the others take as many turns.
    # The sum of weights that its rank was made with lacks its own application, if that is new.
    bound = behind_ms * all_apps / apps + 4 * all_apps * _COST_MS
    if cached:
        bound += DEFAULT_WEIGHTS.overtaking_ms * all_apps
    served_ms = 0.0
    while (job_id := await serve()) != "patient":
        served_ms += _COST_MS
        assert served_ms <= bound, f"a job of priority {priority} starves: {served_ms:.0f} ms went before it"
        await more(job_id.split("-")[0])


# --- applications share by weight


_SHARES = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.sampled_from([20, 100, 250])), min_size=2, max_size=4
)


@_EXAMPLES
@given(_SHARES)
def test_applications_share_a_queue_by_weight(redis_url: str, shares: list[tuple[float, int]]) -> None:
    in_fabric(redis_url, lambda fabric: _shares_are_fair(fabric, shares))


def test_an_order_that_forgets_what_an_application_has_had_is_noticed(redis_url: str) -> None:
    forgetful = mutant("charged(now, finishes, level, cost / weight)", "charged(now, finishes, level, 0)")
    with pytest.raises(AssertionError, match="unfair"):
        in_fabric(redis_url, lambda fabric: _shares_are_fair(fabric, [(1.0, 100), (4.0, 100)]), forgetful)


async def _shares_are_fair(fabric: Fabric, shares: Sequence[tuple[float, int]]) -> None:
    """All applications always have jobs in line, each of its own length; what each got, by its weight, is the same."""
    await fabric.worker("w1")
    lane = LaneOffer(1, (ModelOffer("m", 0.0, 1.0, 10.0),))
    for app, (weight, _) in enumerate(shares):
        await Operations(fabric.broker).set_quota(f"app{app}", {"weight": weight})
    jobs_each = 40
    for number in range(jobs_each):
        for app, (_, output) in enumerate(shares):
            await fabric.submit(f"{app}-{number}", app=f"app{app}", output_cap=output)
    costs = [_PROMPT_TOKENS + 10.0 * output for _, output in shares]
    weights = sum(weight for weight, _ in shares)
    served: Counter[int] = Counter()
    while max(served.values(), default=0) < jobs_each - 1:
        (taken,) = await fabric.claim(lanes=(lane,))
        app = int(taken.lease.job_id.split("-")[0])
        served[app] += 1
        output = shares[app][1]
        await fabric.broker.finish(
            taken.lease, b"x", used=fabric.used(output_tokens=output, run_ms=costs[app])
        )
        got = [served[at] * costs[at] / weight for at, (weight, _) in enumerate(shares)]
        steps = sorted((cost / weight for cost, (weight, _) in zip(costs, shares, strict=True)), reverse=True)
        # A turn of each of the two that are furthest apart, and what a short job may overtake.
        bound = steps[0] + steps[1] + SIZE_WEIGHT * (max(costs) - min(costs)) / max(1.0, weights)
        assert max(got) - min(got) <= bound + 1, f"unfair: {got} differ by more than {bound:.0f}"
