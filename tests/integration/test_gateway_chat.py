"""Chats and completions through the gateway, as Ollama answers them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from fabric import CHAT_MODEL, EMBED_MODEL, let_tokens_flow, worker
from gateway_kit import gateway, lines_of
from sollol_client import AsyncClient
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

FOX = DoubleModel("tiny", answer="the quick brown fox jumps over the lazy dog", open_ended=True)
# A template that closes the last message: the answer begins anew, and says something else.
OTHER = DoubleModel("tiny", answer="a slow fox")
HELLO = [{"role": "user", "content": "hello"}]


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HELLO, "options": {"num_predict": 3}, **more}


async def test_a_chat_is_streamed_as_ollama_streams_it(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        answer = await http.post("/api/chat", json=chat())
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        *lines, end = lines_of(answer)
    assert "".join(line["message"]["content"] for line in lines) == "the quick brown"
    assert all(list(line) == ["model", "created_at", "message", "done"] for line in lines)
    assert end["done"] is True
    assert end["done_reason"] == "length"
    assert end["eval_count"] == 3
    assert end["_sollol_routing"]["node"] == "n1"
    assert answer.headers["x-sollol-job"]
    assert answer.headers["x-sollol-node"] == "n1"
    assert answer.headers["x-sollol-attempts"] == "1"
    assert float(answer.headers["x-sollol-queue-wait"]) >= 0


async def test_a_chat_comes_whole_when_it_is_not_streamed(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        answer = await http.post("/api/chat", json=chat(stream=False))
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.json()["message"] == {"role": "assistant", "content": "the quick brown"}
    assert answer.json()["done"] is True


async def test_whatever_the_content_type_the_body_is_json_and_unknown_fields_reach_the_backend(
    redis_url: str,
) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        body = json.dumps(chat(stream=False, brand_new={"a": 1}, requires={"node": "x"}, timeout="soon"))
        answer = await http.post("/api/chat", content=body, headers={"Content-Type": "text/plain"})
        assert answer.status_code == 200, answer.text
        (_, asked) = ollama.seen.requests[-1]
    assert asked["brand_new"] == {"a": 1}
    assert asked["requires"] == {"node": "x"}
    assert asked["timeout"] == "soon"


async def test_an_unknown_model_is_refused_as_ollama_refuses_it(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        answer = await http.post("/api/chat", json=chat(model="nope"))
        assert (answer.status_code, answer.json()) == (404, {"error": "model 'nope' not found"})
        answer = await http.post("/api/embed", json={"model": "nope", "input": "a"})
        assert answer.json() == {"error": 'model "nope" not found, try pulling it first'}


async def test_a_backend_s_refusal_keeps_its_status_and_its_words(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        answer = await http.post("/api/chat", json=chat(think=True))
    assert answer.status_code == 400
    assert answer.json() == {"error": '"tiny:latest" does not support thinking'}


async def test_embeddings_come_in_both_shapes(redis_url: str) -> None:
    async with (
        OllamaDouble([EMBED_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        many = await http.post("/api/embed", json={"model": "tiny-embed", "input": ["a", "b"]})
        old = await http.post("/api/embeddings", json={"model": "tiny-embed", "prompt": "a"})
        none = await http.post("/api/embed", json={"model": "tiny-embed", "input": ""})
    assert len(many.json()["embeddings"]) == 2
    assert old.json() == {"embedding": many.json()["embeddings"][0]}
    assert none.json() == {"model": "tiny-embed", "embeddings": []}


async def test_an_empty_chat_loads_the_model_and_keep_alive_0_unloads_it(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        loaded = await http.post("/api/chat", json={"model": "tiny", "messages": []})
        assert loaded.json()["done_reason"] == "load"
        assert loaded.json()["message"] == {"role": "assistant", "content": ""}
        assert ollama.scheduler.runners
        async with AsyncClient(redis_url) as client:
            await wait_until(lambda: _is_loaded(client), timeout=5, what="the fabric to see it loaded")
        unloaded = await http.post("/api/generate", json={"model": "tiny", "keep_alive": 0})
        assert (unloaded.json()["done_reason"], unloaded.json()["response"]) == ("unload", "")
        assert not ollama.scheduler.runners


async def test_a_client_that_leaves_takes_its_job_with_it(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        ollama.tokens_may_flow.clear()
        for stream in (True, False):
            asking = asyncio.create_task(http.post("/api/chat", json=chat(stream=stream)))
            await wait_until(lambda: ollama.seen.generating, timeout=5, what="the backend to work")
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await wait_until(
                lambda: not ollama.seen.generating, timeout=1, what="the backend to stop within 1 s"
            )


async def test_a_node_that_dies_is_an_error_line_and_never_a_normal_end(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        ollama.faults.die_after_tokens = 2
        lines = lines_of(await http.post("/api/chat", json=chat()))
    assert "error" in lines[-1]
    assert not any(line.get("done") for line in lines)


async def over_a_death(redis_url: str, model: DoubleModel) -> httpx.Response:
    """A chat whose node dies behind four tokens, while another with `model` stands by."""
    async with (
        gateway(redis_url) as http,
        OllamaDouble([FOX]) as first,
        OllamaDouble([model]) as second,
        worker(redis_url, first.url, node="first"),
    ):
        first.tokens_may_flow.clear()
        asking = asyncio.create_task(http.post("/api/chat", json={**chat(), "options": {"num_predict": 7}}))
        await let_tokens_flow(first, 4)
        async with worker(redis_url, second.url, node="second", advertise_seconds=0.2):
            await first.stop()
            return await asking


async def test_a_node_that_dies_in_mid_answer_does_not_end_the_stream(redis_url: str) -> None:
    answer = await over_a_death(redis_url, FOX)
    *lines, end = lines_of(answer)
    assert "".join(line["message"]["content"] for line in lines) == "the quick brown fox jumps over the"
    assert end["done"] is True
    assert answer.headers["x-sollol-node"] == "first"
    (seam,) = end["_sollol_routing"]["seams"]
    assert (seam["node"], seam["how"]) == ("second", "continued")


async def test_an_answer_that_cannot_be_gone_on_with_ends_with_an_error_line(redis_url: str) -> None:
    *lines, end = lines_of(await over_a_death(redis_url, OTHER))
    assert "".join(line["message"]["content"] for line in lines) == "the quick brown fox"
    assert list(end) == ["error"]


async def _is_loaded(client: AsyncClient) -> bool:
    return any(model.loaded_on for model in await client.models())
