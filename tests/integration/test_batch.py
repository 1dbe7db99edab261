"""Batches through both clients: results in order and as they come, errors by item, cancel, resume."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fabric import town, worker
from paced import Paced, paced_worker
from sollol_broker.errors import BackendError, InvalidJob, JobCancelled, JobLost, NoNodeForModel
from sollol_broker.words import BatchState
from sollol_client import AsyncClient, BatchItem, Client
from sollol_worker_agent.backends import EchoBackend, Timeouts
from sollol_worker_agent.backends.protocol import Vectors
from waiting import wait_until

_ECHO = "echo://?slots=4"


class Picky(EchoBackend):
    """Refuses every call with a text that begins with "bad", and counts how often it saw each text."""

    def __init__(self) -> None:
        super().__init__("echo://?slots=2")
        self.sizes: list[int] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def embed(self, model: str, request, timeouts: Timeouts) -> Vectors:  # type: ignore[no-untyped-def]
        """Embed as an echo does."""
        self.sizes.append(len(request["input"]))
        await self.may_answer.wait()
        if any(text.startswith("bad") for text in request["input"]):
            raise BackendError("this text cannot be embedded", status=400)
        return await super().embed(model, request, timeouts)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url, app="tests") as client:
        yield client


def _texts(count: int) -> list[str]:
    return [f"text number {i}" for i in range(count)]


async def test_results_come_in_order_and_are_those_of_direct_calls(
    redis_url: str, client: AsyncClient
) -> None:
    async with worker(redis_url, _ECHO):
        batch = await client.batch(embed=_texts(300), model="echo-embed", metadata={"shelf": 3})
        items = [item async for item in batch.results()]
        assert [item.index for item in items] == list(range(300))
        direct = await client.submit(embed=_texts(300)[:40], model="echo-embed")
        assert [item.vector for item in items[:40]] == direct.embeddings
        assert await batch.wait() is BatchState.COMPLETED
        assert [item.index async for item in batch.results(10, 5)] == [10, 11, 12, 13, 14]
        progress = batch.progress
        assert (progress.total, progress.completed, progress.failed, progress.percent) == (300, 300, 0, 100.0)
        assert progress.eta_s == 0.0
        assert progress.rate > 0
        view = (await client.batches())[0]
        assert (view.id, view.metadata, view.state) == (batch.id, {"shelf": 3}, BatchState.COMPLETED)
        assert view.created_at <= (view.started_at or 0) <= (view.ended_at or 0)


async def test_items_come_as_they_end_each_once(redis_url: str, client: AsyncClient) -> None:
    async with worker(redis_url, _ECHO):
        batch = await client.batch(chat=[f"say {i}" for i in range(100)], model="echo")
        found = {item.index: item.text async for item in batch}
        assert found == {i: f"say {i}" for i in range(100)}


async def test_what_fails_is_found_alone_and_the_rest_is_answered(
    redis_url: str, client: AsyncClient
) -> None:
    texts = _texts(100)
    texts[17], texts[18], texts[99] = "bad one", "bad two", "bad three"
    given: list[object] = [*texts, 5]
    backend = Picky()
    async with worker(redis_url, backend):
        batch = await client.batch(embed=given, model="echo-embed", chunk=32)
        assert await batch.wait(60) is BatchState.COMPLETED
        errors = dict(await batch.errors())
        assert sorted(errors) == [17, 18, 99, 100]
        assert isinstance(errors[17], BackendError)
        assert isinstance(errors[100], InvalidJob)
        assert (batch.progress.completed, batch.progress.failed) == (97, 4)
        items = [item async for item in batch.results()]
        assert [item.ok for item in items] == [i not in errors for i in range(101)]
        with pytest.raises(BackendError, match="cannot be embedded"):
            _ = items[17].vector
        assert max(backend.sizes) == 32


async def test_a_slow_node_takes_of_a_chunk_what_keeps_within_the_bound(
    redis_url: str, client: AsyncClient
) -> None:
    class Slow(Paced):
        async def embed(self, model: str, request, timeouts: Timeouts) -> Vectors:  # type: ignore[no-untyped-def]
            sizes.append(len(request["input"]))
            return await super().embed(model, request, timeouts)

    sizes: list[int] = []
    async with paced_worker(redis_url, Slow(models="m-embed", prompt_ms=20.0)):
        batch = await client.batch(embed=_texts(200), model="m-embed", chunk=100)
        items = [item async for item in batch.results()]
        assert [item.index for item in items if item.ok] == list(range(200))
        # 100 texts would take 8 s there, and one call is to take one.
        assert 2 <= sizes[0] < 25
        assert sum(sizes) == 200
        direct = await client.submit(embed=_texts(200), model="m-embed")
        assert [item.vector for item in items] == direct.embeddings


async def test_stop_ends_a_batch_with_its_first_error(redis_url: str, client: AsyncClient) -> None:
    async with worker(redis_url, Picky()):
        given = ["bad", *_texts(20)]
        batch = await client.batch(embed=given, model="echo-embed", chunk=1, on_error="stop")
        assert await batch.wait(60) is BatchState.FAILED
        assert "on_error" in batch.error
        items = [item async for item in batch.results()]
        assert len(items) == 21
        assert isinstance(items[0].error, BackendError)


async def test_a_batch_without_any_answer_has_failed(redis_url: str, client: AsyncClient) -> None:
    async with worker(redis_url, Picky()):
        batch = await client.batch(embed=["bad 1", "bad 2", "bad 3"], model="echo-embed")
        assert await batch.wait(60) is BatchState.FAILED
        assert "each of its items" in batch.error


async def test_an_empty_batch_is_complete(redis_url: str, client: AsyncClient) -> None:
    async with worker(redis_url, _ECHO):
        batch = await client.batch(embed=[], model="echo-embed")
        assert await batch.wait(60) is BatchState.COMPLETED
        assert [item async for item in batch.results()] == []


async def test_cancel_lets_nothing_more_start(redis_url: str, client: AsyncClient) -> None:
    backend = Picky()
    backend.may_answer.clear()
    async with worker(redis_url, backend):
        batch = await client.batch(embed=_texts(100), model="echo-embed", chunk=10)
        await wait_until(lambda: len(backend.sizes) == 2, timeout=30, what="both slots to be busy")
        assert await batch.cancel()
        assert batch.state is BatchState.CANCELLED
        backend.may_answer.set()
        # A job of the same model that comes later is run, and none of the batch before it.
        await client.submit(embed=["after"], model="echo-embed")
        assert backend.sizes == [10, 10, 1]
        items = [item async for item in batch.results()]
        assert len(items) == 100
        assert all(isinstance(item.error, JobCancelled) for item in items)
        assert not await batch.cancel()


async def test_an_iterator_is_fed_as_answers_come_and_read_results_are_dropped(
    redis_url: str, client: AsyncClient
) -> None:
    async def source() -> AsyncIterator[str]:
        for i in range(2000):
            yield f"text {i}"

    async with worker(redis_url, _ECHO):
        batch = await client.batch(embed=source(), model="echo-embed", ahead_bytes=4_000)
        most, found = 0, 0
        async for item in batch.results():
            assert item.ok
            assert item.index == found
            found, most = found + 1, max(most, batch.view.in_bytes, batch.view.out_bytes)
        assert found == 2000
        assert await batch.wait() is BatchState.COMPLETED
        # A call's worth of items, or a window's worth of results, may come on top.
        assert most < 80_000, most
        assert (await batch.refresh()).out_bytes == 0


async def test_an_iterator_that_breaks_ends_the_batch(redis_url: str, client: AsyncClient) -> None:
    def source() -> Iterator[str]:
        yield "one"
        raise OSError("the disk is gone")

    async with worker(redis_url, _ECHO):
        batch = await client.batch(embed=source(), model="echo-embed")
        with pytest.raises(OSError, match="disk"):
            await batch.wait(60)
        assert batch.state is BatchState.FAILED
        assert "OSError" in batch.error


async def test_another_client_takes_over_and_feeds_on(redis_url: str) -> None:
    """The first one dies in the middle of its input; what it had fed is not done again."""
    backend = Picky()
    given, died = _texts(200), asyncio.Event()

    async def half() -> AsyncIterator[str]:
        for text in given[:100]:
            yield text
        died.set()
        await asyncio.Event().wait()

    async with worker(redis_url, backend):
        async with AsyncClient(redis_url, app="tests") as first:
            await first.batch(embed=half(), model="echo-embed", id="books", keep=True)
            await died.wait()
        async with AsyncClient(redis_url, app="tests") as second:
            watcher = await second.attach_batch("books")
            await wait_until(lambda: watcher.view.done == 100, timeout=30, what="the fed half to be answered")
            assert watcher.state is BatchState.RUNNING
            batch = await second.batch(embed=given, model="echo-embed", id="books", keep=True)
            items: list[BatchItem] = [item async for item in batch.results()]
            assert [item.index for item in items if item.ok] == list(range(200))
            assert sum(backend.sizes) == 200
            with pytest.raises(InvalidJob, match="another"):
                await second.batch(chat=["x"], model="echo", id="books")


async def test_results_beyond_the_limit_end_the_batch(redis_url: str, client: AsyncClient) -> None:
    async with worker(redis_url, _ECHO):
        batch = await client.batch(embed=_texts(5000), model="echo-embed", max_result_bytes=2_000)
        assert await batch.wait(60) is BatchState.FAILED
        assert "max_result_bytes" in batch.error


async def test_bad_calls_say_what_is_wrong(redis_url: str, client: AsyncClient, tmp_path: Path) -> None:
    async with worker(redis_url, _ECHO):
        for asked, field in (
            ({"embed": "one text"}, "embed"),
            ({"embed": ["a"], "chat": ["b"]}, "embed"),
            ({"embed": ["a"], "chunk": 0}, "chunk"),
            ({"embed": ["a"], "on_error": "ignore"}, "on_error"),
            ({"embed": ["a"], "id": "a b"}, "id"),
            ({"embed": ["a"], "deadline": 5}, "deadline"),
            ({"embed": ["a"], "priority": 11}, "priority"),
            ({"embed": tmp_path / "none.txt"}, "embed"),
        ):
            with pytest.raises(InvalidJob) as caught:
                await client.batch(model="echo-embed", **asked)
            assert caught.value.field == field
        with pytest.raises(NoNodeForModel, match="wait_for_node"):
            await client.batch(embed=["a"], model="unknown")
        with pytest.raises(JobLost, match="nothing"):
            await client.attach_batch("nothing")
        assert await client.batches() == []


def test_threads_have_the_same(redis_url: str, tmp_path: Path) -> None:
    lines = tmp_path / "texts.jsonl"
    lines.write_text('"one"\n{"text": "two"}\n{"input": "three"}\n', "utf-8")
    with town(redis_url), Client(redis_url, app="tests") as client:
        batch = client.batch(embed=lines, model="tiny-embed", keep=True)
        assert [len(item.vector) > 0 for item in batch.results()] == [True] * 3
        assert batch.wait(60) is BatchState.COMPLETED
        with lines.open("w") as file:
            file.write("alpha\nbeta\n")
        with lines.open() as file:
            answers = list(client.batch(generate=file, model="tiny", options={"num_predict": 3}))
        assert sorted(item.index for item in answers) == [0, 1]
        assert all(item.text for item in answers)
        talk = [{"messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 1}}]
        assert [item.ok for item in client.batch(chat=talk, model="tiny")] == [True]
        again = client.attach_batch(batch.id)
        assert len(list(again.results())) == 3
        assert again.errors() == []
        assert not again.cancel()
        assert [view.id for view in client.batches(limit=1)] != [batch.id]
