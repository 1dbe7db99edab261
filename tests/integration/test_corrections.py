"""What was learned of a model's memory, in Redis."""

from __future__ import annotations

import asyncio

from fabric_kit import fabric_at
from sollol_broker.names import key_part
from sollol_coordinator.corrections import read_correction, write_correction
from sollol_coordinator.estimate import Correction

_LEARNED = Correction(1.5, 2.0)


async def test_it_is_read_as_it_was_written(redis_url: str) -> None:
    async with fabric_at(redis_url) as fabric:
        await write_correction(fabric.broker, "m", _LEARNED)
        assert await read_correction(fabric.broker, "m") == _LEARNED


async def test_a_coordinator_that_stops_while_it_writes_leaves_nothing_for_ever(redis_url: str) -> None:
    async with fabric_at(redis_url) as fabric:
        key = fabric.keys.estimate(key_part("m"))
        lives = set()
        for steps in range(40):
            writing = asyncio.ensure_future(write_correction(fabric.broker, "m", _LEARNED))
            for _ in range(steps):
                await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            # Its reply comes after all that was sent before it.
            lives.add(await fabric.call("TTL", key) > 0 if await fabric.call("EXISTS", key) else None)
            await fabric.call("DEL", key)
    assert lives == {None, True}
