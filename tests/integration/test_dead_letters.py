"""Dead letters: kept with all they need, put back in line under the same id, or forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric import worker
from fabric_kit import Fabric, fabric_at, ids
from sollol import AsyncClient, JobDead, JobLost, JobState
from sollol_broker.codec import pack
from sollol_broker.operations import Operations
from waiting import wait_until

_WEEK_MS = 7 * 24 * 3600 * 1000


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


@pytest.fixture
def operations(fabric: Fabric) -> Operations:
    return Operations(fabric.broker)


async def _die(fabric: Fabric, job_id: str = "j1", **more: Any) -> None:
    """A job that takes three workers down with it."""
    await fabric.submit(job_id, without_node=True, **more)
    for name in ("w1", "w2", "w3"):
        await fabric.worker(name)
        assert ids(await fabric.claim(name)) == [job_id]
        await fabric.expire_lease(job_id)
        await fabric.reap()
        await fabric.broker.leave(name)
    assert await fabric.state(job_id) == "dead"


async def test_a_dead_letter_lives_for_a_week_with_its_pictures(
    fabric: Fabric, operations: Operations
) -> None:
    await _die(fabric, blobs=(b"picture",), priority=7)
    for key in (fabric.keys.job("j1"), fabric.keys.blob("j1")):
        assert _WEEK_MS - 60_000 < await fabric.call("PTTL", key) <= _WEEK_MS
    (letter,) = await operations.dead()
    assert (letter.id, letter.model, letter.app, letter.priority, letter.crashes) == (
        "j1",
        "m",
        "tests",
        7,
        3,
    )
    assert [(each.number, each.node, each.how) for each in letter.attempts] == [
        (1, "node-of-w1", "crash"),
        (2, "node-of-w2", "crash"),
        (3, "node-of-w3", "crash"),
    ]
    assert letter.submitted <= letter.attempts[0].claimed <= letter.attempts[-1].ended <= letter.died
    await operations.drop(["j1"])


async def test_a_retry_is_a_new_life_under_the_same_id(fabric: Fabric, operations: Operations) -> None:
    await _die(fabric, blobs=(b"picture",), deadline_ms=60_000, priority=7)
    before = await fabric.job("j1")
    assert await operations.retry(["j1"]) == {"j1": "retried"}
    assert await operations.retry(["j1"]) == {"j1": "queued"}
    assert await fabric.members(fabric.keys.dead) == []
    assert await fabric.queue() == ["j1"]
    for key in (fabric.keys.job("j1"), fabric.keys.blob("j1")):
        assert await fabric.call("TTL", key) == -1
    job = await fabric.job("j1")
    left = {"crashes", "errors", "attempt", "ended", "failed", "why", "nonce", "worker", "alone_for"} & set(
        job
    )
    assert not left
    assert (job["born"], job["deadline"], job["state"]) == (before["submitted"], "0", "queued")
    assert float(job["submitted"]) > float(before["submitted"])

    await fabric.worker("w4")
    claimed = await fabric.claim_one("w4")
    assert (claimed.attempt, claimed.alone, claimed.deadline_ms) == (1, False, None)
    assert claimed.lease.fence > int(before["top"])
    assert claimed.envelope == b"envelope of j1"
    assert await fabric.broker.blobs(claimed.lease, claimed.blobs) == [b"picture"]
    assert (await fabric.broker.finish(claimed.lease, b"answer", used=fabric.used())).taken
    assert await fabric.state("j1") == "done"
    assert [
        entry["x"] for entry in await fabric.entries(fabric.keys.events("j1")) if entry["t"] == "end"
    ] == ["done"]


async def test_it_dies_again_only_after_as_many_crashes(fabric: Fabric, operations: Operations) -> None:
    await _die(fabric)
    await operations.retry(["j1"])
    for name, reaped in (("w4", (1, 0, 0)), ("w5", (1, 0, 0)), ("w6", (0, 1, 0))):
        await fabric.call("DEL", fabric.keys.crashes)  # or so many deaths would be a storm
        await fabric.worker(name)
        await fabric.claim_one(name)
        await fabric.expire_lease("j1")
        assert await fabric.reap() == reaped
    (letter,) = await operations.dead()
    assert len(letter.attempts) == 6


async def test_the_books_balance(fabric: Fabric, operations: Operations) -> None:
    policy = fabric.keys.policy
    await fabric.call(
        "HSET", policy, "max_bytes", 10**6, "app:tests", pack({"name": "tests", "concurrency": 9})
    )
    await _die(fabric)
    assert (await operations.limits()).bytes == 0
    await operations.retry(["j1"])
    limits = await operations.limits()
    assert (limits.waiting, limits.bytes, limits.apps["tests"].unfinished) == (1, len("envelope of j1"), 1)
    await fabric.broker.cancel("j1")
    limits = await operations.limits()
    assert (limits.waiting, limits.bytes, limits.apps["tests"].unfinished) == (0, 0, 0)
    assert await fabric.call("EXISTS", fabric.keys.fair("m")) == 0


async def test_a_retry_wakes_a_worker(fabric: Fabric, operations: Operations) -> None:
    await _die(fabric)
    await fabric.worker("w4")
    await fabric.claim("w4")
    await operations.retry(["j1"])
    assert await fabric.bells("w4") == 1


async def test_what_is_dropped_is_gone(fabric: Fabric, operations: Operations) -> None:
    await _die(fabric, blobs=(b"picture",))
    assert await operations.drop(["j1", "nobody"]) == {"j1": "dropped", "nobody": "unknown"}
    for key in (fabric.keys.job("j1"), fabric.keys.blob("j1"), fabric.keys.events("j1"), fabric.keys.dead):
        assert await fabric.call("EXISTS", key) == 0
    assert b"j1" not in await fabric.call("LRANGE", fabric.keys.ended, 0, -1)


async def test_only_what_is_dead_is_touched(fabric: Fabric, operations: Operations) -> None:
    await fabric.worker("w1")
    await fabric.submit("waits")
    await fabric.submit("ended")
    await fabric.broker.cancel("ended")
    assert await operations.drop(["waits", "ended"]) == {"waits": "queued", "ended": "cancelled"}
    assert await operations.retry(["waits", "ended"]) == {"waits": "queued", "ended": "cancelled"}
    assert await fabric.queue() == ["waits"]


async def test_letters_without_a_record_are_taken_off_the_list(
    fabric: Fabric, operations: Operations
) -> None:
    await _die(fabric, "j1")
    await fabric.call("ZADD", fabric.keys.dead, 1, "expired")
    assert [letter.id for letter in await operations.dead()] == ["j1"]
    assert await fabric.members(fabric.keys.dead) == ["j1"]


async def test_the_latest_come_first_and_all_can_be_retried(fabric: Fabric, operations: Operations) -> None:
    for number in range(3):
        await fabric.call("DEL", fabric.keys.crashes)
        await _die(fabric, f"j{number}")
    assert [letter.id for letter in await operations.dead(limit=2)] == ["j2", "j1"]
    everything = await operations.dead_ids()
    assert everything == ["j0", "j1", "j2"]
    assert set((await operations.retry(everything)).values()) == {"retried"}


async def test_a_follower_that_comes_later_sees_the_new_life(redis_url: str) -> None:
    async with AsyncClient(redis_url, app="web") as client:
        job = client.submit(chat="Hello", model="echo", wait_for_node=True)
        async with fabric_at(redis_url) as fabric:
            await wait_until(lambda: _is_queued(client, job.id), timeout=10, what="the job in its queue")
            for name in ("w1", "w2", "w3"):
                await fabric.worker(name, models=("echo",))
                await fabric.claim_one(name, models=("echo",))
                await fabric.expire_lease(job.id)
                await fabric.reap()
                await fabric.broker.leave(name)
        with pytest.raises(JobDead):
            await job
        assert [letter.id for letter in await client.dead()] == [job.id]
        assert await client.retry_dead(job.id, "nobody") == {job.id: True, "nobody": False}
        again = client.attach(job.id)
        async with worker(redis_url, "echo://?slots=1"):
            assert (await again.result(20)).text == "Hello"
        record = await client.job(job.id)
        assert record is not None
        assert (record.state, record.attempt, record.crashes) == (JobState.DONE, 1, 0)
        assert await client.drop_dead(job.id) == {job.id: False}
        with pytest.raises(JobLost):
            await client.attach("nobody")


async def _is_queued(client: AsyncClient, job_id: str) -> bool:
    return await client.position(job_id) == 0
