"""Calls about models, through the gateway to the Ollama of each node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from fabric import CHAT_MODEL, EMBED_MODEL, worker
from gateway_kit import gateway, lines_of
from sollol_broker import Broker, parse_url
from sollol_broker.model_calls import CallReply, ModelCall, read_call, send_call
from sollol_client import AsyncClient
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until


@asynccontextmanager
async def two_nodes(redis_url: str) -> AsyncIterator[tuple[OllamaDouble, OllamaDouble, httpx.AsyncClient]]:
    async with (
        OllamaDouble([CHAT_MODEL]) as one,
        OllamaDouble([CHAT_MODEL, EMBED_MODEL]) as two,
        worker(redis_url, one.url, node="n1"),
        worker(redis_url, two.url, node="n2"),
        gateway(redis_url) as http,
    ):
        yield one, two, http


async def listed(http: httpx.AsyncClient) -> dict[str, list[str]]:
    models = (await http.get("/api/tags")).json()["models"]
    return {each["name"]: each["_sollol"]["nodes"] for each in models}


async def test_a_model_is_shown_as_its_node_shows_it(redis_url: str) -> None:
    async with two_nodes(redis_url) as (_, _, http):
        told = (await http.post("/api/show", json={"model": "tiny-embed"})).json()
        assert told["modelfile"] == "FROM tiny-embed:latest\n"
        assert told["model_info"]["general.architecture"] == "llama"
        assert told["_sollol"]["nodes"] == ["n2"]
        unknown = await http.post("/api/show", json={"model": "nope"})
        assert (unknown.status_code, unknown.json()) == (404, {"error": "model 'nope:latest' not found"})


async def test_a_model_is_pulled_to_a_node_with_its_progress(redis_url: str) -> None:
    async with two_nodes(redis_url) as (one, two, http):
        one.library.registry.add("new")
        answer = await http.post("/api/pull", json={"model": "new"}, headers={"X-Sollol-Node": "n1"})
        lines = lines_of(answer)
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert lines[0] == {"status": "pulling manifest", "_sollol_node": "n1"}
        assert lines[-1] == {"status": "success"}
        assert {line.get("completed") for line in lines} >= {1_000_000}
        await wait_until(lambda: _has(http, "new:latest", ["n1"]), timeout=5, what="the fabric to see it")
        assert not two.library.asked
        failed = lines_of(
            await http.post("/api/pull", json={"model": "nope"}, headers={"X-Sollol-Node": "*"})
        )
        assert failed[-1]["error"] == "pull model manifest: file does not exist"
        whole = await http.post("/api/pull", json={"model": "nope", "stream": False})
        assert whole.status_code == 500


async def test_copies_and_deletions_reach_each_node_that_has_the_model(redis_url: str) -> None:
    async with two_nodes(redis_url) as (one, two, http):
        assert (await http.post("/api/copy", json={"source": "tiny", "destination": "x"})).status_code == 200
        await wait_until(lambda: _has(http, "x:latest", ["n1", "n2"]), timeout=5, what="both to have it")
        created = await http.post("/api/create", json={"model": "y", "from": "tiny-embed", "stream": False})
        assert created.json() == {"status": "success"}
        assert "y:latest" in two.models
        assert "y:latest" not in one.models
        gone = await http.request("DELETE", "/api/delete", json={"model": "x"})
        assert (gone.status_code, gone.content) == (200, b"")
        assert "x:latest" not in one.models
        assert "x:latest" not in two.models


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("POST", "/api/push", {}, 400, "model is required"),
        ("POST", "/api/create", {"model": "x"}, 400, "neither 'from' or 'files' was specified"),
        ("DELETE", "/api/delete", {"model": "nope"}, 404, "model 'nope' not found"),
        ("POST", "/api/copy", {"source": "nope", "destination": "x"}, 404, 'model "nope" not found'),
        ("POST", "/api/show", {}, 400, "model is required"),
    ],
)
async def test_what_ollama_refuses_is_refused_in_its_words(
    redis_url: str, method: str, path: str, body: dict[str, Any], status: int, error: str
) -> None:
    async with two_nodes(redis_url) as (_, _, http):
        answer = await http.request(method, path, json=body)
        assert (answer.status_code, answer.json()) == (status, {"error": error})


async def test_files_do_not_travel_and_it_says_what_to_do(redis_url: str) -> None:
    async with gateway(redis_url) as http:
        answer = await http.post("/api/blobs/sha256:0", content=b"abc")
        assert answer.status_code == 501
        assert "ollama create" in answer.json()["error"]
        assert (await http.post("/api/pull", json={"model": "m"})).status_code == 501


async def test_a_call_is_sent_once_however_often_it_is_repeated(redis_url: str) -> None:
    async with OllamaDouble([CHAT_MODEL]) as ollama, worker(redis_url, ollama.url) as agent:
        ollama.library.registry.add("new")
        broker = Broker(parse_url(redis_url), name="tests")
        await broker.open()
        call = ModelCall("c1", "/api/pull", {"model": "new"}, "nobody")
        for _ in range(3):
            assert await send_call(broker, agent.worker, call)
        await wait_until(lambda: ollama.library.asked, timeout=5, what="the call")
        assert await read_call(broker, "c1") == call
        assert not await send_call(broker, "no-such-worker", ModelCall("c2", "/api/pull", {}, "nobody"))
        await broker.close()
    assert len(ollama.library.asked) == 1


async def test_a_call_to_any_other_path_is_not_made(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url) as agent,
        AsyncClient(redis_url) as client,
    ):
        heard: list[Any] = []
        client.session.replies["c1"] = heard.append
        call = ModelCall("c1", "/api/chat", {"model": "tiny"}, client.session.inbox_name)
        assert await send_call(client.session.broker, agent.worker, call)
        again = ModelCall("c2", "/api/push", {"model": "tiny"}, client.session.inbox_name)
        client.session.replies["c2"] = heard.append
        assert await send_call(client.session.broker, agent.worker, again)
        await wait_until(lambda: heard, timeout=5, what="the answer to the second")
    assert [entry[b"o"] for entry in heard] == [b"c2"]
    assert not ollama.seen.requests
    assert CallReply().status == 0


async def _has(http: httpx.AsyncClient, name: str, nodes: list[str]) -> bool:
    return (await listed(http)).get(name) == nodes
