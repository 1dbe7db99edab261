"""LlamaServerBackend and OpenAIBackend against a real llama-server."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from sollol_broker.errors import BackendError, BackendTimeout
from sollol_worker_agent.backends import (
    Backend,
    End,
    LlamaServerBackend,
    OpenAIBackend,
    Piece,
    Timeouts,
    connect,
)
from sollol_worker_agent.health import is_backends_fault
from waiting import wait_until

T = Timeouts(connect=2.0, first_token=30.0, between_tokens=30.0, total=60.0)
HELLO = [{"role": "user", "content": "hello there"}]
SHORT = {"num_predict": 5, "temperature": 0}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "the weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


@asynccontextmanager
async def llama(url: str) -> AsyncIterator[LlamaServerBackend]:
    backend = LlamaServerBackend(url)
    try:
        yield backend
    finally:
        await backend.close()


async def whole(answer: AsyncIterator[Piece | End]) -> tuple[list[Piece], End]:
    *pieces, end = [part async for part in answer]
    assert isinstance(end, End)
    return [piece for piece in pieces if isinstance(piece, Piece)], end


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def failure(answer: AsyncIterator[Piece | End]) -> BackendError:
    with pytest.raises(BackendError) as failed:
        await whole(answer)
    return failed.value


async def test_it_is_recognised_and_tells_what_it_has(toy_llama_server: str) -> None:
    backend = await connect(toy_llama_server)
    assert backend.kind == "llama-server"
    (model,) = await backend.models()
    assert (model.name, model.kinds) == ("toy", frozenset({"chat", "generate"}))
    assert model.size_bytes > 0
    assert model.context_tokens > 0
    assert await backend.loaded() == {"toy"}
    assert await backend.slots() == 2
    assert (await backend.version()).startswith("b")
    await backend.close()


async def test_a_server_started_for_embeddings_only_embeds(toy_embed_server: str) -> None:
    async with llama(toy_embed_server) as backend:
        (model,) = await backend.models()
    assert (model.name, model.kinds) == ("toy-embed", frozenset({"embed"}))


async def test_its_model_can_be_called_something_else(toy_llama_server: str) -> None:
    backend = LlamaServerBackend(toy_llama_server, "llama3.2")
    assert [model.name for model in await backend.models()] == ["llama3.2"]
    assert await backend.loaded() == {"llama3.2"}
    pieces, _ = await whole(backend.chat("llama3.2", {"messages": HELLO, "options": SHORT}, T))
    assert pieces
    await backend.close()


async def test_chat(toy_llama_server: str) -> None:
    async with llama(toy_llama_server) as backend:
        pieces, end = await whole(backend.chat("toy", {"messages": HELLO, "options": SHORT}, T))
    assert len(pieces) == 5
    fields = end.fields
    assert (fields["done_reason"], fields["eval_count"]) == ("length", 5)
    assert fields["prompt_eval_count"] > 5
    assert 0 < fields["prompt_eval_duration"] + fields["eval_duration"] <= fields["total_duration"]


async def test_options_are_honoured(toy_llama_server: str) -> None:
    async with llama(toy_llama_server) as backend:

        async def say(**options: Any) -> str:
            request = {"messages": HELLO, "options": {"num_predict": 8, **options}}
            return text_of((await whole(backend.chat("toy", request, T)))[0])

        greedy = await say(temperature=0)
        assert await say(temperature=0) == greedy
        assert await say(temperature=2, top_k=1) == greedy
        assert await say(temperature=0, num_ctx=99, num_gpu=1) == greedy
        assert await say(temperature=2, seed=1) != await say(temperature=2, seed=2)
        stop = greedy.split()[1]
        assert stop not in await say(temperature=0, stop=[stop])


async def test_generate_applies_the_chat_template_unless_raw(toy_llama_server: str) -> None:
    async with llama(toy_llama_server) as backend:
        plain, end = await whole(backend.generate("toy", {"prompt": "hello there", "options": SHORT}, T))
        chat, _ = await whole(backend.chat("toy", {"messages": HELLO, "options": SHORT}, T))
        raw, raw_end = await whole(
            backend.generate("toy", {"prompt": "hello there", "raw": True, "options": SHORT}, T)
        )
        with_system, system_end = await whole(
            backend.generate("toy", {"prompt": "hello there", "system": "be brief", "options": SHORT}, T)
        )
    assert text_of(plain) == text_of(chat)
    assert len(raw) == len(with_system) == 5
    counts = [ended.fields["prompt_eval_count"] for ended in (raw_end, end, system_end)]
    assert counts == sorted(set(counts))


async def test_a_raw_prompt_can_be_bound_to_a_schema(toy_llama_server: str) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}
    request = {
        "prompt": "hello",
        "raw": True,
        "format": schema,
        "options": {"temperature": 0, "num_predict": 200},
    }
    async with llama(toy_llama_server) as backend:
        pieces, end = await whole(backend.generate("toy", request, T))
    assert json.loads(text_of(pieces)) == {"a": "x"}
    assert end.fields["done_reason"] == "stop"


async def test_a_server_without_infill_leaves_suffix_to_others(toy_llama_server: str) -> None:
    async with llama(toy_llama_server) as backend:
        error = await failure(backend.generate("toy", {"prompt": "a", "suffix": "b"}, T))
    assert (error.status, error.retryable) == (400, True)
    assert "does not support insert" in str(error)


@pytest.mark.parametrize("raw", [False, True])
async def test_logprobs(toy_llama_server: str, raw: bool) -> None:
    request = {"prompt": "hello", "raw": raw, "logprobs": True, "top_logprobs": 2, "options": SHORT}
    async with llama(toy_llama_server) as backend:
        pieces, _ = await whole(backend.generate("toy", request, T))
    for piece in pieces:
        (entry,) = piece.logprobs
        assert entry.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert entry["token"] == piece.text
        assert len(entry["top_logprobs"]) == 2


async def test_a_request_with_tools_passes(toy_llama_server: str) -> None:
    messages = [
        *HELLO,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {}}}],
        },
        {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
    ]
    async with llama(toy_llama_server) as backend:
        request = {"messages": messages, "tools": TOOLS, "think": False, "options": SHORT}
        pieces, _ = await whole(backend.chat("toy", request, T))
    assert pieces


async def test_unknown_fields_pass(toy_llama_server: str) -> None:
    async with llama(toy_llama_server) as backend:
        request = {"messages": HELLO, "options": SHORT, "nobody_knows": {"a": 1}, "keep_alive": "5m"}
        assert (await whole(backend.chat("toy", request, T)))[0]
        # One that llama-server knows and we do not: it must have arrived.
        grammar = {"prompt": "a", "raw": True, "options": SHORT, "grammar": 'root ::= "the"'}
        assert text_of((await whole(backend.generate("toy", grammar, T)))[0]) == "the"


async def test_embed(toy_embed_server: str) -> None:
    async with llama(toy_embed_server) as backend:
        both = await backend.embed("toy-embed", {"input": ["the cat", "a dog"]}, T)
        one = await backend.embed("toy-embed", {"input": "a dog"}, T)
        short = await backend.embed("toy-embed", {"input": "a dog", "dimensions": 8}, T)
        none = await backend.embed("toy-embed", {"input": ""}, T)
    assert all(
        math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-5) for vector in [*both.vectors, *short.vectors]
    )
    assert both.vectors[1] == pytest.approx(one.vectors[0], abs=1e-4)
    assert len(short.vectors[0]) == 8
    assert list(none.vectors) == []
    assert both.fields["prompt_eval_count"] > 0


async def test_texts_that_are_too_long_are_cut_as_by_ollama(toy_embed_server: str) -> None:
    long = "the cat " * 5_000
    async with llama(toy_embed_server) as backend:
        cut = await backend.embed("toy-embed", {"input": [long, "a dog", long + "and a dog"]}, T)
        whole_one = await backend.embed("toy-embed", {"input": "a dog"}, T)
        with pytest.raises(BackendError, match=r"too large|exceeds") as refused:
            await backend.embed("toy-embed", {"input": long, "truncate": False}, T)
    assert cut.vectors[0] == pytest.approx(cut.vectors[2], abs=1e-4)
    assert cut.vectors[1] == pytest.approx(whole_one.vectors[0], abs=1e-4)
    assert (refused.value.status, refused.value.retryable) == (400, False)


async def test_a_server_without_eyes_leaves_pictures_to_others(toy_llama_server: str) -> None:
    seen = [{"role": "user", "content": "What is this?", "images": [b"a picture"]}]
    async with llama(toy_llama_server) as backend:
        error = await failure(backend.chat("toy", {"messages": seen}, T))
    assert (error.status, error.retryable) == (400, True)
    assert "image input is not supported" in str(error)
    assert not is_backends_fault(error)


async def test_a_chat_server_does_not_embed_but_another_may(toy_llama_server: str) -> None:
    async with llama(toy_llama_server) as backend:
        with pytest.raises(BackendError, match="--embeddings") as failed:
            await backend.embed("toy", {"input": "a"}, T)
    assert (failed.value.status, failed.value.retryable) == (501, True)


async def busy_slots(url: str) -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        return sum(slot["is_processing"] for slot in (await client.get(f"{url}/slots")).json())


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_early_frees_the_slot(toy_llama_server: str, how: str) -> None:
    async def is_free() -> bool:
        return await busy_slots(toy_llama_server) == 0

    async with llama(toy_llama_server) as backend:
        request = {"messages": HELLO, "options": {"num_predict": -1, "temperature": 0}}
        answer = backend.chat("toy", request, T)
        await anext(answer)
        if how == "close":
            await answer.aclose()
        else:
            rest = asyncio.ensure_future(whole(answer))
            await asyncio.sleep(0)
            rest.cancel()
            with pytest.raises(asyncio.CancelledError):
                await rest
        await wait_until(is_free, timeout=1.0, what="the slot to be free")


@pytest.mark.parametrize("raw", [False, True])
async def test_a_prompt_that_is_too_long_is_the_requests_fault(toy_llama_server: str, raw: bool) -> None:
    prompt = "a word " * 20_000
    async with llama(toy_llama_server) as backend:
        error = await failure(backend.generate("toy", {"prompt": prompt, "raw": raw}, T))
    assert (error.status, error.retryable) == (400, False)
    assert "context size" in str(error)
    assert "a word" not in str(error)


async def test_dangerous_fields_never_reach_the_server(toy_llama_server: str) -> None:
    async with llama(toy_llama_server) as backend:
        error = await failure(backend.chat("toy", {"messages": HELLO, "n_discard": -1}, T))
    assert (error.status, error.retryable) == (400, False)


async def test_a_refused_connection() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    async with llama(f"http://127.0.0.1:{port}") as backend:
        error = await failure(backend.chat("toy", {"messages": HELLO}, T))
    assert (error.status, error.retryable) == (None, True)
    assert str(port) in str(error)


async def test_total_timeout_stops_the_server_too(toy_llama_server: str) -> None:
    async def is_free() -> bool:
        return await busy_slots(toy_llama_server) == 0

    async with llama(toy_llama_server) as backend:
        request = {"messages": HELLO, "options": {"num_predict": -1, "temperature": 0}}
        error = await failure(backend.chat("toy", request, Timeouts(total=0.05)))
    assert isinstance(error, BackendTimeout)
    assert error.phase == "total"
    await wait_until(is_free, timeout=1.0, what="the slot to be free")


async def test_llama_server_is_an_openai_compatible_server_too(toy_llama_server: str) -> None:
    backend: Backend = OpenAIBackend(toy_llama_server)
    assert [model.name for model in await backend.models()] == ["toy"]
    pieces, end = await whole(backend.chat("toy", {"messages": HELLO, "options": SHORT}, T))
    raw, raw_end = await whole(backend.generate("toy", {"prompt": "hello", "raw": True, "options": SHORT}, T))
    assert len(pieces) == len(raw) == 5
    assert end.fields["done_reason"] == raw_end.fields["done_reason"] == "length"
    assert end.fields["eval_count"] == 5
    await backend.close()


async def test_openai_embeddings(toy_embed_server: str) -> None:
    backend = OpenAIBackend(toy_embed_server)
    assert [set(model.kinds) for model in await backend.models()] == [{"embed"}]
    vectors = await backend.embed("toy-embed", {"input": ["a", "b"], "dimensions": 4}, T)
    assert [len(vector) for vector in vectors.vectors] == [4, 4]
    await backend.close()
