"""claim: who gets which job, and who waits in line for the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric_kit import LEASE_MS, Fabric, fabric_at, ids, node_of
from sollol_broker import Claimed, LaneOffer, ModelOffer, Requires


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        await fabric.worker("w1")
        yield fabric


async def test_a_claimed_job_is_leased(fabric: Fabric) -> None:
    await fabric.submit("j1", stream=True, inbox="c1", deadline_ms=9_000)
    request = fabric.request()
    (claimed,) = await fabric.claim_with(request)
    assert (claimed.lease.job_id, claimed.lease.fence, claimed.lease.nonce) == ("j1", 1, request.nonce)
    assert (claimed.attempt, claimed.blobs, claimed.envelope) == (1, 0, b"envelope of j1")
    assert 0 <= claimed.waited_ms < 5_000
    assert claimed.deadline_ms is not None
    assert 0 < claimed.deadline_ms <= 9_000
    job = await fabric.job("j1")
    assert (job["state"], job["worker"], job["node"], job["fence"]) == ("running", "w1", node_of("w1"), "1")
    assert await fabric.queue() == []
    lease = float(await fabric.call("ZSCORE", fabric.keys.leases, "j1"))
    assert lease == pytest.approx(float(job["claimed"]) + LEASE_MS, abs=0.002)
    assert await fabric.entries(fabric.keys.events("j1")) == [
        {"t": "start", "f": "1", "n": node_of("w1"), "w": "w1"}
    ]


async def test_a_job_that_is_not_streamed_writes_no_start(fabric: Fabric) -> None:
    await fabric.submit("j1")
    await fabric.claim_one()
    assert await fabric.entries(fabric.keys.events("j1")) == []


async def test_higher_priority_is_served_first(fabric: Fabric) -> None:
    for priority in (1, 5, 10, 3, 7):
        await fabric.submit(f"p{priority}", priority=priority)
    assert ids(await fabric.claim(free=5)) == ["p10", "p7", "p5", "p3", "p1"]


async def test_equal_priorities_are_served_in_the_order_they_came(fabric: Fabric) -> None:
    names = [f"j{(number * 7) % 20}" for number in range(20)]
    for name in names:
        await fabric.submit(name)
    assert ids(await fabric.claim(free=20)) == names


async def test_an_old_job_is_not_overtaken_for_ever(fabric: Fabric) -> None:
    await fabric.submit("old", priority=5)
    (member,) = await fabric.call("ZRANGE", fabric.keys.queue("m"), 0, -1)
    await fabric.call("ZINCRBY", fabric.keys.queue("m"), -16_000, member)  # as if it had come 16 s ago
    await fabric.submit("new", priority=10)
    assert ids(await fabric.claim(free=2)) == ["old", "new"]


async def test_a_shorter_job_goes_first_among_equals(fabric: Fabric) -> None:
    await fabric.submit("usual")
    await fabric.broker.finish((await fabric.claim_one()).lease, b"answer", used=fabric.used())
    await fabric.submit("long", output_cap=250)
    await fabric.submit("short", output_cap=10)
    assert ids(await fabric.claim(free=2)) == ["short", "long"]


async def test_a_warm_model_before_a_cold_one(fabric: Fabric) -> None:
    await fabric.worker(models=["cold", "m"])
    await fabric.submit("c", model="cold", priority=10)
    await fabric.submit("w", priority=1)
    models = {"cold": 5_000.0, "m": 0.0}
    assert ids(await fabric.claim(models=models)) == ["w"]
    assert ids(await fabric.claim(models=models)) == ["c"]


async def test_the_same_nonce_gives_the_same_jobs_again(fabric: Fabric) -> None:
    for name in ("j1", "j2", "j3"):
        await fabric.submit(name, deadline_ms=9_000)
    request = fabric.request(free=2)
    first = await fabric.claim_with(request)
    again = await fabric.claim_with(request)
    assert [each.lease for each in again] == [each.lease for each in first]
    assert [each.envelope for each in again] == [each.envelope for each in first]
    assert await fabric.queue() == ["j3"]
    await fabric.broker.finish(first[0].lease, b"answer")
    assert ids(await fabric.claim_with(request)) == ["j2"]


async def test_a_repeated_claim_of_a_job_past_its_deadline_has_no_time_left(fabric: Fabric) -> None:
    await fabric.submit("j1", deadline_ms=9_000)
    request = fabric.request()
    await fabric.broker.claim(request)
    await fabric.call("HSET", fabric.keys.job("j1"), "deadline", "1.000")
    (again,) = await fabric.claim_with(request)
    assert again.deadline_ms == 0


async def test_two_workers_never_get_the_same_job(fabric: Fabric) -> None:
    workers = [f"w{number}" for number in range(10)]
    for worker in workers:
        await fabric.worker(worker)
    for number in range(100):
        await fabric.submit(f"j{number}")
    claimed = await asyncio.gather(*(fabric.claim(worker, free=15) for worker in workers))
    taken = [job_id for each in claimed for job_id in ids(each)]
    assert sorted(taken) == sorted(f"j{number}" for number in range(100))


async def test_an_unknown_worker_has_to_advertise_first(fabric: Fabric) -> None:
    await fabric.submit("j1")
    assert await fabric.broker.claim(fabric.request("stranger")) is None
    assert await fabric.queue() == ["j1"]


def _lane(free: int, *models: str) -> LaneOffer:
    return LaneOffer(free, tuple(ModelOffer(model, 0.0, 1.0, 10.0) for model in models))


async def test_no_lane_gets_more_than_it_has_room_for(fabric: Fabric) -> None:
    await fabric.worker(models=["a", "b"])
    for number in range(4):
        await fabric.submit(f"a{number}", model="a")
        await fabric.submit(f"b{number}", model="b")
    claimed = await fabric.claim(lanes=(_lane(1, "a"), _lane(2, "b"), _lane(0, "a", "b")), most=10)
    assert ids(claimed) == ["a0", "b0", "b1"]


async def test_no_worker_gets_more_than_it_can_start(fabric: Fabric) -> None:
    await fabric.worker(models=["a", "b"])
    for number in range(4):
        await fabric.submit(f"a{number}", model="a")
        await fabric.submit(f"b{number}", model="b")
    claimed = ids(await fabric.claim(lanes=(_lane(2, "a"), _lane(2, "b")), most=3))
    assert claimed in (["a0", "a1", "b0"], ["b0", "b1", "a0"])
    assert await fabric.claim(lanes=(_lane(2, "a"), _lane(2, "b")), most=0) == []
    assert await fabric.members(fabric.keys.idle("a")) == []


async def test_lanes_that_share_a_slot_have_it_in_turn(fabric: Fabric) -> None:
    await fabric.worker(models=["a", "b"])
    for number in range(40):
        await fabric.submit(f"a{number}", model="a")
    await fabric.submit("b", model="b")
    taken: list[str] = []
    while "b" not in taken:
        (claimed,) = await fabric.claim(lanes=(_lane(1, "a"), _lane(1, "b")), most=1)
        taken.append(claimed.lease.job_id)
        await fabric.broker.finish(claimed.lease, b"answer")
    assert len(taken) < 40, "a coin is tossed for each claim: so often the other side is no chance"


@pytest.mark.parametrize("lanes", [(("a",), ("b",)), (("b",), ("a",)), (("a", "b"),)])
async def test_batch_work_lets_others_pass_whatever_their_model(
    fabric: Fabric, lanes: tuple[tuple[str, ...], ...]
) -> None:
    await fabric.worker(models=["a", "b"])
    for number in range(3):
        await fabric.submit(f"batch{number}", model="a", priority=1, prompt_chars=4)
    await fabric.submit("chat", model="b", priority=5, prompt_chars=40_000)
    (claimed,) = await fabric.claim(lanes=tuple(_lane(1, *models) for models in lanes), most=1)
    assert claimed.lease.job_id == "chat"
    await fabric.submit("chat2", model="b", priority=5)
    (member, *_) = await fabric.call("ZRANGE", fabric.keys.queue("a"), 0, -1)
    job_id, prompt, output, submitted, *rest = member.decode().split("|")
    old = "|".join((job_id, prompt, output, str(int(submitted) - 300_000), *rest))
    await fabric.call("ZREM", fabric.keys.queue("a"), member)
    await fabric.call("ZADD", fabric.keys.queue("a"), 0, old)
    await fabric.call("HSET", fabric.keys.job(job_id), "member", old)
    if len(lanes) == 1:  # it has been passed over for long enough
        (claimed,) = await fabric.claim(lanes=(_lane(1, "a", "b"),), most=1)
        assert claimed.lease.job_id == job_id


async def test_two_lanes_share_one_queue(fabric: Fabric) -> None:
    for number in range(3):
        await fabric.submit(f"j{number}")
    assert ids(await fabric.claim(lanes=(_lane(1, "m"), _lane(1, "m")), most=2)) == ["j0", "j1"]


async def test_a_worker_with_room_waits_in_line(fabric: Fabric) -> None:
    await fabric.worker(models=["a", "b"])
    assert await fabric.claim(lanes=(_lane(1, "a"), _lane(0, "b")), most=2) == []
    assert await fabric.members(fabric.keys.idle("a")) == ["w1"]
    assert await fabric.members(fabric.keys.idle("b")) == []
    assert 0 < await fabric.call("PTTL", fabric.keys.idle("a")) <= 60_000


async def test_a_full_worker_leaves_the_line(fabric: Fabric) -> None:
    assert await fabric.claim() == []
    await fabric.submit("j1")
    assert ids(await fabric.claim()) == ["j1"]
    assert await fabric.members(fabric.keys.idle("m")) == []
    await fabric.submit("j2")
    assert ids(await fabric.claim(free=2)) == ["j2"]
    assert await fabric.members(fabric.keys.idle("m")) == ["w1"]  # one slot is still free


async def test_a_lane_does_not_wait_when_another_used_up_the_last_slot(fabric: Fabric) -> None:
    await fabric.worker(models=["a", "b"])
    await fabric.submit("b1", model="b")
    assert ids(await fabric.claim(lanes=(_lane(1, "a"), _lane(1, "b")), most=1)) == ["b1"]
    assert await fabric.members(fabric.keys.idle("a")) == []


async def test_a_job_past_its_deadline_is_never_handed_out(fabric: Fabric) -> None:
    await fabric.submit("late", deadline_ms=9_000, inbox="c1")
    await fabric.call("HSET", fabric.keys.job("late"), "deadline", "1.000")
    await fabric.submit("j1")
    assert ids(await fabric.claim()) == ["j1"]
    assert await fabric.state("late") == "expired"
    assert await fabric.entries(fabric.keys.events("late")) == [
        {"t": "end", "x": "expired", "f": "0", "d": ""}
    ]


@pytest.mark.parametrize(
    ("requires", "more", "taken"),
    [
        (Requires(vram_gb=8), {"vram_mib": 8_191}, False),
        (Requires(vram_gb=8), {"vram_mib": 8_192}, True),
        (Requires(labels=["eu", "fast"]), {"labels": ("eu",)}, False),
        (Requires(labels=["eu", "fast"]), {"labels": ("fast", "eu", "x")}, True),
        (Requires(node=node_of("w2")), {}, False),
        (Requires(node=node_of("w1")), {}, True),
    ],
)
async def test_only_a_worker_that_fits_gets_the_job(
    fabric: Fabric, requires: Requires, more: dict[str, Any], taken: bool
) -> None:
    await fabric.submit("picky", requires=requires)
    await fabric.submit("plain")
    assert ids(await fabric.claim(free=2, **more)) == (["picky", "plain"] if taken else ["plain"])
    assert await fabric.queue() == ([] if taken else ["picky"])


async def test_a_node_that_failed_a_job_leaves_it_to_others(fabric: Fabric) -> None:
    await fabric.worker("w2")
    await fabric.submit("j1")
    claimed = await fabric.claim_one("w1")
    assert await _fail(fabric, claimed) == "retry"
    assert await fabric.claim("w1") == []
    assert (await fabric.claim_one("w2")).attempt == 2


async def test_a_node_that_failed_a_job_takes_it_when_it_is_alone(fabric: Fabric) -> None:
    await fabric.worker("w2")
    await fabric.submit("j1")
    assert await _fail(fabric, await fabric.claim_one("w1")) == "retry"
    await fabric.broker.leave("w2")
    assert (await fabric.claim_one("w1")).attempt == 2


async def test_a_node_is_told_from_another_by_its_whole_name(fabric: Fabric) -> None:
    await fabric.worker("w1", node="Box|A")
    await fabric.worker("w2", node="A")
    await fabric.submit("j1")
    assert await _fail(fabric, await fabric.claim_one("w1", node="Box|A")) == "retry"
    assert await fabric.claim("w1", node="Box|A") == []
    assert (await fabric.claim_one("w2", node="A")).attempt == 2


async def _fail(fabric: Fabric, claimed: Claimed) -> str:
    lease = claimed.lease
    return await fabric.broker.fail(lease, b"error", retry=True, most_errors=3, backoff_ms=60_000)


async def test_a_job_behind_many_that_are_for_others_is_found(fabric: Fabric) -> None:
    for number in range(300):
        await fabric.submit(f"j{number}", requires=Requires(labels=["eu"]))
    for number in range(3):
        await fabric.submit(f"last{number}")
    # 128 at a time: a claim costs the same, however long the queue is.
    assert [ids(await fabric.claim()) for _ in range(5)] == [[], [], ["last0"], ["last1"], ["last2"]]
    assert [ids(await fabric.claim()) for _ in range(3)] == [[], [], []]
    await fabric.submit("first", priority=10)
    assert ids(await fabric.claim()) == ["first"]


async def test_a_job_is_not_left_for_ever_to_nodes_that_lack_what_it_requires(fabric: Fabric) -> None:
    await fabric.worker("w2")
    await fabric.submit("j1", requires=Requires(labels=["eu"]))
    assert await _fail(fabric, await fabric.claim_one("w1", labels=("eu",))) == "retry"
    assert await fabric.claim("w2", labels=("us",)) == []
    assert await fabric.claim("w1", labels=("eu",)) == []
    await fabric.call("HSET", fabric.keys.job("j1"), "failed_at", await fabric.now_ms() - 30_000)
    assert await fabric.claim("w2", labels=("us",)) == []
    assert (await fabric.claim_one("w1", labels=("eu",))).attempt == 2
