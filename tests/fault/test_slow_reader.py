"""A reader that does not read: Redis' memory stays bounded, and the reader learns what it missed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fabric_kit import TTL_MS, Fabric, fabric_at
from sollol_broker.broker import Lease
from sollol_broker.codec import pack
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.errors import StreamGap
from sollol_client import AsyncClient

# 60 s of 8 streams of 100 tokens/s.
_PIECES = 48_000
_AT_ONCE = 2_000
# What a stream may hold (_words.lua); the server trims whole nodes of about 100.
_MOST_EVENTS, _SLACK = 20_000, 500


async def _memory(fabric: Fabric) -> int:
    info = (await fabric.call("INFO", "memory")).decode()
    return int(info.partition("used_memory:")[2].split()[0])


async def _say(fabric: Fabric, lease: Lease, first: int, last: int) -> None:
    wire = await fabric.broker.link.open()
    for start in range(first, last, _AT_ONCE):
        commands = [
            fabric.broker.command("emit", *lease.arguments(), seq, pack({"text": f"{seq} "}))
            for seq in range(start, min(start + _AT_ONCE, last))
        ]
        assert set(await asyncio.gather(*(wire.send(*command) for command in commands))) == {1}


async def test_a_stream_that_nobody_reads_takes_bounded_memory_and_the_gap_is_told() -> None:
    with EmbeddedBroker(appendonly=False) as server:
        async with fabric_at(server.url) as fabric, AsyncClient(server.url, app="slow") as client:
            await fabric.broker.attend(
                "idler", "tests", inbox_ttl_ms=TTL_MS, app_fields={}, app_ttl_ms=TTL_MS
            )
            await fabric.worker("w1")
            await fabric.submit("j1", stream=True, inbox="idler", envelope=_envelope())
            lease = (await fabric.claim_one("w1")).lease
            half = _PIECES // 2
            await _say(fabric, lease, 1, half)
            events, inbox = fabric.keys.events("j1"), fabric.keys.inbox("idler")
            first = (await fabric.call("XRANGE", events, "-", "+", "COUNT", 1))[0][0].decode()
            before = await _memory(fabric), await fabric.call("MEMORY", "USAGE", events)
            await _say(fabric, lease, half, _PIECES)
            assert await fabric.call("XLEN", events) <= _MOST_EVENTS + _SLACK
            # The stream itself grows no more; what the inbox may hold is bounded, and goes with its owner.
            assert await fabric.call("MEMORY", "USAGE", events) < 1.2 * before[1]
            assert await _memory(fabric) - before[0] < 8 * 1024 * 1024
            assert 0 < await fabric.call("PTTL", inbox) <= TTL_MS

            job = client.attach("j1", after=first)
            shown: list[str] = []
            with pytest.raises(StreamGap):
                await asyncio.wait_for(_read(job, shown), 30)
            assert (await fabric.broker.finish(lease, pack({"text": "whole"}))).taken
            assert 0 < await fabric.call("PTTL", events) <= TTL_MS


def _envelope() -> bytes:
    return pack({"kind": "chat", "model": "m", "app": "tests", "stream": True, "payload": {"messages": []}})


async def _read(job: Any, shown: list[str]) -> None:
    async for piece in job:
        shown.append(str(piece))
