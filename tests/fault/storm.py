"""A storm: many jobs, several worker processes, and faults aimed at those that hold leases; then the sum."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis.asyncio
from accounts import Asked, hear_all, read_ledger
from ledger import Ledger
from worker_group import WorkerGroup, pick_holder, workers
from worker_process import WorkerPlan

from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.keys import Keys
from sollol_client import AsyncClient
from waiting import wait_until

_TOKENS = 6


@dataclass(frozen=True, slots=True)
class StormPlan:
    """What a storm is made of.

    Attributes:
        stops: SIGSTOPs of half a lease to two and a half, then SIGCONT.
        redis_kills: kill -9 of Redis, which comes back with its log.
        cancels: jobs that their client cancels meanwhile, waiting or running.
        job_ms: how long a backend takes for a job.
        spread: share of the jobs that have ended when the last fault comes; the rest must outlast the longest freeze.
        fenced: False = without the fence; such a storm has to find answers doubled.
    """

    jobs: int
    kills: int = 0
    stops: int = 0
    redis_kills: int = 0
    cancels: int = 0
    workers: int = 8
    slots: int = 4
    lease_seconds: float = 1.0
    job_ms: int = 300
    spread: float = 0.9
    fenced: bool = True
    seed: int = 1
    patience_seconds: float = 120.0

    @property
    def backend(self) -> str:
        """An echo whose answers take `job_ms`, half of it before the first of six tokens."""
        half = self.job_ms // 2
        return (
            f"echo://?slots={self.slots}&delay_ms={half}&tokens={_TOKENS}&token_ms={half // (_TOKENS - 1)}"
            "&models=echo"
        )


@dataclass(slots=True)
class StormReport:
    """What became of it.

    Attributes:
        reclaims: for each job whose worker was killed, seconds until another one had claimed it.
        slow_reclaims: the same, of those in whose time Redis was away, too.
        attempts: claims of all jobs together.
    """

    plan: StormPlan
    ledger: Ledger
    kills: int
    stops: int
    redis_kills: int
    reclaims: list[float]
    slow_reclaims: list[float]
    attempts: int
    seconds: float

    def reclaim(self, share: float, *, without_redis: bool = False) -> float:
        """A quantile of the reclaims, in leases; 0 where there are none."""
        found = sorted(self.slow_reclaims if without_redis else self.reclaims)
        return found[min(len(found) - 1, int(share * len(found)))] / self.plan.lease_seconds if found else 0.0


def prompt(number: int) -> str:
    """What a storm's job says: words of its own."""
    return f"job {number} of {_TOKENS} tokens each"


async def storm(plan: StormPlan, log: Path | None = None) -> StormReport:
    """Let it rage over a Redis of its own, then add up."""
    keys, began_at = Keys(), time.monotonic()
    with EmbeddedBroker(appendonly=True) as broker:
        fabric = WorkerPlan(broker.url, plan.backend, lease_seconds=plan.lease_seconds, fenced=plan.fenced)
        async with (
            redis.asyncio.Redis.from_url(broker.url) as raw,
            AsyncClient(broker.url, app="storm") as client,
            workers(fabric, plan.workers, log) as group,
        ):
            asked = [_submit(client, number) for number in range(plan.jobs)]
            hearing = asyncio.create_task(hear_all(asked, patience_seconds=plan.patience_seconds))
            faults = _Faults(plan, broker, raw, keys, group, asked)
            await faults.rage()
            told = await hearing
            await _until_quiet(raw, keys, group, plan)
            ledger = await read_ledger(raw, keys, asked, told)
            claims = await _claims(raw, keys, [each.job.id for each in asked])
    reclaims, slow_reclaims = faults.reclaims(claims)
    return StormReport(
        plan,
        ledger,
        kills=faults.kills,
        stops=faults.stops,
        redis_kills=faults.redis_kills,
        reclaims=reclaims,
        slow_reclaims=slow_reclaims,
        attempts=sum(map(len, claims.values())),
        seconds=time.monotonic() - began_at,
    )


def _submit(client: AsyncClient, number: int) -> Asked:
    text = prompt(number)
    streams = number % 2 == 0
    hedge = number % 7 == 0
    job = client.submit(chat=text, model="echo", stream=streams, wait_for_node=True, cache=False, hedge=hedge)
    return Asked(job, "".join(f"{word} " for word in text.split()), streams)


@dataclass(slots=True)
class _Faults:
    """Aims the faults of a plan, in random order, and notes when which job lost its worker.

    They are spread evenly over the jobs, not over time: a slow machine gets them more slowly.
    """

    plan: StormPlan
    broker: EmbeddedBroker
    raw: Any
    keys: Keys
    group: WorkerGroup
    asked: list[Asked]
    kills: int = 0
    stops: int = 0
    redis_kills: int = 0
    _orphaned: list[tuple[str, float]] = field(default_factory=list)
    _redis_killed: list[float] = field(default_factory=list)

    async def rage(self) -> None:
        plan, chance = self.plan, random.Random(self.plan.seed)
        kinds = ["kill"] * plan.kills + ["stop"] * plan.stops + ["redis"] * plan.redis_kills
        kinds += ["cancel"] * plan.cancels
        chance.shuffle(kinds)
        async with asyncio.TaskGroup() as freezing:
            for number, kind in enumerate(kinds):
                await self._until_done(plan.spread * number / len(kinds))
                self.group.revive()
                if kind == "redis":
                    await self._kill_redis()
                elif kind == "cancel":
                    await self._cancel(chance)
                else:
                    # Half of the workers stay awake, or nothing would be left to aim at.
                    await wait_until(
                        lambda: 2 * len(self.group.frozen) < plan.workers,
                        timeout=30,
                        what="a worker to wake up",
                    )
                    node, held = await pick_holder(self.raw, self.keys, chance, but=self.group.frozen)
                    if kind == "kill":
                        await self._kill(node, held)
                    else:
                        self.stops += 1
                        seconds = plan.lease_seconds * chance.uniform(0.5, 2.5)
                        freezing.create_task(self.group.freeze(node, seconds))

    async def _until_done(self, share: float) -> None:
        least = share * len(self.asked)
        await wait_until(
            lambda: sum(each.job.done() for each in self.asked) >= least,
            timeout=self.plan.patience_seconds,
            what=f"{least:.0f} jobs to end",
        )

    async def _kill(self, node: str, held: Sequence[str]) -> None:
        self.group.kill(node)
        self.kills += 1
        now = await _now(self.raw)
        self._orphaned += ((job_id, now) for job_id in held)

    async def _cancel(self, chance: random.Random) -> None:
        at = chance.randrange(len(self.asked))
        self.asked[at] = replace(self.asked[at], may_end=frozenset({"done", "cancelled"}))
        await self.asked[at].job.cancel()

    async def _kill_redis(self) -> None:
        self.redis_kills += 1
        self._redis_killed.append(await _now(self.raw))
        await asyncio.to_thread(self.broker.kill)
        await asyncio.to_thread(self.broker.start)

    def reclaims(self, claims: dict[str, list[float]]) -> tuple[list[float], list[float]]:
        """Seconds from each kill to the next claim of the jobs that it orphaned; then of those without a Redis."""
        undisturbed: list[float] = []
        disturbed: list[float] = []
        for job_id, killed_at in self._orphaned:
            for claimed_at, next_claim in pairwise(claims[job_id]):
                if claimed_at <= killed_at < next_claim:
                    was_away = any(killed_at <= each <= next_claim for each in self._redis_killed)
                    (disturbed if was_away else undisturbed).append((next_claim - killed_at) / 1000)
        return undisturbed, disturbed


async def _until_quiet(raw: Any, keys: Keys, group: WorkerGroup, plan: StormPlan) -> None:
    """Wait until nobody holds a lease and nobody is frozen; then let zombies that just woke have their say."""

    async def is_quiet() -> bool:
        return not group.frozen and not await raw.zcard(keys.leases)

    await wait_until(is_quiet, timeout=30, what="all leases to end")
    await asyncio.sleep(plan.job_ms / 1000 + plan.lease_seconds / 2)


async def _now(raw: Any) -> float:
    seconds, micros = await raw.time()
    return float(seconds) * 1000 + float(micros) / 1000


async def _claims(raw: Any, keys: Keys, ids: Sequence[str]) -> dict[str, list[float]]:
    """When each job was claimed, first to last; Redis time in ms."""
    pipeline = raw.pipeline(transaction=False)
    for job_id in ids:
        pipeline.hmget(keys.job(job_id), "past", "claimed")
    found = {}
    for job_id, (past, claimed) in zip(ids, await pipeline.execute(), strict=True):
        before = [each.split(b",")[2] for each in (past or b"").split(b";") if each]
        found[job_id] = [float(at) for at in (*before, claimed) if at]
    return found
