"""What workers have counted, over time: it equals what clients got, adds up over workers, and takes bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import pytest

from fabric import worker
from fabric_kit import Fabric, fabric_at
from sollol import AsyncClient
from sollol_broker.errors import BackendError
from sollol_broker.series_reader import SeriesReader
from sollol_worker_agent.backends import EchoBackend, End, Piece, Timeouts
from waiting import wait_until

TEXT = "one two three four five"


class Broken(EchoBackend):
    """Answers nothing."""

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        raise BackendError("broken", retryable=False)
        yield  # makes it a generator


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


def _reader(fabric: Fabric) -> SeriesReader:
    return SeriesReader(fabric.broker, lag_seconds=0)


async def test_history_equals_what_the_clients_got(redis_url: str, fabric: Fabric) -> None:
    reader = _reader(fabric)
    backends = [EchoBackend("echo://?slots=2&tokens=5&token_ms=1") for _ in range(2)]
    async with (
        worker(redis_url, backends[0], node="a"),
        worker(redis_url, backends[1], node="b"),
        AsyncClient(redis_url, app="tests") as client,
    ):
        jobs = [client.submit(chat=f"{TEXT} {n}", model="echo", stream=n % 2 == 0) for n in range(20)]
        answers = await asyncio.gather(*jobs)

        async def told() -> bool:
            return (await reader.fabric(600)).total("requests") == 20

        await wait_until(told, what="the workers to tell of 20 jobs", timeout=30)
        model, nodes = await reader.model("echo", 600), [await reader.node(name, 600) for name in ("a", "b")]
        whole = await reader.fabric(600)
    got_in = sum(answer["prompt_eval_count"] for answer in answers)
    got_out = sum(answer["eval_count"] for answer in answers)
    for history in (whole, model):
        assert history.total("requests") == 20
        assert history.total("errors") == 0
        assert (history.total("tokens_in"), history.total("tokens_out")) == (got_in, got_out)
        assert [sum(history.whole().times[at].values()) for at in (0, 2, 3)] == [20, 20, 20]
    assert sum(node.total("requests") for node in nodes) == 20
    served = [sum(answer.routing.node == name for answer in answers) for name in ("a", "b")]
    assert [node.total("requests") for node in nodes] == served
    assert nodes[0].values("slots")[-1] == 2
    assert nodes[0].values("ram_used_mib")[-1] is not None
    totals = await reader.totals()
    assert [totals[name]["echo"].value("requests") for name in ("a", "b")] == served
    waits = sorted(answer.routing.queue_wait_ms for answer in answers)
    p50 = model.quantile("wait", 0.5)
    assert p50 is not None
    assert waits[8] / 1.5 <= p50 * 1000 <= max(waits[11] * 1.5, 0.2)


async def test_a_worker_that_drains_tells_the_rest(redis_url: str, fabric: Fabric) -> None:
    # No other advert comes; and the worker ends before the client.
    async with (
        AsyncClient(redis_url, app="tests") as client,
        worker(redis_url, "echo://", node="a", advertise_seconds=600),
    ):
        await asyncio.gather(*(client.submit(chat=TEXT, model="echo") for _ in range(3)))
    assert (await _reader(fabric).node("a", 600)).total("requests") == 3


async def test_errors_are_counted_where_they_happen(redis_url: str, fabric: Fabric) -> None:
    reader = _reader(fabric)
    async with (
        worker(redis_url, Broken(), node="a", most_errors=1),
        AsyncClient(redis_url, app="tests") as client,
    ):
        with pytest.raises(BackendError):
            await client.submit(chat=TEXT, model="echo")

        async def told() -> bool:
            return (await reader.node("a", 600)).total("errors") == 1

        await wait_until(told, what="the worker to tell of its error", timeout=30)
    whole = (await reader.model("echo", 600)).whole()
    assert whole.counts[:2] == [1, 1]
    assert whole.times[3] == {}
