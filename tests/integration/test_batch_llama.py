"""A batch of real sentences over a real llama-server with a real model: the vectors are those of direct calls."""

from __future__ import annotations

import math
from pathlib import Path

import httpx
from benchmarks.sentences import sentences

from fabric import worker
from sollol_broker.words import BatchState
from sollol_client import AsyncClient
from sollol_worker_agent.llama_process import LlamaServerProcess

_COUNT = 120


async def test_real_vectors_are_those_of_direct_calls(
    redis_url: str, minilm_path: Path, tmp_path: Path
) -> None:
    texts = sentences(_COUNT)
    server = LlamaServerProcess(
        model_path=minilm_path, alias="minilm", slots=2, threads=1, log_directory=tmp_path
    )
    await server.start()
    try:
        async with worker(redis_url, f"llama+{server.url}"), AsyncClient(redis_url, app="tests") as client:
            batch = await client.batch(embed=texts, model="minilm")
            items = [item async for item in batch.results()]
            assert batch.state is BatchState.COMPLETED, await batch.errors()
            chunks = await client.session.broker.link.call(
                "XLEN", client.session.broker.keys.batch_done(batch.id)
            )
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=120) as http:
            answer = await http.post("/v1/embeddings", json={"model": "minilm", "input": texts})
        direct = [row["embedding"] for row in answer.json()["data"]]
    finally:
        await server.stop()
    assert [item.index for item in items if item.ok] == list(range(_COUNT))
    assert min(_cosine(item.vector, vector) for item, vector in zip(items, direct, strict=True)) >= 0.9999
    assert sum(item.prompt_tokens for item in items) == answer.json()["usage"]["prompt_tokens"]
    assert all(item.prompt_tokens for item in items)
    assert chunks < _COUNT / 2, "texts went one by one"


def _cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
