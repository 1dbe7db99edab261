"""What workers learn about models, in Redis and over restarts, and what nodes tell of their backends' health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import redis.asyncio

from fabric import worker
from sollol import AsyncClient
from sollol_broker.errors import BackendError
from sollol_broker.keys import Keys
from sollol_worker_agent.backends import EchoBackend, End, ModelInfo, Piece, Timeouts
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from sollol_worker_agent.pace import Expected, Pace
from sollol_worker_agent.pace_store import PaceStore
from waiting import wait_until

KEYS = Keys()
HALF_LIFE = 86_400.0


class Sick(EchoBackend):
    """Lists its models, but cannot answer while it is ill; down, it does not even list them."""

    is_ill = is_down = False
    asked = 0

    async def models(self) -> list[ModelInfo]:
        if self.is_down:
            raise BackendError("connection refused", retryable=True)
        return await super().models()

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        self.asked += 1
        if self.is_ill:
            raise BackendError("answered 500: out of memory", status=500, retryable=True)
        async for said in super().chat(model, request, timeouts):
            yield said


async def stored(url: str, node: str, model: str) -> dict[str, str]:
    """What Redis knows of the pace of a model."""
    async with redis.asyncio.from_url(url) as client:
        found: dict[Any, Any] = await client.hgetall(KEYS.pace(node, model))
    return {name.decode(): value.decode() for name, value in found.items()}


async def health_of(client: AsyncClient) -> tuple[str, float, float]:
    """State, failure rate and check interval as the advert of the only backend tells them."""
    (node,) = await client.nodes()
    health = node.workers[0].backends[0]["health"]
    return health["state"], health["failure_rate"], health["check_seconds"]


async def test_unequal_nodes_learn_their_own_speed(redis_url: str) -> None:
    async with (
        worker(redis_url, "echo://?models=m&slots=1&tokens=10&token_ms=5", node="fast") as fast,
        worker(redis_url, "echo://?models=m&slots=1&tokens=10&token_ms=20", node="slow") as slow,
        AsyncClient(redis_url) as client,
    ):

        async def both_have_learned() -> bool:
            await asyncio.gather(*(client.submit(chat="hello there", model="m") for _ in range(12)))
            return all(agent.lanes[0].pace("m").jobs_seen >= 3 for agent in (fast, slow))

        await wait_until(both_have_learned, timeout=20, what="both nodes to have had jobs")
        paces = {agent.config.node: agent.lanes[0].pace("m") for agent in (fast, slow)}
        assert paces["fast"].output_ms < 12 < 16 < paces["slow"].output_ms < 40

        async def is_told() -> bool:
            told = {node.name: node.workers[0].models["m"] for node in await client.nodes()}
            return all(
                told[name]["jobs_seen"] == pace.jobs_seen
                and told[name]["output_ms"] == round(pace.output_ms, 3)
                for name, pace in paces.items()
            )

        await wait_until(is_told, timeout=3, what="the adverts to tell")
        told = (await client.nodes())[0].workers[0].models["m"]
        assert {"slowdown", "load_ms", "pace_error", "success_rate"} <= told.keys()
        hosts = (await client.stats())["hosts"]
        assert all(host["prediction_error"] > 0 for host in hosts.values())


async def test_what_was_learned_outlives_the_worker(redis_url: str) -> None:
    url = "echo://?models=m&tokens=20&token_ms=3"
    async with worker(redis_url, url) as agent, AsyncClient(redis_url) as client:
        for _ in range(3):
            await client.submit(chat="hi", model="m")
        learned = agent.lanes[0].pace("m")
        await wait_until(lambda: not agent.lanes[0].unwritten, timeout=3, what="it to be written")
    fields = await stored(redis_url, "n1", "m")
    assert fields["jobs_seen"] == "3"
    async with redis.asyncio.from_url(redis_url) as raw:
        assert 29 * HALF_LIFE < await raw.ttl(KEYS.pace("n1", "m")) <= 30 * HALF_LIFE
    async with worker(redis_url, url) as again:
        pace = again.lanes[0].pace("m")
        assert pace.output_ms == pytest.approx(learned.output_ms, rel=0.01)
        assert pace.jobs_seen == 3
    async with worker(redis_url, url, node="n2") as other:
        assert other.lanes[0].pace("m").jobs_seen == 0


async def test_a_restart_writes_nothing_that_it_has_not_learned(redis_url: str) -> None:
    old = Pace(Expected()).aged(time.time() - 3 * HALF_LIFE)
    old = old.after({"eval_count": 100, "eval_duration": 10**10})
    async with redis.asyncio.from_url(redis_url) as raw:
        fields: dict[Any, Any] = old.to_fields()
        await raw.hset(KEYS.pace("n1", "m"), mapping=fields)
        await raw.expire(KEYS.pace("n1", "m"), 100)
        async with worker(redis_url, "echo://?models=m") as agent:
            assert agent.lanes[0].pace("m").output.weight == pytest.approx(1 / 8, rel=0.01)
            await agent._advertiser.advertise()
    assert await stored(redis_url, "n1", "m") == old.to_fields()


async def test_rubbish_in_redis_hurts_nobody(redis_url: str) -> None:
    async with redis.asyncio.from_url(redis_url) as raw:
        await raw.hset(KEYS.pace("n1", "m"), mapping={"output": "x y", "as_of": b"\xff", "load": "1 -5"})
        await raw.expire(KEYS.pace("n1", "m"), 100)
        await raw.set(KEYS.pace("n1", "of-another-type"), "x", ex=100)
    async with (
        worker(redis_url, "echo://?models=m,of-another-type") as agent,
        AsyncClient(redis_url) as client,
    ):
        for model in ("m", "of-another-type"):
            assert agent.lanes[0].pace(model).output_ms == Expected().output_ms
            assert (await client.submit(chat="hi", model=model)).text == "hi"


async def test_loads_are_learned_and_a_loaded_model_costs_none(redis_url: str) -> None:
    model = DoubleModel("tiny", load_seconds=0.3)
    async with OllamaDouble([model]) as ollama, worker(redis_url, ollama.url) as agent:
        (lane,) = agent.lanes
        before = lane.offer(1).models[0].load_ms
        async with AsyncClient(redis_url) as client:
            await client.submit(chat="hi", model="tiny")
        assert before > 1000
        assert 250 < lane.pace("tiny").load_ms < 1000
        assert lane.offer(1).models[0].load_ms == 0
        assert lane.share("tiny").load_ms == 0
        assert lane.offer(1).settled_ms < 60_000


async def test_a_backend_that_fails_is_degraded_probed_and_restored(redis_url: str) -> None:
    sick = Sick("echo://?models=m&slots=4")
    async with worker(redis_url, sick, most_errors=99) as agent, AsyncClient(redis_url) as client:
        await client.submit(chat="hi", model="m")
        assert (await health_of(client))[:1] == ("healthy",)
        sick.is_ill = True
        jobs = [client.submit(chat="hi", model="m") for _ in range(6)]

        async def is_told() -> bool:
            state, rate, seconds = await health_of(client)
            return state in ("degraded", "probing") and rate > 0.15 and seconds == 5

        await wait_until(lambda: agent.lanes[0].health.state != "healthy", timeout=5, what="it to be noticed")
        await wait_until(is_told, timeout=5, what="the advert to tell")
        sick.is_ill = False
        assert [answer.text for answer in await asyncio.gather(*jobs)] == ["hi"] * 6
        assert agent.lanes[0].health.state == "healthy"
        assert agent.lanes[0].pace("m").success_rate < 1


async def test_a_backend_that_is_down_is_back_after_it_answers(redis_url: str) -> None:
    sick = Sick("echo://?models=m&slots=4")
    # Adverts are rare, but a backend that is down is asked every five seconds.
    async with worker(redis_url, sick, advertise_seconds=60) as agent, AsyncClient(redis_url) as client:
        (lane,) = agent.lanes
        sick.is_down = True
        await agent._advertiser.advertise()
        assert (await health_of(client))[0] == "degraded"
        assert lane.free == 0
        sick.is_down = False
        job = client.submit(chat="hi", model="m", wait_for_node=True)
        assert (await job.result(timeout=30)).text == "hi"
        assert lane.health.state == "healthy"


async def test_learning_goes_on_without_redis(redis_url: str) -> None:
    async with worker(redis_url, "echo://?models=m") as agent:
        (lane,), link = agent.lanes, agent.broker.link
        there = link.url
        link.url = replace(there, path="/nowhere/redis.sock")
        await link.drop()
        lane.learn("m", {"eval_count": 100, "eval_duration": 10**9})
        await PaceStore(agent.broker, "n1").write(agent.lanes)
        assert lane.unwritten == {"m"}
        assert lane.pace("m").jobs_seen == 1
        link.url = there
        await wait_until(lambda: not lane.unwritten, timeout=5, what="the next advert to write it")
    assert (await stored(redis_url, "n1", "m"))["jobs_seen"] == "1"
