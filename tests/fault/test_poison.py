"""A job that kills every worker that takes it, among 200 that do no harm."""

from __future__ import annotations

import asyncio

import redis.asyncio
from accounts import Asked, hear_all, read_ledger
from worker_group import workers
from worker_process import POISON, WorkerPlan

from sollol_broker.keys import Keys
from sollol_client import AsyncClient

_JOBS = 200
_LEASE_SECONDS = 0.8


async def test_a_poison_job_takes_three_workers_at_most_and_harms_no_other_job(redis_url: str) -> None:
    plan = WorkerPlan(
        redis_url,
        "deadly+echo://?slots=4&delay_ms=60&models=echo",
        lease_seconds=_LEASE_SECONDS,
        most_crashes=3,
    )
    async with (
        redis.asyncio.Redis.from_url(redis_url) as raw,
        AsyncClient(redis_url) as client,
        workers(plan, 4) as group,
    ):
        texts = [POISON if number == _JOBS // 4 else f"job {number}" for number in range(_JOBS + 1)]
        asked = [
            Asked(
                client.submit(chat=text, model="echo", wait_for_node=True, cache=False),
                text,
                may_end=frozenset({"dead" if text == POISON else "done"}),
            )
            for text in texts
        ]
        hearing = asyncio.create_task(hear_all(asked, patience_seconds=60))
        while not hearing.done():
            group.revive()
            await asyncio.wait({hearing}, timeout=0.05)
        told = hearing.result()
        ledger = await read_ledger(raw, Keys(), asked, told)
    assert not ledger.findings, str(ledger)
    assert ledger.ends == {"done": _JOBS, "dead": 1}
    assert told[_JOBS // 4].error == "JobDead"
    assert 2 <= group.deaths <= 3
