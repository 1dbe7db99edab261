"""The claim rule inside Redis: who leaves a job to whom, who is woken, and what the fabric knows of its workers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fabric_kit import Fabric, fabric_at, ids, node_of
from sollol_broker import LaneOffer, ModelOffer, Requires
from sollol_broker.claim_rule import share_of
from sollol_broker.names import key_part

FAST = share_of(load_ms=0, prompt_ms=0.1, output_ms=10)
SLOW = share_of(load_ms=0, prompt_ms=1, output_ms=50)
CRAWLING = share_of(load_ms=0, prompt_ms=10, output_ms=500)


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        await fabric.worker("fast", models={"m": FAST})
        await fabric.worker("slow", models={"m": SLOW})
        yield fabric


def _lane(prompt_ms: float, output_ms: float, *, free: int = 1, busy: int = 0, context: int = 0) -> LaneOffer:
    return LaneOffer(free, (ModelOffer("m", 0.0, prompt_ms, output_ms, 0.0, context),), busy)


_FAST, _SLOW, _CRAWLING = _lane(0.1, 10), _lane(1, 50), _lane(10, 500)


async def test_a_lone_job_is_left_to_the_faster_worker(fabric: Fabric) -> None:
    await fabric.submit("j1")
    claims = await fabric.broker.claim(fabric.request("slow", lanes=(_SLOW,)))
    assert claims is not None
    assert claims.jobs == []
    # own = 108 x 1 + 100 x 50 = 5,108 ms; there 108 x 0.1 + 100 x 10 = 1,010.8 ms: patience lasts for the difference.
    assert claims.look_again_ms == pytest.approx(5_108 - 1_010.8, abs=200)
    assert ids(await fabric.claim("fast", lanes=(_FAST,))) == ["j1"]


async def test_a_slow_worker_helps_when_the_queue_is_long(fabric: Fabric) -> None:
    # ratio 5.05: it helps from (5.05 - 1) / 3 = 1.35 jobs per slot of the fast one.
    await fabric.submit("j1")
    assert await fabric.claim("slow", lanes=(_SLOW,)) == []
    await fabric.submit("j2")
    assert len(await fabric.claim("slow", lanes=(_SLOW,))) == 1


async def test_one_far_slower_does_not_help_but_for_batch_work(fabric: Fabric) -> None:
    for number in range(20):
        await fabric.submit(f"j{number}")
    await fabric.worker("crawling", models={"m": CRAWLING})
    assert await fabric.claim("crawling", lanes=(_CRAWLING,)) == []
    for number in range(40):
        await fabric.submit(f"b{number}", priority=1)
    (taken,) = await fabric.claim("crawling", lanes=(_CRAWLING,), depth=64)
    assert taken.lease.job_id.startswith("b")


async def test_when_patience_ends_a_slow_worker_takes_it(fabric: Fabric) -> None:
    await fabric.submit("j1")
    await _age(fabric, "j1", 5_000)
    (taken,) = await fabric.claim("slow", lanes=(_SLOW,))
    assert taken.predicted_ms == pytest.approx(5_108, abs=1)
    assert taken.reference_ms == pytest.approx(1_010.8, abs=1)


async def test_when_the_faster_worker_leaves_the_slow_one_takes_it(fabric: Fabric) -> None:
    await fabric.submit("j1")
    assert await fabric.claim("slow", lanes=(_SLOW,)) == []
    rung = await fabric.bells("slow")
    await fabric.broker.leave("fast")
    assert await fabric.bells("slow") == rung + 1
    assert ids(await fabric.claim("slow", lanes=(_SLOW,))) == ["j1"]


async def test_the_sums_of_the_classes_come_and_go_without_a_trace(fabric: Fabric) -> None:
    before = await _classes(fabric)
    for number in range(5):
        share = share_of(
            load_ms=number * 3_000, prompt_ms=0.3 * number + 0.1, output_ms=9.99, slots=number + 1
        )
        await fabric.worker(f"w{number}", models={"m": share})
        await fabric.worker(f"w{number}", models={"m": FAST if number % 2 else share})
    assert await _classes(fabric) != before
    for number in range(5):
        await fabric.broker.leave(f"w{number}")
    assert await _classes(fabric) == before


async def test_a_worker_whose_advert_ran_out_counts_no_longer(fabric: Fabric) -> None:
    before = await _classes(fabric)
    await fabric.worker("dead", models={"m": share_of(load_ms=0, prompt_ms=0.01, output_ms=0.5, slots=8)})
    assert await _classes(fabric) != before
    await fabric.call("ZADD", fabric.keys.serves("m"), 1, "dead")
    await fabric.worker("fast", models={"m": FAST})
    assert await _classes(fabric) == before


async def test_one_submit_wakes_one_worker_and_a_decline_wakes_the_next(fabric: Fabric) -> None:
    await fabric.worker("other", models={"m": FAST})
    for worker, lane in (("slow", _SLOW), ("other", _FAST), ("fast", _FAST)):
        await fabric.claim(worker, lanes=(lane,))
    await fabric.submit("j1", requires=Requires(labels=["eu"]))
    woken = [worker for worker in ("fast", "other", "slow") if await fabric.bells(worker)]
    assert len(woken) == 1
    rung = {"fast", "other", "slow"} - set(woken)
    assert await fabric.claim(woken[0], lanes=(_FAST,)) == []  # it lacks the label
    next_woken = [worker for worker in rung if await fabric.bells(worker)]
    assert len(next_woken) == 1, "the bell was not passed on to exactly one"


async def test_an_armed_worker_is_woken_by_the_backlog_it_waits_for(fabric: Fabric) -> None:
    await fabric.submit("j1")
    await fabric.claim("slow", lanes=(_SLOW,))
    rung = await fabric.bells("slow")
    assert await fabric.members(fabric.keys.armed("m")) == ["slow"]
    assert float(await fabric.call("ZSCORE", fabric.keys.armed("m"), "slow")) == pytest.approx(1.35, abs=0.01)
    await fabric.submit("j2")
    assert await fabric.bells("slow") == rung + 1
    assert await fabric.members(fabric.keys.armed("m")) == []


async def test_what_is_in_the_cache_need_not_be_read_again(fabric: Fabric) -> None:
    await fabric.submit("j1", prompt_chars=40_000, output_cap=1, affinity="abcd1234")
    # 10,008 prompt tokens: 10,058 ms on the slow one, 1,010 on the fast one.
    assert await fabric.claim("slow", lanes=(_SLOW,)) == []
    lane = LaneOffer(1, _SLOW.models, cached={"abcd1234": 10_000})
    (taken,) = await fabric.claim("slow", lanes=(lane,))
    assert taken.predicted_ms < 100


async def test_a_prompt_too_long_for_a_worker_goes_to_one_with_a_longer_context(fabric: Fabric) -> None:
    short = share_of(load_ms=0, prompt_ms=0.1, output_ms=10, context_tokens=2_048)
    await fabric.worker("fast", models={"m": short})
    await fabric.worker("slow", models={"m": SLOW})
    await fabric.submit("j1", prompt_chars=20_000, output_cap=10)
    assert await fabric.claim("fast", lanes=(_lane(0.1, 10, context=2_048),)) == []
    assert (await fabric.job("j1"))[f"no:{node_of('fast')}"].startswith("context|2960|")
    await fabric.broker.leave("slow")
    # Nobody has more: the backend's own error says it best.
    assert ids(await fabric.claim("fast", lanes=(_lane(0.1, 10, context=2_048),))) == ["j1"]


async def test_a_claim_says_why(fabric: Fabric) -> None:
    await fabric.submit("j1")
    await fabric.claim("slow", lanes=(_SLOW,))
    code, saved_ms, _ = (await fabric.job("j1"))[f"no:{node_of('slow')}"].split("|")
    assert (code, int(saved_ms)) == ("cheaper", round(5_108 - 1_010.8))
    await fabric.claim_one("fast", lanes=(_FAST,))
    own, reference, ratio, capacity, backlog, position, looked = (await fabric.job("j1"))["why"].split("|")
    assert (own, reference, ratio, capacity) == ("1011", "0", "1.000", "0")
    assert (backlog, position, looked) == ("1", "0", "1")


async def test_a_job_waits_a_while_for_the_node_that_it_prefers(fabric: Fabric) -> None:
    await fabric.submit("j1", prefer=(node_of("slow"),))
    assert await fabric.claim("fast", lanes=(_FAST,)) == []
    await fabric.submit("j2", prefer=("nobody",))
    assert ids(await fabric.claim("fast", lanes=(_FAST,))) == ["j2"]
    await fabric.call("HSET", fabric.keys.job("j1"), "submitted", await fabric.now_ms() - 10_001)
    assert ids(await fabric.claim("fast", lanes=(_FAST,))) == ["j1"]


async def test_a_job_that_the_preferred_node_has_failed_waits_for_it_no_more(fabric: Fabric) -> None:
    await fabric.submit("j1", prefer=(node_of("slow"),))
    (claimed,) = await fabric.claim("slow", lanes=(_SLOW,))
    await fabric.broker.fail(claimed.lease, b"error", retry=True, most_errors=4, backoff_ms=0)
    assert ids(await fabric.claim("fast", lanes=(_FAST,))) == ["j1"]


async def test_a_preferred_node_need_not_be_the_fastest(fabric: Fabric) -> None:
    await fabric.submit("j1", prefer=(node_of("slow"),))
    assert ids(await fabric.claim("slow", lanes=(_SLOW,))) == ["j1"]


async def test_a_cordoned_worker_takes_nothing(fabric: Fabric) -> None:
    await fabric.submit("j1")
    await fabric.call("HSET", fabric.keys.worker("fast"), "cordoned", "1")
    assert await fabric.claim("fast", lanes=(_FAST,)) == []
    assert await fabric.members(fabric.keys.idle("m")) == []


async def test_a_load_is_worth_it_once_it_is_shared(fabric: Fabric) -> None:
    """A cold copy that costs 12 s alone is a bargain for eight."""
    cold = LaneOffer(1, (ModelOffer("m", 12_000.0, 0.1, 10.0),))
    await fabric.worker("cold", models={"m": share_of(load_ms=12_000, prompt_ms=0.1, output_ms=10)})
    await fabric.submit("j0")
    assert await fabric.claim("cold", lanes=(cold,)) == []
    for number in range(1, 8):
        await fabric.submit(f"j{number}")
    assert len(await fabric.claim("cold", lanes=(cold,))) == 1


async def _age(fabric: Fabric, job_id: str, by_ms: int) -> None:
    """As if a job had come earlier."""
    key = fabric.keys.queue(key_part("m"))
    for member, score in _pairs(await fabric.call("ZRANGE", key, 0, -1, "WITHSCORES")):
        parts = member.decode().split("|")
        if parts[0] == job_id:
            parts[3] = str(int(parts[3]) - by_ms)
            await fabric.call("ZREM", key, member)
            await fabric.call("ZADD", key, score, "|".join(parts))


async def _classes(fabric: Fabric) -> bytes:
    packed: bytes = await fabric.call("GET", fabric.keys.classes("m"))
    return packed


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
