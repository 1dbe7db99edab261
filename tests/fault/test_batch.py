"""A batch outlives its client, a worker, the coordinator and Redis: each is killed, and each item is answered once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

from fabric import WorkerProcess, program, script, worker_process
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.words import BatchState
from sollol_client import AsyncBatch, AsyncClient
from sollol_worker_agent.backends import EchoBackend, Timeouts
from waiting import wait_until

_ITEMS, _CHUNK = 1000, 8
_TEXTS = [f"book {i}" for i in range(_ITEMS)]
_ECHO = "echo://?slots=1&delay_ms=200&models=echo-embed"
_BEGIN = f"""
import sys, time
from sollol_client import Client

with Client(sys.argv[1], app="library") as client:
    texts = [f"book {{i}}" for i in range({_ITEMS})]
    batch = client.batch(embed=texts, model="echo-embed", id="books", chunk={_CHUNK}, wait_for_node=True)
    while batch.view.total is None or batch.view.done < 50:
        time.sleep(0.01)
    print("begun", flush=True)
    time.sleep(600)
"""


async def test_each_item_is_answered_once_whoever_is_killed(tmp_path: Path) -> None:
    with EmbeddedBroker(directory=tmp_path / "redis", port=0, appendfsync="everysec") as broker:
        url = broker.url
        async with contextlib.AsyncExitStack() as stack:

            async def worker(node: str) -> WorkerProcess:
                log = tmp_path / f"{node}.log"
                return await stack.enter_async_context(
                    worker_process(url, log, "--backend", _ECHO, node=node)
                )

            async def coordinator(name: str) -> WorkerProcess:
                arguments = ("--redis", url, "--lease", "1", "--metrics", "off")
                return await stack.enter_async_context(
                    program(tmp_path / f"{name}.log", "sollol_coordinator.cli", *arguments)
                )

            doomed, first = await worker("n1"), await coordinator("c1")
            await worker("n2")
            with script(_BEGIN, url) as client:
                assert client.stdout is not None
                assert await asyncio.to_thread(client.stdout.readline) == "begun\n"
                client.kill()
            async with AsyncClient(url, app="library") as onlooker:
                done = await _more(onlooker, 0, "the coordinator to take over")
                doomed.process.kill()
                await worker("n3")
                done = await _more(onlooker, done, "the batch to go on without a worker")
                first.process.kill()
                await coordinator("c2")
                done = await _more(onlooker, done, "another coordinator to take over")
                assert done < _ITEMS, "the batch is too small for this test"
                await asyncio.to_thread(broker.kill)
                await asyncio.to_thread(broker.start)
                await _more(onlooker, done, "the batch to go on after Redis")
                batch = await onlooker.attach_batch("books")
                assert await batch.wait(120) is BatchState.COMPLETED
                await _check(batch)


async def _more(client: AsyncClient, done: int, what: str) -> int:
    """Wait until more chunks have ended than could be under way without a driver; gives the items that have."""
    wanted = max(done, (await client.batches())[0].done) + 12 * _CHUNK

    async def is_there() -> bool:
        return (await client.batches())[0].done >= wanted

    await wait_until(is_there, timeout=90, what=what)
    return (await client.batches())[0].done


async def _check(batch: AsyncBatch) -> None:
    expected = (await EchoBackend("echo://").embed("echo-embed", {"input": _TEXTS}, Timeouts())).vectors
    assert (batch.view.completed, batch.view.failed) == (_ITEMS, 0)
    in_order = [item async for item in batch.results()]
    assert [item.index for item in in_order] == list(range(_ITEMS))
    for item in in_order:
        assert max(abs(a - b) for a, b in zip(item.vector, expected[item.index], strict=True)) < 1e-6
    seen = Counter([item.index async for item in batch])
    assert seen == Counter(range(_ITEMS))
