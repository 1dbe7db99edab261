"""The facts of one moment, read from a real Redis by a user who may only look on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fabric_kit import Fabric, fabric_at
from sollol_broker.facts_reader import FactsReader


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


async def test_queues_running_jobs_and_counters(fabric: Fabric) -> None:
    await fabric.worker("w1", models=("m", "n"))
    for job_id in ("j1", "j2", "j3"):
        await fabric.submit(job_id)
    await fabric.claim_one("w1")
    facts = await FactsReader(fabric.broker).read()
    assert [node.name for node in facts.nodes] == ["node-of-w1"]
    assert [(job.id, job.model) for job in facts.running] == [("j1", "m")]
    assert (facts.running_total, facts.counters["submitted"]) == (1, 3)
    queues = {queue.model: queue for queue in facts.queues}
    assert facts.queues[0].waiting == 2
    assert sum(queue.running for queue in queues.values()) == 1


async def test_a_worker_that_vanished_is_told_of_and_one_that_left_is_not(fabric: Fabric) -> None:
    reader = FactsReader(fabric.broker)
    await fabric.worker("gone.1", node="A node with a long name")
    await fabric.worker("left.1")
    await fabric.worker("live.1")
    await reader.read()
    now = await fabric.now_ms()
    await fabric.call("ZADD", fabric.keys.workers, "XX", now - 5_000, "gone.1")
    await fabric.call("DEL", fabric.keys.worker("gone.1"))
    await fabric.broker.leave("left.1")
    await fabric.worker("live.1")  # its adverts do not wipe out the traces
    facts = await reader.read()
    assert [gone.worker for gone in facts.vanished] == ["gone.1"]
    assert facts.vanished[0].node == "A node with a long name"
    assert facts.now - facts.vanished[0].since == pytest.approx(5, abs=3)


async def test_a_queue_that_nobody_serves_shows_up_and_goes(fabric: Fabric) -> None:
    reader = FactsReader(fabric.broker)
    for number in range(25):
        await fabric.worker("w1", models=(f"m{number}",))
    await fabric.submit("j1", model="m3", without_node=True)
    found = False
    for _ in range(4):  # models that nobody serves are looked at in turn
        facts = await reader.read()
        found = found or any(queue.model == "m3" and queue.waiting == 1 for queue in facts.queues)
    assert found
    assert any(queue.model == "m3" for queue in (await reader.read()).queues)
    await fabric.broker.cancel("j1")
    await reader.read()
    assert not any(queue.model == "m3" for queue in (await reader.read()).queues)


async def test_the_cost_of_a_look_is_small(fabric: Fabric) -> None:
    """Five nodes and twenty running jobs: what a page that looks every two seconds costs Redis."""
    reader = FactsReader(fabric.broker)
    for number in range(5):
        await fabric.worker(f"w{number}")
        for job in range(4):
            await fabric.submit(f"j{number}-{job}")
        await fabric.claim(f"w{number}", free=4)
    await reader.read()
    wire = fabric.broker.link.ready()
    assert wire is not None
    before = wire.replies
    await reader.read()
    assert wire.replies - before <= 45
