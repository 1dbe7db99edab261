"""The stand-in for Ollama answers as a real one does, and queues, loads and fails as one does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import ollama
import pytest

from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}
TOOLY = DoubleModel("tooly", capabilities=("completion", "tools"))
THINKY = DoubleModel("thinky", capabilities=("completion", "thinking"), thinking="let me see", answer="two")
EMBED = DoubleModel("embed", capabilities=("embedding",))

# Recorded from Ollama 0.33; only names, types and their order are compared.
CHAT_LINE = {
    "model": "tiny",
    "created_at": "2026-11-23T08:13:57.865420097Z",
    "message": {"role": "assistant", "content": " da"},
    "done": False,
}
CHAT_END = {
    "model": "tiny",
    "created_at": "2026-11-23T08:13:57.865625491Z",
    "message": {"role": "assistant", "content": ""},
    "done": True,
    "done_reason": "length",
    "total_duration": 593152352,
    "load_duration": 564697207,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 10210000,
    "eval_count": 3,
    "eval_duration": 513000,
}
PS_ENTRY = {
    "name": "toy:latest",
    "model": "toy:latest",
    "size": 0,
    "digest": "de9446cc9c35f5e68f12702fdc002fad912fcb341ec253158758e90dbf2b3f67",
    "details": {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "196K",
        "quantization_level": "unknown",
    },
    "expires_at": "2026-11-23T08:15:59.282424259Z",
    "size_vram": 0,
    "context_length": 2048,
}


def shape(value: object) -> object:
    """Names in order, and types instead of values."""
    if isinstance(value, dict):
        return [(name, shape(part)) for name, part in value.items()]
    if isinstance(value, list):
        return [shape(part) for part in value]
    return type(value).__name__


@asynccontextmanager
async def asking(double: OllamaDouble) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=double.url, trust_env=False, timeout=10) as client:
        yield client


async def lines_of(double: OllamaDouble, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with asking(double) as client:
        answer = await client.post(path, json=body)
        return [json.loads(line) for line in answer.text.splitlines()]


async def refusal_of(double: OllamaDouble, path: str, body: dict[str, Any]) -> tuple[int, str]:
    async with asking(double) as client:
        answer = await client.post(path, json=body)
        return answer.status_code, answer.json()["error"]


async def loaded(double: OllamaDouble) -> list[str]:
    async with asking(double) as client:
        return [entry["name"] for entry in (await client.get("/api/ps")).json()["models"]]


async def test_a_chat_has_the_recorded_shape() -> None:
    async with OllamaDouble() as double:
        *lines, end = await lines_of(
            double, "/api/chat", {"model": "tiny", "messages": HELLO, "options": {"num_predict": 3}}
        )
    assert [shape(line) for line in lines] == [shape(CHAT_LINE)] * 3
    assert shape(end) == shape(CHAT_END)
    assert end["done_reason"] == "length"
    assert "".join(line["message"]["content"] for line in lines) == "the quick brown"


async def test_ps_has_the_recorded_shape() -> None:
    async with OllamaDouble() as double:
        await lines_of(double, "/api/chat", {"model": "tiny", "messages": []})
        async with asking(double) as client:
            (entry,) = (await client.get("/api/ps")).json()["models"]
    assert shape(entry) == shape(PS_ENTRY)


async def test_metrics_add_up() -> None:
    async with OllamaDouble() as double:
        end = (await lines_of(double, "/api/chat", {"model": "tiny", "messages": HELLO}))[-1]
    parts = end["load_duration"] + end["prompt_eval_duration"] + end["eval_duration"]
    assert 0 < parts <= end["total_duration"]
    assert end["eval_count"] == 9


async def test_the_official_client_can_talk_to_it() -> None:
    async with OllamaDouble(models=["tiny", TOOLY, THINKY, EMBED]) as double:
        client = ollama.AsyncClient(host=double.url, trust_env=False)
        assert (
            await client.chat("tiny", HELLO)
        ).message.content == "the quick brown fox jumps over the lazy dog"
        pieces = [part.message.content async for part in await client.chat("tiny", HELLO, stream=True)]
        assert len(pieces) == 10
        generated = await client.generate("tiny", "hi", options={"num_predict": 2})
        assert (generated.response, generated.done_reason) == ("the quick", "length")
        assert generated.context
        called = await client.chat("tooly", HELLO, tools=[TOOL])
        assert called.message.tool_calls is not None
        assert called.message.tool_calls[0].function.name == "get_weather"
        thought = await client.chat("thinky", HELLO, think=True)
        assert (thought.message.thinking, thought.message.content) == ("let me see", "two")
        vectors = (await client.embed("embed", ["a", "b"], dimensions=4)).embeddings
        assert [len(vector) for vector in vectors] == [4, 4]
        assert len((await client.embeddings("embed", "a")).embedding) == 16
        assert {entry.model for entry in (await client.list()).models} == {
            "tiny:latest", "tooly:latest", "thinky:latest", "embed:latest",
        }  # fmt: skip
        assert len((await client.ps()).models) == 3
        assert (await client.show("tiny")).capabilities == ["completion"]
        with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
            await client.chat("nope", HELLO)
        await client._client.aclose()


def _sync_chat(url: str) -> Iterator[str]:
    with ollama.Client(host=url, trust_env=False) as client:
        for part in client.chat("tiny", HELLO, stream=True):
            yield part.message.content or ""


async def test_the_official_blocking_client_can_talk_to_it() -> None:
    async with OllamaDouble() as double:
        text = await asyncio.to_thread(lambda: "".join(_sync_chat(double.url)))
    assert text == "the quick brown fox jumps over the lazy dog"


async def test_small_routes() -> None:
    async with OllamaDouble() as double, asking(double) as client:
        assert (await client.get("/")).text == "Ollama is running"
        assert (await client.head("/api/tags")).content == b""
        assert (await client.get("/api/version")).json() == {"version": "0.33.0"}
        unknown, wrong = await client.get("/api/nothing"), await client.get("/api/chat")
        assert (unknown.status_code, unknown.text) == (404, "404 page not found")
        assert (wrong.status_code, wrong.text) == (405, "405 method not allowed")


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/chat", {"model": "nope", "messages": HELLO}, 404, "model 'nope' not found"),
        ("/api/embed", {"model": "nope", "input": "a"}, 404, 'model "nope" not found, try pulling it first'),
        ("/api/show", {"model": "nope"}, 404, "model 'nope:latest' not found"),
        ("/api/chat", {"messages": HELLO}, 400, "model is required"),
        ("/api/generate", {"prompt": "a"}, 404, "model '' not found"),
        ("/api/chat", {"model": "embed", "messages": HELLO}, 400, '"embed" does not support chat'),
        ("/api/generate", {"model": "embed", "prompt": "a"}, 400, '"embed" does not support generate'),
        (
            "/api/chat",
            {"model": "tiny", "messages": HELLO, "think": True},
            400,
            '"tiny" does not support thinking',
        ),
        (
            "/api/chat",
            {"model": "tiny", "messages": HELLO, "tools": [TOOL]},
            400,
            "registry.ollama.ai/library/tiny:latest does not support tools",
        ),
        (
            "/api/chat",
            {"model": "tiny", "messages": HELLO, "options": {"temperature": "hot"}},
            500,
            'option "temperature" must be of type float32',
        ),
        (
            "/api/chat",
            {"model": "tiny", "messages": HELLO, "format": "xml"},
            500,
            r'invalid format: "\"xml\""; expected "json" or a valid JSON Schema object',
        ),
        (
            "/api/chat",
            {"model": "tiny", "messages": HELLO, "keep_alive": "300"},
            400,
            'time: missing unit in duration "300"',
        ),
        ("/api/chat", {"model": "tiny", "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ("/api/embed", {"model": "embed", "input": 5}, 400, "invalid input type"),
    ],
)
async def test_refusals(path: str, body: dict[str, Any], status: int, text: str) -> None:
    async with OllamaDouble(models=["tiny", EMBED]) as double:
        assert await refusal_of(double, path, body) == (status, text)


async def test_a_model_that_loads_is_listed_only_afterwards() -> None:
    async with OllamaDouble() as double:
        double.scheduler.loads_may_finish.clear()
        asked = asyncio.create_task(lines_of(double, "/api/chat", {"model": "tiny", "messages": HELLO}))
        await wait_until(lambda: double.seen.requests, timeout=2, what="the request to arrive")
        assert await loaded(double) == []
        double.scheduler.loads_may_finish.set()
        await asked
        assert await loaded(double) == ["tiny:latest"]


async def test_requests_of_a_loaded_model_wait_for_a_slot_and_are_never_refused() -> None:
    async with OllamaDouble(parallel=2, max_queue=1) as double:
        await lines_of(double, "/api/chat", {"model": "tiny", "messages": []})
        double.tokens_may_flow.clear()
        body = {"model": "tiny", "messages": HELLO}
        asked = [asyncio.create_task(lines_of(double, "/api/chat", body)) for _ in range(12)]
        await wait_until(lambda: double.scheduler.waiting_for_slot == 10, timeout=2, what="ten to wait")
        double.tokens_may_flow.set()
        answers = await asyncio.gather(*asked)
    assert all(answer[-1]["done"] for answer in answers)
    assert double.seen.most_generating == 2


async def test_too_many_waiting_for_a_load_are_refused() -> None:
    async with OllamaDouble(max_queue=1) as double:
        double.scheduler.loads_may_finish.clear()
        body = {"model": "tiny", "messages": HELLO}
        loading = asyncio.create_task(lines_of(double, "/api/chat", body))
        await wait_until(lambda: double.seen.requests, timeout=2, what="the load to begin")
        waiting = asyncio.create_task(lines_of(double, "/api/chat", body))
        await wait_until(lambda: double.scheduler.waiting_for_load == 1, timeout=2, what="one to wait")
        assert await refusal_of(double, "/api/chat", body) == (
            503,
            "server busy, please try again.  maximum pending requests exceeded",
        )
        double.scheduler.loads_may_finish.set()
        await asyncio.gather(loading, waiting)
    assert double.scheduler.loads == ["tiny:latest"]


async def test_another_num_ctx_loads_again() -> None:
    async with OllamaDouble() as double:
        for num_ctx in (2048, 1024, 2048):
            body = {"model": "tiny", "messages": HELLO, "options": {"num_ctx": num_ctx}}
            await lines_of(double, "/api/chat", body)
    assert double.scheduler.loads == ["tiny:latest"] * 3
    assert double.scheduler.unloads == ["tiny:latest"] * 2


async def test_the_shortest_keep_alive_makes_room() -> None:
    async with OllamaDouble(models=["a", "b", "c"], max_loaded=2) as double:
        for name, keep_alive in (("a", -1), ("b", "1m"), ("c", None)):
            await lines_of(double, "/api/chat", {"model": name, "messages": HELLO, "keep_alive": keep_alive})
        assert await loaded(double) == ["a:latest", "c:latest"]


async def test_a_load_waits_for_a_busy_model_to_drain() -> None:
    async with OllamaDouble(models=["a", "b"], max_loaded=1) as double:
        double.tokens_may_flow.clear()
        busy = asyncio.create_task(lines_of(double, "/api/chat", {"model": "a", "messages": HELLO}))
        await wait_until(lambda: double.seen.generating == 1, timeout=2, what="a to work")
        waiting = asyncio.create_task(lines_of(double, "/api/chat", {"model": "b", "messages": HELLO}))
        await wait_until(lambda: len(double.seen.requests) == 2, timeout=2, what="b to ask")
        assert await loaded(double) == ["a:latest"]
        double.tokens_may_flow.set()
        await asyncio.gather(busy, waiting)
        assert await loaded(double) == ["b:latest"]


@pytest.mark.parametrize("keep_alive", [0, "0s"])
async def test_keep_alive_zero_unloads_right_after(keep_alive: object) -> None:
    async with OllamaDouble() as double:
        await lines_of(double, "/api/chat", {"model": "tiny", "messages": HELLO, "keep_alive": keep_alive})
        assert await loaded(double) == []


async def test_a_model_goes_when_its_keep_alive_is_over() -> None:
    async with OllamaDouble(keep_alive=0.05) as double:
        await lines_of(double, "/api/chat", {"model": "tiny", "messages": HELLO})
        await wait_until(lambda: double.scheduler.unloads, timeout=2, what="the model to go")


async def test_an_empty_request_loads_and_unloads() -> None:
    async with OllamaDouble() as double:
        (load,) = await lines_of(double, "/api/generate", {"model": "tiny"})
        (unload,) = await lines_of(double, "/api/generate", {"model": "tiny", "keep_alive": 0})
    assert (load["done"], load["done_reason"]) == (True, "load")
    assert (unload["done"], unload["done_reason"]) == (True, "unload")


async def test_a_client_that_leaves_stops_the_generation_and_frees_the_slot() -> None:
    async with OllamaDouble(
        models=[DoubleModel("tiny", answer="word " * 10_000, token_seconds=0.001)]
    ) as double:
        async with (
            asking(double) as client,
            client.stream("POST", "/api/chat", json={"model": "tiny", "messages": HELLO}) as answer,
        ):
            await anext(answer.aiter_lines())
            assert double.seen.generating == 1
        await wait_until(lambda: double.seen.generating == 0, timeout=1, what="the slot to be free")
    assert double.seen.abandoned == 1
    assert double.seen.tokens < 10_000


async def test_a_client_that_leaves_while_it_loads_aborts_the_load() -> None:
    async with OllamaDouble() as double:
        double.scheduler.loads_may_finish.clear()
        asked = asyncio.create_task(lines_of(double, "/api/chat", {"model": "tiny", "messages": HELLO}))
        await wait_until(lambda: double.seen.requests, timeout=2, what="the request to arrive")
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        double.scheduler.loads_may_finish.set()
        await lines_of(double, "/api/chat", {"model": "tiny", "messages": HELLO})
    assert double.scheduler.loads == ["tiny:latest"]


async def test_it_dies_by_an_error_line() -> None:
    async with OllamaDouble() as double:
        double.faults.die_after_tokens = 2
        *lines, last = await lines_of(double, "/api/chat", {"model": "tiny", "messages": HELLO})
    assert len(lines) == 2
    assert last == {"error": "an error was encountered while running the model: unexpected EOF"}


async def test_it_dies_by_a_cut() -> None:
    async with OllamaDouble() as double:
        double.faults.die_after_tokens, double.faults.die_by = 2, "cut"
        with pytest.raises(httpx.TransportError):
            await lines_of(double, "/api/chat", {"model": "tiny", "messages": HELLO})


async def test_it_refuses_to_load() -> None:
    async with OllamaDouble() as double:
        double.scheduler.refuse_loads = "llama-server process has terminated: signal: killed"
        refused = await refusal_of(double, "/api/chat", {"model": "tiny", "messages": HELLO})
        assert refused == (500, "llama-server process has terminated: signal: killed")
        assert await loaded(double) == []


async def test_text_on_the_last_line() -> None:
    async with OllamaDouble() as double:
        double.faults.text_on_last_line = True
        *_, end = await lines_of(double, "/api/generate", {"model": "tiny", "prompt": "a"})
    assert (end["done"], end["response"]) == (True, " dog")


@pytest.mark.parametrize("on_last_line", [False, True])
async def test_tool_calls_on_either_line(on_last_line: bool) -> None:
    async with OllamaDouble(models=[TOOLY]) as double:
        double.faults.tool_calls_on_last_line = on_last_line
        double.tool_calls = [("get_weather", {"city": "Paris"})]
        lines = await lines_of(double, "/api/chat", {"model": "tooly", "messages": HELLO, "tools": [TOOL]})
    with_calls = [line for line in lines if "tool_calls" in line["message"]]
    assert [line["done"] for line in with_calls] == [on_last_line]
    assert with_calls[0]["message"]["tool_calls"] == [
        {
            "id": "call_00000000",
            "function": {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}},
        }
    ]


async def test_logprobs_on_lines_of_their_own() -> None:
    async with OllamaDouble() as double:
        double.faults.logprob_only_lines = True
        body = {
            "model": "tiny",
            "prompt": "a",
            "logprobs": True,
            "top_logprobs": 1,
            "options": {"num_predict": 1},
        }
        lines = await lines_of(double, "/api/generate", body)
    assert [("logprobs" in line, line["response"]) for line in lines] == [
        (True, ""),
        (False, "the"),
        (False, ""),
    ]


async def test_sizes_can_read_zero() -> None:
    async with OllamaDouble() as double, asking(double) as client:
        double.faults.no_sizes = True
        await client.post("/api/generate", json={"model": "tiny"})
        (entry,) = (await client.get("/api/ps")).json()["models"]
    assert (entry["size"], entry["size_vram"]) == (0, 0)


async def test_stopping_it_breaks_every_connection() -> None:
    async with OllamaDouble() as double:
        double.tokens_may_flow.clear()
        asked = asyncio.create_task(lines_of(double, "/api/chat", {"model": "tiny", "messages": HELLO}))
        await wait_until(lambda: double.seen.generating == 1, timeout=2, what="it to work")
        await double.stop()
        with pytest.raises(httpx.TransportError):
            await asked
