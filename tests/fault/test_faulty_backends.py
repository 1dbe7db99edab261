"""Backends that hang, break, lie and fall silent: every job ends, and no truncated text passes for whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest
import redis.asyncio
from accounts import Asked, hear_all, read_ledger
from faulty_server import Behaviour, FaultyServer, Make
from ledger import Fault, Ledger, Told

from fabric import worker
from sollol_broker.errors import BackendError
from sollol_broker.keys import Keys
from sollol_client import AsyncClient
from sollol_worker_agent.backends import End, OllamaBackend, Piece, Timeouts
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

TEXT = "the quick brown fox jumps over the lazy dog"
_WORDS = [word if at == 0 else f" {word}" for at, word in enumerate(TEXT.split())]
_TIMEOUTS = Timeouts(connect=0.5, first_token=1.0, between_tokens=0.8, total=4.0)
_JOBS = 50

every_make = pytest.mark.parametrize("make", ["ollama", "llama"])
every_behaviour = pytest.mark.parametrize("behaviour", list(Behaviour))


@every_make
@every_behaviour
async def test_beside_a_good_backend_every_job_is_answered(
    redis_url: str, make: Make, behaviour: Behaviour
) -> None:
    async with (
        FaultyServer(make, behaviour, _WORDS) as faulty,
        worker(redis_url, faulty.url, node="faulty", slots=4, timeouts=_TIMEOUTS),
        OllamaDouble([DoubleModel("tiny", answer=TEXT)], parallel=4) as good,
        AsyncClient(redis_url) as client,
    ):
        await faulty.begin_to_refuse()
        asked = [_submit(client, streams=number % 2 == 0) for number in range(_JOBS)]
        await _until_tried(redis_url, faulty, behaviour)
        async with worker(redis_url, good.url, node="good", slots=4):
            told = await hear_all(asked, patience_seconds=60)
            ledger = await _ledger(redis_url, asked, told)
    assert not ledger.findings, str(ledger)
    assert ledger.ends == {"done": _JOBS}
    _assert_slots_came_free(faulty)


@every_make
@every_behaviour
async def test_alone_it_fails_its_jobs_and_says_so(redis_url: str, make: Make, behaviour: Behaviour) -> None:
    failing: dict[str, Any] = {"may_end": frozenset({"failed"})}
    async with (
        FaultyServer(make, behaviour, _WORDS) as faulty,
        worker(redis_url, faulty.url, node="faulty", slots=4, timeouts=_TIMEOUTS, most_errors=1),
        AsyncClient(redis_url) as client,
    ):
        await faulty.begin_to_refuse()
        asked = [_submit(client, streams=number % 2 == 0, **failing) for number in range(4)]
        told = await hear_all(asked, patience_seconds=30)
        ledger = await _ledger(redis_url, asked, told)
    assert not ledger.findings, str(ledger)
    assert {each.error for each in told} <= {"BackendError", "BackendTimeout"}
    _assert_slots_came_free(faulty)


class Trusting(OllamaBackend):
    """Takes whatever came for the whole answer: the mutant that the ledger must catch."""

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Answer `messages`."""
        try:
            async for said in super().chat(model, request, timeouts):
                yield said
        except BackendError:
            yield End()


async def test_a_truncated_text_that_passes_for_whole_is_found_out(redis_url: str) -> None:
    async with (
        FaultyServer("ollama", Behaviour.TRUNCATED, _WORDS) as faulty,
        worker(redis_url, Trusting(faulty.url.removeprefix("ollama+"))),
        AsyncClient(redis_url) as client,
    ):
        asked = [_submit(client, streams=True)]
        ledger = await _ledger(redis_url, asked, await hear_all(asked, patience_seconds=10))
    assert ledger.count(Fault.MIXED) == 1


def _submit(client: AsyncClient, *, streams: bool, **more: Any) -> Asked:
    job = client.submit(chat="hi", model="tiny", stream=streams, wait_for_node=True, cache=False)
    return Asked(job, TEXT, streams, **more)


async def _until_tried(redis_url: str, faulty: FaultyServer, behaviour: Behaviour) -> None:
    """Until its worker has jobs, and one of them has felt the fault."""
    if behaviour is not Behaviour.REFUSES:
        await wait_until(lambda: faulty.held_seconds, timeout=10, what="the faulty server to fail a job")
        return
    async with redis.asyncio.Redis.from_url(redis_url) as raw:

        async def has_failed() -> bool:
            return int(await raw.hget(Keys().stats, "requeued") or 0) > 0

        await wait_until(has_failed, timeout=10, what="a job to be refused")


def _assert_slots_came_free(faulty: FaultyServer) -> None:
    longest = max(_TIMEOUTS.first_token, _TIMEOUTS.between_tokens)
    assert max(faulty.held_seconds, default=0.0) <= longest + 1.0


async def _ledger(redis_url: str, asked: list[Asked], told: list[Told]) -> Ledger:
    async with redis.asyncio.Redis.from_url(redis_url) as raw:
        return await read_ledger(raw, Keys(), asked, told)
