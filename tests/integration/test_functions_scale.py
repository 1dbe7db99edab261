"""What a claim and a submit cost Redis grows neither with the jobs in line nor with the workers."""

from __future__ import annotations

import pytest

from fabric_kit import Fabric, fabric_at, ids, node_of
from mutants import mutant
from sollol_broker import LaneOffer, ModelOffer
from sollol_broker.claim_rule import share_of
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.library import Library

_MODELS = ("m", "other", "third")
# ms per token of a prompt and of an answer: machines of three kinds.
_SPEEDS = ((0.3, 10.0), (0.6, 22.0), (14.0, 110.0))
_FEW_WORKERS, _MANY_WORKERS = 6, 60
_FEW_JOBS, _MANY_JOBS = 120, 600


async def _join(fabric: Fabric, workers: int) -> None:
    """Workers of three kinds that have the first model in memory; half of them take longer prompts."""
    for number in range(workers):
        prompt_ms, output_ms = _SPEEDS[number % 3]
        shares = {
            name: share_of(
                load_ms=8_000 * place,
                prompt_ms=prompt_ms,
                output_ms=output_ms,
                context_tokens=1_000 * (1 + number % 2),
            )
            for place, name in enumerate(_MODELS)
        }
        await fabric.worker(f"w{number}", models=shares)


def _lane(number: int) -> LaneOffer:
    prompt_ms, output_ms = _SPEEDS[number % 3]
    context = 1_000 * (1 + number % 2)
    offers = [
        ModelOffer(name, 8_000.0 * place, prompt_ms, output_ms, 0.0, context)
        for place, name in enumerate(_MODELS)
    ]
    return LaneOffer(1, tuple(offers))


async def _line_up(fabric: Fabric, jobs: int) -> None:
    """Jobs of three models; one in two of the first model is too long for some, or has a node that it prefers."""
    for number in range(jobs):
        chars = 6_000 if number % 12 == 3 else 400
        prefer = (node_of("w5"),) if number % 12 == 9 else ()
        await fabric.submit(f"j{number}", model=_MODELS[number % 3], prompt_chars=chars, prefer=prefer)


async def _calls(fabric: Fabric) -> int:
    """Commands that Redis has executed, those inside functions among them."""
    lines = (await fabric.call("INFO", "commandstats")).decode().splitlines()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in lines if "calls=" in line)


async def _cost_of_a_claim(workers: int, jobs: int, functions: Library | None = None) -> int:
    """Commands for one claim that takes a job; it may have looked at a bounded number of them."""
    with EmbeddedBroker(appendonly=False) as server:
        async with fabric_at(server.url, functions=functions) as fabric:
            await _join(fabric, workers)
            await _line_up(fabric, jobs)
            before = await _calls(fabric)
            (taken,) = await fabric.claim("w4", lanes=(_lane(4),))
            after = await _calls(fabric)
            looked_at = int((await fabric.job(taken.lease.job_id))["why"].split("|")[-1])
            assert looked_at <= 32, f"the claim looked at {looked_at} jobs"
            return after - before


@pytest.mark.parametrize(
    ("workers", "jobs"),
    [(_FEW_WORKERS, _MANY_JOBS), (_MANY_WORKERS, _FEW_JOBS), (_MANY_WORKERS, _MANY_JOBS)],
)
async def test_a_claim_costs_the_same_in_a_large_fabric(workers: int, jobs: int) -> None:
    assert await _cost_of_a_claim(workers, jobs) == await _cost_of_a_claim(_FEW_WORKERS, _FEW_JOBS)


async def test_a_claim_that_asks_each_worker_is_noticed() -> None:
    asks_each = mutant(
        "  for node in string.gmatch(nodes, '[^|]+') do\n",
        "  for _, each in ipairs(redis.call('ZRANGE', serves_key(F, model), 0, -1)) do\n"
        "    redis.call('EXISTS', each)\n"
        "  end\n"
        "  for node in string.gmatch(nodes, '[^|]+') do\n",
    )
    few = await _cost_of_a_claim(_FEW_WORKERS, _FEW_JOBS, asks_each)
    assert await _cost_of_a_claim(_MANY_WORKERS, _FEW_JOBS, asks_each) > few


async def test_one_submit_wakes_one_of_many_idle_workers(redis_url: str) -> None:
    assert await _bells_for_a_submit(redis_url) == 1


async def test_a_submit_that_wakes_all_is_noticed(redis_url: str) -> None:
    wakes_all = mutant(
        "    elseif wake(F, model, worker) then\n      return true\n",
        "    elseif wake(F, model, worker) then\n      ring(F, model)\n      return true\n",
    )
    assert await _bells_for_a_submit(redis_url, wakes_all) > 1


async def _bells_for_a_submit(url: str, functions: Library | None = None) -> int:
    """How many workers are woken by one job, when all of them have nothing to do."""
    async with fabric_at(url, functions=functions) as fabric:
        await _join(fabric, _MANY_WORKERS)
        for number in range(_MANY_WORKERS):
            assert ids(await fabric.claim(f"w{number}", lanes=(_lane(number),))) == []
        await fabric.submit("j1")
        return sum([await fabric.bells(f"w{number}") for number in range(_MANY_WORKERS)])
