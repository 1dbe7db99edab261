"""advertise, attend, leave, and the bell that wakes exactly one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fabric_kit import TTL_MS, Fabric, fabric_at, ids
from sollol_broker import LaneOffer, ModelOffer


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


async def _bells(fabric: Fabric, *workers: str) -> list[int]:
    return [await fabric.bells(worker) for worker in workers]


# --- the bell


async def test_the_bell_wakes_only_the_cheapest(fabric: Fabric) -> None:
    for worker, cost in (("dear", 50.0), ("cheap", 1.0), ("middle", 10.0)):
        await fabric.worker(worker)
        await fabric.claim(worker, output_ms=cost)
    assert await fabric.submit("j1") == ["queued", 1]
    assert await _bells(fabric, "cheap", "middle", "dear") == [1, 0, 0]
    assert await fabric.submit("j2") == ["queued", 1]
    assert await _bells(fabric, "cheap", "middle", "dear") == [1, 1, 0]
    assert await fabric.submit("j3") == ["queued", 1]
    assert await fabric.submit("j4") == ["queued", 0]
    entries = await fabric.entries(fabric.keys.inbox("cheap"))
    assert entries == [{"t": "hello"}, {"t": "bell", "m": "m"}]


async def test_the_bell_passes_over_the_dead(fabric: Fabric) -> None:
    for number in range(6):
        await fabric.worker(f"w{number}")
        await fabric.claim(f"w{number}", output_ms=float(number))
    for number in range(5):
        await fabric.broker.drop_inbox(f"w{number}")
    assert await fabric.submit("j1") == ["queued", 1]
    assert await fabric.bells("w5") == 1
    assert await fabric.members(fabric.keys.idle("m")) == []


async def test_a_repeated_submit_does_not_ring_again(fabric: Fabric) -> None:
    for worker in ("w1", "w2"):
        await fabric.worker(worker)
        await fabric.claim(worker)
    await fabric.submit("j1")
    await fabric.submit("j1")
    assert sum(await _bells(fabric, "w1", "w2")) == 1


async def test_a_worker_that_waits_for_another_model_is_not_woken(fabric: Fabric) -> None:
    await fabric.worker("w1", models=["a"])
    await fabric.worker("w2", models=["b"])
    await fabric.claim("w1", models=["a"])
    await fabric.claim("w2", models=["b"])
    await fabric.submit("j1", model="b")
    assert await _bells(fabric, "w1", "w2") == [0, 1]


async def test_a_bell_that_its_worker_cannot_follow_is_passed_on(fabric: Fabric) -> None:
    for worker, cost in (("cheap", 1.0), ("dear", 50.0)):
        await fabric.worker(worker, models=["a", "b"])
        await fabric.claim(worker, models=["a", "b"], output_ms=cost)
    await fabric.submit("a1", model="a")
    await fabric.submit("b1", model="b")
    assert await _bells(fabric, "cheap", "dear") == [2, 0]
    assert ids(await fabric.claim("cheap", models=["a", "b"], output_ms=1.0)) == ["a1"]
    assert await _bells(fabric, "cheap", "dear") == [2, 1]
    assert ids(await fabric.claim("dear", models=["a", "b"])) == ["b1"]


async def test_a_bell_is_not_passed_on_for_nothing(fabric: Fabric) -> None:
    for worker in ("w1", "w2"):
        await fabric.worker(worker)
        await fabric.claim(worker)
    await fabric.submit("j1")
    assert ids(await fabric.claim("w1")) == ["j1"]
    assert await _bells(fabric, "w1", "w2") == [1, 0]
    assert await fabric.members(fabric.keys.idle("m")) == ["w2"]


# --- advertise


async def test_an_advert_says_who_and_what(fabric: Fabric) -> None:
    made = await fabric.worker(
        "w1",
        node="GPU-1",
        models=["a", "B:7b"],
        fields={"state": "up", "slots": "4"},
        node_fields={"os": "linux"},
    )
    assert made
    keys = fabric.keys
    now = await fabric.now_ms()
    for key in (keys.worker("w1"), keys.node("GPU-1"), keys.serves("a"), keys.inbox("w1")):
        assert TTL_MS - 5_000 < await fabric.call("PTTL", key) <= TTL_MS
    assert await fabric.call("HMGET", keys.worker("w1"), "id", "node", "state", "slots") == [
        *(b"w1", b"GPU-1", b"up", b"4"),
    ]
    assert await fabric.call("HMGET", keys.node("GPU-1"), "name", "os") == [b"GPU-1", b"linux"]
    assert await fabric.members(keys.workers) == ["w1"]
    assert now < float(await fabric.call("ZSCORE", keys.workers, "w1")) <= now + TTL_MS
    models = await fabric.call("HGETALL", keys.models)
    assert b"a" in models
    assert b"B:7b" in models


async def test_an_inbox_made_anew_is_reported(fabric: Fabric) -> None:
    assert await fabric.worker("w1")
    assert not await fabric.worker("w1")
    await fabric.broker.drop_inbox("w1")
    assert await fabric.worker("w1")
    assert await fabric.entries(fabric.keys.inbox("w1")) == [{"t": "hello"}]


async def test_a_model_that_went_away_is_not_served(fabric: Fabric) -> None:
    await fabric.worker("w1", models=["a", "b"])
    await fabric.claim("w1", models=["a", "b"])
    await fabric.worker("w1", models=["b", "c"])
    assert await fabric.members(fabric.keys.serves("a")) == []
    assert await fabric.members(fabric.keys.idle("a")) == []
    for model in ("b", "c"):
        assert await fabric.members(fabric.keys.serves(model)) == ["w1"]
    assert await fabric.members(fabric.keys.idle("b")) == ["w1"]
    assert await fabric.submit("j1", model="a") == ["no_node"]
    await fabric.worker("w1", models=[])
    assert await fabric.submit("j1", model="b") == ["no_node"]


async def test_a_dead_workers_entries_are_swept(fabric: Fabric) -> None:
    await fabric.worker("w1")
    await fabric.call("ZADD", fabric.keys.serves("m"), 1, "dead")
    await fabric.call("ZADD", fabric.keys.workers, 1, "dead")
    await fabric.worker("w1")
    assert await fabric.members(fabric.keys.serves("m")) == ["w1"]
    assert await fabric.members(fabric.keys.workers) == ["w1"]


async def test_an_advert_keeps_what_the_last_claim_took(fabric: Fabric) -> None:
    await fabric.worker("w1")
    await fabric.submit("j1")
    request = fabric.request("w1")
    assert ids(await fabric.claim_with(request)) == ["j1"]
    await fabric.worker("w1")
    assert ids(await fabric.claim_with(request)) == ["j1"]


# --- leave


async def test_who_leaves_leaves_nothing_behind(fabric: Fabric) -> None:
    await fabric.worker("w1", models=["a", "b"])
    await fabric.claim("w1", models=["a", "b"])
    await fabric.broker.leave("w1")
    await fabric.broker.leave("w1")
    keys = fabric.keys
    for key in (keys.worker("w1"), keys.inbox("w1"), keys.serves("a"), keys.serves("b"), keys.idle("a")):
        assert await fabric.call("EXISTS", key) == 0
    assert await fabric.members(keys.workers) == []
    assert await fabric.submit("j1", model="a") == ["no_node"]


async def test_who_leaves_passes_its_bell_on(fabric: Fabric) -> None:
    for worker, cost in (("w1", 1.0), ("w2", 50.0)):
        await fabric.worker(worker)
        await fabric.claim(worker, output_ms=cost)
    await fabric.submit("j1")
    assert await _bells(fabric, "w1", "w2") == [1, 0]
    await fabric.broker.leave("w1")
    assert await fabric.bells("w2") == 1


async def test_who_leaves_keeps_the_jobs_it_runs(fabric: Fabric) -> None:
    await fabric.worker("w1")
    await fabric.submit("j1")
    lease = (await fabric.claim_one("w1")).lease
    await fabric.broker.leave("w1")
    assert (await fabric.broker.finish(lease, b"answer")).taken


async def test_a_waiting_worker_is_in_line_for_each_lane_with_room(fabric: Fabric) -> None:
    await fabric.worker("w1", models=["a", "b"])
    lanes = (
        LaneOffer(1, (ModelOffer("a", 0.0, 1.0, 10.0),)),
        LaneOffer(1, (ModelOffer("b", 9_000.0, 1.0, 10.0),)),
    )
    await fabric.claim("w1", lanes=lanes, most=2)
    warm = float(await fabric.call("ZSCORE", fabric.keys.idle("a"), "w1"))
    cold = float(await fabric.call("ZSCORE", fabric.keys.idle("b"), "w1"))
    assert cold - warm == 9_000


# --- attend


async def test_a_client_attends(fabric: Fabric) -> None:
    async def attend() -> bool:
        return await fabric.broker.attend(
            "c1", "My App", inbox_ttl_ms=TTL_MS, app_fields={"host": "laptop"}, app_ttl_ms=TTL_MS
        )

    assert await attend()
    assert not await attend()
    keys = fabric.keys
    assert await fabric.call("HMGET", keys.app("My App"), "name", "host") == [b"My App", b"laptop"]
    assert await fabric.members(keys.apps) == ["My App"]
    for key in (keys.app("My App"), keys.inbox("c1")):
        assert TTL_MS - 5_000 < await fabric.call("PTTL", key) <= TTL_MS
    await fabric.broker.drop_inbox("c1")
    assert await attend()


async def test_an_app_not_seen_for_a_week_is_forgotten(fabric: Fabric) -> None:
    await fabric.call("ZADD", fabric.keys.apps, 1, "old")
    await fabric.broker.attend("c1", "new", inbox_ttl_ms=TTL_MS, app_fields={}, app_ttl_ms=TTL_MS)
    assert await fabric.members(fabric.keys.apps) == ["new"]
