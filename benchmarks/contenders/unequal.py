"""A worker agent in front of an LLM server that takes as long as one machine of a described cluster would."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from sollol.replay.cluster import PRESETS, NodeSpec
from sollol_broker.url import parse
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import EchoBackend, End, Piece, Timeouts
from sollol_worker_agent.config import WorkerConfig

from ..worker import READY

MODEL = "paced"
_CHARS_PER_TOKEN = 4
# Parts of an answer between which the machine's load is looked at again.
_STEPS = 12


def message(prompt_tokens: int, output_tokens: int) -> str:
    """What to ask for, to get an answer of so many tokens to a prompt of about so many."""
    return f"{output_tokens} ".ljust(_CHARS_PER_TOKEN * prompt_tokens, ".")


class Paced(EchoBackend):
    """One machine; `faster`: by how much its clock runs ahead of ours."""

    def __init__(self, spec: NodeSpec, faster: float) -> None:
        super().__init__(f"echo://?models={MODEL}&slots={spec.slots}")
        self._spec, self._faster, self._busy = spec, faster, 0

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """A first piece once the prompt is read, the rest at the end."""
        text = str(request["messages"][-1]["content"])
        prompt, output = len(text) // _CHARS_PER_TOKEN, int(text.split()[0])
        began = time.perf_counter_ns()
        self._busy += 1
        try:
            await self._work(prompt / self._spec.prefill)
            read = time.perf_counter_ns()
            yield Piece("x")
            await self._work(output / self._spec.decode)
        finally:
            self._busy -= 1
        ended = time.perf_counter_ns()
        yield Piece("y")
        counts = {"prompt_eval_count": prompt, "eval_count": output, "load_duration": 0}
        times = {
            "prompt_eval_duration": read - began,
            "eval_duration": ended - read,
            "total_duration": ended - began,
        }
        yield End({"done_reason": "stop", **counts, **times})

    async def _work(self, alone_s: float) -> None:
        left = alone_s
        while left > 0:
            pace = self._faster / (1 + self._spec.slowdown * (self._busy - 1))
            began = time.perf_counter()
            await asyncio.sleep(min(left, alone_s / _STEPS) / pace)
            # What was slept too long is work done as well, or the machine would be slower than it is described.
            left -= (time.perf_counter() - began) * pace


def serve(url: str, preset: str, node: str, faster: str) -> None:
    """See ContenderModule."""
    spec = next(each for each in PRESETS[preset].nodes if each.name == node)
    asyncio.run(_serve(url, node, Paced(spec, float(faster))))


async def _serve(url: str, node: str, backend: Paced) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    agent = Agent(parse(url), WorkerConfig(node=node), [backend])
    await agent.start()
    print(READY, flush=True)
    await stop.wait()
    await agent.stop(drain_seconds=1.0)
