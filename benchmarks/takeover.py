"""Whether an answer that another llama-server continues is the uninterrupted one, at temperature 0."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sollol_broker.words import JobKind
from sollol_worker_agent.backends import Backend, LlamaServerBackend, OpenAIBackend, Piece, Timeouts
from sollol_worker_agent.backends.protocol import End, Said
from sollol_worker_agent.llama_process import LlamaServerProcess

from .llama import model_file
from .report import Aim, Outcome, Table

_MODEL, _TOKENS = "smollm2", 96
_CUTS = (0.1, 0.35, 0.6, 0.9)
_PROMPTS = (
    "Hello, who are you?",
    "Tell me a short story about a fox.",
    "List three colours and why people like them.",
    "What is the capital of France? Explain.",
)
_WAYS = ("chat", "generate", "raw")


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual prompts."""
    prompts = _PROMPTS[: max(1, round(len(_PROMPTS) * share))]
    rows = tuple(asyncio.run(_measured(prompts)))
    table = Table(
        "takeover: SmolLM2 135M, answers continued by another server", ("way", "same", "cuts"), rows
    )
    aims = tuple(
        Aim(f"same text, {row[0]}", float(row[1]) / float(row[2]), 1.0, higher_is_better=True) for row in rows
    )
    return Outcome("takeover", (table,), aims)


async def _measured(prompts: tuple[str, ...]) -> list[tuple[str | float, ...]]:
    with tempfile.TemporaryDirectory(prefix="sollol-bench-") as logs:
        first, second = (
            LlamaServerProcess(
                model_path=model_file(), alias=_MODEL, threads=1, log_directory=Path(logs) / name
            )
            for name in ("first", "second")
        )
        for server in (first, second):
            server.log.parent.mkdir()
        async with first, second:
            begins = LlamaServerBackend(first.url)
            others: dict[str, Backend] = {
                "llama-server": LlamaServerBackend(second.url),
                "as any OpenAI server": OpenAIBackend(second.url),
            }
            rows: list[tuple[str | float, ...]] = []
            for way in _WAYS:
                whole = [await _told(_ask(begins, way, prompt)) for prompt in prompts]
                for name, other in others.items():
                    same = [
                        await _is_same(other, way, prompt, pieces, cut)
                        for prompt, pieces in zip(prompts, whole, strict=True)
                        for cut in _CUTS
                    ]
                    rows.append((f"{way}, {name}", float(sum(same)), float(len(same))))
            for backend in (begins, *others.values()):
                await backend.close()
    return rows


def _request(way: str, prompt: str) -> dict[str, Any]:
    asked: dict[str, Any] = {"options": {"temperature": 0, "seed": 1, "num_predict": _TOKENS}}
    if way == "chat":
        return {**asked, "messages": [{"role": "user", "content": prompt}]}
    return {**asked, "prompt": prompt, "raw": way == "raw"}


def _ask(backend: Backend, way: str, prompt: str) -> AsyncIterator[Piece | End]:
    ask = backend.chat if way == "chat" else backend.generate
    return ask(_MODEL, _request(way, prompt), Timeouts())


async def _is_same(backend: Backend, way: str, prompt: str, pieces: list[Piece], cut: float) -> bool:
    said = Said(tuple(pieces[: max(1, int(len(pieces) * cut))]))
    kind = JobKind.CHAT if way == "chat" else JobKind.GENERATE
    rest = await _told(backend.resume(kind, _MODEL, _request(way, prompt), said, Timeouts()))
    return said.text + Said(tuple(rest)).text == Said(tuple(pieces)).text


async def _told(events: AsyncIterator[Piece | End]) -> list[Piece]:
    return [event async for event in events if isinstance(event, Piece)]
