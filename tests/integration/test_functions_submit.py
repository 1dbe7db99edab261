"""submit: a job comes in once, and somebody is woken for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric_kit import TTL_MS, Fabric, fabric_at
from sollol_broker import BrokerUnavailable, Requires
from sollol_broker.broker import Lease


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


async def test_a_job_lies_in_its_queue(fabric: Fabric) -> None:
    await fabric.worker()
    before = await fabric.now_ms()
    assert await fabric.submit("j1", priority=5, stream=True, inbox="c1", deadline_ms=9_000) == ["queued", 0]
    after = await fabric.now_ms()
    job = await fabric.job("j1")
    assert {
        name: job[name] for name in ("state", "model", "queue", "app", "priority", "stream", "inbox")
    } == {
        **{"state": "queued", "model": "m", "queue": "m", "app": "tests"},
        **{"priority": "5", "stream": "1", "inbox": "c1"},
    }
    assert await fabric.body("j1") == {"env": b"envelope of j1"}
    assert "envelope" not in str(job)  # who may read records need not be let read prompts
    assert before <= float(job["submitted"]) <= after
    # The first job of its queue, of normal priority: 108 prompt tokens of 1 ms and 100 of 10 ms.
    assert float(job["rank"]) == 0
    assert job["fair"].startswith("1108.000|0.000|1|")
    assert float(job["deadline"]) == pytest.approx(float(job["submitted"]) + 9_000, abs=0.002)
    assert await fabric.queue() == ["j1"]
    assert await fabric.members(fabric.keys.deadlines) == ["j1"]
    assert await fabric.stat("submitted") == 1
    assert await fabric.call("EXISTS", fabric.keys.events("j1")) == 0


async def test_the_same_id_again_changes_nothing(fabric: Fabric) -> None:
    await fabric.worker()
    await fabric.submit("j1")
    before = await fabric.job("j1")
    assert await fabric.submit("j1", envelope=b"another", priority=10) == ["known", "queued"]
    assert await fabric.job("j1") == before
    assert await fabric.queue() == ["j1"]
    await fabric.claim_one()
    assert await fabric.submit("j1") == ["known", "running"]
    assert await fabric.broker.cancel("j1") == "cancelled"
    assert await fabric.submit("j1") == ["known", "cancelled"]
    assert await fabric.queue() == []
    assert await fabric.stat("submitted") == 1


async def test_no_worker_serves_the_model(fabric: Fabric) -> None:
    await fabric.worker(models=["other"])
    assert await fabric.submit("j1") == ["no_node"]
    assert await fabric.job("j1") == {}
    assert await fabric.submit("j1", without_node=True) == ["queued", 0]
    assert await fabric.queue() == ["j1"]


async def test_a_worker_whose_advert_has_run_out_does_not_count(fabric: Fabric) -> None:
    await fabric.worker()
    await fabric.call("ZADD", fabric.keys.serves("m"), 1, "w1")
    assert await fabric.submit("j1") == ["no_node"]


async def test_pictures_lie_beside_the_envelope_and_go_with_it(fabric: Fabric) -> None:
    await fabric.worker()
    blobs = (b"\x89PNG\0\r\n", b"", b"\xff" * 1000)
    await fabric.submit("j1", blobs=blobs)
    claimed = await fabric.claim_one()
    assert claimed.blobs == 3
    assert await fabric.broker.blobs(Lease("j1", 1, "n"), 3) == list(blobs)
    await fabric.broker.finish(claimed.lease, b"answer")
    assert await fabric.broker.blobs(Lease("j1", 1, "n"), 3) == []


@pytest.mark.parametrize("job_id", ["", "a b", "a|b", "a:b", "a}b", "a\nb", "ä"])
async def test_an_id_that_could_be_read_as_something_else(fabric: Fabric, job_id: str) -> None:
    await fabric.worker()
    with pytest.raises(BrokerUnavailable, match="a job id is of"):
        await fabric.submit(job_id)
    assert await fabric.queue() == []


async def test_what_is_no_member_of_a_queue_does_not_stop_it(fabric: Fabric) -> None:
    await fabric.worker()
    await fabric.call("ZADD", fabric.keys.queue("m"), -1, "garbage")
    await fabric.submit("j1")
    assert (await fabric.claim_one()).lease.job_id == "j1"
    assert await fabric.queue() == []


async def test_a_job_of_another_fabric_is_not_ours(fabric: Fabric, redis_url: str) -> None:
    async with fabric_at(f"{redis_url}?fabric=other") as other:
        await fabric.worker()
        await other.worker()
        await other.submit("j1")
        assert await fabric.claim() == []
        assert (await other.claim_one()).lease.job_id == "j1"


async def test_requirements_travel_with_the_job(fabric: Fabric) -> None:
    await fabric.worker()
    await fabric.submit("j1", requires=Requires(labels=["eu"]))
    assert await fabric.claim(labels=("us",)) == []
    assert (await fabric.claim_one(labels=("us", "eu"))).lease.job_id == "j1"


async def test_a_record_is_gone_after_its_time(fabric: Fabric) -> None:
    await fabric.worker()
    await fabric.submit("j1", stream=True)
    assert await fabric.call("PTTL", fabric.keys.job("j1")) == -1
    claimed = await fabric.claim_one()
    assert await fabric.broker.finish(claimed.lease, b"answer")
    for key in (fabric.keys.job("j1"), fabric.keys.events("j1")):
        assert TTL_MS - 5_000 < await fabric.call("PTTL", key) <= TTL_MS


@pytest.mark.parametrize(
    "needs", [b"\xc1", b"\x01", b"\xa3abc", b"\x81\xa6labels\x01", b"\x81\xa8vram_mib\xa1x"]
)
async def test_requirements_that_no_worker_could_read(fabric: Fabric, needs: bytes) -> None:
    await fabric.worker()
    with pytest.raises(BrokerUnavailable, match="the requirements are malformed"):
        await fabric.submit("j1", needs=needs)
    assert await fabric.job("j1") == {}


@pytest.mark.parametrize(
    "wrong",
    [{"head_start_ms": "x"}, {"deadline_ms": "x"}, {"result_ttl_ms": "x"}, {"prompt_chars": "x"}],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_a_number_that_is_none_writes_nothing(fabric: Fabric, wrong: dict[str, Any]) -> None:
    await fabric.worker()
    with pytest.raises(BrokerUnavailable):
        await fabric.submit("j1", **wrong)
    assert await fabric.job("j1") == {}
    assert await fabric.queue() == []
    assert await fabric.members(fabric.keys.deadlines) == []
