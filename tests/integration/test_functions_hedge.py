"""Hedging inside Redis: a second copy of a late job, one answer, and no copy that outlives it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from fabric_kit import LEASE_MS, Fabric, fabric_at, ids
from sollol_broker import Claimed, Lease
from sollol_broker.operations import Operations
from sollol_broker.policy import limit_changes


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        await fabric.worker("w1")
        await fabric.worker("w2")
        yield fabric


async def _late(fabric: Fabric, job_id: str = "j1", **more: Any) -> Claimed:
    """A job that runs on w1 and is late."""
    await fabric.submit(job_id, hedge=1, **more)
    first = await fabric.claim_one("w1")
    await fabric.call("ZADD", fabric.keys.hedges, "XX", 1, job_id)
    return first


async def _leases(fabric: Fabric) -> list[str]:
    return [each.decode() for each in await fabric.call("ZRANGE", fabric.keys.leases, 0, -1)]


async def test_a_late_job_runs_twice_and_the_second_answer_counts(fabric: Fabric) -> None:
    first = await _late(fabric)
    second = await fabric.claim_one("w2")
    assert second.is_hedge
    assert (second.lease.job_id, second.envelope) == ("j1", first.envelope)
    assert second.lease.fence > first.lease.fence
    assert sorted(await _leases(fabric)) == ["j1", "j1|h"]
    assert (await fabric.broker.finish(second.lease, b"second")).taken
    assert not (await fabric.broker.finish(first.lease, b"first")).taken
    (end,) = [e for e in await fabric.entries(fabric.keys.events("j1")) if e["t"] == "end"]
    assert end["d"] == "second"
    assert await _cancels(fabric, "w1") == [str(first.lease.fence)]
    assert (await fabric.job("j1"))["node"] == "node-of-w2"
    assert await _leases(fabric) == []


async def test_the_first_answer_counts_and_stops_the_second(fabric: Fabric) -> None:
    first = await _late(fabric)
    second = await fabric.claim_one("w2")
    assert (await fabric.broker.finish(first.lease, b"first")).taken
    assert not (await fabric.broker.finish(second.lease, b"second")).taken
    assert await _cancels(fabric, "w2") == [str(second.lease.fence)]
    assert await _leases(fabric) == []


async def test_of_a_stream_the_first_piece_decides(fabric: Fabric) -> None:
    first = await _late(fabric, stream=True)
    second = await fabric.claim_one("w2")
    assert await fabric.broker.emit(second.lease, 1, b"two")
    assert not await fabric.broker.emit(first.lease, 1, b"one")
    assert await _cancels(fabric, "w1") == [str(first.lease.fence)]
    said = [
        (e["t"], e["f"], e.get("d"))
        for e in await fabric.entries(fabric.keys.events("j1"))
        if e["t"] != "end"
    ]
    fence = str(second.lease.fence)
    assert said == [("start", str(first.lease.fence), None), ("start", fence, None), ("piece", fence, "two")]


async def test_a_stream_that_has_begun_is_not_hedged(fabric: Fabric) -> None:
    first = await _late(fabric, stream=True)
    assert await fabric.broker.emit(first.lease, 1, b"one")
    assert await fabric.claim("w2") == []
    assert await fabric.members(fabric.keys.hedges) == []


async def test_a_job_whose_deadline_has_passed_is_not_hedged(fabric: Fabric) -> None:
    await _late(fabric, deadline_ms=60_000)
    await fabric.call("HSET", fabric.keys.job("j1"), "deadline", await fabric.now_ms() - 1)
    assert await fabric.claim("w2") == []
    assert await fabric.members(fabric.keys.hedges) == []


async def test_a_first_piece_ends_a_second_copy(fabric: Fabric) -> None:
    first = await _late(fabric, stream=True)
    second = await fabric.claim_one("w2")
    assert await fabric.broker.emit(first.lease, 1, b"one")
    assert not await fabric.broker.emit(second.lease, 1, b"two")
    assert await _cancels(fabric, "w2") == [str(second.lease.fence)]
    assert await _leases(fabric) == ["j1"]


async def test_a_job_that_is_not_late_or_not_asked_for_runs_once(fabric: Fabric) -> None:
    await fabric.submit("j1", hedge=1)
    await fabric.submit("j2", hedge=-1, priority=10)
    await fabric.submit("j3", hedge=0, priority=8)
    await fabric.claim("w1", free=3)
    claims = await fabric.broker.claim(fabric.request("w2"))
    assert claims is not None
    assert claims.jobs == []
    # Nothing is known of lateness yet, so three times the predicted 1,108 ms.
    assert claims.look_again_ms == pytest.approx(3 * 1_108, abs=300)
    assert await fabric.members(fabric.keys.hedges) == ["j1"]


async def test_the_policy_hedges_urgent_jobs(fabric: Fabric) -> None:
    await fabric.submit("j1", hedge=0, priority=9)
    await fabric.claim("w1")
    assert await fabric.members(fabric.keys.hedges) == ["j1"]


async def test_lateness_is_learned(fabric: Fabric) -> None:
    for number in range(25):
        await fabric.submit(f"r{number}")
        lease = (await fabric.claim_one("w1")).lease
        took = fabric.used(run_ms=1_108 * (2.0 if number % 2 else 1.0))
        await fabric.broker.finish(lease, b"answer", used=took)
    await fabric.submit("j1", hedge=1)
    claimed = await fabric.claim_one("w1")
    due = float(await fabric.call("ZSCORE", fabric.keys.hedges, "j1")) - await fabric.now_ms()
    # 95 % of the runs took at most twice what was predicted; bins are an eighth of a doubling wide.
    assert 1.9 * claimed.predicted_ms - 100 < due < 2.3 * claimed.predicted_ms


@pytest.mark.parametrize(("percent", "copies"), [(0, 0), (5, 1), (30, 2), (100, 3)])
async def test_second_copies_may_add_so_much_to_the_work(fabric: Fabric, percent: int, copies: int) -> None:
    await Operations(fabric.broker).set_limits(limit_changes(hedge_percent=percent))
    for number in range(4):
        await fabric.submit(f"before{number}")
        await fabric.broker.finish((await fabric.claim_one("w1")).lease, b"x", used=fabric.used())
    for number in range(3):
        await _late(fabric, f"j{number}")
    assert len(ids([each for _ in range(3) for each in await fabric.claim("w2")])) == copies


async def test_no_second_copy_on_the_same_node_nor_without_the_means(fabric: Fabric) -> None:
    await _late(fabric)
    assert await fabric.claim("w1") == []
    # 1,108 ms of extra work are paid off by twenty times as much work done.
    await fabric.call("HSET", fabric.keys.learned("m"), "extra", "1108", "work", 20 * 1_108 - 1)
    assert await fabric.claim("w2") == []
    await fabric.call("HSET", fabric.keys.learned("m"), "work", 20 * 1_108)
    assert ids(await fabric.claim("w2")) == ["j1"]
    assert float(await fabric.call("HGET", fabric.keys.learned("m"), "extra")) == pytest.approx(2 * 1_108)


async def test_work_that_waits_goes_before_a_second_copy(fabric: Fabric) -> None:
    await _late(fabric)
    await fabric.submit("j2")
    assert ids(await fabric.claim("w2")) == ["j2"]


async def test_when_the_first_worker_dies_the_second_goes_on(fabric: Fabric) -> None:
    first = await _late(fabric)
    second = await fabric.claim_one("w2")
    await fabric.expire_lease("j1")
    assert await fabric.reap() == (0, 0, 0)
    assert await fabric.state("j1") == "running"
    assert await _leases(fabric) == ["j1"]
    assert not (await fabric.broker.finish(first.lease, b"zombie")).taken
    assert (await fabric.broker.finish(second.lease, b"second")).taken


async def test_when_the_second_worker_dies_the_first_goes_on(fabric: Fabric) -> None:
    first = await _late(fabric)
    second = await fabric.claim_one("w2")
    await fabric.call("ZADD", fabric.keys.leases, "XX", 1, "j1|h")
    assert await fabric.reap() == (0, 0, 0)
    assert not (await fabric.broker.finish(second.lease, b"zombie")).taken
    assert (await fabric.broker.finish(first.lease, b"first")).taken


@pytest.mark.parametrize("how", ["fail", "release"])
@pytest.mark.parametrize("who", ["first", "second"])
async def test_a_copy_that_gives_up_leaves_the_other(fabric: Fabric, who: str, how: str) -> None:
    first = await _late(fabric)
    second = await fabric.claim_one("w2")
    gone, stays = (first, second) if who == "first" else (second, first)
    if how == "fail":
        said = await fabric.broker.fail(gone.lease, b"error", retry=True, most_errors=3, backoff_ms=10)
        assert said == "retry"
    else:
        assert await fabric.broker.release(gone.lease)
    assert await fabric.state("j1") == "running"
    assert await _leases(fabric) == ["j1"]
    assert not (await fabric.broker.finish(gone.lease, b"late")).taken
    assert (await fabric.broker.finish(stays.lease, b"answer")).taken


async def test_a_second_copy_that_cannot_be_answered_goes_and_the_first_decides(fabric: Fabric) -> None:
    first = await _late(fabric)
    second = await fabric.claim_one("w2")
    refused = await fabric.broker.fail(second.lease, b"no", retry=False, most_errors=3, backoff_ms=10)
    assert refused == "retry"
    assert await _leases(fabric) == ["j1"]
    assert await fabric.broker.fail(first.lease, b"no", retry=False, most_errors=3, backoff_ms=10) == "end"
    assert await fabric.state("j1") == "failed"


async def _answered(fabric: Fabric, first: Claimed, second: Claimed) -> None:
    assert (await fabric.broker.finish(first.lease, b"first")).taken


async def _won(fabric: Fabric, first: Claimed, second: Claimed) -> None:
    assert (await fabric.broker.finish(second.lease, b"second")).taken


async def _lost_first(fabric: Fabric, first: Claimed, second: Claimed) -> None:
    await fabric.expire_lease("j1")
    await fabric.reap()


async def _lost_second(fabric: Fabric, first: Claimed, second: Claimed) -> None:
    await fabric.expire_lease("j1|h")
    await fabric.reap()


@pytest.mark.parametrize("goes", [_answered, _won, _lost_first, _lost_second])
async def test_a_second_copy_makes_no_room_in_line(
    fabric: Fabric, goes: Callable[[Fabric, Claimed, Claimed], Awaitable[None]]
) -> None:
    first = await _late(fabric)
    second = await fabric.claim_one("w2")
    await fabric.call("HSET", fabric.keys.policy, "max_queue", 1)
    await fabric.submit("j2")
    assert (await fabric.submit("j3"))[:2] == ["full", "fabric"]
    await goes(fabric, first, second)
    assert (await fabric.submit("j4"))[:2] == ["full", "fabric"]
    assert await fabric.stat("second_copies") == 0
    await fabric.call("DEL", fabric.keys.policy)


@pytest.mark.parametrize("how", ["release", "fail"])
async def test_a_lease_that_a_failover_took_back_does_not_end_the_first_copy(
    fabric: Fabric, how: str
) -> None:
    first = await _late(fabric)
    second = await fabric.claim_one("w2")
    # Redis came back older, and gave the same fence out again: only the nonce tells the two owners apart.
    gone = Lease("j1", first.lease.fence, "nonce-of-a-lost-claim")
    if how == "release":
        assert not await fabric.broker.release(gone)
    else:
        assert await fabric.broker.fail(gone, b"error", retry=True, most_errors=3, backoff_ms=0) == "stale"
    assert sorted(await _leases(fabric)) == ["j1", "j1|h"]
    assert (await fabric.job("j1"))["nonce"] == first.lease.nonce
    assert (await fabric.broker.finish(second.lease, b"answer")).taken


async def test_both_copies_keep_their_leases(fabric: Fabric) -> None:
    first = await _late(fabric)
    second = await fabric.claim_one("w2")
    for lease in ("j1", "j1|h"):
        await fabric.call("ZADD", fabric.keys.leases, "XX", await fabric.now_ms() + 1_000, lease)
    for claimed in (first, second):
        assert await fabric.broker.renew([claimed.lease], LEASE_MS, patience_seconds=1) == []
    for lease in ("j1", "j1|h"):
        left = float(await fabric.call("ZSCORE", fabric.keys.leases, lease)) - await fabric.now_ms()
        assert left > LEASE_MS / 2


async def test_a_cancel_stops_both(fabric: Fabric) -> None:
    first = await _late(fabric)
    second = await fabric.claim_one("w2")
    assert await fabric.broker.cancel("j1") == "cancelled"
    assert await _cancels(fabric, "w1") == [str(first.lease.fence)]
    assert await _cancels(fabric, "w2") == [str(second.lease.fence)]
    assert await _leases(fabric) == []


async def test_a_claim_that_is_repeated_gives_the_same_second_copy(fabric: Fabric) -> None:
    await _late(fabric)
    request = fabric.request("w2")
    (claimed,) = await fabric.claim_with(request)
    (again,) = await fabric.claim_with(request)
    assert (again.lease, again.is_hedge) == (claimed.lease, True)


async def _cancels(fabric: Fabric, worker: str) -> list[str]:
    return [e["f"] for e in await fabric.entries(fabric.keys.inbox(worker)) if e["t"] == "cancel"]
