"""Calls that are cancelled while their reply is on its way: no reply ever reaches another caller."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sollol_broker import Broker, parse_url
from sollol_broker.link import Link
from sollol_broker.wire import Wire

_CALLS = 3000


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    broker = Broker(parse_url(redis_url), name="tests")
    await broker.open()
    yield broker.link
    await broker.close()


async def test_3000_calls_half_of_them_cancelled_mismatch_no_reply(link: Link) -> None:
    mismatched, cancelled = await _echo_all(link)
    assert mismatched == 0
    assert cancelled > _CALLS / 4, "hardly a call was cut off: this proved nothing"


async def test_a_connection_that_forgets_cancelled_calls_is_found_out(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Wire.send

    def forgetting(self: Wire, *command: Any) -> asyncio.Future[Any]:
        future = send(self, *command)
        future.add_done_callback(
            lambda done: self._waiting.remove(done) if done.cancelled() and done in self._waiting else None
        )
        return future

    monkeypatch.setattr(Wire, "send", forgetting)
    mismatched, _ = await _echo_all(link)
    assert mismatched > 0


async def _echo_all(link: Link) -> tuple[int, int]:
    """How many of the calls got another one's reply, and how many were cancelled."""

    async def ask(number: int) -> bool:
        return bool(await link.call("ECHO", str(number)) == str(number).encode())

    matched, cancelled = await _half_cancelled(ask)
    return matched.count(False), cancelled


async def _half_cancelled(ask: Callable[[int], Any]) -> tuple[list[bool], int]:
    """Ask in waves; half of each wave is cancelled, before, while or after its replies come."""
    chance, matched, cancelled = random.Random(22), [], 0
    for wave in range(_CALLS // 100):
        asking = [asyncio.ensure_future(ask(100 * wave + number)) for number in range(100)]
        for _ in range(5):
            await asyncio.sleep(0)
            for task in chance.sample(asking, 13):
                task.cancel()
        done = await asyncio.gather(*asking, return_exceptions=True)
        cancelled += sum(isinstance(each, asyncio.CancelledError) for each in done)
        matched += [each for each in done if isinstance(each, bool)]
    return matched, cancelled
