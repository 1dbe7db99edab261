"""One leader per term, and nobody else's orders count."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fabric_kit import Fabric, fabric_at
from sollol_broker.leader import Leadership, elect, write_group

LEASE_MS = 60_000


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


async def _elect(fabric: Fabric, candidate: str, lease_ms: int = LEASE_MS) -> Leadership:
    return await elect(fabric.broker, candidate, lease_ms, patience_seconds=1)


async def _lead(fabric: Fabric, candidate: str) -> int:
    term = (await _elect(fabric, candidate)).term
    assert term > 0, f"{candidate} was not elected"
    return term


async def _let_lease_end(fabric: Fabric) -> None:
    await fabric.call("HSET", fabric.keys.leader, "until", await fabric.now_ms() - 1)


async def _write(fabric: Fabric, who: str, term: int, url: str) -> bool:
    return await write_group(fabric.broker, who, term, "g1", ttl_ms=9_000, fields={"url": url})


async def _group(fabric: Fabric) -> dict[str, str]:
    flat = [each.decode() for each in await fabric.call("HGETALL", fabric.keys.group("g1"))]
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def test_the_first_to_ask_leads_and_the_others_learn_for_how_long(fabric: Fabric) -> None:
    term = await _lead(fabric, "a")
    other = await _elect(fabric, "b")
    assert (other.term, other.leader) == (0, "a")
    assert LEASE_MS - 1_000 < other.left_ms <= LEASE_MS
    assert await _elect(fabric, "a") == Leadership(term, LEASE_MS, "a")


async def test_a_leader_that_steps_down_makes_room_at_once(fabric: Fabric) -> None:
    term = await _lead(fabric, "a")
    nobody = Leadership(0, 0.0, "")
    assert (await _elect(fabric, "b", 0)).leader == "a"
    assert await _elect(fabric, "a", 0) == nobody
    assert await _elect(fabric, "a", 0) == nobody
    assert not await _write(fabric, "a", term, "x")
    assert await _lead(fabric, "b") > term


async def test_a_term_ends_with_its_lease_even_when_nobody_else_wants_it(fabric: Fabric) -> None:
    term = await _lead(fabric, "a")
    await _let_lease_end(fabric)
    assert not await _write(fabric, "a", term, "x")
    again = await _lead(fabric, "a")
    assert again > term
    assert not await _write(fabric, "a", term, "x")
    assert await _write(fabric, "a", again, "x")


async def test_orders_of_a_stale_leader_are_refused(fabric: Fabric) -> None:
    old = await _lead(fabric, "a")
    assert await _write(fabric, "a", old, "first")
    await _let_lease_end(fabric)
    new = await _lead(fabric, "b")
    for who, term in (("a", old), ("a", new), ("b", old), ("c", new), ("b", new + 1)):
        assert not await _write(fabric, who, term, "stale")
    assert await _group(fabric) == {"url": "first", "term": str(old)}
    assert await _write(fabric, "b", new, "second")
    assert await _write(fabric, "b", new, "second")
    assert await _group(fabric) == {"url": "second", "term": str(new)}
    assert 0 < await fabric.call("PTTL", fabric.keys.group("g1")) <= 9_000


@pytest.mark.parametrize("memory", ["none", "an older term"])
async def test_a_redis_that_comes_back_without_its_memory_gives_no_term_out_twice(
    fabric: Fabric, memory: str
) -> None:
    terms = [await _lead(fabric, "a")]
    before = await fabric.call("HGETALL", fabric.keys.leader)
    await _let_lease_end(fabric)
    terms.append(await _lead(fabric, "b"))
    await fabric.call("DEL", fabric.keys.leader)
    if memory == "an older term":
        await fabric.call("HSET", fabric.keys.leader, *before)
        assert (await _elect(fabric, "c")).leader == "a"
        await _let_lease_end(fabric)
    terms.append(await _lead(fabric, "c"))
    assert terms == sorted(set(terms))
    assert not await _write(fabric, "b", terms[1], "stale")


async def test_a_lease_from_before_the_clock_stepped_back_does_not_hold_for_hours(fabric: Fabric) -> None:
    term = await _lead(fabric, "a")
    await fabric.call("HSET", fabric.keys.leader, "until", await fabric.now_ms() + 7_200_000)
    assert not await _write(fabric, "a", term, "x")
    assert await _lead(fabric, "b") > term
