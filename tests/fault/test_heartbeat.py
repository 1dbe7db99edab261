"""The heartbeat keeps all leases through a blocked event loop, and lets go in time where Redis is out of reach."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.asyncio
from accounts import Asked, hear_all, read_ledger
from chaos_proxy import ChaosProxy
from ledger import Ledger

from fabric import let_tokens_flow, thread_loop, worker
from sollol_broker.keys import Keys
from sollol_client import AsyncClient
from sollol_worker_agent.backends import EchoBackend, End, Piece, Timeouts
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from sollol_worker_agent.heartbeat import Heartbeat
from waiting import wait_until

_JOBS = 200
_LEASE_SECONDS = 2.0
_TEXT = "the quick brown fox jumps over the lazy dog"
_BLOCKED_SECONDS = 2.2 * _LEASE_SECONDS


def sleep(seconds: float) -> None:
    """Stand still, as in a call into C that keeps the event loop waiting."""
    time.sleep(seconds)


def burn(seconds: float) -> None:
    """Compute in Python, which shares the interpreter's lock with the heartbeat's thread."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


class Blocking(EchoBackend):
    """Takes all jobs at once; with the last one in hand it blocks the event loop."""

    def __init__(self, block: Callable[[float], None]) -> None:
        super().__init__(f"echo://?slots={_JOBS}&models=echo")
        self._block = block
        self._running = 0
        self._is_over = asyncio.Event()

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Answer with the last message, after the block."""
        self._running += 1
        if self._running == _JOBS:
            self._block(_BLOCKED_SECONDS)
            self._is_over.set()
        await self._is_over.wait()
        async for said in super().chat(model, request, timeouts):
            yield said


@pytest.mark.parametrize("block", [sleep, burn])
async def test_200_jobs_of_a_blocked_worker_keep_their_leases(
    redis_url: str, block: Callable[[float], None]
) -> None:
    ledger, requeued = await _block(redis_url, block)
    assert not ledger.findings, str(ledger)
    assert requeued == 0


async def test_a_heartbeat_in_the_event_loop_is_found_out_and_still_doubles_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    beating: dict[Heartbeat, asyncio.Task[None]] = {}

    def start(self: Heartbeat) -> None:
        beating[self] = asyncio.ensure_future(self._loop())

    def stop(self: Heartbeat) -> None:
        self._stopping.set()
        while not beating[self].done():
            time.sleep(0.01)

    monkeypatch.setattr(Heartbeat, "start", start)
    monkeypatch.setattr(Heartbeat, "stop", stop)
    ledger, requeued = await _block(redis_url, sleep)
    assert requeued > 0
    assert not ledger.findings, str(ledger)


async def test_a_worker_in_a_black_hole_stops_before_another_one_begins(redis_url: str) -> None:
    abandoned, ledger = await _black_hole(redis_url)
    assert abandoned == 1
    assert not ledger.findings, str(ledger)


async def test_a_worker_that_never_gives_up_is_found_out_and_still_doubles_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sollol_worker_agent.heartbeat._GIVE_UP_SHARE", math.inf)
    abandoned, ledger = await _black_hole(redis_url)
    assert abandoned == 0
    assert not ledger.findings, str(ledger)


async def _black_hole(redis_url: str) -> tuple[int, Ledger]:
    """A worker is cut off in mid-answer, and another one takes over.

    How many backends had been left alone by the time that the other one began, and the sum.
    """
    async with (
        ChaosProxy(urlsplit(redis_url).path) as proxy,
        OllamaDouble([DoubleModel("tiny", answer=_TEXT)]) as first,
        OllamaDouble([DoubleModel("tiny", answer=_TEXT)]) as second,
        AsyncClient(redis_url) as client,
        redis.asyncio.Redis.from_url(redis_url) as raw,
        worker(proxy.url, first.url, lease_seconds=_LEASE_SECONDS),
    ):
        first.tokens_may_flow.clear()
        asked = [Asked(client.submit(chat="hi", model="tiny", stream=True, cache=False), _TEXT, streams=True)]
        await let_tokens_flow(first, 3)
        proxy.up_flows.clear()
        async with worker(redis_url, second.url, node="n2", lease_seconds=_LEASE_SECONDS):
            await wait_until(lambda: second.seen.requests, timeout=10, what="the other worker to begin")
            abandoned = first.seen.abandoned
            proxy.up_flows.set()
            first.tokens_may_flow.set()
            told = await hear_all(asked, patience_seconds=20)
            await wait_until(lambda: not first.seen.generating, timeout=10, what="the zombie to end")
        return abandoned, await read_ledger(raw, Keys(), asked, told)


async def _block(redis_url: str, block: Callable[[float], None]) -> tuple[Ledger, int]:
    """The sum over all jobs of a worker that was blocked, and how many were given to others meanwhile."""
    async with (
        worker(redis_url, "echo://?models=other", node="reaper", lease_seconds=_LEASE_SECONDS),
        AsyncClient(redis_url) as client,
        redis.asyncio.Redis.from_url(redis_url) as raw,
    ):
        with thread_loop() as there:
            blocked = worker(redis_url, Blocking(block), lease_seconds=_LEASE_SECONDS)
            await asyncio.to_thread(there.run, blocked.__aenter__())
            asked = [
                Asked(client.submit(chat=f"job {number}", model="echo", cache=False), f"job {number}")
                for number in range(_JOBS)
            ]
            told = await hear_all(asked, patience_seconds=30)
            await asyncio.to_thread(there.run, blocked.__aexit__(None, None, None))
        ledger = await read_ledger(raw, Keys(), asked, told)
        return ledger, int(await raw.hget(Keys().stats, "requeued") or 0)
