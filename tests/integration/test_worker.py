"""A worker in front of real llama-servers and of doubles: what it asks of them, how much at once, what it tells."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx
import pytest
import redis.asyncio

from fabric import CHAT_MODEL, worker
from sollol import AsyncClient
from sollol_broker.errors import BackendError, DeadlineExceeded
from sollol_broker.version import VERSION
from sollol_broker.words import JobState
from sollol_worker_agent.backends import EchoBackend, End, ModelInfo, Piece, Timeouts
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

SHORT = {"num_predict": 5, "temperature": 0}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]


class Counting(EchoBackend):
    """Knows how many requests it works on, and the most it ever had."""

    now = most = 0

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            async for said in super().chat(model, request, timeouts):
                yield said
        finally:
            self.now -= 1


class SlowToClose(Counting):
    """Takes a moment to close its connection."""

    is_closing = is_closed = False
    close_seconds = 0.05

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        try:
            async for said in super().chat(model, request, timeouts):
                yield said
        finally:
            self.is_closing = True
            await asyncio.sleep(self.close_seconds)
            self.is_closed = True


class SlowToTell(EchoBackend):
    """Does not always tell at once what it has."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.may_tell = asyncio.Event()
        self.may_tell.set()

    async def models(self) -> list[ModelInfo]:
        await self.may_tell.wait()
        return await super().models()


async def test_a_real_llama_server_through_the_fabric(redis_url: str, toy_llama_server: str) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}
    async with worker(redis_url, toy_llama_server) as agent, AsyncClient(redis_url) as client:
        chat = await client.submit(chat="hello", model="toy", options=SHORT)
        more = await client.submit(chat="hello", model="toy", options={**SHORT, "num_predict": 9})
        raw = await client.submit(generate="hello", model="toy", raw=True, options=SHORT)
        bound = await client.submit(
            generate="hello",
            model="toy",
            raw=True,
            format=schema,
            options={"temperature": 0, "num_predict": 200},
        )
        tools = await client.submit(chat="hello", model="toy", tools=TOOLS, think=False, options=SHORT)
        job = client.submit(chat="hello", model="toy", options={**SHORT, "num_predict": 800}, stream=True)
        pieces = [piece async for piece in job]
        long = await job
    assert (chat["eval_count"], more["eval_count"]) == (5, 9)
    assert "".join(pieces) == long.text
    assert long["eval_count"] == 800
    assert len(pieces) > 1
    assert raw["eval_count"] == tools["eval_count"] == 5
    assert json.loads(bound.text) == {"a": "x"}
    assert (chat["done"], chat["done_reason"]) == (True, "length")
    routing = chat.routing
    assert (routing.node, routing.worker, routing.backend) == ("n1", agent.worker, "llama-server")
    assert 0 < routing.first_token_ms <= routing.run_ms
    assert routing.tokens_per_second > 0


async def test_embeddings_of_a_real_llama_server(redis_url: str, toy_embed_server: str) -> None:
    async with worker(redis_url, toy_embed_server), AsyncClient(redis_url) as client:
        answer = await client.submit(embed=["the cat", "a dog", "the cat"], model="toy-embed")
    first, second, third = answer.embeddings
    assert first == pytest.approx(third, abs=1e-4)
    assert first != pytest.approx(second, abs=1e-2)
    assert math.isclose(math.hypot(*first), 1.0, rel_tol=1e-5)
    assert answer.routing.task_type == "embedding"


class NoChat(EchoBackend):
    """Breaks when it is asked for a chat, as a llama-server with an embedding model does."""

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        raise BackendError("answered 500: the context does not compute logits", status=500, retryable=True)
        yield


async def test_a_model_that_does_no_such_jobs_says_so_at_once_and_its_backend_stays_well(
    redis_url: str,
) -> None:
    said = "echo-embed on n1 does not chat, it is for embed; models that do: echo"
    async with worker(redis_url, NoChat()) as agent, AsyncClient(redis_url, app="test") as client:
        for _ in range(4):
            with pytest.raises(BackendError, match=said) as failed:
                await client.submit(chat="hi", model="echo-embed")
            assert (failed.value.status, failed.value.retryable) == (400, False)
        assert agent.lanes[0].health.state == "healthy"


async def test_such_a_job_goes_on_to_a_node_where_the_model_does_it(redis_url: str) -> None:
    async with (
        OllamaDouble([DoubleModel("echo-embed")]) as ollama,
        worker(redis_url, NoChat(), node="n1"),
        AsyncClient(redis_url, app="test") as client,
        worker(redis_url, ollama.url, node="n2"),
    ):
        answer = await client.submit(chat="hi", model="echo-embed", prefer=["n1"])
    assert answer.routing.node == "n2"
    assert answer.routing.attempt > 1


async def test_cancel_frees_the_slot_of_a_real_server_within_a_second(
    redis_url: str, toy_llama_server: str
) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:

        async def busy() -> int:
            slots = (await http.get(f"{toy_llama_server}/slots")).json()
            return sum(slot["is_processing"] for slot in slots)

        async with worker(redis_url, toy_llama_server), AsyncClient(redis_url) as client:
            job = client.submit(chat="hello", model="toy", options={"num_predict": -1}, stream=True)
            await anext(aiter(job))
            assert await busy() == 1
            assert await job.cancel()

            async def is_free() -> bool:
                return await busy() == 0

            await wait_until(is_free, timeout=1.0, what="the slot to be free")
            assert await client.submit(chat="hello", model="toy", options=SHORT)


async def test_never_more_jobs_at_once_than_slots(redis_url: str) -> None:
    async with OllamaDouble([DoubleModel("tiny", token_seconds=0.002)], parallel=8) as ollama:
        async with worker(redis_url, ollama.url, slots=3), AsyncClient(redis_url) as client:
            await asyncio.gather(*(client.submit(chat="hi", model="tiny") for _ in range(20)))
        assert ollama.seen.most_generating == 3
        async with worker(redis_url, ollama.url), AsyncClient(redis_url) as client:
            ollama.seen.most_generating = 0
            await asyncio.gather(*(client.submit(chat="hi", model="tiny") for _ in range(5)))
        assert ollama.seen.most_generating == 1, "an Ollama that tells no slots gets one job at a time"


async def test_a_job_that_is_called_off_twice_still_closes_its_backends_connection(redis_url: str) -> None:
    backend = SlowToClose("echo://?models=echo&delay_ms=60000")
    async with worker(redis_url, backend) as agent, AsyncClient(redis_url) as client:
        job = client.submit(chat="hi", model="echo", stream=True)
        await wait_until(lambda: backend.now == 1, timeout=5, what="the job to run")
        agent._puller.call_off(job.id)  # as the cancel in the inbox does
        await wait_until(lambda: backend.is_closing, timeout=5, what="the connection to be closed")
        agent._puller.call_off(job.id)  # as the reply to a piece does, that was just under way
        await wait_until(lambda: backend.is_closed, timeout=5, what="the connection to be closed")
        await job.cancel()


async def test_a_deadline_and_the_cancel_that_follows_it_close_the_connection_too(redis_url: str) -> None:
    backend = SlowToClose("echo://?models=echo&delay_ms=60000")
    backend.close_seconds = 0.5  # longer than until the next look of a reaper
    async with worker(redis_url, backend), AsyncClient(redis_url) as client:
        with pytest.raises(DeadlineExceeded):
            await client.submit(chat="hi", model="echo", deadline=0.1).result(timeout=30)
        await wait_until(lambda: backend.is_closed, timeout=5, what="the connection to be closed")


async def test_from_the_first_sign_of_the_end_nothing_is_claimed(redis_url: str) -> None:
    backend = SlowToTell("echo://?models=echo")
    async with worker(redis_url, backend) as agent, AsyncClient(redis_url) as client:
        backend.may_tell.clear()
        stopping = asyncio.create_task(agent.stop(drain_seconds=5))
        job = client.submit(chat="hi", model="echo", wait_for_node=True)
        with pytest.raises(TimeoutError):
            await job.result(timeout=0.5)
        backend.may_tell.set()
        await stopping
        view = await client.job(job.id)
        assert view is not None
        assert (view.state, view.attempt) == (JobState.QUEUED, 0)
        await job.cancel()


async def test_each_backend_has_its_own_slots(redis_url: str) -> None:
    small = Counting("echo://?models=small&slots=2&delay_ms=20")
    large = Counting("echo://?models=large&slots=5&delay_ms=20")
    async with worker(redis_url, small, large) as agent, AsyncClient(redis_url) as client:
        models = ["small", "large"] * 15
        answers = await asyncio.gather(*(client.submit(chat=model, model=model) for model in models))
        assert [answer.text for answer in answers] == models
        assert (small.most, large.most) == (2, 5)
        assert [lane.slots for lane in agent.lanes] == [2, 5]
        assert [lane.busy for lane in agent.lanes] == [0, 0]
        await _abandon_some(client)
        await wait_until(lambda: sum(lane.busy for lane in agent.lanes) == 0, timeout=2, what="free slots")
        assert (await client.submit(chat="hi", model="small")).text == "hi"


async def test_the_workers_own_limit_holds_over_all_backends(redis_url: str) -> None:
    backends = [Counting(f"echo://?models=m{number}&slots=4&delay_ms=20") for number in range(3)]
    async with worker(redis_url, *backends, slots=4) as agent, AsyncClient(redis_url) as client:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, sum(backend.now for backend in backends))
                await asyncio.sleep(0.002)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(client.submit(chat="hi", model=f"m{at % 3}") for at in range(30)))
        watching.cancel()
        (node,) = await client.nodes()
        assert node.workers[0].slots == 4
    assert most == 4
    assert agent.lanes[0].free == 4


async def test_what_a_worker_advertises_and_that_it_goes_on(redis_url: str) -> None:
    embed = DoubleModel("tiny-embed", capabilities=("embedding",), size_bytes=77)
    async with (
        OllamaDouble([CHAT_MODEL, embed]) as ollama,
        worker(redis_url, ollama.url, labels=("eu", "quiet"), advertise_seconds=0.2) as agent,
        AsyncClient(redis_url) as client,
    ):
        await client.submit(chat="hi", model="tiny")
        ollama.tokens_may_flow.clear()
        job = client.submit(chat="hi", model="tiny")

        async def tells_of_the_job() -> bool:
            return (await client.nodes())[0].workers[0].busy == 1

        await wait_until(tells_of_the_job, timeout=3, what="the advert to tell of the job")
        (node,) = await client.nodes()
        (told,) = node.workers
        assert (told.id, told.node, told.state, told.version) == (agent.worker, "n1", "up", VERSION)
        assert (told.slots, told.labels) == (1, ("eu", "quiet"))
        assert {name: info["loaded"] for name, info in told.models.items()} == {
            "tiny": True,
            "tiny-embed": False,
        }
        assert told.models["tiny-embed"]["size_bytes"] == 77
        assert told.models["tiny"]["output_ms"] < 20, "it has learned from the first job"
        (backend,) = told.backends
        assert (backend["kind"], backend["url"], backend["busy"]) == ("ollama", ollama.url, 1)
        hardware = node.hardware
        assert hardware["ram_total_mib"] > 0
        assert node.os
        models = {model.name: model for model in await client.models()}
        assert models["tiny"].loaded_on == ("n1",)

        async def is_gone() -> bool:
            return [model.name for model in await client.models()] == ["tiny"]

        del ollama.models["tiny-embed:latest"]
        await wait_until(is_gone, timeout=2, what="the advert to lack the removed model")
        ollama.tokens_may_flow.set()
        await job
        # An advert lives 3.5 adverts long; it is still there, so it was renewed.
        seen = [(await client.nodes())[0].workers[0].seen_ms_ago for _ in range(3)]
        assert max(seen) < 700
    async with AsyncClient(redis_url) as client:
        assert await client.nodes() == []


async def test_a_worker_survives_that_redis_forgets_it(redis_url: str) -> None:
    async with worker(redis_url, "echo://?models=echo"):
        async with redis.asyncio.Redis.from_url(redis_url) as raw:
            await raw.flushall()
        async with AsyncClient(redis_url) as client:
            job = client.submit(chat="hi", model="echo", wait_for_node=True)
            assert (await job.result(timeout=30)).text == "hi"


async def _abandon_some(client: AsyncClient) -> None:
    """Cancel jobs at every moment of their lives."""
    for pause in range(20):
        job = client.submit(chat="hi", model="small")
        await asyncio.sleep(pause * 0.001)
        await job.cancel()
