"""Replies lost after the deed, and connections reset: everything is repeated, and nothing happens twice."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlsplit

import pytest
import redis.asyncio
from accounts import Asked, hear_all, read_ledger
from chaos_proxy import ChaosProxy
from ledger import Fault, Ledger, Told

from fabric import worker
from mutants import mutant
from sollol_broker.keys import Keys
from sollol_broker.library import Library, library
from sollol_client import AsyncClient
from waiting import wait_until

_ECHO = "echo://?slots=2&tokens=5&token_ms=2&models=echo"
# A verb that is called often for each job loses fewer of its replies.
_RATES = {"submit": 0.1, "claim": 0.3, "emit": 0.05, "finish": 0.1}
_LOSSES = 40


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[ChaosProxy]:
    async with ChaosProxy(urlsplit(redis_url).path) as proxy:
        yield proxy


async def test_a_lost_reply_to_any_verb_loses_and_doubles_nothing(redis_url: str, proxy: ChaosProxy) -> None:
    proxy.loss_rates = _RATES
    ledger, crashes = await _ask_until(redis_url, proxy, dict.fromkeys(_RATES, _LOSSES), library())
    assert not ledger.findings, str(ledger)
    assert crashes == 0, "a lost reply cost a job its lease"


@pytest.mark.parametrize(
    ("verb", "line", "fault"),
    [
        pytest.param(
            "emit", "if seq <= tonumber(h[4]) then return 1 end", Fault.TORN, id="a piece shown twice"
        ),
        pytest.param(
            "submit",
            "if state then return {'known', affirmed(job, state)} end",
            Fault.STALE,
            id="a job taken in twice",
        ),
    ],
)
async def test_a_verb_that_may_not_be_repeated_is_found_out(
    redis_url: str, proxy: ChaosProxy, verb: str, line: str, fault: Fault
) -> None:
    proxy.loss_rates = {verb: _RATES[verb]}
    ledger, _ = await _ask_until(redis_url, proxy, {verb: _LOSSES}, mutant(line, ""))
    assert ledger.count(fault) > 0, f"{verb} is not safe to repeat and nobody noticed"
    async with redis.asyncio.Redis.from_url(redis_url) as raw:
        await raw.flushall()  # what is taken in twice leaves keys behind


async def test_a_claim_that_forgets_what_it_gave_is_found_out(redis_url: str, proxy: ChaosProxy) -> None:
    proxy.loss_rates = {"claim": _RATES["claim"]}
    forgetful = mutant("if again then return {'ok', again, '-1'} end", "")
    _, crashes = await _ask_until(redis_url, proxy, {"claim": 3}, forgetful, lease_seconds=1.0)
    assert crashes > 0


async def test_connections_that_break_in_the_middle_of_a_reply_lose_and_double_nothing(
    redis_url: str, proxy: ChaosProxy
) -> None:
    proxy.cut_after_bytes = range(1, 60_000)
    ledger, crashes = await _ask_until(redis_url, proxy, {"bytes": 10}, library())
    assert not ledger.findings, str(ledger)
    assert crashes == 0


async def test_an_inbox_that_is_cut_off_again_and_again_misses_nothing(
    redis_url: str, proxy: ChaosProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that no answer is found by looking: it must have come through the inbox.
    monkeypatch.setattr("sollol_client.receiving.FIRST_LOOK_SECONDS", 300.0)
    async with worker(redis_url, "echo://?slots=32&models=echo"), AsyncClient(proxy.url) as client:
        asked = [_submit(client, number, streams=False) for number in range(2000)]
        hearing = asyncio.create_task(hear_all(asked, patience_seconds=60))
        for tenth in range(10):
            await wait_until(
                lambda least=200 * tenth: sum(each.job.done() for each in asked) > least,
                timeout=30,
                what=f"{200 * tenth} answers",
            )
            assert proxy.reset_all() > 0
        told = await hearing
        ledger = await _ledger(redis_url, asked, told)
    assert not ledger.findings, str(ledger)


async def _ask_until(
    redis_url: str,
    proxy: ChaosProxy,
    losses: dict[str, int],
    functions: Library,
    *,
    lease_seconds: float = 10.0,
) -> tuple[Ledger, int]:
    """Ask in small waves until so many replies are lost; the sum, and how many leases ran out."""
    client = AsyncClient(proxy.url)
    client.session.broker.functions = functions
    asked, told, numbers = [], [], itertools.count()
    async with worker(proxy.url, _ECHO, functions=functions, lease_seconds=lease_seconds), client:
        while any(proxy.lost[verb] < count for verb, count in losses.items()):
            wave = [_submit(client, next(numbers), streams=True) for _ in range(10)]
            asked += wave
            told += await hear_all(wave, patience_seconds=30)
    async with redis.asyncio.Redis.from_url(redis_url) as raw:
        crashes = [await raw.hget(Keys().job(each.job.id), "crashes") for each in asked]
    return await _ledger(redis_url, asked, told), sum(int(each or 0) for each in crashes)


def _submit(client: AsyncClient, number: int, *, streams: bool) -> Asked:
    text = f"these are the words of job {number}"
    job = client.submit(chat=text, model="echo", stream=streams, wait_for_node=True, cache=False)
    return Asked(job, None if streams else text, streams)


async def _ledger(redis_url: str, asked: Sequence[Asked], told: Sequence[Told]) -> Ledger:
    async with redis.asyncio.Redis.from_url(redis_url) as raw:
        return await read_ledger(raw, Keys(), asked, told)
