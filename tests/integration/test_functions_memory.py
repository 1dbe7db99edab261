"""A full Redis refuses new jobs, and lets all the others come to their end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fabric_kit import LEASE_MS, TTL_MS, Fabric, fabric_at, ids
from sollol_broker import QueueFull
from sollol_broker.embedded import EmbeddedBroker


@pytest.fixture
async def fabric() -> AsyncIterator[Fabric]:
    with EmbeddedBroker(appendonly=False) as server:
        async with fabric_at(server.url) as fabric:
            await fabric.worker("w1")
            await fabric.worker("w2")
            yield fabric
            await _set_maxmemory(fabric, 0)


async def _set_maxmemory(fabric: Fabric, size: int) -> None:
    await fabric.call("CONFIG", "SET", "maxmemory", size)


async def _used_memory(fabric: Fabric) -> int:
    info = (await fabric.call("INFO", "memory")).decode()
    return int(info.partition("used_memory:")[2].split()[0])


async def test_submit_refuses_before_the_memory_is_full(fabric: Fabric) -> None:
    await _set_maxmemory(fabric, int(await _used_memory(fabric) / 0.9))
    assert await fabric.submit("j1") == ["full", "memory", 5000]
    assert await fabric.job("j1") == {}
    assert await fabric.queue() == []
    await _set_maxmemory(fabric, await _used_memory(fabric) * 2)
    await fabric.call("HSET", fabric.keys.limits, "looked", 1)
    assert await fabric.submit("j1") == ["queued", 0]


async def test_a_job_that_is_already_known_is_never_refused(fabric: Fabric) -> None:
    await fabric.submit("j1")
    await _set_maxmemory(fabric, int(await _used_memory(fabric) / 0.9))
    assert await fabric.submit("j1") == ["known", "queued"]


async def test_the_memory_is_looked_at_a_few_times_a_second(fabric: Fabric) -> None:
    now = await fabric.now_ms()
    await fabric.call("HSET", fabric.keys.limits, "looked", now + 200, "full", "1")
    assert await fabric.submit("j1") == ["full", "memory", 5000]
    await fabric.call("HSET", fabric.keys.limits, "looked", now - 400)
    assert await fabric.submit("j1") == ["queued", 0]


async def test_a_look_from_before_the_clock_stepped_back_is_not_trusted(fabric: Fabric) -> None:
    await fabric.call("HSET", fabric.keys.limits, "looked", await fabric.now_ms() + 7_200_000, "full", "1")
    assert await fabric.submit("j1") == ["queued", 0]


async def test_when_memory_is_full_all_but_submit_goes_on(fabric: Fabric) -> None:
    broker = fabric.broker
    for number in range(6):
        await fabric.submit(f"j{number}", stream=True, inbox="c1")
    leases = [each.lease for each in await fabric.claim("w1", free=4)]
    await _set_maxmemory(fabric, 1)

    with pytest.raises(QueueFull, match="no memory left") as caught:
        await fabric.submit("refused")
    assert caught.value.retry_after > 0

    assert await broker.attend("c1", "app", inbox_ttl_ms=TTL_MS, app_fields={}, app_ttl_ms=TTL_MS)
    assert not await fabric.worker("w1")
    assert ids(await fabric.claim("w2")) == ["j4"]
    assert await broker.renew(leases, LEASE_MS, patience_seconds=1) == []
    assert await broker.emit(leases[0], 1, b"piece")
    finished = await broker.finish(leases[0], b"answer", fabric.request("w1"))
    assert finished.taken
    assert ids(finished.claims) == ["j5"]
    assert await broker.fail(leases[1], b"error", retry=True, most_errors=3, backoff_ms=60_000) == "retry"
    assert await broker.fail(leases[2], b"error", retry=False, most_errors=3, backoff_ms=0) == "end"
    assert await broker.release(leases[3])
    assert await broker.cancel("j3") == "cancelled"
    await _set_maxmemory(fabric, 0)  # the test's own write needs room
    await fabric.expire_lease("j4")
    await _set_maxmemory(fabric, 1)
    assert await fabric.reap() == (1, 0, 0)
    await broker.leave("w2")
    states = [await fabric.state(f"j{number}") for number in range(6)]
    assert states == ["done", "queued", "failed", "cancelled", "queued", "running"]


async def test_functions_that_cannot_be_loaded_for_lack_of_memory(fabric: Fabric) -> None:
    await fabric.call("FUNCTION", "FLUSH")
    await _set_maxmemory(fabric, 1)
    with pytest.raises(QueueFull, match="no memory left"):
        await fabric.submit("j1")
    await _set_maxmemory(fabric, 0)
    assert await fabric.submit("j1") == ["queued", 0]
