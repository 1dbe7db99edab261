"""Wall clocks that are wrong on workers, and that jump on the host of Redis: leases last as long, nothing doubles."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from accounts import Asked, hear_all, read_ledger
from fake_clock import SteppedClock, faked
from worker_group import pick_holder, workers
from worker_process import WorkerPlan

from fabric import worker_process
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.keys import Keys
from sollol_client import AsyncClient
from waiting import wait_until

_ECHO = "echo://?slots=4&delay_ms=200&tokens=4&token_ms=30&models=echo"
_LEASE_SECONDS = 2.0
# Of workers that nobody kills: longer than a busy machine stalls one, and nothing beside what their clocks are off.
_LONG_LEASE_SECONDS = 6.0
_JOBS = 150
# Longer than the clocks jump, so that the answers are still there to be added up.
_TTL_SECONDS = 24 * 3600.0


async def test_workers_with_wrong_clocks_keep_their_leases(redis_url: str, tmp_path: Path) -> None:
    keys, off = Keys(), list[float]()
    async with (
        AsyncClient(redis_url) as client,
        redis.asyncio.Redis.from_url(redis_url) as raw,
        AsyncExitStack() as stack,
    ):
        for number, shift in enumerate(("-2h", "+2h", "+0 x1.5")):
            fake = worker_process(
                redis_url,
                tmp_path / f"{number}.log",
                *("--backend", _ECHO, "--lease", str(_LONG_LEASE_SECONDS)),
                node=f"n{number}",
                environment=faked(shift),
            )
            await stack.enter_async_context(fake)

        async def have_joined() -> bool:
            return len(await client.nodes()) == 3

        await wait_until(have_joined, timeout=30, what="the workers to join")
        asked = [_submit(client, number, deadline=60.0) for number in range(_JOBS)]
        hearing = asyncio.create_task(hear_all(asked, patience_seconds=60))
        while not hearing.done():
            off += await _leases_left(raw, keys)
            await asyncio.wait({hearing}, timeout=0.1)
        ledger = await read_ledger(raw, keys, asked, hearing.result())
        nodes = {(await each.job).routing.node for each in asked}
        crashes = [await raw.hget(keys.job(each.job.id), "crashes") for each in asked]
    assert not ledger.findings, str(ledger)
    assert nodes == {"n0", "n1", "n2"}
    assert set(crashes) == {None}
    assert off
    assert -_LONG_LEASE_SECONDS <= min(off) <= max(off) <= _LONG_LEASE_SECONDS + 1.0


@pytest.fixture
def clock(tmp_path: Path) -> SteppedClock:
    return SteppedClock(tmp_path)


@pytest.fixture
def stepped(clock: SteppedClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedBroker]:
    """A Valkey whose host's clock can be stepped; Debian's Redis hangs under libfaketime."""
    broker = EmbeddedBroker(appendonly=False, server="valkey")
    with monkeypatch.context() as patched:
        for name, value in clock.environment.items():
            patched.setenv(name, value)
        broker.start()
    with broker:
        yield broker


@pytest.mark.parametrize("step_seconds", [3600, -7200])
async def test_a_step_of_redis_clock_loses_and_doubles_nothing(
    stepped: EmbeddedBroker, clock: SteppedClock, monkeypatch: pytest.MonkeyPatch, step_seconds: int
) -> None:
    # A client's inbox expires in a step ahead; it then looks for its answers sooner than by default.
    monkeypatch.setattr("sollol_client.receiving.FIRST_LOOK_SECONDS", 1.0)
    keys = Keys()
    plan = WorkerPlan(stepped.url, _ECHO, lease_seconds=_LEASE_SECONDS)
    async with (
        redis.asyncio.Redis.from_url(stepped.url) as raw,
        AsyncClient(stepped.url) as client,
        workers(plan, 3) as group,
    ):
        asked = [_submit(client, number) for number in range(_JOBS)]
        hearing = asyncio.create_task(hear_all(asked, patience_seconds=60))
        await wait_until(lambda: sum(each.job.done() for each in asked) > 30, timeout=20, what="some answers")
        node, held = await pick_holder(raw, keys, random.Random(5))
        group.kill(node)  # so that nobody renews what it held, and only a reaper can see that it is over
        fences = await _fences(raw, keys, held)
        clock.step(step_seconds)

        async def are_claimed_again() -> bool:
            return all(old != new for old, new in zip(fences, await _fences(raw, keys, held), strict=True))

        await wait_until(
            are_claimed_again, timeout=2 * _LEASE_SECONDS + 1.0, what="the orphans to be claimed"
        )
        ledger = await read_ledger(raw, keys, asked, await hearing)
    assert not ledger.findings, str(ledger)


async def _leases_left(raw: Any, keys: Keys) -> list[float]:
    """Seconds until each lease runs out."""
    seconds, micros = await raw.time()
    now = seconds + micros / 1e6
    return [ends_at / 1000 - now for _, ends_at in await raw.zrange(keys.leases, 0, -1, withscores=True)]


async def _fences(raw: Any, keys: Keys, ids: list[str]) -> list[bytes | None]:
    return [await raw.hget(keys.job(job_id), "fence") for job_id in ids]


def _submit(client: AsyncClient, number: int, *, deadline: float | None = None) -> Asked:
    words = f"the words of {number}"
    job = client.submit(
        chat=words,
        model="echo",
        stream=number % 2 == 0,
        wait_for_node=True,
        cache=False,
        result_ttl=_TTL_SECONDS,
        deadline=deadline,
    )
    return Asked(job, words + " ", number % 2 == 0)
