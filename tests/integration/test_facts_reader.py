"""The facts of one moment, read from a real Redis by a user who may only look on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from fabric_kit import Fabric, fabric_at
from sollol_broker.facts_reader import FactsReader
from sollol_broker.overview import overview


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


async def test_of_many_that_vanished_the_latest_are_told(fabric: Fabric) -> None:
    now = await fabric.now_ms()
    early = (part for number in range(150) for part in (now - 3_000_000, f"early-{number}.1"))
    await fabric.call("ZADD", fabric.keys.workers, *early)
    await fabric.call("ZADD", fabric.keys.workers, now - 5_000, "late.1")
    facts = await FactsReader(fabric.broker).read()
    assert facts.gone[0].node == "late"
    assert len(facts.gone) == 100


async def test_many_running_jobs_are_counted_by_model(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sollol_broker.facts_reader._MOST_RUNNING", 2)
    await fabric.worker("w1", models=("m", "n"))
    for number in range(6):
        await fabric.submit(f"j{number}", model="n" if number < 2 else "m")
    for model in ("m", "n"):
        await fabric.claim("w1", free=4, models=(model,))
    reader = FactsReader(fabric.broker)
    for _ in range(2):
        facts = await reader.read()
        assert {queue.model: queue.running for queue in facts.queues} == {"m": 4, "n": 2}
        assert (len(facts.running), facts.running_total) == (2, 6)
    await fabric.broker.cancel("j5")
    assert {queue.model: queue.running for queue in (await reader.read()).queues} == {"m": 3, "n": 2}


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


async def test_one_damaged_record_hides_nobody_else(fabric: Fabric) -> None:
    """Another release, or anybody who may write there, may have left anything."""
    await fabric.worker("good")
    await fabric.worker("odd")
    await fabric.submit("j1")
    await fabric.submit("j2")
    await fabric.claim("good", free=2)
    keys, call = fabric.keys, fabric.call
    nonsense: list[bytes | str] = [
        "{",
        "null",
        "[1]",
        '{"a": NaN}',
        "[" * 20_000,
        b"\xff\xfe",
        "9" * 5000,
        "",
    ]
    records = [
        (keys.worker("odd"), ("backends", "labels", "slots", "busy", "clock", "state", "seen")),
        (keys.node("node-of-odd"), ("hardware", "llama", "addresses", "os")),
        (keys.tally("node-of-odd"), ("done", "busy_ms")),
        (keys.job("j2"), ("state", "priority", "tokens", "claimed", "model")),
        (keys.app("odd"), ("host", "metadata")),
        (keys.usage("odd"), ("submitted", "minute", "tokens_in")),
        (keys.group("odd"), ("parts", "places", "report", "since", "model")),
        (keys.stats, ("done",)),
        (keys.leader, ("until",)),
    ]
    now = await fabric.now_ms()
    await call("ZADD", keys.apps, now, "odd")
    await call("ZADD", keys.groups, now, "odd")
    await call("ZADD", keys.workers, "NX", now - 5_000, b"\xff.1")
    await call("HSET", keys.group("odd"), "id", "odd", "state", "ready", "model", "m")
    await call("HSET", keys.models, b"\xff", b"\xff")
    for key, names in records:
        for value in nonsense:
            await call("HSET", key, *(part for name in names for part in (name, value)))
            facts = await FactsReader(fabric.broker).read()
            told = json.loads(json.dumps(overview(facts), allow_nan=False))
            assert "node-of-good" in [card["name"] for card in told["nodes"]], (key, value[:9])
            assert "j1" in [job.id for job in facts.running], (key, value[:9])
    await call("FLUSHALL")
