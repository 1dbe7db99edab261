"""order, reply, group and formable: what the leader has done, and what those who wait are told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from fabric_kit import Fabric, fabric_at
from mutants import mutant
from sollol_broker.errors import InvalidJob
from sollol_broker.leader import elect, write_group
from sollol_broker.orders import (
    Order,
    OrderReply,
    ReplyKind,
    Sent,
    Verb,
    send_order,
    send_reply,
    set_formable,
)
from waiting import wait_until


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


async def _leader(fabric: Fabric, name: str = "c1") -> int:
    return (await elect(fabric.broker, name, 60_000, patience_seconds=5)).term


async def _inbox(fabric: Fabric, who: str) -> list[dict[bytes, bytes]]:
    entries = await fabric.call("XRANGE", fabric.keys.inbox(who), "-", "+")
    return [dict(zip(flat[::2], flat[1::2], strict=True)) for _, flat in entries]


async def test_an_order_reaches_the_worker(fabric: Fabric) -> None:
    await fabric.worker()
    term = await _leader(fabric)
    order = Order("o1", Verb.RESERVE, "g1", term, "c1", {"seconds": 3})

    assert await send_order(fabric.broker, "c1", "w1", order) is Sent.ON_ITS_WAY

    assert Order.from_entry((await _inbox(fabric, "w1"))[-1]) == order


async def test_who_does_not_lead_gives_no_orders(fabric: Fabric) -> None:
    await fabric.worker()
    term = await _leader(fabric)
    before = len(await _inbox(fabric, "w1"))

    for leader, its_term in (("c2", term), ("c1", term - 1), ("c1", 0)):
        order = Order("o1", Verb.LEND, "g1", its_term, "c1")
        assert await send_order(fabric.broker, leader, "w1", order) is Sent.NOT_LEADING

    assert len(await _inbox(fabric, "w1")) == before


async def test_without_the_fence_anybody_could(redis_url: str) -> None:
    async with fabric_at(
        redis_url, functions=mutant("local FENCED = true", "local FENCED = false")
    ) as unfenced:
        await unfenced.worker()
        order = Order("o1", Verb.END, "g1", 1, "c1")
        assert await send_order(unfenced.broker, "nobody", "w1", order) is Sent.ON_ITS_WAY


async def test_a_worker_that_is_gone_gets_none(fabric: Fabric) -> None:
    term = await _leader(fabric)

    sent = await send_order(fabric.broker, "c1", "w9", Order("o1", Verb.END, "g1", term, "c1"))

    assert sent is Sent.WORKER_GONE
    assert await fabric.call("EXISTS", fabric.keys.inbox("w9")) == 0


async def test_a_reply_comes_back(fabric: Fabric) -> None:
    await fabric.worker("k1")
    reply = OrderReply("o1", ReplyKind.PROGRESS, {"loading": 0.5})

    assert await send_reply(fabric.broker, "k1", reply)

    assert OrderReply.from_entry((await _inbox(fabric, "k1"))[-1]) == reply
    assert not await send_reply(fabric.broker, "nobody", reply)


@pytest.mark.parametrize("bad", [b"", b"\xc1", b"\x80", b"\x81\xa4verb\xa4burn"])
def test_what_is_no_order_is_refused(bad: bytes) -> None:
    with pytest.raises(InvalidJob):
        Order.from_entry({b"o": b"o1", b"d": bad})
    with pytest.raises(InvalidJob):
        OrderReply.from_entry({b"o": b"o1", b"k": b"done?", b"d": bad})


async def test_a_model_that_a_group_could_serve_is_taken_in(fabric: Fabric) -> None:
    term = await _leader(fabric)
    assert await fabric.submit("j1", model="big") == ["no_node"]
    assert await set_formable(fabric.broker, "c1", term, "big", ttl_ms=60_000, ok=True, reasons={})

    assert await fabric.submit("j2", model="big", inbox="k1", stream=True) == ["queued", 0]

    assert await fabric.call("HGET", fabric.keys.models, "big") == b"big"


async def test_a_model_that_fits_nowhere_is_refused_and_says_why(fabric: Fabric) -> None:
    term = await _leader(fabric)
    reasons = {"n1": "100 MiB short"}

    await set_formable(fabric.broker, "c1", term, "big", ttl_ms=60_000, ok=False, reasons=reasons)

    assert await fabric.submit("j1", model="big") == ["no_node"]
    assert json.loads(await fabric.call("HGET", fabric.keys.formable("big"), "reasons")) == reasons


async def test_those_who_wait_are_told(fabric: Fabric) -> None:
    await fabric.worker("k1")
    term = await _leader(fabric)
    await set_formable(fabric.broker, "c1", term, "big", ttl_ms=60_000, ok=True, reasons={})
    await fabric.submit("j1", model="big", inbox="k1", stream=True)
    await fabric.submit("j2", model="big", inbox="k1")

    await set_formable(
        fabric.broker, "c1", term, "big", ttl_ms=60_000, ok=True, reasons={}, note="loading 42 %"
    )

    told = [entry for entry in await _inbox(fabric, "k1") if entry[b"t"] == b"note"]
    assert [(entry[b"j"], entry[b"x"]) for entry in told] == [
        (b"j1", b"loading 42 %"),
        (b"j2", b"loading 42 %"),
    ]
    events = await fabric.call("XRANGE", fabric.keys.events("j1"), "-", "+")
    assert events[-1][1][:2] == [b"t", b"note"]
    assert await fabric.call("EXISTS", fabric.keys.events("j2")) == 0
    for job in ("j1", "j2"):
        await fabric.broker.cancel(job)


async def test_a_stale_leader_says_nothing_of_models(fabric: Fabric) -> None:
    term = await _leader(fabric)

    assert not await set_formable(fabric.broker, "c2", term, "big", ttl_ms=1_000, ok=True, reasons={})

    assert await fabric.call("EXISTS", fabric.keys.formable("big")) == 0


async def test_groups_are_listed_while_they_live(fabric: Fabric) -> None:
    term = await _leader(fabric)
    await write_group(fabric.broker, "c1", term, "g1", ttl_ms=60_000, fields={"model": "big"})
    await write_group(fabric.broker, "c1", term, "g2", ttl_ms=1, fields={"model": "big"})

    async def is_over() -> bool:
        return bool(await fabric.call("EXISTS", fabric.keys.group("g2")) == 0)

    await wait_until(is_over, timeout=5, what="the record of g2 has run out")
    await write_group(fabric.broker, "c1", term, "g1", ttl_ms=60_000, fields={"state": "ready"})

    assert await fabric.members(fabric.keys.groups) == ["g1"]
