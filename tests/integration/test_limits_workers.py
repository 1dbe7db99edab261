"""What is refused, at once and with a moment to come back; and what has expired and reaches no backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from mutants import mutant
from paced import Paced, paced_worker
from sollol import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    JobState,
    QueueFull,
    QuotaExceeded,
)
from sollol_broker.library import Library, library
from sollol_client import AsyncJob
from waiting import wait_until

# A job is predicted to take 32 tokens beside the few of its prompt.
SHORT = {"num_predict": 32}
# Limits that three jobs of the application "web" fill, one of which runs; and the error of the fourth.
LIMITS = [
    ("limits", {"max_queue_size": 2}, QueueFull, "as many jobs wait in the fabric"),
    ("limits", {"max_queue_size": 2, "model": "m"}, QueueFull, "the queue of m is as long"),
    ("quota", {"concurrency": 3}, QuotaExceeded, "as many unfinished jobs"),
    ("quota", {"max_queue_size": 3}, QuotaExceeded, "as many jobs in line for m"),
    ("quota", {"requests_per_minute": 3}, QuotaExceeded, "its requests per minute"),
    ("quota", {"tokens_per_minute": 100}, QuotaExceeded, "its tokens per minute"),
]
Ask = Callable[[str], Awaitable[object]]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url, app="web") as made:
        yield made


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, redis_url: str, client: AsyncClient) -> Ask:
    """Asks for one answer, by either client."""

    def ask_sync(text: str) -> object:
        with Client(redis_url, app="web") as sync_client:
            return sync_client.submit(chat=text, model="m", options=SHORT).result(20)

    async def ask_async(text: str) -> object:
        return await client.submit(chat=text, model="m", options=SHORT)

    async def ask_in_thread(text: str) -> object:
        return await asyncio.to_thread(ask_sync, text)

    return ask_async if request.param == "async" else ask_in_thread


async def one_runs_and_others_wait(client: AsyncClient, backend: Paced, count: int) -> list[AsyncJob]:
    """So many jobs, held: the first at the backend, the others in line."""
    backend.may_answer.clear()
    first = client.submit(chat="job 0", model="m", options=SHORT)
    await wait_until(lambda: backend.now == 1, timeout=10, what="one job to run")
    others = [client.submit(chat=f"job {at}", model="m", options=SHORT) for at in range(1, count)]

    async def they_wait() -> bool:
        return None not in [await client.position(job.id) for job in others]

    await wait_until(they_wait, timeout=10, what="the others to wait")
    return [first, *others]


@pytest.mark.parametrize(("verb", "limit", "error", "said"), LIMITS)
async def test_what_is_too_much_is_refused_at_once(
    redis_url: str,
    client: AsyncClient,
    ask: Ask,
    verb: str,
    limit: Mapping[str, Any],
    error: type[QueueFull] | type[QuotaExceeded],
    said: str,
) -> None:
    backend = Paced()
    async with paced_worker(redis_url, backend), AsyncClient(redis_url, app="other") as other:
        if verb == "quota":
            await client.set_quota("web", **limit)
        else:
            await client.set_limits(**limit)
        jobs = await one_runs_and_others_wait(client, backend, 3)
        with pytest.raises(error, match=said) as refused:  # with no slot free, so nobody waited for anything
            await ask("too much")
        assert isinstance(refused.value, QueueFull | QuotaExceeded)
        assert refused.value.retry_after > 0
        if verb == "quota":
            jobs.append(other.submit(chat="other", model="m", options=SHORT))
        backend.may_answer.set()
        await asyncio.gather(*jobs)
        if "per_minute" not in str(limit):
            await ask("later")
    assert "too much" not in backend.asked
    assert len(backend.asked) == len(set(backend.asked)) == len(jobs) + ("per_minute" not in str(limit))


async def test_a_deadline_that_cannot_be_kept_is_refused_at_once(redis_url: str, client: AsyncClient) -> None:
    backend = Paced(output_ms=1_000)  # 32 s a job, as it says
    async with paced_worker(redis_url, backend):
        for at in range(5):  # from then on the predictions are believed
            await client.submit(chat=f"learn {at}", model="m", options=SHORT)
        jobs = await one_runs_and_others_wait(client, backend, 4)
        hasty = client.submit(chat="hasty", model="m", options=SHORT, deadline=5)
        with pytest.raises(DeadlineExceeded, match="longer than its deadline allows") as refused:
            await hasty
        assert refused.value.retry_after is not None
        assert 20 < refused.value.retry_after < 200
        assert await client.job(hasty.id) is None, "it was never taken in"
        jobs.append(client.submit(chat="patient", model="m", options=SHORT, deadline=600))
        backend.may_answer.set()
        await asyncio.gather(*jobs)
    assert "hasty" not in backend.asked
    assert "patient" in backend.asked


async def test_a_job_that_expired_in_line_reaches_no_backend(redis_url: str, client: AsyncClient) -> None:
    backend = Paced()
    late = await _let_some_expire(redis_url, client, backend, library())
    assert [job.state for job in late] == [JobState.EXPIRED] * 3
    for job in late:
        with pytest.raises(DeadlineExceeded, match=job.id):
            await job
    assert backend.asked == ["job 0", "job 1", "after"]


async def test_without_the_look_at_its_deadline_it_would(redis_url: str, client: AsyncClient) -> None:
    backend = Paced()
    careless = mutant("if left <= 0 then end_job(F, job.id, 'expired', '', now) return nil end", "")
    await _let_some_expire(redis_url, client, backend, careless)
    assert "late 0" in backend.asked, "expired jobs are run and nobody noticed: this test has no teeth"


async def _let_some_expire(
    redis_url: str, client: AsyncClient, backend: Paced, functions: Library
) -> list[AsyncJob]:
    """Three jobs whose deadline passes while the only slot is busy, and no reaper comes; they have ended."""
    broker = client.session.broker

    async def are_late() -> bool:
        seconds, micros = await broker.link.call("TIME")
        now_ms = int(seconds) * 1000 + int(micros) / 1000
        return bool(await broker.link.call("ZCOUNT", broker.keys.deadlines, "-inf", now_ms) == 3)

    async with paced_worker(redis_url, backend, functions=functions, reap_seconds=60, lease_seconds=60):
        jobs = await one_runs_and_others_wait(client, backend, 2)
        late = [client.submit(chat=f"late {at}", model="m", deadline=0.05) for at in range(3)]
        await wait_until(are_late, timeout=10, what="the deadlines to pass")
        after = client.submit(chat="after", model="m")
        backend.may_answer.set()
        await asyncio.gather(*jobs, after)
        await asyncio.gather(*late, return_exceptions=True)
    return late
