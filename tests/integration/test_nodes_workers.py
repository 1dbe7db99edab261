"""Nodes that an operator closes under load, and nodes whose backend fails: no job is lost, none goes there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from fabric import worker
from mutants import mutant
from sollol import Answer, AsyncClient, JobState
from sollol_broker.library import Library
from sollol_broker.registry import JobView
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

# 9 tokens: a job takes about 20 ms, and so many of them go on while an operator does something.
BRISK = DoubleModel("tiny", token_seconds=0.002)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url) as made:
        yield made


class Load:
    """Keeps jobs coming, a few at a time, until it is told to stop; keeps what became of them."""

    def __init__(self, client: AsyncClient, at_once: int) -> None:
        self._client = client
        self._going = True
        self._sent = 0
        self.answers: dict[str, Answer] = {}
        self.tasks = [asyncio.ensure_future(self._one_after_another()) for _ in range(at_once)]

    async def _one_after_another(self) -> None:
        while self._going:
            self._sent += 1
            job = self._client.submit(chat=f"job {self._sent}", model="tiny", wait_for_node=True)
            self.answers[job.id] = await job.result(20)

    def by(self, node: str) -> int:
        """How many answers have come from a node."""
        return sum(answer.routing.node == node for answer in self.answers.values())

    async def until_answered_by(self, node: str, more: int) -> None:
        """Wait until a node has answered so many more."""
        wanted = self.by(node) + more
        await wait_until(lambda: self.by(node) >= wanted, timeout=15, what=f"{more} answers by {node}")

    async def stop(self) -> None:
        """Let the last ones end; raises what went wrong with any."""
        self._going = False
        await asyncio.gather(*self.tasks)


@asynccontextmanager
async def load_on(client: AsyncClient, at_once: int = 6) -> AsyncIterator[Load]:
    """A Load; the block ends with its last answer."""
    load = Load(client, at_once)
    try:
        yield load
        await load.stop()
    finally:
        for task in load.tasks:
            task.cancel()


@asynccontextmanager
async def two_nodes(url: str, *, functions: Library | None = None) -> AsyncIterator[dict[str, OllamaDouble]]:
    """Two nodes alike, of two slots each."""
    async with (
        OllamaDouble([BRISK], parallel=2) as first,
        OllamaDouble([BRISK], parallel=2) as second,
        worker(url, first.url, node="n1", slots=2, functions=functions),
        worker(url, second.url, node="n2", slots=2, functions=functions),
    ):
        yield {"n1": first, "n2": second}


async def now(client: AsyncClient) -> float:
    """Redis' clock, in seconds."""
    seconds, micros = await client.session.broker.link.call("TIME")
    return int(seconds) + int(micros) / 1e6


async def views_of(client: AsyncClient, load: Load) -> list[JobView]:
    """The records of all jobs of a load."""
    views = [await client.job(job_id) for job_id in load.answers]
    return [view for view in views if view is not None]


# --- closed nodes


async def _close_under_load(
    client: AsyncClient, close: Callable[[], Awaitable[object]], load: Load
) -> list[JobView]:
    """Close n1 and open it again, while jobs come and go; gives those that it took in between."""
    await load.until_answered_by("n1", 10)
    await close()
    closed_at = await now(client)
    await load.until_answered_by("n2", 20)
    opened_at = await now(client)
    await client.uncordon("n1")
    await load.until_answered_by("n1", 5)
    await load.stop()
    views = await views_of(client, load)
    return [view for view in views if view.node == "n1" and closed_at < view.claimed < opened_at]


@pytest.mark.parametrize("verb", ["cordon", "drain", "drain at once"])
async def test_a_node_that_is_closed_under_load_takes_nothing_and_loses_nothing(
    redis_url: str, client: AsyncClient, verb: str
) -> None:
    def close() -> Awaitable[object]:
        return client.cordon("n1") if verb == "cordon" else client.drain("n1", seconds=drain_seconds)

    drain_seconds = 0 if verb == "drain at once" else 30
    async with two_nodes(redis_url), load_on(client) as load:
        assert await _close_under_load(client, close, load) == []
    views = await views_of(client, load)
    assert {(view.state, view.errors, view.crashes) for view in views} == {(JobState.DONE, 0, 0)}
    assert all(answer.text == BRISK.answer for answer in load.answers.values())
    released = sum(view.releases for view in views)
    assert released <= (2 if verb == "drain at once" else 0), (
        "only what ran when the time was up is handed back"
    )


async def test_with_the_door_left_open_it_would_take_some(redis_url: str, client: AsyncClient) -> None:
    open_door = mutant("known[5] == '1' and 0 or offer.most", "offer.most")
    async with two_nodes(redis_url, functions=open_door), load_on(client) as load:
        taken = await _close_under_load(client, lambda: client.cordon("n1"), load)
    assert taken, "a cordoned node claims and nobody noticed: this test has no teeth"


# --- nodes that fail


async def test_a_node_that_fails_is_spared_until_it_works_again(redis_url: str, client: AsyncClient) -> None:
    async def n1_is(*states: str) -> bool:
        nodes = {node.name: node for node in await client.nodes()}
        return nodes["n1"].workers[0].backends[0]["health"]["state"] in states

    async with two_nodes(redis_url) as backends, load_on(client) as load:
        await load.until_answered_by("n1", 10)
        backends["n1"].faults.answer_status = 500
        await wait_until(lambda: n1_is("degraded", "probing"), timeout=10, what="n1 to be known as ill")
        asked = len(backends["n1"].seen.requests)
        await load.until_answered_by("n2", 50)
        probes = len(backends["n1"].seen.requests) - asked
        assert probes < 25, "it is tried with one job now and then, not with its share"
        backends["n1"].faults.answer_status = 0
        await load.until_answered_by("n1", 10)
        await wait_until(lambda: n1_is("healthy"), timeout=10, what="n1 to be known as healthy")
    assert all(answer.text == BRISK.answer for answer in load.answers.values())
    views = await views_of(client, load)
    assert {view.state for view in views} == {JobState.DONE}
    assert sum(view.errors for view in views) == sum(
        answer.routing.attempt - 1 for answer in load.answers.values()
    )
