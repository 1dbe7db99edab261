"""Redis comes back older than what its clients have seen: attempts are counted anew, and nobody is told two things."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fabric import CHAT_MODEL, let_tokens_flow, worker
from sollol import AsyncClient, BackendError
from sollol_broker.embedded import EmbeddedBroker
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

FOX = "the quick brown fox jumps over the lazy dog"


@dataclass(slots=True)
class OlderBroker:
    """A broker that can be taken back to an earlier moment."""

    broker: EmbeddedBroker
    folder: Path
    moment: int = 0

    def remember(self) -> None:
        """Take this moment for later."""
        self.moment = self._log.stat().st_size

    def go_back(self) -> None:
        """Kill it, forget all since then, and start it again."""
        self.broker.kill()
        os.truncate(self._log, self.moment)
        self.broker.start()

    @property
    def _log(self) -> Path:
        (found,) = self.folder.glob("appendonlydir/*.incr.aof")
        return found


@pytest.fixture
async def older(tmp_path: Path) -> AsyncIterator[OlderBroker]:
    with EmbeddedBroker(directory=tmp_path / "redis", port=0, appendfsync="always") as broker:
        yield OlderBroker(broker, tmp_path / "redis")


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaDouble]:
    async with OllamaDouble([CHAT_MODEL], parallel=2) as double:
        yield double
        double.tokens_may_flow.set()


@pytest.mark.parametrize("answer", [FOX, "one two three four five six seven"])
async def test_an_attempt_that_redis_has_forgotten_is_not_mixed_with_the_one_that_gets_its_number(
    older: OlderBroker, ollama: OllamaDouble, answer: str
) -> None:
    url = older.broker.url
    async with AsyncClient(url) as client:
        job = client.submit(chat="hi", model="tiny", stream=True, wait_for_node=True)
        await job.accepted(5)
        older.remember()  # waiting, and never begun
        ollama.tokens_may_flow.clear()
        async with worker(url, ollama.url):
            reader = aiter(job)
            await let_tokens_flow(ollama, 4)
            shown = [await anext(reader) for _ in range(3)]
            await asyncio.to_thread(older.go_back)
            ollama.models["tiny:latest"] = DoubleModel("tiny", answer=answer)
            ollama.tokens_may_flow.set()
            async with asyncio.timeout(40):
                if answer == FOX:
                    shown += [piece async for piece in reader]
                    assert "".join(shown) == FOX
                else:
                    with pytest.raises(BackendError, match="differently"):
                        shown += [piece async for piece in reader]
                    assert "".join(shown) == "the quick brown fox"[: len("".join(shown))]
                assert (await job).text == answer


async def test_an_answer_that_was_read_stays_though_redis_has_forgotten_it(
    older: OlderBroker, ollama: OllamaDouble
) -> None:
    url = older.broker.url
    async with AsyncClient(url) as client:
        job = client.submit(chat="hi", model="tiny", wait_for_node=True)
        await job.accepted(5)
        older.remember()
        async with worker(url, ollama.url):
            assert (await job).text == FOX
            await asyncio.to_thread(older.go_back)
            ollama.models["tiny:latest"] = DoubleModel("tiny", answer="something else")
            await wait_until(lambda: len(ollama.seen.requests) == 2, timeout=20, what="the job to run again")
            async with asyncio.timeout(30):
                assert (await client.attach(job.id)).text == "something else"
            assert (await job).text == FOX
