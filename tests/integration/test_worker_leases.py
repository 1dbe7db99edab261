"""Leases: kept through a blocked event loop, given up in time when Redis is out of reach."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import redis.asyncio

from fabric import CHAT_MODEL, thread_loop, worker
from sollol import AsyncClient
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import EchoBackend, End, Piece, Timeouts
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

FOX = "the quick brown fox jumps over the lazy dog"


class Blocking(EchoBackend):
    """Blocks the whole event loop for `seconds` before it answers, as a bad extension module might."""

    seconds = 2.2

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        time.sleep(self.seconds)  # noqa: ASYNC251  # that is the point
        yield Piece("awake")
        yield End({"done_reason": "stop"})


async def test_a_blocked_event_loop_keeps_its_leases(redis_url: str) -> None:
    lease_seconds = Blocking.seconds / 2.2
    async with (
        worker(redis_url, "echo://?models=other", node="reaper"),
        AsyncClient(redis_url) as client,
    ):
        with thread_loop() as there:
            blocked = worker(redis_url, Blocking("echo://?models=echo"), lease_seconds=lease_seconds)
            agent: Agent = await asyncio.to_thread(there.run, blocked.__aenter__())
            job = client.submit(chat="hi", model="echo")
            answer = await job.result(timeout=30)
            view = await client.job(job.id)
            await asyncio.to_thread(there.run, blocked.__aexit__(None, None, None))
    assert answer.text == "awake"
    assert (answer.routing.worker, answer.routing.attempt) == (agent.worker, 1)
    assert answer.routing.run_ms > 2 * lease_seconds * 1000
    assert view is not None
    assert (view.attempt, view.crashes) == (1, 0)


async def test_a_worker_that_cannot_renew_stops_before_its_lease_is_over(redis_url: str) -> None:
    lease_seconds = 3.0
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url, lease_seconds=lease_seconds),
        AsyncClient(redis_url) as client,
        redis.asyncio.Redis.from_url(redis_url) as raw,
    ):
        ollama.tokens_may_flow.clear()
        job = client.submit(chat="hi", model="tiny")
        await wait_until(lambda: ollama.seen.generating == 1, timeout=5, what="the job to run")
        began_at = time.monotonic()
        await raw.execute_command("CLIENT", "PAUSE", 4000, "ALL")  # type: ignore[no-untyped-call]
        await wait_until(lambda: ollama.seen.abandoned == 1, timeout=5, what="the worker to let go")
        # At the latest 0.8 of a lease after the last good renewal, and not at the first one that fails.
        assert 0.3 * lease_seconds < time.monotonic() - began_at < lease_seconds
        ollama.tokens_may_flow.set()
        answer = await job.result(timeout=30)
        view = await client.job(job.id)
    assert (answer.text, answer.routing.attempt) == (FOX, 2)
    assert view is not None
    assert (view.crashes, view.errors) == (1, 0)


async def test_a_short_pause_of_redis_costs_no_job(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url, lease_seconds=2.0),
        AsyncClient(redis_url) as client,
        redis.asyncio.Redis.from_url(redis_url) as raw,
    ):
        ollama.tokens_may_flow.clear()
        job = client.submit(chat="hi", model="tiny")
        await wait_until(lambda: ollama.seen.generating == 1, timeout=5, what="the job to run")
        await raw.execute_command("CLIENT", "PAUSE", 700, "ALL")  # type: ignore[no-untyped-call]
        await raw.ping()
        ollama.tokens_may_flow.set()
        assert (await job.result(timeout=30)).routing.attempt == 1
        assert ollama.seen.abandoned == 0
