"""A job that kills workers is tried once more, alone; a job that had bad luck is not taken for one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fabric_kit import Fabric, fabric_at, ids
from sollol_broker import LaneOffer, ModelOffer


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        for worker in ("w1", "w2", "w3"):
            await fabric.worker(worker)
        yield fabric


def _lane(free: int, busy: int) -> LaneOffer:
    return LaneOffer(free, (ModelOffer("m", 0.0, 1.0, 10.0),), busy)


async def _crash(fabric: Fabric, worker: str, job_id: str) -> tuple[int, int, int]:
    (claimed,) = await fabric.claim(worker)
    assert claimed.lease.job_id == job_id
    await fabric.expire_lease(job_id)
    return await fabric.reap()


async def test_the_third_try_is_alone(fabric: Fabric) -> None:
    await fabric.submit("poison")
    assert await _crash(fabric, "w1", "poison") == (1, 0, 0)
    assert await _crash(fabric, "w1", "poison") == (1, 0, 0)
    await fabric.submit("good")
    (taken,) = await fabric.claim("w2", free=4)
    assert (taken.lease.job_id, taken.alone) == ("poison", True)
    assert ids(await fabric.claim("w3", free=4)) == ["good"]
    await fabric.expire_lease("poison")
    assert await fabric.reap() == (0, 1, 0)
    assert await fabric.state("poison") == "dead"


async def test_a_busy_worker_empties_itself_for_it_and_only_one_does(fabric: Fabric) -> None:
    await fabric.submit("poison")
    for _ in range(2):
        await _crash(fabric, "w1", "poison")
    for number in range(3):
        await fabric.submit(f"good{number}")
    assert await fabric.claim("w1", lanes=(_lane(1, 3),), most=1) == []
    assert ids(await fabric.claim("w2", lanes=(_lane(1, 3),), most=1)) == ["good0"]
    (taken,) = await fabric.claim("w1", lanes=(_lane(4, 0),), most=4)
    assert (taken.lease.job_id, taken.alone) == ("poison", True)


async def test_one_that_was_innocent_is_answered(fabric: Fabric) -> None:
    await fabric.submit("unlucky")
    for worker in ("w1", "w2"):
        await _crash(fabric, worker, "unlucky")
    claimed = await fabric.claim_one("w3")
    assert (await fabric.broker.finish(claimed.lease, b"answer")).taken
    assert await fabric.members(fabric.keys.dead) == []


async def test_while_workers_die_anyway_a_job_gets_more_tries(fabric: Fabric) -> None:
    for number in range(4):
        await fabric.worker(f"other{number}")
        await fabric.submit(f"other{number}")
        await _crash(fabric, f"other{number}", f"other{number}")
        await fabric.broker.cancel(f"other{number}")
    await fabric.submit("unlucky")
    for crash in range(6):
        await fabric.worker(f"last{crash}")
        back = await _crash(fabric, f"last{crash}", "unlucky")
        assert back == ((0, 1, 0) if crash == 5 else (1, 0, 0))


async def test_jobs_that_died_with_it_are_only_suspects(fabric: Fabric) -> None:
    await fabric.submit("poison")
    await fabric.submit("beside")
    assert len(await fabric.claim("w1", free=2)) == 2
    for job_id in ("poison", "beside"):
        await fabric.expire_lease(job_id)
    assert await fabric.reap() == (2, 0, 0)
    assert len(await fabric.claim("w2", free=2)) == 2
    for job_id in ("poison", "beside"):
        await fabric.expire_lease(job_id)
    assert await fabric.reap() == (2, 0, 0)
    (alone,) = await fabric.claim("w3", free=2)
    assert (alone.lease.job_id, alone.alone) == ("poison", True)
    (other,) = await fabric.claim("w2", free=2)
    assert (await fabric.broker.finish(other.lease, b"answer")).taken
    await fabric.expire_lease("poison")
    assert await fabric.reap() == (0, 1, 0)
    assert await fabric.state("beside") == "done"


async def test_what_happened_is_noted(fabric: Fabric) -> None:
    await fabric.submit("j1")
    await _crash(fabric, "w1", "j1")
    await fabric.broker.release((await fabric.claim_one("w2")).lease)
    lease = (await fabric.claim_one("w3")).lease
    await fabric.broker.fail(lease, b"error", retry=True, most_errors=4, backoff_ms=10)
    past = [each.split(",") for each in (await fabric.job("j1"))["past"].split(";") if each]
    assert [(n, node, how) for n, node, _, _, how in past] == [
        *(("1", "node-of-w1", "crash"), ("2", "node-of-w2", "released"), ("3", "node-of-w3", "error")),
    ]
    assert all(0 < float(began) <= float(ended) for _, _, began, ended, _ in past)
