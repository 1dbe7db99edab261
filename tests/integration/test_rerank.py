"""Rankings by a real llama-server with a tiny model: backend, claim, client, gateway."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import httpx
import pytest

from fabric import worker
from gateway_kit import gateway
from sollol_broker.errors import BackendError, InvalidJob
from sollol_client import AsyncClient
from sollol_worker_agent.backends import LlamaServerBackend, OpenAIBackend, Timeouts

QUERY = "what is hot water"
DOCUMENTS = ["hot water", "my people see the sound", "water is hot in the day"]
ASKED: dict[str, Any] = {"query": QUERY, "documents": DOCUMENTS}


async def told_by(url: str, path: str = "/v1/rerank", **fields: Any) -> Any:
    """What the server itself says."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        return (await http.post(path, json={**ASKED, **fields})).json()


async def test_llama_server_ranks(toy_rerank_server: str) -> None:
    backend = LlamaServerBackend(toy_rerank_server)
    try:
        (model,) = await backend.models()
        assert (model.name, set(model.kinds), model.capabilities) == ("toy-rank", {"rerank"}, ("reranking",))
        ranking = await backend.rerank("toy-rank", ASKED, Timeouts())
        best = await backend.rerank("toy-rank", {**ASKED, "top_n": 1}, Timeouts())
        with pytest.raises(BackendError, match="too large to process") as refused:
            await backend.rerank("toy-rank", {**ASKED, "documents": ["a b " * 5000]}, Timeouts())
    finally:
        await backend.close()
    own = [(each["index"], each["relevance_score"]) for each in (await told_by(toy_rerank_server))["results"]]
    assert list(ranking.results) == own
    assert list(best.results) == own[:1]
    assert ranking.fields["prompt_eval_count"] > 0
    assert not refused.value.retryable


async def test_a_server_that_cannot_is_not_taken_for_one(toy_embed_server: str) -> None:
    backend = OpenAIBackend(toy_embed_server)
    try:
        with pytest.raises(BackendError, match="501"):
            await backend.rerank("toy-embed", ASKED, Timeouts())
    finally:
        await backend.close()


async def test_only_a_worker_that_can_claims_it(redis_url: str, toy_rerank_server: str) -> None:
    async with (
        worker(redis_url, "echo://?models=toy-rank", node="chats"),
        worker(redis_url, toy_rerank_server, node="ranks"),
        AsyncClient(redis_url, app="tests") as client,
    ):
        jobs = [
            client.submit(rerank=DOCUMENTS, query=QUERY, model="toy-rank", cache=False, top_n=2)
            for _ in range(6)
        ]
        answers = [await job for job in jobs]
    own = (await told_by(toy_rerank_server, top_n=2))["results"]
    assert [answer.results for answer in answers] == [own] * 6
    assert {(answer.routing.node, answer.routing.attempt) for answer in answers} == {("ranks", 1)}
    assert {answer.routing.task_type for answer in answers} == {"reranking"}


async def test_where_nobody_can_it_says_who_could(redis_url: str) -> None:
    async with (
        worker(redis_url, "echo://?models=tiny,a-reranker"),
        AsyncClient(redis_url, app="tests") as client,
    ):
        with pytest.raises(InvalidJob, match="tiny does not rerank on any node; models that do: a-reranker"):
            await client.submit(rerank=DOCUMENTS, query=QUERY, model="tiny")
        first = (await client.submit(rerank=DOCUMENTS, query="hot water", model="a-reranker")).results[0]
        said = await asyncio.to_thread(
            subprocess.run,
            [
                *(sys.executable, "-m", "sollol.cli", "submit", "--redis", redis_url, "-m", "a-reranker"),
                *("--wait", "--query", "hot water", "--rerank", "a cat", "--rerank", "some hot water"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    assert first == {"index": 0, "relevance_score": 1.0}
    assert [json.loads(line)["index"] for line in said.stdout.splitlines()] == [1, 0]


async def test_through_the_gateway(redis_url: str, toy_rerank_server: str) -> None:
    async with worker(redis_url, toy_rerank_server, "echo://"), gateway(redis_url) as http:
        asked = {**ASKED, "model": "toy-rank"}
        whole = await http.post("/v1/rerank", json={**asked, "return_documents": True, "top_n": 2})
        tei = await http.post("/rerank", json={"model": "toy-rank", "query": QUERY, "texts": DOCUMENTS})
        cohere = await http.post("/v2/rerank", json={**asked, "documents": [{"text": d} for d in DOCUMENTS]})
        chats = await http.post("/v1/rerank", json={**asked, "model": "echo"})
        unknown = await http.post("/v1/rerank", json={**asked, "model": "nope"})
        wrong = await http.post(
            "/v1/chat/completions", json={"model": "toy-rank", "messages": [{"role": "user"}]}
        )
        job = (
            await http.post("/api/jobs", json={"model": "toy-rank", "rerank": DOCUMENTS, "query": QUERY})
        ).json()
        ended = (await http.get(f"/api/jobs/{job['id']}?wait=30")).json()
    own = (await told_by(toy_rerank_server))["results"]
    answer = whole.json()
    assert [{n: v for n, v in each.items() if n != "document"} for each in answer["results"]] == own[:2]
    assert [each["document"]["text"] for each in answer["results"]] == [
        DOCUMENTS[each["index"]] for each in own[:2]
    ]
    assert answer["usage"]["total_tokens"] > 0
    assert whole.headers["x-sollol-job"] in answer["id"]
    assert tei.json() == [{"index": each["index"], "score": each["relevance_score"]} for each in own]
    assert cohere.json()["results"] == own
    assert ended["answer"]["results"] == own
    assert (chats.status_code, chats.json()["error"]["param"]) == (400, "model")
    assert "echo does not rerank on any node; models that do: toy-rank" in chats.json()["error"]["message"]
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert wrong.status_code == 400
    assert '"toy-rank" does not support chat' in wrong.json()["error"]["message"]
    assert (
        "is for rerank" in wrong.json()["error"]["message"]
        or "does not support chat" in wrong.json()["error"]["message"]
    )
