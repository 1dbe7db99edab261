"""What is done again and again goes on whatever a turn raises, and ends when it is told to."""

from __future__ import annotations

import asyncio
import logging

import pytest

from sollol_broker.errors import BrokerUnavailable
from sollol_broker.periodic import Periodic
from waiting import wait_until

_SHORT = 0.001


async def test_a_turn_that_fails_is_logged_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    errors = [BrokerUnavailable("Redis is away"), ValueError("a mistake"), None]
    went_on = asyncio.Event()

    async def turn() -> None:
        if (error := errors.pop(0) if errors else None) is not None:
            raise error
        went_on.set()

    loop = Periodic(turn, name="looking", seconds=_SHORT)
    with caplog.at_level(logging.WARNING):
        loop.start()
        await asyncio.wait_for(went_on.wait(), 20)
        await loop.stop()
    told = [(record.levelno, record.getMessage(), bool(record.exc_info)) for record in caplog.records]
    assert told == [
        (logging.WARNING, "looking: Redis is away", False),
        (logging.ERROR, "looking: a turn failed", True),
    ]


async def test_stop_waits_until_the_turn_has_ended_and_no_other_follows() -> None:
    turns, tidied = [], []
    under_way = asyncio.Event()

    async def turn() -> None:
        turns.append(1)
        under_way.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            tidied.append(1)

    loop = Periodic(turn, name="looking", seconds=0.0, at_once=True)
    loop.start()
    loop.start()
    await asyncio.wait_for(under_way.wait(), 20)
    assert loop.is_started
    await loop.stop()
    assert (turns, tidied, loop.is_started) == ([1], [1], False)
    await loop.stop()


async def test_it_may_be_started_again() -> None:
    went = asyncio.Event()

    async def turn() -> None:
        went.set()

    loop = Periodic(turn, name="looking", seconds=_SHORT)
    for _ in range(2):
        went.clear()
        loop.start()
        await asyncio.wait_for(went.wait(), 20)
        await loop.stop()


async def test_waits_are_the_usual_ones_spread_or_what_a_turn_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float | None] = [None, 7.5, -1.0, None]
    waits: list[float] = []
    ended = asyncio.Event()

    async def turn() -> float | None:
        if not asked:
            ended.set()
            await asyncio.Event().wait()
        return asked.pop(0)

    async def wait(self: Periodic, seconds: float) -> None:
        waits.append(seconds)

    loop = Periodic(turn, name="looking", seconds=10.0, jitter=0.2)
    monkeypatch.setattr(Periodic, "_wait", wait)
    loop.start()
    await asyncio.wait_for(ended.wait(), 20)
    await loop.stop()
    first, usual, wanted, none, last = waits
    assert (wanted, none) == (7.5, 0.0)
    assert all(8.0 <= each <= 12.0 for each in (first, usual, last))
    assert len({first, usual, last}) == 3


async def test_who_hurries_it_need_not_wait() -> None:
    turns = 0
    went = asyncio.Event()

    async def turn() -> None:
        nonlocal turns
        turns += 1
        went.set()

    loop = Periodic(turn, name="looking", seconds=1e6)
    loop.hurry()
    loop.start()
    await asyncio.wait_for(went.wait(), 20)
    went.clear()
    loop.hurry()
    await asyncio.wait_for(went.wait(), 20)
    await loop.stop()
    assert turns == 2


def test_it_may_be_started_again_in_another_event_loop() -> None:
    went = 0

    async def turn() -> None:
        nonlocal went
        went += 1

    loop = Periodic(turn, name="looking", seconds=_SHORT)

    async def begin() -> None:
        before = went
        loop.start()
        await wait_until(lambda: went >= before + 2, timeout=20, what="two turns")
        await loop.stop()

    for _ in range(2):
        asyncio.run(begin())
    assert went >= 4
