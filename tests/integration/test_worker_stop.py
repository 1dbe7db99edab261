"""How a worker leaves, and what does not make it leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio

from fabric import worker
from sollol import AsyncClient
from sollol_broker.broker import Broker, Claims, Finished
from sollol_broker.keys import Keys
from sollol_broker.url import parse
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import EchoBackend
from sollol_worker_agent.config import WorkerConfig
from sollol_worker_agent.hardware import Hardware, HardwareReader
from waiting import wait_until


async def test_what_the_last_delivery_claims_is_handed_back_though_the_drain_is_past_it(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered, may_go_on = asyncio.Event(), asyncio.Event()
    finish = Broker.finish

    async def held(*arguments: Any, **more: Any) -> Finished:
        finished = await finish(*arguments, **more)
        delivered.set()
        await may_go_on.wait()
        return finished

    monkeypatch.setattr(Broker, "finish", held)
    async with AsyncClient(redis_url) as client, redis.asyncio.Redis.from_url(redis_url) as raw:
        jobs = [client.submit(chat=f"hi {n}", model="echo", wait_for_node=True) for n in range(2)]
        await wait_until(lambda: _waiting(raw, 2), timeout=20, what="both jobs to wait")
        async with worker(redis_url, "echo://?slots=1", lease_seconds=60) as agent:
            await asyncio.wait_for(delivered.wait(), 20)
            # The one is answered by now, and the other one has come with that.
            stopping = asyncio.create_task(agent.stop(drain_seconds=0))
            claiming = agent._puller._loop_task
            assert claiming is not None
            await wait_until(claiming.done, timeout=20, what="the drain to have begun")
            may_go_on.set()
            await asyncio.wait_for(stopping, 30)
            states = [await raw.hmget(Keys().job(job.id), "state", "releases") for job in jobs]
            held_still = await raw.zcard(Keys().leases)
        await asyncio.gather(*(job.cancel() for job in jobs))
    assert sorted(states, key=str) == [[b"done", None], [b"queued", b"1"]]
    assert held_still == 0


class Broken(HardwareReader):
    """Fails in a way that nobody thought of, the second time."""

    reads = 0

    def read(self) -> Hardware:
        self.reads += 1
        if self.reads == 2:
            raise ZeroDivisionError("a mistake of ours")
        return super().read()


async def test_a_mistake_in_one_round_ends_neither_adverts_nor_claims(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = Broken()
    config = WorkerConfig(node="n1", advertise_seconds=0.1, poll_seconds=0.05)
    agent = Agent(parse(redis_url), config, [EchoBackend("echo://")], hardware=hardware)
    claim, claims = agent.broker.claim, 0

    async def broken(*arguments: Any) -> Claims | None:
        nonlocal claims
        claims += 1
        if claims == 2:
            raise ZeroDivisionError("a mistake of ours")
        return await claim(*arguments)

    monkeypatch.setattr(agent.broker, "claim", broken)
    await agent.start()
    try:
        await wait_until(lambda: hardware.reads > 3 and claims > 3, timeout=20, what="further rounds")
        async with AsyncClient(redis_url) as client:
            assert (await client.submit(chat="hi", model="echo").result(timeout=30)).routing.node == "n1"
    finally:
        await agent.stop(drain_seconds=0)


async def _waiting(raw: Any, jobs: int) -> bool:
    return int(await raw.zcard(Keys().queue("echo"))) == jobs
