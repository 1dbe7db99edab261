"""emit, finish, release, renew, cancel: only who holds the job may speak for it, and only until it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from fabric_kit import LEASE_MS, TTL_MS, Fabric, fabric_at, ids, node_of
from sollol_broker import Lease


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        await fabric.worker("w1")
        await fabric.worker("w2")
        await fabric.broker.attend("c1", "tests", inbox_ttl_ms=TTL_MS, app_fields={}, app_ttl_ms=TTL_MS)
        yield fabric


async def _running(fabric: Fabric, job_id: str = "j1", worker: str = "w1", **more: Any) -> Lease:
    await fabric.submit(job_id, inbox="c1", **more)
    return (await fabric.claim_one(worker)).lease


async def _inbox(fabric: Fabric, kind: str) -> list[dict[str, str]]:
    return [entry for entry in await fabric.entries(fabric.keys.inbox("c1")) if entry["t"] == kind]


async def _last_event(fabric: Fabric) -> str:
    """The id of the newest entry of j1's events; entries in inboxes name it as `e`."""
    ((entry_id, _),) = await fabric.call("XREVRANGE", fabric.keys.events("j1"), "+", "-", "COUNT", 1)
    return str(entry_id.decode())


def _strangers(lease: Lease) -> list[Lease]:
    return [
        replace(lease, fence=lease.fence - 1),
        replace(lease, fence=lease.fence + 1),
        replace(lease, nonce="somebodyelse"),
        replace(lease, job_id="nosuchjob"),
    ]


# --- emit


async def test_a_piece_goes_to_the_followers_and_to_the_submitter(fabric: Fabric) -> None:
    lease = await _running(fabric, stream=True)
    assert await fabric.broker.emit(lease, 1, b"Hel")
    assert await fabric.broker.emit(lease, 2, b"lo")
    events = await fabric.entries(fabric.keys.events("j1"))
    assert events[1:] == [
        {"t": "piece", "f": "1", "s": "1", "d": "Hel"},
        {"t": "piece", "f": "1", "s": "2", "d": "lo"},
    ]
    assert (await _inbox(fabric, "piece"))[-1]["e"] == await _last_event(fabric)
    assert [(entry["j"], entry["s"], entry["d"]) for entry in await _inbox(fabric, "piece")] == [
        ("j1", "1", "Hel"),
        ("j1", "2", "lo"),
    ]
    assert float((await fabric.job("j1"))["first"]) >= float((await fabric.job("j1"))["claimed"])


async def test_a_piece_again_is_shown_once(fabric: Fabric) -> None:
    lease = await _running(fabric, stream=True)
    for seq in (1, 2, 2, 1, 3):
        assert await fabric.broker.emit(lease, seq, b"x")
    assert [entry["s"] for entry in await _inbox(fabric, "piece")] == ["1", "2", "3"]


async def test_a_piece_behind_one_that_redis_has_lost_waits_for_that_one(fabric: Fabric) -> None:
    lease = await _running(fabric, stream=True)
    assert await fabric.broker.emit(lease, 1, b"x") == 1
    assert await fabric.broker.emit(lease, 4, b"z") == -2
    assert [await fabric.broker.emit(lease, seq, b"y") for seq in (2, 3, 4)] == [1, 1, 1]
    assert [entry["s"] for entry in await _inbox(fabric, "piece")] == ["1", "2", "3", "4"]


async def test_a_job_that_is_not_streamed_does_not_fill_the_inbox(fabric: Fabric) -> None:
    lease = await _running(fabric)
    assert await fabric.broker.emit(lease, 1, b"x")
    assert await _inbox(fabric, "piece") == []
    assert len(await fabric.entries(fabric.keys.events("j1"))) == 1


async def test_a_piece_of_a_stranger_is_refused(fabric: Fabric) -> None:
    lease = await _running(fabric, stream=True)
    for stranger in _strangers(lease):
        assert not await fabric.broker.emit(stranger, 1, b"x")
    assert await _inbox(fabric, "piece") == []


async def test_each_attempt_counts_its_pieces_anew(fabric: Fabric) -> None:
    lease = await _running(fabric, stream=True)
    await fabric.broker.emit(lease, 1, b"x")
    await fabric.broker.emit(lease, 2, b"y")
    await fabric.broker.release(lease)
    again = (await fabric.claim_one("w2")).lease
    assert await fabric.broker.emit(again, 1, b"z")
    assert [(entry["f"], entry["s"]) for entry in await _inbox(fabric, "piece")] == [
        ("1", "1"),
        ("1", "2"),
        ("2", "1"),
    ]


# --- finish


async def test_an_answer_ends_the_job(fabric: Fabric) -> None:
    lease = await _running(fabric, deadline_ms=9_000, blobs=(b"picture",))
    finished = await fabric.broker.finish(lease, b"answer")
    assert (finished.taken, ids(finished.claims)) == (True, [])
    end = {"t": "end", "x": "done", "f": "1", "d": "answer"}
    assert (await fabric.entries(fabric.keys.events("j1")))[-1] == end
    assert await _inbox(fabric, "end") == [{**end, "j": "j1", "e": await _last_event(fabric)}]
    job = await fabric.job("j1")
    assert job["state"] == "done"
    assert not {"requires", "member"} & set(job)
    assert await fabric.body("j1") == {}
    assert await fabric.members(fabric.keys.leases) == []
    assert await fabric.members(fabric.keys.deadlines) == []
    assert await fabric.call("LRANGE", fabric.keys.ended, 0, -1) == [b"j1"]
    assert await fabric.stat("done") == 1
    tally = await fabric.call("HGETALL", fabric.keys.tally(node_of("w1")))
    assert tally[tally.index(b"done") + 1] == b"1"
    assert await fabric.call("PTTL", fabric.keys.tally(node_of("w1"))) > 0


async def test_the_tally_of_an_oddly_named_node_is_found_again(fabric: Fabric) -> None:
    await fabric.worker("w3", node="Gpu:Box")
    await fabric.submit("j1")
    lease = (await fabric.claim_one("w3", node="Gpu:Box")).lease
    await fabric.broker.finish(lease, b"answer")
    assert await fabric.call("HGET", fabric.keys.tally("Gpu:Box"), "done") == b"1"


async def test_an_answer_again_is_taken_once(fabric: Fabric) -> None:
    lease = await _running(fabric)
    for _ in range(3):
        assert (await fabric.broker.finish(lease, b"answer")).taken
    assert len(await _inbox(fabric, "end")) == 1
    assert await fabric.stat("done") == 1


async def test_a_second_answer_does_not_replace_the_first(fabric: Fabric) -> None:
    lease = await _running(fabric)
    await fabric.broker.finish(lease, b"first")
    for stranger in _strangers(lease):
        assert not (await fabric.broker.finish(stranger, b"second")).taken
    assert [entry["d"] for entry in await _inbox(fabric, "end")] == ["first"]


async def test_an_answer_of_a_stranger_is_refused(fabric: Fabric) -> None:
    lease = await _running(fabric)
    for stranger in _strangers(lease):
        assert not (await fabric.broker.finish(stranger, b"answer")).taken
    assert await fabric.state("j1") == "running"


async def test_a_late_answer_does_not_revive_a_dead_lease(fabric: Fabric) -> None:
    zombie = await _running(fabric)
    await fabric.expire_lease("j1")
    assert await fabric.reap() == (1, 0, 0)
    assert not (await fabric.broker.finish(zombie, b"zombie")).taken
    owner = (await fabric.claim_one("w2")).lease
    assert owner.fence == 2
    assert not (await fabric.broker.finish(zombie, b"zombie")).taken
    assert not await fabric.broker.emit(zombie, 1, b"zombie")
    assert await fabric.broker.renew([zombie], LEASE_MS, patience_seconds=1) == ["j1"]
    assert not await fabric.broker.release(zombie)
    assert await _fail(fabric, zombie) == "stale"
    assert (await fabric.broker.finish(owner, b"owner")).taken
    assert [entry["d"] for entry in await _inbox(fabric, "end")] == ["owner"]


async def test_a_counter_that_rolled_back_does_not_let_a_zombie_in(fabric: Fabric) -> None:
    zombie = await _running(fabric)
    await fabric.broker.release(zombie)
    await fabric.call("HSET", fabric.keys.job("j1"), "top", "0")  # Redis came back without its last second
    owner = (await fabric.claim_one("w2")).lease
    assert owner.fence == zombie.fence
    assert not (await fabric.broker.finish(zombie, b"zombie")).taken
    assert (await fabric.broker.finish(owner, b"owner")).taken
    assert not (await fabric.broker.finish(zombie, b"zombie")).taken


async def test_finish_takes_the_next_job_in_the_same_call(fabric: Fabric) -> None:
    lease = await _running(fabric)
    await fabric.submit("j2")
    request = fabric.request("w1")
    finished = await fabric.broker.finish(lease, b"answer", request)
    assert finished.taken
    assert ids(finished.claims) == ["j2"]
    again = await fabric.broker.finish(lease, b"answer", request)  # its reply was lost
    assert again.taken
    assert again.claims is not None
    assert finished.claims is not None
    assert [each.lease for each in again.claims.jobs] == [each.lease for each in finished.claims.jobs]
    assert await fabric.state("j2") == "running"


async def test_finish_waits_in_line_when_there_is_nothing_more(fabric: Fabric) -> None:
    lease = await _running(fabric)
    assert ids((await fabric.broker.finish(lease, b"answer", fabric.request("w1"))).claims) == []
    assert await fabric.members(fabric.keys.idle("m")) == ["w1"]


async def test_finish_by_a_worker_whose_advert_ran_out_keeps_the_answer(fabric: Fabric) -> None:
    lease = await _running(fabric)
    await fabric.call("DEL", fabric.keys.worker("w1"))
    finished = await fabric.broker.finish(lease, b"answer", fabric.request("w1"))
    assert finished.taken
    assert finished.claims is None
    assert await fabric.state("j1") == "done"


async def test_a_submitter_that_is_gone_gets_no_new_inbox(fabric: Fabric) -> None:
    lease = await _running(fabric)
    await fabric.broker.drop_inbox("c1")
    assert (await fabric.broker.finish(lease, b"answer")).taken
    assert await fabric.call("EXISTS", fabric.keys.inbox("c1")) == 0


# --- release


async def test_a_released_job_is_back_at_its_place_without_blame(fabric: Fabric) -> None:
    lease = await _running(fabric)
    rank = (await fabric.job("j1"))["rank"]
    await fabric.submit("j2")
    assert await fabric.broker.release(lease)
    assert await fabric.queue() == ["j1", "j2"]
    (_, score) = (await fabric.call("ZRANGE", fabric.keys.queue("m"), 0, 0, "WITHSCORES"))[:2]
    assert float(score) == float(rank)
    job = await fabric.job("j1")
    assert (job["state"], job["releases"]) == ("queued", "1")
    assert not {"crashes", "errors", "nonce", "worker"} & set(job)
    assert await fabric.members(fabric.keys.leases) == []
    assert not await fabric.broker.release(lease)
    assert await fabric.queue() == ["j1", "j2"]
    assert (await fabric.claim_one("w1")).lease.job_id == "j1"


async def test_a_released_job_wakes_another_before_the_one_that_gave_it_back(fabric: Fabric) -> None:
    lease = await _running(fabric)
    await fabric.claim("w1", output_ms=1.0)
    await fabric.claim("w2", output_ms=50.0)
    await fabric.broker.release(lease)
    assert (await fabric.bells("w1"), await fabric.bells("w2")) == (0, 1)


# --- renew


async def test_renew_keeps_what_is_ours_and_names_what_is_not(fabric: Fabric) -> None:
    first, second = await _running(fabric, "j1"), await _running(fabric, "j2")
    third = replace(await _running(fabric, "j3"), nonce="somebodyelse")
    await fabric.call("ZADD", fabric.keys.leases, 1, "j1", 2, "j2", 3, "j3")
    lost = await fabric.broker.renew(
        [first, third, second, Lease("nosuchjob", 1, "x")], LEASE_MS, patience_seconds=1
    )
    assert lost == ["j3", "nosuchjob"]
    now = await fabric.now_ms()
    scores = {
        name: float(await fabric.call("ZSCORE", fabric.keys.leases, name)) for name in ("j1", "j2", "j3")
    }
    assert scores["j1"] == scores["j2"]
    assert now + LEASE_MS - 5_000 < scores["j1"] <= now + LEASE_MS
    assert scores["j3"] == 3
    assert await fabric.call("ZSCORE", fabric.keys.leases, "nosuchjob") is None


async def test_renew_of_nothing(fabric: Fabric) -> None:
    assert await fabric.broker.renew([], LEASE_MS, patience_seconds=1) == []


async def test_renew_does_not_revive_what_has_ended(fabric: Fabric) -> None:
    lease = await _running(fabric)
    await fabric.broker.finish(lease, b"answer")
    assert await fabric.broker.renew([lease], LEASE_MS, patience_seconds=1) == ["j1"]
    assert await fabric.members(fabric.keys.leases) == []


# --- cancel


async def test_cancel_of_a_waiting_job(fabric: Fabric) -> None:
    await fabric.submit("j1", inbox="c1", deadline_ms=9_000)
    assert await fabric.broker.cancel("j1") == "cancelled"
    assert await fabric.queue() == []
    end = {"t": "end", "j": "j1", "e": await _last_event(fabric), "x": "cancelled", "f": "0", "d": ""}
    assert await _inbox(fabric, "end") == [end]
    assert await fabric.broker.cancel("j1") == "cancelled"
    assert len(await _inbox(fabric, "end")) == 1
    assert await fabric.claim() == []


async def test_cancel_of_a_running_job_reaches_its_worker(fabric: Fabric) -> None:
    lease = await _running(fabric)
    assert await fabric.broker.cancel("j1") == "cancelled"
    told = [entry for entry in await fabric.entries(fabric.keys.inbox("w1")) if entry["t"] == "cancel"]
    assert told == [{"t": "cancel", "j": "j1", "f": "1"}]
    assert await fabric.members(fabric.keys.leases) == []
    assert not (await fabric.broker.finish(lease, b"too late")).taken
    assert await fabric.broker.renew([lease], LEASE_MS, patience_seconds=1) == ["j1"]
    assert [entry["x"] for entry in await _inbox(fabric, "end")] == ["cancelled"]


async def test_cancel_of_a_job_that_has_ended_tells_how(fabric: Fabric) -> None:
    lease = await _running(fabric)
    await fabric.broker.finish(lease, b"answer")
    assert await fabric.broker.cancel("j1") == "done"
    assert await fabric.broker.cancel("nosuchjob") == "unknown"
    assert await fabric.call("EXISTS", fabric.keys.job("nosuchjob")) == 0


async def test_cancel_of_a_job_that_waits_out_a_backoff(fabric: Fabric) -> None:
    await fabric.broker.leave("w2")
    lease = await _running(fabric)
    assert await _fail(fabric, lease) == "retry"
    assert await fabric.members(fabric.keys.delayed) == ["j1"]
    assert await fabric.broker.cancel("j1") == "cancelled"
    assert await fabric.members(fabric.keys.delayed) == []


# --- all at once


async def test_of_many_ends_at_once_exactly_one_counts(fabric: Fabric) -> None:
    lease = await _running(fabric)
    await fabric.expire_lease("j1")
    await asyncio.gather(
        *(fabric.broker.finish(lease, b"answer") for _ in range(5)),
        *(fabric.broker.cancel("j1") for _ in range(5)),
        *(_fail(fabric, lease, retry=False) for _ in range(5)),
        *(fabric.reap() for _ in range(5)),
        *(fabric.broker.release(lease) for _ in range(5)),
    )
    await fabric.broker.cancel("j1")
    assert len(await _inbox(fabric, "end")) == 1
    assert sum(entry["t"] == "end" for entry in await fabric.entries(fabric.keys.events("j1"))) == 1


async def _fail(fabric: Fabric, lease: Lease, *, retry: bool = True) -> str:
    return await fabric.broker.fail(lease, b"error", retry=retry, most_errors=3, backoff_ms=60_000)
