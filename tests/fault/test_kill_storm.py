"""kill -9 and SIGSTOP aimed at lease holders: nothing is lost, nothing is answered twice."""

from __future__ import annotations

import asyncio
import random

import redis.asyncio
from storm import Workers, pick_holder, read_ledger, workers

from sollol_broker.keys import Keys
from sollol_client import AsyncClient

_JOBS = 300
_KILLS = 20
# Short, so that a storm takes seconds; all that matters is its ratio to the freezes below.
_LEASE_SECONDS = 1.0
_SLOW_ECHO = "echo://?slots=4&delay_ms=150&models=echo"
# Enough work for the whole storm: 4 freezes of 1.8 leases on two of three workers' slots.
_ZOMBIE_JOBS = 200
_SLOWER_ECHO = "echo://?slots=2&delay_ms=300&models=echo"


async def test_20_kills_of_lease_holders_lose_nothing_and_double_nothing(redis_url: str) -> None:
    keys, chance = Keys(), random.Random(20)
    async with (
        redis.asyncio.Redis.from_url(redis_url) as raw,
        AsyncClient(redis_url, app="storm") as client,
        workers(redis_url, 4, lease_seconds=_LEASE_SECONDS, backend=_SLOW_ECHO) as group,
    ):
        jobs = [
            client.submit(chat=f"job {number}", model="echo", wait_for_node=True) for number in range(_JOBS)
        ]
        for _ in range(_KILLS):
            await group.kill(await pick_holder(raw, keys, chance))
            await asyncio.sleep(chance.uniform(0, 0.2))
        async with asyncio.timeout(120):
            answers = await asyncio.gather(*jobs)
        ledger = await read_ledger(raw, keys, [job.id for job in jobs])

    assert group.faults == _KILLS
    assert [answer.text for answer in answers] == [f"job {number}" for number in range(_JOBS)]
    assert (ledger.lost, ledger.doubled) == (0, 0)
    assert ledger.states == {"done": _JOBS}
    assert any(answer.routing.attempt > 1 for answer in answers), (
        "no kill hit a job: the storm proved nothing"
    )


async def test_zombies_change_nothing(redis_url: str) -> None:
    doubled = await _zombie_storm(redis_url, fenced=True)
    assert doubled == 0


async def test_without_the_fence_the_same_storm_doubles_answers(redis_url: str) -> None:
    doubled = await _zombie_storm(redis_url, fenced=False)
    assert doubled > 0, "the fence is off and nobody noticed: this storm has no teeth"


async def _zombie_storm(redis_url: str, *, fenced: bool) -> int:
    """Freeze lease holders past their lease, again and again; gives how many jobs were answered twice."""
    keys, chance = Keys(), random.Random(7)
    async with (
        redis.asyncio.Redis.from_url(redis_url) as raw,
        AsyncClient(redis_url, app="storm") as client,
        workers(redis_url, 3, lease_seconds=_LEASE_SECONDS, backend=_SLOWER_ECHO, fenced=fenced) as group,
    ):
        jobs = [
            client.submit(chat=f"job {number}", model="echo", wait_for_node=True)
            for number in range(_ZOMBIE_JOBS)
        ]
        for _ in range(4):
            await group.freeze(await pick_holder(raw, keys, chance), 1.8 * _LEASE_SECONDS)
        async with asyncio.timeout(120):
            await asyncio.gather(*jobs)
        await _until_quiet(raw, keys, group)
        ledger = await read_ledger(raw, keys, [job.id for job in jobs])
    assert ledger.lost == 0
    return ledger.doubled


async def _until_quiet(raw: redis.asyncio.Redis, keys: Keys, group: Workers) -> None:
    """Wait until nobody holds a lease, and a zombie that just woke has had its say."""
    async with asyncio.timeout(30):
        while await raw.zcard(keys.leases):  # noqa: ASYNC110  # Redis has no event for it
            await asyncio.sleep(0.05)
        await asyncio.sleep(_LEASE_SECONDS)
    assert all(process.returncode is None for process in group.processes.values())
