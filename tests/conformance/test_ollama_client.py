"""The official `ollama` package: to a stand-in, through the gateway to it, and through the gateway to llama-server.

What holds for one place holds for all three, unless a check says for which it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import ollama
import pytest

from fabric import worker
from gateway_kit import gateway
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from sollol_worker_agent.llama_process import LlamaServerProcess
from waiting import wait_until

HELLO = [{"role": "user", "content": "Say hello."}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
DOUBLES = [
    DoubleModel("chatty", capabilities=("completion", "tools"), answer='{"a": 1}'),
    DoubleModel("embedder", capabilities=("embedding",)),
]


@dataclass
class Place:
    """Where a client goes, and the stand-in behind it, if one is."""

    client: ollama.AsyncClient
    double: OllamaDouble | None = None


@pytest.fixture(params=["direct", "gateway", "llama-server"])
async def place(
    request: pytest.FixtureRequest,
    redis_url: str,
    toy_embedding_model: Path,
    smollm2_path: Path,
    tmp_path: Path,
) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        url, double = "", None
        if request.param == "llama-server":
            one = await stack.enter_async_context(llama(smollm2_path, "chatty", tmp_path))
            two = await stack.enter_async_context(llama(toy_embedding_model, "embedder", tmp_path))
            await stack.enter_async_context(worker(redis_url, one, two))
        else:
            double = await stack.enter_async_context(OllamaDouble(DOUBLES, parallel=2))
            url = double.url
        if request.param == "gateway":
            await stack.enter_async_context(worker(redis_url, url))
        if request.param != "direct":
            http = await stack.enter_async_context(gateway(redis_url))
            url = str(http.base_url)
        yield Place(await stack.enter_async_context(ollama.AsyncClient(url)), double)


@asynccontextmanager
async def llama(model: Path, alias: str, logs: Path) -> AsyncIterator[str]:
    server = LlamaServerProcess(model_path=model, alias=alias, slots=2, threads=1, log_directory=logs)
    await server.start()
    try:
        yield server.url
    finally:
        await server.stop()


async def test_all_that_a_client_does(place: Place) -> None:
    """One place, all checks: a llama-server takes seconds to start."""
    client = place.client
    await chats(client)
    await streams(client)
    await completes(client)
    await embeds(client)
    await structured(client)
    await lists_and_shows(client)
    await refusals(client)
    if place.double is not None:
        await tools(client)
        await wrong_kind(client)
        await cancels(client, place.double)


async def chats(client: ollama.AsyncClient) -> None:
    answer = await client.chat("chatty", HELLO, options={"num_predict": 8, "temperature": 0})
    assert answer.message.role == "assistant"
    assert answer.message.content
    assert answer.done
    assert answer.model == "chatty"
    assert answer.done_reason in ("stop", "length")
    assert answer.eval_count
    assert answer.prompt_eval_count
    assert answer.total_duration
    assert answer.created_at


async def streams(client: ollama.AsyncClient) -> None:
    whole = await client.chat("chatty", HELLO, options={"num_predict": 8, "temperature": 0})
    parts = [
        part
        async for part in await client.chat(
            "chatty", HELLO, stream=True, options={"num_predict": 8, "temperature": 0}
        )
    ]
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count


async def completes(client: ollama.AsyncClient) -> None:
    options = {"num_predict": 4, "temperature": 0}
    answer = await client.generate("chatty", "The sky is", options=options)
    assert answer.response
    streamed = await client.generate("chatty", "The sky is", stream=True, options=options)
    parts = [part async for part in streamed]
    assert "".join(part.response or "" for part in parts) == answer.response
    loaded = await client.generate("chatty")
    assert (loaded.response, loaded.done_reason) == ("", "load")


async def embeds(client: ollama.AsyncClient) -> None:
    many = await client.embed("embedder", ["one", "two"])
    one = await client.embed("embedder", "one")
    assert len(many.embeddings) == 2
    assert list(many.embeddings[0]) == pytest.approx(list(one.embeddings[0]), abs=1e-4)
    assert sum(number * number for number in many.embeddings[1]) == pytest.approx(1, abs=1e-3)
    old = await client.embeddings("embedder", "one")
    assert len(old.embedding) == len(one.embeddings[0])


async def structured(client: ollama.AsyncClient) -> None:
    answer = await client.chat("chatty", HELLO, format=SCHEMA, options={"num_predict": 40, "temperature": 0})
    assert (answer.message.content or "").lstrip().startswith("{")


async def lists_and_shows(client: ollama.AsyncClient) -> None:
    listed = {str(model.model) for model in (await client.list()).models}
    assert listed == {"chatty:latest", "embedder:latest"}
    shown = await client.show("chatty")
    assert shown.modelinfo
    assert "completion" in (shown.capabilities or ())
    await wait_until(lambda: _loaded(client), timeout=10, what="the model to be listed as loaded")


async def refusals(client: ollama.AsyncClient) -> None:
    asked = (
        client.chat("nope", HELLO),
        client.embed("nope", "a"),
        client.show("nope"),
        client.generate("nope", "a"),
    )
    for asking in asked:
        with pytest.raises(ollama.ResponseError) as refused:
            await asking
        assert refused.value.status_code == 404
        assert "not found" in refused.value.error
    with pytest.raises(ollama.ResponseError) as refused:
        async for _ in await client.chat("nope", HELLO, stream=True):
            pass
    assert refused.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as refused:
        await client.chat("chatty", HELLO, options={"temperature": "hot"})
    assert (refused.value.status_code, refused.value.error) == (
        500,
        'option "temperature" must be of type float32',
    )
    with pytest.raises(ollama.ResponseError) as refused:
        await client.chat("chatty", HELLO, keep_alive="soon")
    assert refused.value.status_code == 400


async def tools(client: ollama.AsyncClient) -> None:
    answer = await client.chat("chatty", HELLO, tools=[TOOL])
    (call,) = answer.message.tool_calls or ()
    assert call.function.name == "get_weather"
    parts = [part async for part in await client.chat("chatty", HELLO, tools=[TOOL], stream=True)]
    assert [call.function.name for part in parts for call in part.message.tool_calls or ()] == ["get_weather"]


async def wrong_kind(client: ollama.AsyncClient) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        await client.chat("embedder", HELLO)
    assert refused.value.status_code == 400
    assert refused.value.error == '"embedder" does not support chat'


async def cancels(client: ollama.AsyncClient, double: OllamaDouble) -> None:
    double.tokens_may_flow.clear()
    asking = asyncio.create_task(client.chat("chatty", HELLO))
    await wait_until(lambda: double.seen.generating, timeout=5, what="the backend to work")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await wait_until(lambda: not double.seen.generating, timeout=1, what="the backend to stop within 1 s")


async def _loaded(client: ollama.AsyncClient) -> bool:
    return "chatty:latest" in {model.model for model in (await client.ps()).models}
