"""Who gets which job, and when: real workers of unequal pace, models that swap, priorities and floods."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from fabric import worker
from paced import Paced, paced_worker
from sollol import AsyncClient
from sollol_client import AsyncJob
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

# What a job predicts to produce, before its application has shown how long its answers are.
SHORT = {"num_predict": 32}


@dataclass(slots=True)
class Pair:
    """Two nodes, of which one takes three times as long; and a way to take the fast one away."""

    fast: Paced
    slow: Paced
    fast_stays: AsyncExitStack


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url) as made:
        yield made


@asynccontextmanager
async def fast_and_slow(url: str) -> AsyncIterator[Pair]:
    # A job takes 6 or 19 s by what they report, so that no delay of this machine can end anybody's patience. The slow
    # one helps from (3 - 1) / 3 jobs in line per slot of the fast one on: from 3.
    fast = Paced(slots=4, prompt_ms=2, output_ms=200)
    slow = Paced(slots=2, prompt_ms=6, output_ms=600)
    async with paced_worker(url, slow, node="slow"), AsyncExitStack() as stays:
        await stays.enter_async_context(paced_worker(url, fast, node="fast"))
        yield Pair(fast, slow, stays)


async def hold_slots(client: AsyncClient, backend: Paced, count: int) -> list[AsyncJob]:
    """Jobs that keep so many slots of a backend busy until it may answer; one by one, for several are a burst."""
    backend.may_answer.clear()
    jobs = []
    for at in range(count):
        jobs.append(client.submit(chat=f"held {at}", model="m", options=SHORT))
        await wait_until(lambda: backend.now == len(jobs), timeout=10, what="a busy slot")
    return jobs


async def in_line(client: AsyncClient, count: int) -> None:
    """Wait until so many jobs wait."""

    async def all_wait() -> bool:
        return sum(queue.waiting for queue in await client.queues()) == count

    await wait_until(all_wait, timeout=10, what=f"{count} jobs in line")


async def declined_by(client: AsyncClient, job: AsyncJob, node: str) -> None:
    """Wait until a node has looked at a job and left it to faster ones."""
    broker = client.session.broker

    async def is_declined() -> bool:
        said = await broker.link.call("HGET", broker.keys.job(job.id), f"no:{node}")
        return bool(said) and said.startswith(b"cheaper|")

    await wait_until(is_declined, timeout=10, what=f"{node} to decline")


# --- fast and slow


async def test_lone_jobs_go_to_the_fast_node(redis_url: str, client: AsyncClient) -> None:
    async with fast_and_slow(redis_url) as nodes:
        for at in range(10):
            answer = await client.submit(chat=f"job {at}", model="m", options=SHORT)
            assert answer.routing.node == "fast"
        assert nodes.slow.asked == []


async def test_a_job_waits_for_the_fast_node_where_that_is_sooner(
    redis_url: str, client: AsyncClient
) -> None:
    async with fast_and_slow(redis_url) as nodes:
        held = await hold_slots(client, nodes.fast, 4)
        job = client.submit(chat="waits", model="m", options=SHORT)
        await declined_by(client, job, "slow")
        nodes.fast.may_answer.set()
        answer = await job
        await asyncio.gather(*held)
        assert (answer.routing.node, answer.routing.attempt) == ("fast", 1)
        assert nodes.slow.asked == []


async def test_a_burst_is_shared(redis_url: str, client: AsyncClient) -> None:
    async with fast_and_slow(redis_url) as nodes:
        nodes.fast.may_answer.clear()
        nodes.slow.may_answer.clear()
        texts = [f"job {at}" for at in range(20)]
        jobs = [client.submit(chat=text, model="m", options=SHORT) for text in texts]
        await wait_until(
            lambda: (nodes.fast.now, nodes.slow.now) == (4, 2), timeout=10, what="all slots at work"
        )
        nodes.slow.may_answer.set()
        nodes.fast.may_answer.set()
        answers = await asyncio.gather(*jobs)
    assert [answer.text for answer in answers] == texts
    shares = Counter(answer.routing.node for answer in answers)
    assert shares["fast"] >= 4
    assert shares["slow"] >= 2
    assert sorted(nodes.fast.asked + nodes.slow.asked) == sorted(texts), "no job was run twice"
    assert (nodes.fast.most, nodes.slow.most) == (4, 2)


async def test_when_the_fast_node_leaves_the_slow_one_does_all(redis_url: str, client: AsyncClient) -> None:
    async with fast_and_slow(redis_url) as nodes:
        held = await hold_slots(client, nodes.fast, 4)
        waiting = client.submit(chat="waits", model="m", options=SHORT)
        await declined_by(client, waiting, "slow")
        await nodes.fast_stays.aclose()  # it hands back what it has
        answers = await asyncio.gather(*held, waiting)
        later = [await client.submit(chat=f"later {at}", model="m", options=SHORT) for at in range(3)]
    assert {answer.routing.node for answer in answers + later} == {"slow"}
    assert [answer.routing.attempt for answer in answers] == [2, 2, 2, 2, 1]
    assert answers[-1].text == "waits"


# --- the line


async def test_the_most_urgent_is_next_though_it_came_last(redis_url: str, client: AsyncClient) -> None:
    backend = Paced()
    async with paced_worker(redis_url, backend):
        held = await hold_slots(client, backend, 1)
        low = [client.submit(chat=f"low {at}", model="m", priority=3) for at in range(3)]
        await in_line(client, 3)
        urgent = client.submit(chat="urgent", model="m", priority=10)
        await in_line(client, 4)
        assert [await client.position(job.id) for job in (urgent, *low)] == [0, 1, 2, 3]
        backend.may_answer.set()
        await asyncio.gather(*held, *low, urgent)
    assert backend.asked == ["held 0", "urgent", "low 0", "low 1", "low 2"]


@pytest.mark.parametrize("patient_app", ["flood", "patient"])
async def test_a_flood_of_urgent_jobs_starves_nobody(redis_url: str, patient_app: str) -> None:
    # A job takes 32 s by what the backend reports: a head start is over after so much of its work, not of ours.
    backend = Paced(output_ms=1_000)
    async with (
        paced_worker(redis_url, backend),
        AsyncClient(redis_url, app="flood") as flood,
        AsyncClient(redis_url, app=patient_app) as other,
    ):
        held = await hold_slots(flood, backend, 1)
        patient = other.submit(chat="patient", model="m", priority=1, options=SHORT)

        async def keep_flooding() -> None:
            while not patient.done() and len(backend.asked) < 200:
                await flood.submit(chat="urgent", model="m", priority=10, options=SHORT)

        floods = [asyncio.ensure_future(keep_flooding()) for _ in range(4)]
        await in_line(flood, 5)
        backend.may_answer.set()
        await asyncio.gather(*held, *floods)
        await patient
    before = backend.asked.index("patient") - 1
    assert 3 <= before < 30, "it yields to urgent work, but not for ever"


@pytest.mark.parametrize(("app", "most_before"), [("light", 3), ("flood", 31)])
async def test_who_floods_delays_only_himself(redis_url: str, app: str, most_before: int) -> None:
    backend = Paced()
    async with (
        paced_worker(redis_url, backend),
        AsyncClient(redis_url, app="flood") as flood,
        AsyncClient(redis_url, app=app) as other,
    ):
        held = await hold_slots(flood, backend, 1)
        jobs = [flood.submit(chat=f"flood {at}", model="m") for at in range(30)]
        await in_line(flood, 30)
        single = other.submit(chat="single", model="m")
        await in_line(flood, 31)
        backend.may_answer.set()
        await asyncio.gather(*held, *jobs, single)
    before = backend.asked.index("single")
    assert before <= most_before
    assert (before == 31) == (app == "flood"), "the same job of the same application comes last"


# --- warm and cold


def swapping(**more: float) -> OllamaDouble:
    """An Ollama with two models of which one at a time fits."""
    models = [DoubleModel(name, load_seconds=0.06, **more) for name in ("red", "blue")]  # type: ignore[arg-type]
    return OllamaDouble(models, max_loaded=1)


async def test_jobs_of_two_models_do_not_swap_for_each(redis_url: str, client: AsyncClient) -> None:
    # No advert is due, so what the worker knows of the memory is from the jobs themselves.
    async with swapping() as ollama, worker(redis_url, ollama.url, advertise_seconds=60):
        for model in ("red", "blue", "red"):
            loads = len(ollama.scheduler.loads)
            ollama.tokens_may_flow.clear()
            held = client.submit(chat="hi", model=model)
            await wait_until(lambda: ollama.seen.generating == 1, timeout=10, what="a busy slot")
            jobs = [client.submit(chat="hi", model=("red", "blue")[at % 2]) for at in range(20)]
            await in_line(client, 20)
            ollama.tokens_may_flow.set()
            await asyncio.gather(held, *jobs)
            assert len(ollama.scheduler.loads) - loads <= 3, ollama.scheduler.loads


async def test_each_job_goes_where_its_model_is_warm(redis_url: str, client: AsyncClient) -> None:
    async with (
        swapping(token_seconds=0.001) as first,
        swapping(token_seconds=0.001) as second,
        worker(redis_url, first.url, node="first"),
        worker(redis_url, second.url, node="second"),
    ):
        for model, node in (("red", "first"), ("blue", "second")):
            await client.submit(chat="hi", model=model, requires={"node": node})
        await warm_on(client, {"red": ("first",), "blue": ("second",)})
        jobs = [client.submit(chat="hi", model=("red", "blue")[at % 2]) for at in range(20)]
        answers = await asyncio.gather(*jobs)
    assert [answer.routing.node for answer in answers] == ["first", "second"] * 10
    assert first.scheduler.loads == ["red:latest"]
    assert second.scheduler.loads == ["blue:latest"]


async def test_what_a_job_has_loaded_is_told_though_no_advert_is_due(
    redis_url: str, client: AsyncClient
) -> None:
    async with swapping() as ollama, worker(redis_url, ollama.url, advertise_seconds=60):
        for model in ("red", "blue"):
            await client.submit(chat="hi", model=model)
            other = "blue" if model == "red" else "red"
            await warm_on(client, {model: ("n1",), other: ()})


async def warm_on(client: AsyncClient, wanted: dict[str, tuple[str, ...]]) -> None:
    """Wait until the adverts tell which node holds which model in memory."""

    async def is_told() -> bool:
        return {model.name: model.loaded_on for model in await client.models()} == wanted

    await wait_until(is_told, timeout=10, what="adverts that tell what is loaded")
