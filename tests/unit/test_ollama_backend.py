"""OllamaBackend against the double: everything passes through, and models are told apart by kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sollol_broker.errors import BackendError
from sollol_worker_agent.backends import End, OllamaBackend, Piece, Timeouts
from sollol_worker_agent.backends.ollama import OllamaReader, model_info, same_model
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

HELLO = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
MODELS = [
    DoubleModel("tiny"),
    DoubleModel("tooly", capabilities=("completion", "tools"), context_tokens=512),
    DoubleModel("thinky", capabilities=("completion", "thinking"), thinking="let me see", answer="two"),
    DoubleModel("embed", capabilities=("embedding",)),
]
T = Timeouts(first_token=5.0)


@asynccontextmanager
async def both(*models: DoubleModel, **settings: Any) -> AsyncIterator[tuple[OllamaDouble, OllamaBackend]]:
    async with OllamaDouble(models or MODELS, **settings) as double:
        backend = OllamaBackend(double.url)
        try:
            yield double, backend
        finally:
            await backend.close()


async def whole(answer: AsyncIterator[Piece | End]) -> tuple[list[Piece], End]:
    said = [part async for part in answer]
    *pieces, end = said
    assert isinstance(end, End)
    return [piece for piece in pieces if isinstance(piece, Piece)], end


async def test_models_and_their_kinds() -> None:
    async with both() as (_, backend):
        models = {model.name: model for model in await backend.models()}
    assert models["tiny:latest"].kinds == {"chat", "generate"}
    assert models["tiny:latest"].size_bytes == 1_000_000
    assert models["tooly:latest"].context_tokens == 512
    assert models["tooly:latest"].capabilities == ("completion", "tools")
    assert models["embed:latest"].kinds == {"embed"}


async def test_its_release() -> None:
    async with both() as (_, backend):
        assert await backend.version() == "0.33.0"


@pytest.mark.parametrize(
    ("family", "kinds"),
    [("bert", {"embed"}), ("nomic-bert", {"embed"}), ("llama", {"chat", "generate", "embed"})],
)
def test_an_older_server_does_not_tell_capabilities(family: str, kinds: set[str]) -> None:
    assert model_info({"name": "m", "details": {"family": family}}).kinds == kinds


async def test_chat() -> None:
    async with both() as (_, backend):
        pieces, end = await whole(backend.chat("tiny", {"messages": HELLO, "options": {"num_predict": 2}}, T))
    assert pieces == [Piece("the"), Piece(" quick")]
    assert end.fields["done_reason"] == "length"
    assert end.fields["eval_count"] == 2
    assert end.fields.keys() <= {
        "done_reason", "total_duration", "load_duration", "prompt_eval_count",
        "prompt_eval_duration", "eval_count", "eval_duration",
    }  # fmt: skip


async def test_the_request_passes_untouched() -> None:
    request = {
        "messages": HELLO,
        "options": {"x": 1},
        "format": None,
        "keep_alive": "5m",
        "new": [1],
        "stream": False,
    }
    async with both() as (double, backend):
        await whole(backend.chat("tiny", request, T))
    assert double.seen.requests == [("/api/chat", {**request, "model": "tiny", "stream": True})]


async def test_generate_brings_the_context_back() -> None:
    async with both() as (_, backend):
        pieces, end = await whole(backend.generate("tiny", {"prompt": "a"}, T))
    assert "".join(piece.text for piece in pieces) == "the quick brown fox jumps over the lazy dog"
    assert isinstance(end.fields["context"], list)


async def test_text_on_the_last_line_is_not_lost() -> None:
    async with both() as (double, backend):
        double.faults.text_on_last_line = True
        pieces, _ = await whole(backend.chat("tiny", {"messages": HELLO}, T))
    assert "".join(piece.text for piece in pieces) == "the quick brown fox jumps over the lazy dog"


@pytest.mark.parametrize("on_last_line", [False, True])
async def test_tool_calls_of_either_line(on_last_line: bool) -> None:
    async with both() as (double, backend):
        double.faults.tool_calls_on_last_line = on_last_line
        pieces, _ = await whole(backend.chat("tooly", {"messages": HELLO, "tools": TOOLS}, T))
    (call,) = [call for piece in pieces for call in piece.tool_calls]
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {}}


async def test_thinking_and_logprobs() -> None:
    async with both() as (double, backend):
        double.faults.logprob_only_lines = True
        pieces, _ = await whole(backend.chat("thinky", {"messages": HELLO, "logprobs": True}, T))
    assert "".join(piece.thinking for piece in pieces) == "let me see"
    assert "".join(piece.text for piece in pieces) == "two"
    assert sum(len(piece.logprobs) for piece in pieces) == 4


async def test_embed() -> None:
    async with both() as (double, backend):
        vectors = await backend.embed("embed", {"input": ["a", "b"], "dimensions": 4, "truncate": True}, T)
        empty = await backend.embed("embed", {"input": []}, T)
    assert [len(vector) for vector in vectors.vectors] == [4, 4]
    assert vectors.fields["prompt_eval_count"] == 6
    assert list(empty.vectors) == []
    assert double.seen.requests[0] == (
        "/api/embed",
        {"model": "embed", "input": ["a", "b"], "dimensions": 4, "truncate": True},
    )


async def test_warm_and_unload_whatever_the_model_is_for() -> None:
    async with both() as (_, backend):
        for name in ("tiny", "embed"):
            await backend.warm(name, {})
        assert await backend.loaded() == {"tiny:latest", "embed:latest"}
        for name in ("tiny", "embed"):
            await backend.unload(name)
        assert await backend.loaded() == frozenset()


async def test_unloading_what_is_not_loaded_does_not_load_it() -> None:
    async with both() as (double, backend):
        await backend.unload("embed")
    assert double.scheduler.loads == []


async def test_slots_are_unknown() -> None:
    async with both() as (_, backend):
        assert await backend.slots() == 0


async def test_an_unknown_model_may_live_elsewhere() -> None:
    async with both() as (_, backend):
        with pytest.raises(BackendError, match="model 'nope' not found") as failed:
            await whole(backend.chat("nope", {"messages": HELLO}, T))
    assert (failed.value.status, failed.value.retryable) == (404, True)


@pytest.mark.parametrize("by", ["error_line", "cut"])
async def test_a_death_in_mid_stream_is_a_failure(by: str) -> None:
    async with both() as (double, backend):
        double.faults.die_after_tokens = 2
        double.faults.die_by = "cut" if by == "cut" else "error_line"
        with pytest.raises(BackendError) as failed:
            await whole(backend.chat("tiny", {"messages": HELLO}, T))
    assert failed.value.retryable
    if by == "error_line":
        assert failed.value.partial == "the quick"


async def test_closing_early_frees_the_slot() -> None:
    slow = DoubleModel("tiny", answer="word " * 10_000, token_seconds=0.001)
    async with both(slow) as (double, backend):
        answer = backend.chat("tiny", {"messages": HELLO}, T)
        await anext(answer)
        await answer.aclose()
        await wait_until(lambda: double.seen.generating == 0, timeout=1, what="the slot to be free")
    assert double.seen.abandoned == 1


@pytest.mark.parametrize(
    ("asked", "listed", "same"),
    [
        ("tiny", "tiny:latest", True),
        ("Tiny:Latest", "tiny:latest", True),
        ("library/tiny", "tiny:latest", True),
        ("tiny:1b", "tiny:latest", False),
        ("host:5000/a/tiny", "host:5000/a/tiny:latest", True),
    ],
)
def test_names_of_one_model(asked: str, listed: str, same: bool) -> None:
    assert same_model(asked, listed) is same


def test_a_loading_answer_is_only_an_end() -> None:
    line = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}'
    assert OllamaReader("http://x").feed(line) == (End({"done_reason": "load"}),)
