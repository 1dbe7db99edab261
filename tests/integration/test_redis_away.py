"""Redis that is killed, restarted or emptied while jobs wait and run: every job is answered, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio

from fabric import CHAT_MODEL, let_tokens_flow, worker
from sollol import AsyncClient
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.errors import BackendError, JobCancelled
from sollol_broker.keys import Keys
from sollol_client import AsyncJob
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

FOX = "the quick brown fox jumps over the lazy dog"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients look after silent jobs, and workers leave without Redis, sooner than by default."""
    monkeypatch.setattr("sollol_client.receiving.FIRST_LOOK_SECONDS", 0.5)
    monkeypatch.setattr("sollol_client.lookout._LOOK_SECONDS", 0.25)
    monkeypatch.setattr("sollol_worker_agent.agent._ANNOUNCE_SECONDS", 0.5)
    monkeypatch.setattr("sollol_worker_agent.pull._LAST_WORD_SECONDS", 0.5)


@pytest.fixture
def durable() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(appendonly=True) as broker:
        yield broker


@pytest.fixture
def forgetful() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(appendonly=False) as broker:
        yield broker


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaDouble]:
    async with OllamaDouble([CHAT_MODEL], parallel=2) as double:
        yield double
        double.tokens_may_flow.set()


@pytest.mark.parametrize("away_seconds", [0.0, 1.5])
async def test_a_killed_redis_comes_back_with_its_log_and_all_jobs_are_answered(
    durable: EmbeddedBroker, ollama: OllamaDouble, away_seconds: float
) -> None:
    async with worker(durable.url, ollama.url, slots=2), AsyncClient(durable.url) as client:
        ollama.tokens_may_flow.clear()
        running = [client.submit(chat="hi", model="tiny", stream=True) for _ in range(2)]
        await let_tokens_flow(ollama, 4)
        waiting = [client.submit(chat="hi", model="tiny") for _ in range(20)]
        await waiting[-1].cancel()
        await asyncio.to_thread(durable.kill)
        while_away = [client.submit(chat="hi", model="tiny") for _ in range(5)]
        await asyncio.sleep(away_seconds)  # longer than a lease, or not at all
        await asyncio.to_thread(durable.start)
        ollama.tokens_may_flow.set()
        jobs = [*running, *waiting[:-1], *while_away]
        async with asyncio.timeout(30):
            texts = [(await job).text for job in jobs]
            streamed = ["".join([piece async for piece in job]) for job in running]
        ends = [await _ends(durable.url, job) for job in jobs]
    assert set(texts) == set(streamed) == {FOX}
    assert ends == [1] * len(jobs)


async def test_a_redis_that_forgets_all_gets_the_jobs_again(redis_url: str, ollama: OllamaDouble) -> None:
    async with (
        worker(redis_url, ollama.url, slots=2),
        AsyncClient(redis_url) as client,
        redis.asyncio.Redis.from_url(redis_url) as raw,
    ):
        ollama.tokens_may_flow.clear()
        streamed = client.submit(chat="hi", model="tiny", stream=True)
        await let_tokens_flow(ollama, 3)
        others = [client.submit(chat="hi", model="tiny") for _ in range(4)]
        await _until_asked(ollama, 2)
        before = {job.id for job in (streamed, *others)}
        await raw.flushall()
        await wait_until(lambda: ollama.seen.abandoned == 2, timeout=3, what="the running ones to be stopped")
        ollama.tokens_may_flow.set()
        async with asyncio.timeout(30):
            texts = [(await job).text for job in (streamed, *others)]
            pieces = "".join([piece async for piece in streamed])
        known = {view.id for view in await client.jobs()}
    assert set(texts) == {FOX}
    assert pieces == FOX, "the second run counts its pieces anew, and still none is doubled or lacking"
    assert known == before


async def test_a_cancelled_job_that_redis_has_lost_is_not_sent_again(
    redis_url: str, ollama: OllamaDouble
) -> None:
    async with (
        worker(redis_url, ollama.url),
        AsyncClient(redis_url) as client,
        redis.asyncio.Redis.from_url(redis_url) as raw,
    ):
        ollama.tokens_may_flow.clear()
        job = client.submit(chat="hi", model="tiny")
        await _until_asked(ollama, 1)
        await raw.flushall()
        assert await job.cancel()
        with pytest.raises(JobCancelled):
            await job
        assert client.session._receiver.followings.all() == []


async def test_a_second_run_after_a_redis_that_forgot_is_never_mixed_with_the_first(
    redis_url: str, ollama: OllamaDouble
) -> None:
    async with (
        worker(redis_url, ollama.url),
        AsyncClient(redis_url) as client,
        redis.asyncio.Redis.from_url(redis_url) as raw,
    ):
        ollama.tokens_may_flow.clear()
        job = client.submit(chat="hi", model="tiny", stream=True)
        reader = aiter(job)
        pieces = []
        for number in range(1, 4):
            await let_tokens_flow(ollama, number)
            pieces.append(await anext(reader))
        await raw.flushall()
        ollama.models["tiny:latest"] = DoubleModel("tiny", answer="one two three four five six seven")
        await _until_asked_again(ollama, 2)
        await let_tokens_flow(ollama, 3 + 6)
        ollama.tokens_may_flow.set()
        with pytest.raises(BackendError, match="answers differently") as broken:
            pieces += [piece async for piece in reader]
        assert broken.value.partial == "".join(pieces) == "the quick brown"
        assert (await job).text == "one two three four five six seven"


async def test_a_redis_that_restarts_empty_gets_functions_and_jobs_again(
    forgetful: EmbeddedBroker, ollama: OllamaDouble
) -> None:
    async with worker(forgetful.url, ollama.url, slots=2), AsyncClient(forgetful.url) as client:
        ollama.tokens_may_flow.clear()
        jobs = [client.submit(chat="hi", model="tiny") for _ in range(6)]
        await _until_asked(ollama, 2)
        await asyncio.to_thread(forgetful.restart)
        ollama.tokens_may_flow.set()
        async with asyncio.timeout(30):
            assert {(await job).text for job in jobs} == {FOX}


async def test_while_redis_is_away_a_worker_still_stops_soon(
    forgetful: EmbeddedBroker, ollama: OllamaDouble
) -> None:
    ollama.tokens_may_flow.clear()
    # The lease outlasts the test, so nothing but the stop itself ends the jobs.
    away = worker(forgetful.url, ollama.url, slots=3, lease_seconds=60)
    async with away as agent, AsyncClient(forgetful.url) as client:
        for _ in range(2):
            client.submit(chat="hi", model="tiny")
        await _until_asked(ollama, 2)
        await asyncio.to_thread(forgetful.kill)
        async with asyncio.timeout(30):
            await agent.stop(drain_seconds=0)
        await asyncio.to_thread(forgetful.start)
    assert ollama.seen.abandoned == 2


async def _ends(url: str, job: AsyncJob) -> int:
    async with redis.asyncio.Redis.from_url(url) as raw:
        entries: list[tuple[bytes, dict[bytes, bytes]]] = await raw.xrange(Keys().events(job.id))  # type: ignore[assignment]  # redis-py allows for decoded replies
    return [entry[b"t"] for _, entry in entries].count(b"end")


async def _until_asked_again(ollama: OllamaDouble, count: int) -> None:
    await wait_until(lambda: len(ollama.seen.requests) == count, timeout=10, what=f"request {count}")


async def _until_asked(ollama: OllamaDouble, count: int) -> None:
    await wait_until(lambda: ollama.seen.generating == count, timeout=5, what=f"{count} jobs to run")
