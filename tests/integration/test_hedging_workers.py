"""Late jobs with real workers: a second copy elsewhere, one answer, and nothing left of the other copy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest

from mutants import mutant
from paced import Paced, paced_worker
from sollol import AsyncClient
from sollol_broker.library import Library
from sollol_client import AsyncJob
from waiting import wait_until

SHORT = {"num_predict": 32}
# A job is predicted to take 35 ms: it is late after the least time that counts as late.
_PACE: Mapping[str, Any] = {"prompt_ms": 0.1, "output_ms": 1}
# Nothing that runs out may do what a cancel should have done.
_LONG_LEASE: Mapping[str, Any] = {"lease_seconds": 300}


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url) as made:
        yield made


async def stat(client: AsyncClient, name: str) -> int:
    """One of the fabric's counters."""
    broker = client.session.broker
    return int(await broker.link.call("HGET", broker.keys.stats, name) or 0)


class Pair:
    """Two like nodes, of which one holds the first copy of a job and the other one the second."""

    def __init__(self, slots: int = 1) -> None:
        self.nodes = {name: Paced(slots=slots, **_PACE) for name in ("one", "two")}
        self.first = self.second = ""

    async def start(self, stack: AsyncExitStack, url: str, functions: Library | None = None) -> None:
        """Start both."""
        for name, backend in self.nodes.items():
            backend.may_answer.clear()
            await stack.enter_async_context(
                paced_worker(url, backend, node=name, functions=functions, **_LONG_LEASE)
            )

    def asked(self, text: str) -> int:
        """How often backends were asked for it."""
        return sum(backend.asked.count(text) for backend in self.nodes.values())

    async def both_work(self) -> None:
        """Wait until both copies run."""
        await wait_until(lambda: self._busy(1), timeout=10, what="the first copy")
        self.first = next(name for name, backend in self.nodes.items() if backend.now)
        self.second = "two" if self.first == "one" else "one"
        await wait_until(lambda: self._busy(2), timeout=10, what="the second copy")

    def _busy(self, count: int) -> bool:
        return sum(backend.now for backend in self.nodes.values()) >= count


@pytest.mark.parametrize("winner", ["first", "second"])
@pytest.mark.parametrize("more", [{"hedge": True}, {"priority": 9}, {"hedge": True, "stream": True}], ids=str)
async def test_the_first_answer_counts_and_frees_the_other_slot(
    redis_url: str, client: AsyncClient, winner: str, more: Mapping[str, Any]
) -> None:
    async with AsyncExitStack() as stack:
        nodes = Pair()
        await nodes.start(stack, redis_url)
        job = client.submit(chat="hi", model="m", options=SHORT, cache=False, **more)
        await nodes.both_work()
        won, lost = (nodes.first, nodes.second) if winner == "first" else (nodes.second, nodes.first)
        nodes.nodes[won].may_answer.set()
        answer = await job
        assert (answer.text, answer.routing.node) == ("hi", won)
        await wait_until(lambda: not nodes.nodes[lost].now, timeout=10, what="the other copy's end")
        # Its slot takes the next job, though the winner's is free as well.
        nodes.nodes[lost].may_answer.set()
        later = await client.submit(chat="later", model="m", options=SHORT, requires={"node": lost})
        assert later.routing.node == lost
        assert nodes.asked("hi") == 2
    assert await stat(client, "done") == 2
    assert await stat(client, "hedges") == 1
    assert await stat(client, "hedges_won") == (winner == "second")


async def test_a_loser_that_is_not_told_is_noticed(redis_url: str, client: AsyncClient) -> None:
    silent = mutant(
        "  tell(F, worker, 't', 'cancel', 'j', id, 'f', fence)\n  return true\n", "  return true\n"
    )
    async with AsyncExitStack() as stack:
        nodes = Pair()
        await nodes.start(stack, redis_url, silent)
        job = client.submit(chat="hi", model="m", options=SHORT, hedge=True)
        await nodes.both_work()
        nodes.nodes[nodes.second].may_answer.set()
        await job
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await wait_until(
                    lambda: not nodes.nodes[nodes.first].now, timeout=10, what="the other copy's end"
                )


@pytest.mark.parametrize("more", [{"priority": 8}, {"hedge": False, "priority": 10}], ids=str)
async def test_others_run_once(redis_url: str, client: AsyncClient, more: Mapping[str, Any]) -> None:
    async with AsyncExitStack() as stack:
        nodes = Pair(slots=2)
        await nodes.start(stack, redis_url)
        once = client.submit(chat="once", model="m", options=SHORT, **more)
        await wait_until(lambda: nodes.asked("once") == 1, timeout=10, what="the job to run")
        # One that begins later is late, and gets its second copy: so the first has had the time for one as well.
        twice = client.submit(chat="twice", model="m", options=SHORT, hedge=True)
        await wait_until(lambda: nodes.asked("twice") == 2, timeout=10, what="a second copy")
        for backend in nodes.nodes.values():
            backend.may_answer.set()
        await asyncio.gather(once, twice)
        assert nodes.asked("once") == 1


async def _extra_work(url: str, client: AsyncClient, functions: Library | None = None) -> tuple[int, int]:
    """Second copies that start, and jobs in all: some that are quick, and then many late ones beside an idle node."""
    quick, late = 40, 8
    slow, idle = Paced(slots=late, **_PACE), Paced(slots=late, **_PACE)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            paced_worker(url, slow, node="slow", functions=functions, **_LONG_LEASE)
        )
        for at in range(quick):
            await client.submit(chat=f"quick {at}", model="m", options=SHORT, cache=False)
        slow.may_answer.clear()
        jobs: list[AsyncJob] = [
            client.submit(chat=f"late {at}", model="m", options=SHORT, hedge=True) for at in range(late)
        ]
        await wait_until(lambda: slow.now == late, timeout=10, what="all of them to run")
        await stack.enter_async_context(
            paced_worker(url, idle, node="idle", functions=functions, **_LONG_LEASE)
        )
        await wait_until(lambda: len(idle.asked) >= 1, timeout=10, what="a second copy")
        # What the idle node has answered is the end of the job; it looks for the next late one at once.
        await _until_it_has_nothing_to_do(client, idle)
        slow.may_answer.set()
        await asyncio.gather(*jobs)
    return await stat(client, "hedges"), quick + late


async def _until_it_has_nothing_to_do(client: AsyncClient, backend: Paced) -> None:
    """Wait until the worker has looked several times in vain since its last job."""
    broker = client.session.broker

    async def looks() -> int:
        info = (await broker.link.call("INFO", "commandstats")).decode()
        return int(info.split("cmdstat_fcall:calls=")[1].split(",")[0])

    while True:
        asked, before = len(backend.asked), await looks()

        async def has_looked(enough: int = before + 30) -> bool:
            return await looks() >= enough

        await wait_until(has_looked, timeout=20, what="the workers to look")
        if len(backend.asked) == asked and not backend.now:
            return


async def test_second_copies_are_a_twentieth_of_the_work(redis_url: str, client: AsyncClient) -> None:
    hedges, jobs = await _extra_work(redis_url, client)
    assert 1 <= hedges <= 0.05 * jobs + 1  # a copy that was within the budget when it began


async def test_without_a_budget_all_would_run_twice(redis_url: str, client: AsyncClient) -> None:
    spendthrift = mutant("local HEDGE_PERCENT = 5 ", "local HEDGE_PERCENT = 5000 ")
    hedges, jobs = await _extra_work(redis_url, client, spendthrift)
    assert hedges > 0.05 * jobs + 1
