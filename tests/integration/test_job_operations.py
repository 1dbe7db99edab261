"""What an operator does to single jobs: another priority while it waits, another try when it has failed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from click.testing import CliRunner

from fabric import CHAT_MODEL, town, until, worker
from fabric_kit import Fabric, fabric_at, ids
from sollol import AsyncClient, BackendError, Client, InvalidJob, JobState
from sollol.cli.app import app
from sollol_broker.broker import Claimed
from sollol_broker.explain_reader import Explainer
from sollol_broker.operations import Operations
from sollol_broker.registry import Registry
from sollol_worker_agent.doubles import OllamaDouble


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


@pytest.fixture
def operations(fabric: Fabric) -> Operations:
    return Operations(fabric.broker)


# --- another priority


async def test_a_more_urgent_job_goes_ahead_and_a_less_urgent_one_back(
    fabric: Fabric, operations: Operations
) -> None:
    for number in range(5):
        await fabric.submit(f"j{number}", without_node=True)
    assert await operations.set_priority("j3", 10) == "changed"
    assert await operations.set_priority("j0", 1) == "changed"
    assert await fabric.queue() == ["j3", "j1", "j2", "j4", "j0"]
    assert (await fabric.job("j3"))["priority"] == "10"
    await fabric.worker("w1")
    assert ids(await fabric.claim("w1", free=5)) == ["j3", "j1", "j2", "j4", "j0"]


async def test_once_more_changes_nothing_more(fabric: Fabric, operations: Operations) -> None:
    for number in range(3):
        await fabric.submit(f"j{number}", without_node=True)
    await operations.set_priority("j2", 9)
    once, books = await fabric.job("j2"), await fabric.call("HGETALL", fabric.keys.fair("m"))
    assert await operations.set_priority("j2", 9) == "changed"
    assert await fabric.job("j2") == once
    assert await fabric.call("HGETALL", fabric.keys.fair("m")) == books


async def test_what_becomes_batch_is_judged_as_batch_and_back(fabric: Fabric, operations: Operations) -> None:
    await fabric.submit("j1", without_node=True)
    before = await fabric.job("j1")
    await operations.set_priority("j1", 0)
    assert (await fabric.job("j1"))["member"].split("|")[4] == "b"
    await operations.set_priority("j1", 5)
    assert (await fabric.job("j1"))["member"] == before["member"]
    assert len(await fabric.queue()) == 1


async def test_only_what_waits_can_be_moved(fabric: Fabric, operations: Operations) -> None:
    await fabric.worker("w1")
    await fabric.submit("runs")
    await fabric.claim_one("w1")
    await fabric.submit("ended")
    await fabric.broker.cancel("ended")
    assert await operations.set_priority("runs", 9) == "running"
    assert await operations.set_priority("ended", 9) == "cancelled"
    assert await operations.set_priority("nobody", 9) == "unknown"
    assert (await fabric.job("runs"))["priority"] == "5"
    for wrong in (-1, 11, 5.0, "high", True):
        with pytest.raises(InvalidJob, match="0 to 10"):
            await operations.set_priority("runs", wrong)  # type: ignore[arg-type]


async def test_one_that_waits_out_a_backoff_comes_back_at_its_new_place(
    fabric: Fabric, operations: Operations
) -> None:
    await fabric.worker("w1")
    await fabric.submit("j1")
    await _fail(fabric, await fabric.claim_one("w1"), most_errors=3, backoff_ms=60_000)
    await fabric.submit("j2")
    assert await fabric.members(fabric.keys.delayed) == ["j1"]
    assert await operations.set_priority("j1", 1) == "changed"
    assert await fabric.queue() == ["j2"]
    await fabric.call("ZADD", fabric.keys.delayed, "XX", 1, "j1")
    await fabric.reap()
    assert await fabric.queue() == ["j2", "j1"]


async def test_a_worker_is_woken_and_the_books_balance(fabric: Fabric, operations: Operations) -> None:
    await fabric.submit("j1", without_node=True, priority=1)
    await fabric.worker("w1")
    await fabric.claim("w1", free=0)
    for priority in (8, 3, 0, 10, 5):
        await operations.set_priority("j1", priority)
    assert float(await fabric.call("HGET", fabric.keys.fair("m"), "q")) > 0
    claimed = await fabric.claim_one("w1")
    assert (await fabric.broker.finish(claimed.lease, b"answer", used=fabric.used())).taken
    assert await fabric.call("EXISTS", fabric.keys.fair("m")) == 0


# --- another try


async def _fail(fabric: Fabric, claimed: Claimed, *, retry: bool = True, **more: Any) -> str:
    usual = {"most_errors": 1, "backoff_ms": 1}
    return await fabric.broker.fail(claimed.lease, b"error", retry=retry, **(usual | more))


async def test_a_job_that_failed_on_every_try_gets_a_new_life(fabric: Fabric, operations: Operations) -> None:
    await fabric.worker("w1")
    await fabric.submit("j1", blobs=(b"picture",), priority=7)
    assert await _fail(fabric, await fabric.claim_one("w1")) == "end"
    assert await fabric.state("j1") == "failed"
    for key in (fabric.keys.job("j1"), fabric.keys.blob("j1")):
        assert 0 < await fabric.call("PTTL", key) <= 60_000
    assert await operations.retry(["j1"]) == {"j1": "retried"}
    assert await operations.retry(["j1"]) == {"j1": "queued"}
    assert await fabric.members(fabric.keys.failed) == []
    claimed = await fabric.claim_one("w1")
    assert (claimed.attempt, claimed.envelope) == (1, b"envelope of j1")
    assert await fabric.broker.blobs(claimed.lease, claimed.blobs) == [b"picture"]
    assert (await fabric.broker.finish(claimed.lease, b"answer", used=fabric.used())).taken
    assert await fabric.body("j1") == {}
    told = await Explainer(fabric.broker, Registry(fabric.broker)).explain("j1")
    assert [moment.what for moment in told.timeline] == [
        "handed in by tests",
        "attempt 1: taken by node-of-w1",
        "attempt 1: the backend on node-of-w1 failed",
        "an operator put it back in line",
        "attempt 1: taken by node-of-w1 (worker w1)",
        "answered",
    ]


async def test_what_cannot_be_tried_again_is_not_kept(fabric: Fabric, operations: Operations) -> None:
    await fabric.worker("w1")
    await fabric.submit("wrong")
    await _fail(fabric, await fabric.claim_one("w1"), retry=False)
    await fabric.submit("large", blobs=(b"x" * 200_000,))
    await _fail(fabric, await fabric.claim_one("w1"))
    for job_id in ("wrong", "large"):
        assert await fabric.body(job_id) == {}
    await fabric.submit("ended")
    await fabric.broker.cancel("ended")
    words = await operations.retry(["wrong", "large", "ended", "nobody"])
    assert words == {"wrong": "failed", "large": "failed", "ended": "cancelled", "nobody": "unknown"}


async def test_the_kept_ones_are_bounded(fabric: Fabric, operations: Operations) -> None:
    await fabric.worker("w1")
    await fabric.submit("oldest")
    await _fail(fabric, await fabric.claim_one("w1"))
    wire = await fabric.broker.link.open()
    for number in range(499):  # as many as there may be, all of them later
        wire.send("ZADD", fabric.keys.failed, await fabric.now_ms() if not number else 9e15, f"old{number}")
    assert await fabric.body("oldest")
    await fabric.submit("newest")
    await _fail(fabric, await fabric.claim_one("w1"))
    assert await fabric.call("ZCARD", fabric.keys.failed) == 500
    assert await fabric.body("oldest") == {}
    assert await fabric.body("newest")
    assert await operations.retry(["oldest"]) == {"oldest": "failed"}


async def test_the_counts_balance_after_another_try(fabric: Fabric, operations: Operations) -> None:
    await fabric.worker("w1")
    await fabric.submit("j1")
    await _fail(fabric, await fabric.claim_one("w1"))
    assert (await operations.limits()).waiting == 0
    await operations.retry(["j1"])
    assert (await operations.limits()).waiting == 1
    await fabric.broker.cancel("j1")
    assert (await operations.limits()).waiting == 0


# --- as people do it


async def test_a_failed_job_is_answered_on_its_second_life(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url, most_errors=1),
        AsyncClient(redis_url, app="web") as client,
    ):
        ollama.faults.answer_status, ollama.faults.answer_text = 500, "out of order"
        job = client.submit(chat="Hello", model="tiny")
        with pytest.raises(BackendError):
            await job
        ollama.faults.answer_status = 0
        assert await client.retry(job.id) == {job.id: True}
        assert (await client.attach(job.id).result(20)).text
        record = await client.job(job.id)
        assert record is not None
        assert (record.state, record.attempt) == (JobState.DONE, 1)


def _run(url: str, *args: str) -> Any:
    return CliRunner().invoke(app, ["jobs", *args, "--redis", url])


def test_the_commands(redis_url: str) -> None:
    with town(redis_url, parallel=1) as there, Client(redis_url, app="web") as client:
        there.hold()
        first = client.submit(chat="one", model="tiny")
        until(lambda: there.asked == 1, "the first job at the backend")
        waiting = [client.submit(chat=f"{number}", model="tiny") for number in range(3)]
        until(lambda: waiting[-1].position() == 2, "the others in line")
        last = waiting[-1].id
        said = _run(redis_url, "priority", last, "urgent")
        assert said.stdout == f"job {last} has priority 9 now, 0 jobs before it\n"
        plain = json.loads(_run(redis_url, "priority", last, "3", "--json").stdout)
        assert plain == {"job": last, "changed": True, "priority": 3, "position": 2}
        said = _run(redis_url, "priority", first.id, "9")
        assert (said.exit_code, said.stderr) == (1, f"error: job {first.id} does not wait: it is running\n")
        assert _run(redis_url, "priority", last, "11").exit_code == 2
        assert _run(redis_url, "priority", "nobody", "9").exit_code == 5
        said = _run(redis_url, "retry", first.id, "nobody")
        assert said.exit_code == 1
        assert said.stdout == f"job {first.id} is back in line\n", "it runs: as good as put back"
        assert "job nobody is not known here" in said.stderr
        # An id is short for `show`, wherever the options stand.
        for words in ((last,), ("show", last), ("--json", last), (last, "--json")):
            assert last in _run(redis_url, *words).stdout
        assert len(json.loads(_run(redis_url, "--json", "--limit", "2").stdout)) == 3
        there.go()
        for job in (first, *waiting):
            job.result(20)
