"""The client for coroutines: await, async for, cancellation, and thousands at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from fabric import CHAT_MODEL, let_tokens_flow, worker
from sollol import AsyncClient
from sollol_broker.errors import ClientClosed, JobCancelled
from sollol_broker.keys import Keys
from sollol_broker.words import JobState
from sollol_client import AsyncJob
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

FOX = "the quick brown fox jumps over the lazy dog"


@pytest.fixture
async def ollama(redis_url: str) -> AsyncIterator[OllamaDouble]:
    """A double with two slots, and a worker in front of it."""
    async with OllamaDouble([CHAT_MODEL], parallel=2) as double, worker(redis_url, double.url, slots=2):
        yield double
        double.tokens_may_flow.set()


async def test_await_and_async_for(redis_url: str, ollama: OllamaDouble) -> None:
    async with AsyncClient(redis_url, app="tests") as client:
        assert (await client.submit(chat="hi", model="tiny")).text == FOX
        job = client.submit(chat="hi", model="tiny", stream=True)
        pieces = [piece async for piece in job]
        assert "".join(pieces) == (await job).text == FOX
        assert job.state is JobState.DONE
        assert [piece async for piece in client.submit(generate="hi", model="tiny")] == [FOX]
        assert await client.submit(chat="hi", model="tiny").result(timeout=30)


async def test_tools_and_thinking_travel_in_pieces(redis_url: str) -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    async with OllamaDouble([CHAT_MODEL]) as double, worker(redis_url, double.url):
        double.tool_calls = [("look_up", {"word": "fox"})]
        async with AsyncClient(redis_url) as client:
            job = client.submit(chat="hi", model="tiny", tools=tools, stream=True)
            (piece,) = [piece async for piece in job]
            (call,) = (await job).tool_calls
    assert piece == ""
    assert piece.tool_calls == [call]
    assert call["function"] == {"index": 0, "name": "look_up", "arguments": {"word": "fox"}}


async def test_a_cancelled_task_does_not_cancel_its_job(redis_url: str, ollama: OllamaDouble) -> None:
    ollama.tokens_may_flow.clear()
    async with AsyncClient(redis_url) as client:
        job = client.submit(chat="hi", model="tiny")

        async def waits() -> str:
            return (await job).text

        first, second = asyncio.create_task(waits()), asyncio.create_task(waits())
        await wait_until(lambda: ollama.seen.generating == 1, timeout=5, what="the job to run")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(TimeoutError):
            await job.result(timeout=0.02)
        ollama.tokens_may_flow.set()
        assert await second == FOX
        assert ollama.seen.abandoned == 0


async def test_cancel_while_running(redis_url: str, ollama: OllamaDouble) -> None:
    ollama.tokens_may_flow.clear()
    async with AsyncClient(redis_url) as client:
        job = client.submit(chat="hi", model="tiny", stream=True)
        await wait_until(lambda: ollama.seen.generating == 1, timeout=5, what="the job to run")
        assert await job.cancel()
        assert job.cancelled()
        assert job.state is JobState.CANCELLED
        with pytest.raises(JobCancelled):
            await job
        await wait_until(lambda: ollama.seen.generating == 0, timeout=1, what="the backend to be free")
        assert not await job.cancel()


@pytest.mark.parametrize("requires", [None, {"node": "n1"}])
async def test_a_cancel_never_overtakes_its_job(
    redis_url: str, ollama: OllamaDouble, requires: dict[str, str] | None
) -> None:
    ollama.tokens_may_flow.clear()
    async with AsyncClient(redis_url) as client:
        job = client.submit(chat="hi", model="tiny", requires=requires)
        assert await job.cancel()
        view = await client.job(job.id)
        assert view is not None
        assert view.state is JobState.CANCELLED
        with pytest.raises(JobCancelled):
            await job


async def test_two_who_wait_for_one_job_both_get_all_of_it(redis_url: str, ollama: OllamaDouble) -> None:
    ollama.tokens_may_flow.clear()
    async with AsyncClient(redis_url) as client:
        first = client.submit(chat="hi", model="tiny", stream=True, idempotency_key="one")
        await let_tokens_flow(ollama, 3)
        reader = aiter(first)
        early = [await anext(reader)]
        late = [
            client.submit(chat="hi", model="tiny", stream=True, idempotency_key="one"),
            client.attach(first.id),
        ]
        readers = [asyncio.create_task(_joined(job)) for job in late]
        await let_tokens_flow(ollama, 5)
        ollama.tokens_may_flow.set()
        early += [piece async for piece in reader]
        assert "".join(early) == FOX
        assert await asyncio.gather(*readers) == [FOX, FOX]
        assert [(await job).text for job in (first, *late)] == [FOX] * 3
    assert len(ollama.seen.requests) == 1


async def test_pieces_that_were_lost_on_the_way_leave_no_gap(redis_url: str, ollama: OllamaDouble) -> None:
    ollama.tokens_may_flow.clear()
    async with AsyncClient(redis_url) as client, redis.asyncio.Redis.from_url(redis_url) as raw:
        job = client.submit(chat="hi", model="tiny", stream=True)
        reader = aiter(job)
        await let_tokens_flow(ollama, 2)
        pieces = [await anext(reader)]
        # The inbox is gone for a while, as after a long pause of this process.
        await raw.delete(Keys().inbox(client.session.inbox_name))
        await let_tokens_flow(ollama, 5)
        await client.session.lookout.attend()
        await let_tokens_flow(ollama, 6)
        while len("".join(pieces)) < len("the quick brown fox jumps over"):
            pieces.append(await asyncio.wait_for(anext(reader), timeout=30))
        ollama.tokens_may_flow.set()
        pieces += [piece async for piece in reader]
        assert "".join(pieces) == (await job).text == FOX


async def test_close_ends_those_who_wait(redis_url: str, ollama: OllamaDouble) -> None:
    ollama.tokens_may_flow.clear()
    client = AsyncClient(redis_url)
    await client.open()
    job = client.submit(chat="hi", model="tiny")
    await client.close()
    with pytest.raises(ClientClosed, match=job.id):
        await job
    with pytest.raises(ClientClosed):
        await client.submit(chat="hi", model="tiny")
    ollama.tokens_may_flow.set()
    async with AsyncClient(redis_url) as other:
        assert (await other.attach(job.id)).text == FOX


async def test_3000_at_once_half_of_them_abandoned_each_answer_meets_its_question(redis_url: str) -> None:
    chance = random.Random(3000)
    backend = "echo://?slots=64&models=echo"
    # Making 3,000 jobs keeps the worker's event loop waiting, which is this one; its advert must outlive that.
    patient = worker(redis_url, backend, lease_seconds=10, advertise_seconds=10)
    async with patient, AsyncClient(redis_url) as client:

        async def ask(number: int) -> str:
            return (await client.submit(chat=f"question {number}", model="echo")).text

        tasks = [asyncio.create_task(ask(number)) for number in range(3000)]
        abandoned = set(chance.sample(range(3000), 1500))
        for number in chance.sample(sorted(abandoned), 1500):
            tasks[number].cancel()
            if chance.random() < 0.05:
                await asyncio.sleep(0)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        kept = [number for number in range(3000) if number not in abandoned]
        assert [answers[number] for number in kept] == [f"question {number}" for number in kept]
        answered = [number for number in abandoned if isinstance(answers[number], str)]
        assert all(answers[number] == f"question {number}" for number in answered)
        assert (await client.submit(chat="and still", model="echo")).text == "and still"


async def _joined(job: AsyncJob) -> str:
    return "".join([piece async for piece in job])
