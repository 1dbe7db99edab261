"""A backend whose pace is what a test says: it answers when it may, and reports the times it is told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio

from fabric import worker
from sollol_broker.keys import Keys
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import EchoBackend, End, Piece, Timeouts
from sollol_worker_agent.pace import Pace

# Enough for a job to count in full when a worker learns from it.
_PROMPT_TOKENS, _OUTPUT_TOKENS = 64, 32
_JOBS_KNOWN = 20


class Paced(EchoBackend):
    """Answers with the last message. Real time does not matter to what it reports.

    Args:
        prompt_ms, output_ms: per token, as it reports them.

    Attributes:
        may_answer: clear it to hold all answers.
        asked: the last messages of all requests, in order.
        now, most: requests that it works on, and the most it ever had.
    """

    def __init__(
        self, *, models: str = "m", slots: int = 1, prompt_ms: float = 1.0, output_ms: float = 10.0
    ) -> None:
        super().__init__(f"echo://?models={models}&slots={slots}")
        prompt, output = (_PROMPT_TOKENS * prompt_ms * 1e6, _OUTPUT_TOKENS * output_ms * 1e6)
        self.closing = {
            "done_reason": "stop",
            "prompt_eval_count": _PROMPT_TOKENS,
            "prompt_eval_duration": round(prompt),
            "eval_count": _OUTPUT_TOKENS,
            "eval_duration": round(output),
            "load_duration": 0,
            "total_duration": round(prompt + output),
        }
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked: list[str] = []
        self.now = self.most = 0

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Say the last message again, once it may."""
        text = str(request["messages"][-1]["content"])
        self.asked.append(text)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.may_answer.wait()
            yield Piece(text)
            yield End(dict(self.closing))
        finally:
            self.now -= 1


@asynccontextmanager
async def paced_worker(url: str, backend: Paced, *, node: str = "n1", **more: Any) -> AsyncIterator[Agent]:
    """A worker that knows from earlier how fast its backend is."""
    pace = Pace()
    for _ in range(_JOBS_KNOWN):
        pace = pace.after(backend.closing)
    fields: dict[Any, Any] = dict(pace.aged(time.time()).to_fields())
    async with redis.asyncio.from_url(url) as raw:
        for model in (info.name for info in await backend.models()):
            key = Keys().pace(node, model)
            await raw.hset(key, mapping=fields)
            await raw.expire(key, 60)
    async with worker(url, backend, node=node, **more) as agent:
        yield agent
