"""Two releases in one fabric: each has its own functions in Redis, and they answer and rescue each other's jobs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import redis

from fabric import WorkerProcess, worker, worker_process
from older_release import VERSION, OlderRelease, older_release
from sollol import AsyncClient
from sollol_broker.version import VERSION as OURS
from sollol_broker.words import JobState
from waiting import wait_until


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> OlderRelease:
    return older_release(tmp_path_factory.mktemp("old"))


@asynccontextmanager
async def old_worker(
    old: OlderRelease, url: str, log: Path, *more: str, node: str = "old"
) -> AsyncIterator[WorkerProcess]:
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *old.worker(url, node, *more), env={**os.environ, **old.environment}, stdout=sink, stderr=sink
        )
    try:
        yield WorkerProcess(process, log)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_jobs_go_both_ways_between_releases(old: OlderRelease, redis_url: str, tmp_path: Path) -> None:
    async with (
        AsyncClient(redis_url) as client,
        old_worker(old, redis_url, tmp_path / "log", "--backend", "echo://?models=of-old,old-embed"),
        worker(redis_url, "echo://?models=of-new", node="new"),
    ):
        asked = asyncio.to_thread(old.ask, os.environ, redis_url, "of-new", "from-old", waits=True)
        answer = client.submit(chat="from new", model="of-old", wait_for_node=True)
        stream = client.submit(chat="piece by piece", model="of-old", wait_for_node=True, stream=True)
        vectors = client.submit(embed=["a", "b"], model="old-embed", wait_for_node=True)
        assert (await answer.result(timeout=60)).routing.node == "old"
        assert "".join([piece async for piece in stream]) == "piece by piece"
        assert len((await vectors.result(timeout=60)).embeddings) == 2
        version, job_id, text = await asked
        assert (version, text) == (VERSION, "from-old")
        view = await client.job(job_id)
        assert view is not None
        assert (view.state, view.node, view.app) == (JobState.DONE, "new", "old-app")

        workers = {each.node: each for node in await client.nodes() for each in node.workers}
        assert (workers["old"].version, workers["new"].version) == (VERSION, OURS)
        assert workers["old"].functions != workers["new"].functions
    with redis.Redis.from_url(redis_url) as raw:
        libraries = raw.function_list("sollol_*")
        assert len(libraries) >= 2


@pytest.mark.parametrize("dies", ["old", "new"])
async def test_a_release_takes_over_what_the_other_let_fall(
    old: OlderRelease, redis_url: str, tmp_path: Path, dies: str
) -> None:
    hangs, answers = "echo://?models=m&delay_ms=600000", "echo://?models=m"
    ours = worker_process(redis_url, tmp_path / "ours", "--backend", hangs, node="new")
    first = ours if dies == "new" else old_worker(old, redis_url, tmp_path / "log", "--backend", hangs)
    async with AsyncClient(redis_url) as client:
        async with first as started:
            job = client.submit(chat="hi", model="m", wait_for_node=True)
            await wait_until(lambda: is_running(client, job.id), timeout=60, what="the job to run")
            started.process.kill()
        second = (
            worker(redis_url, answers, node="new")
            if dies == "old"
            else old_worker(old, redis_url, tmp_path / "second", "--backend", answers)
        )
        async with second:
            answer = await job.result(timeout=60)
        view = await client.job(job.id)
    assert view is not None
    assert (answer.text, answer.routing.attempt, view.crashes) == ("hi", 2, 1)
    assert answer.routing.node == ("new" if dies == "old" else "old")


async def is_running(client: AsyncClient, job_id: str) -> bool:
    view = await client.job(job_id)
    return view is not None and view.state is JobState.RUNNING


async def test_a_release_that_lays_jobs_elsewhere_would_be_noticed(redis_url: str, tmp_path: Path) -> None:
    """The tests above can fail: here is a release of which ours sees nothing."""
    moved = ("return F .. ':job:' .. id", "return F .. ':work:' .. id")
    other = older_release(tmp_path, {"broker/sollol_broker/lua/_keys.lua": moved})
    asked = await asyncio.to_thread(other.ask, os.environ, redis_url, "m", "hi", waits=False)
    assert asked[0] == VERSION
    async with AsyncClient(redis_url) as client:
        assert await client.job(asked[1]) is None
    with redis.Redis.from_url(redis_url) as raw:
        raw.flushall()
