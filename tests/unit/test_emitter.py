"""Sending pieces: who waits for the last one is not taken down with it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from sollol_broker.broker import Broker, Lease
from sollol_worker_agent.backends.protocol import Piece
from sollol_worker_agent.emitter import Emitter


class Slow:
    """A Redis that takes a piece only when it is let."""

    def __init__(self) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()
        self.taken: list[int] = []

    async def emit(self, lease: Lease, seq: int, data: bytes, **_: Any) -> int:
        self.asked.set()
        await self.let.wait()
        self.taken.append(seq)
        return seq


def _emitter(redis: Slow) -> Emitter:
    lease = Lease("job", 1, "nonce")
    return Emitter(cast(Broker, redis), lease, streams=True, on_lost=lambda: None)


async def test_a_job_that_ends_while_its_words_are_kept_does_not_cancel_who_keeps_them() -> None:
    redis = Slow()
    emitter = _emitter(redis)
    emitter.add(Piece("so far"))
    keeping = asyncio.create_task(emitter.flush())
    await asyncio.wait_for(redis.asked.wait(), 20)
    emitter.stop()
    await asyncio.wait_for(keeping, 20)
    assert redis.taken == []


async def test_who_gives_up_waiting_does_not_stop_the_piece_nor_others_that_wait() -> None:
    redis = Slow()
    emitter = _emitter(redis)
    emitter.add(Piece("so far"))
    impatient, patient = (asyncio.create_task(emitter.drain()) for _ in range(2))
    await asyncio.wait_for(redis.asked.wait(), 20)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    redis.let.set()
    await asyncio.wait_for(patient, 20)
    assert redis.taken == [1]
