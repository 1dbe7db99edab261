"""fail and reap: what becomes of a job when its worker errs, dies, or is too slow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric_kit import LEASE_MS, TTL_MS, Fabric, fabric_at, ids
from sollol_broker import Lease, Requires


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        await fabric.worker("w1")
        await fabric.broker.attend("c1", "tests", inbox_ttl_ms=TTL_MS, app_fields={}, app_ttl_ms=TTL_MS)
        yield fabric


async def _running(fabric: Fabric, job_id: str = "j1", worker: str = "w1", **more: Any) -> Lease:
    await fabric.submit(job_id, inbox="c1", **more)
    return (await fabric.claim_one(worker)).lease


async def _ends(fabric: Fabric) -> list[tuple[str, str, str]]:
    entries = await fabric.entries(fabric.keys.inbox("c1"))
    return [(entry["j"], entry["x"], entry["d"]) for entry in entries if entry["t"] == "end"]


async def _fail(fabric: Fabric, lease: Lease, *, retry: bool = True, most_errors: int = 3) -> str:
    return await fabric.broker.fail(lease, b"error", retry=retry, most_errors=most_errors, backoff_ms=20_000)


# --- fail


async def test_another_node_may_begin_at_once(fabric: Fabric) -> None:
    await fabric.worker("w2")
    lease = await _running(fabric)
    rank = (await fabric.job("j1"))["rank"]
    await fabric.submit("j2")
    assert await _fail(fabric, lease) == "retry"
    assert await fabric.queue() == ["j1", "j2"]
    score = (await fabric.call("ZRANGE", fabric.keys.queue("m"), 0, 0, "WITHSCORES"))[1]
    assert float(score) == float(rank)
    job = await fabric.job("j1")
    assert (job["state"], job["errors"]) == ("queued", "1")
    assert not {"crashes", "releases", "worker", "nonce"} & set(job)
    assert await _ends(fabric) == []


async def test_the_better_node_is_woken_and_not_the_one_that_failed(fabric: Fabric) -> None:
    await fabric.worker("w2")
    lease = await _running(fabric)
    await fabric.claim("w1", output_ms=1.0)
    await fabric.claim("w2", output_ms=50.0)
    assert await fabric.members(fabric.keys.idle("m")) == ["w1", "w2"]
    await _fail(fabric, lease)
    assert (await fabric.bells("w1"), await fabric.bells("w2")) == (0, 1)


async def test_what_a_node_cannot_do_is_tried_on_the_others_and_nowhere_twice(fabric: Fabric) -> None:
    async def cannot(lease: Lease) -> str:
        return await fabric.broker.fail(
            lease, b"error", retry=True, only_elsewhere=True, most_errors=9, backoff_ms=20_000
        )

    await fabric.worker("w2")
    assert await cannot(await _running(fabric)) == "retry"
    assert await cannot((await fabric.claim_one("w2")).lease) == "end"
    assert await _ends(fabric) == [("j1", "failed", "error")]


async def test_a_job_with_nowhere_else_to_go_waits_out_the_backoff(fabric: Fabric) -> None:
    lease = await _running(fabric)
    assert await _fail(fabric, lease) == "retry"
    assert await fabric.queue() == []
    assert await fabric.members(fabric.keys.delayed) == ["j1"]
    due = float(await fabric.call("ZSCORE", fabric.keys.delayed, "j1"))
    assert 15_000 < due - await fabric.now_ms() <= 20_000
    assert await fabric.claim() == []
    await fabric.call("ZADD", fabric.keys.delayed, 1, "j1")
    assert (await fabric.claim_one()).attempt == 2
    assert await fabric.members(fabric.keys.delayed) == []


async def test_a_reap_brings_delayed_jobs_back_too_and_rings(fabric: Fabric) -> None:
    await _fail(fabric, await _running(fabric))
    await fabric.claim()
    await fabric.call("ZADD", fabric.keys.delayed, 1, "j1")
    assert await fabric.reap() == (0, 0, 0)
    assert await fabric.queue() == ["j1"]
    assert await fabric.bells("w1") == 1


async def test_too_many_errors_are_the_end(fabric: Fabric) -> None:
    await fabric.worker("w2")
    assert await _fail(fabric, await _running(fabric), most_errors=2) == "retry"
    last = (await fabric.claim_one("w2")).lease
    assert await _fail(fabric, last, most_errors=2) == "end"
    assert await _ends(fabric) == [("j1", "failed", "error")]
    assert await fabric.state("j1") == "failed"
    assert await _fail(fabric, last, most_errors=2) == "stale"
    assert len(await _ends(fabric)) == 1
    assert await fabric.stat("failed") == 1


async def test_an_error_that_is_the_jobs_own_fault_ends_it(fabric: Fabric) -> None:
    await fabric.worker("w2")
    assert await _fail(fabric, await _running(fabric), retry=False) == "end"
    assert await _ends(fabric) == [("j1", "failed", "error")]
    assert await fabric.queue() == []


async def test_a_failure_of_a_stranger_is_stale(fabric: Fabric) -> None:
    lease = await _running(fabric)
    for stranger in (Lease("j1", 2, lease.nonce), Lease("j1", 1, "other"), Lease("nosuchjob", 1, "x")):
        assert await _fail(fabric, stranger) == "stale"
    assert await fabric.state("j1") == "running"
    assert "errors" not in await fabric.job("j1")


async def test_a_failed_job_keeps_its_mark_for_what_it_requires(fabric: Fabric) -> None:
    await fabric.worker("w2")
    await fabric.submit("j1", requires=Requires(labels=["eu"]))
    lease = (await fabric.claim_one("w1", labels=("eu",))).lease
    await _fail(fabric, lease)
    assert await fabric.claim("w2", labels=("us",)) == []
    assert ids(await fabric.claim("w2", labels=("eu",))) == ["j1"]


# --- reap


async def test_an_expired_lease_is_given_back_at_its_old_rank(fabric: Fabric) -> None:
    await _running(fabric)
    rank = (await fabric.job("j1"))["rank"]
    await fabric.submit("j2")
    await fabric.expire_lease("j1")
    assert await fabric.reap() == (1, 0, 0)
    assert await fabric.queue() == ["j1", "j2"]
    score = (await fabric.call("ZRANGE", fabric.keys.queue("m"), 0, 0, "WITHSCORES"))[1]
    assert float(score) == float(rank)
    job = await fabric.job("j1")
    assert (job["state"], job["crashes"]) == ("queued", "1")
    assert not {"errors", "releases"} & set(job)
    assert await fabric.stat("requeued") == 1
    again = await fabric.claim_one()
    assert (again.attempt, again.lease.fence) == (2, 2)


async def test_a_lease_that_holds_is_left_alone(fabric: Fabric) -> None:
    await _running(fabric)
    assert await fabric.reap() == (0, 0, 0)
    assert await fabric.state("j1") == "running"


async def test_a_reap_wakes_one_who_waits(fabric: Fabric) -> None:
    await _running(fabric)
    await fabric.worker("w2")
    await fabric.claim("w2")
    await fabric.expire_lease("j1")
    await fabric.reap()
    assert await fabric.bells("w2") == 1


async def test_a_job_that_takes_workers_down_is_dead(fabric: Fabric) -> None:
    await fabric.submit("j1", inbox="c1", deadline_ms=9_000)
    for crash in range(1, 4):
        await fabric.claim_one()
        await fabric.expire_lease("j1")
        assert await fabric.reap(most_crashes=3) == ((0, 1, 0) if crash == 3 else (1, 0, 0))
    assert await _ends(fabric) == [("j1", "dead", "")]
    assert await fabric.members(fabric.keys.dead) == ["j1"]
    job = await fabric.job("j1")
    assert (job["state"], job["crashes"]) == ("dead", "3")
    assert await fabric.body("j1") == {"env": b"envelope of j1"}  # a dead letter can be read
    assert await fabric.call("PTTL", fabric.keys.job("j1")) > 0
    assert await fabric.queue() == []
    assert await fabric.reap() == (0, 0, 0)
    assert await fabric.stat("dead") == 1


async def test_errors_and_releases_do_not_count_as_crashes(fabric: Fabric) -> None:
    await fabric.worker("w2")
    await fabric.broker.release(await _running(fabric))
    await _fail(fabric, (await fabric.claim_one("w1")).lease)
    await fabric.claim_one("w2")
    await fabric.expire_lease("j1")
    assert await fabric.reap(most_crashes=2) == (1, 0, 0)
    job = await fabric.job("j1")
    assert (job["releases"], job["errors"], job["crashes"]) == ("1", "1", "1")


async def test_a_waiting_job_ends_at_its_deadline(fabric: Fabric) -> None:
    await fabric.submit("j1", inbox="c1", deadline_ms=9_000)
    assert await fabric.reap() == (0, 0, 0)
    await fabric.call("ZADD", fabric.keys.deadlines, 1, "j1")
    assert await fabric.reap() == (0, 0, 1)
    assert await _ends(fabric) == [("j1", "expired", "")]
    assert await fabric.queue() == []
    assert await fabric.claim() == []


async def test_a_running_job_ends_at_its_deadline_and_its_worker_is_told(fabric: Fabric) -> None:
    lease = await _running(fabric, deadline_ms=9_000)
    await fabric.call("ZADD", fabric.keys.deadlines, 1, "j1")
    assert await fabric.reap() == (0, 0, 1)
    assert await _ends(fabric) == [("j1", "expired", "")]
    told = [entry for entry in await fabric.entries(fabric.keys.inbox("w1")) if entry["t"] == "cancel"]
    assert told == [{"t": "cancel", "j": "j1", "f": "1"}]
    assert not (await fabric.broker.finish(lease, b"too late")).taken


async def test_a_delayed_job_ends_at_its_deadline(fabric: Fabric) -> None:
    await _fail(fabric, await _running(fabric, deadline_ms=9_000))
    await fabric.call("ZADD", fabric.keys.deadlines, 1, "j1")
    assert await fabric.reap() == (0, 0, 1)
    assert await fabric.members(fabric.keys.delayed) == []


async def test_a_lease_made_before_the_clock_stepped_back_does_not_hold_for_ever(fabric: Fabric) -> None:
    await _running(fabric)
    far = await fabric.now_ms() + 2 * LEASE_MS
    await fabric.call("ZADD", fabric.keys.leases, far - 10_000, "j1")
    assert await fabric.reap() == (0, 0, 0)
    await fabric.call("ZADD", fabric.keys.leases, far + 10_000, "j1")
    assert await fabric.reap() == (1, 0, 0)
    assert await fabric.queue() == ["j1"]


async def test_a_lease_renewed_for_longer_than_it_was_claimed_for_holds(fabric: Fabric) -> None:
    lease = await _running(fabric)
    assert await fabric.broker.renew([lease], 3 * LEASE_MS, patience_seconds=1) == []
    assert await fabric.reap() == (0, 0, 0)
    assert await fabric.state("j1") == "running"


async def test_a_lease_claimed_by_another_release_without_its_length_holds(fabric: Fabric) -> None:
    await _running(fabric)
    await fabric.call("HDEL", fabric.keys.job("j1"), "lease")
    assert await fabric.reap() == (0, 0, 0)
    assert await fabric.state("j1") == "running"


async def test_a_lease_of_a_job_that_is_gone_is_dropped(fabric: Fabric) -> None:
    await fabric.call("ZADD", fabric.keys.leases, 1, "nosuchjob")
    await fabric.call("ZADD", fabric.keys.deadlines, 1, "nosuchjob")
    await fabric.call("ZADD", fabric.keys.delayed, 1, "nosuchjob")
    assert await fabric.reap() == (0, 0, 0)
    for key in (fabric.keys.leases, fabric.keys.deadlines, fabric.keys.delayed):
        assert await fabric.members(key) == []
    assert await fabric.call("EXISTS", fabric.keys.job("nosuchjob")) == 0


async def test_a_reap_takes_a_batch_and_leaves_the_rest_for_the_next(fabric: Fabric) -> None:
    for number in range(7):
        await _running(fabric, f"j{number}")
        await fabric.expire_lease(f"j{number}")
    assert [await fabric.reap(most=3) for _ in range(4)] == [(3, 0, 0), (3, 0, 0), (1, 0, 0), (0, 0, 0)]
