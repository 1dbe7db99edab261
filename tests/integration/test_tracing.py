"""One trace through a gateway's process and a worker's, with the spans that OpenTelemetry's own exporter got."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

import traced_process
from fabric import CHAT_MODEL
from sollol_broker.child import free_port
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

_TRACE, _CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
Spans = list[dict[str, Any]]


@asynccontextmanager
async def _traced(file: Path, redis_url: str, module: str, *arguments: str) -> AsyncIterator[Spans]:
    """A command of ours; the list has its spans once it is left."""
    spans: Spans = []
    with file.with_suffix(".log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, traced_process.__file__, str(file), module, *arguments),
            env={**os.environ, "SOLLOL_REDIS_URL": redis_url},
            stdout=log,
            stderr=log,
        )
    try:
        yield spans
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            await process.wait()
    spans += _read(file)


def _read(file: Path) -> Spans:
    spans: Spans = json.loads(file.read_text())
    return spans


def _one(spans: Spans, name: str) -> dict[str, Any]:
    (span,) = [each for each in spans if each["name"] == name]
    return span


def _id(span: dict[str, Any]) -> str:
    return str(span["context"]["span_id"])


async def test_one_trace_through_all_processes(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        _traced(tmp_path / "worker", redis_url, "sollol_worker_agent.cli", "--backend", ollama.url) as worker,
        _traced(tmp_path / "gateway", redis_url, "sollol_client.gateway.cli", "--port", str(port)) as gateway,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http,
    ):

        async def served() -> bool:
            try:
                return bool((await http.get("/api/tags")).json()["models"])
            except httpx.TransportError:
                return False  # it is not up yet

        await wait_until(served, timeout=60, what="gateway and worker")
        body = {"model": "tiny", "messages": [{"role": "user", "content": "prompt-canary"}]}
        headers = {"traceparent": f"00-{_TRACE}-{_CALLER}-01"}
        answer = (await http.post("/api/chat", json=body, headers=headers)).raise_for_status()
        job_id = answer.headers["x-sollol-job"]
        assert (await http.post("/api/chat", json={**body, "model": "absent"})).status_code == 404
    submit, refused = (span for span in gateway if span["name"] == "submit")
    assert submit["status"] == {"status_code": "UNSET"}
    assert refused["status"] == {"status_code": "ERROR", "description": "NoNodeForModel"}
    queue, claim, backend, stream = (_one(worker, name) for name in ("queue", "claim", "backend", "stream"))
    every = [submit, queue, claim, backend, stream]
    assert {span["context"]["trace_id"] for span in every} == {f"0x{_TRACE}"}
    assert submit["parent_id"] == f"0x{_CALLER}"
    assert [span["parent_id"] for span in (queue, claim, backend, stream)] == [
        *(_id(submit), _id(submit), _id(claim), _id(backend)),
    ]
    assert [span["kind"].rpartition(".")[2] for span in every] == [
        *("PRODUCER", "INTERNAL", "CONSUMER", "CLIENT", "INTERNAL"),
    ]
    for span in (submit, queue, claim):
        assert span["attributes"]["messaging.message.id"] == job_id
        assert span["attributes"]["gen_ai.request.model"] == "tiny"
    assert backend["attributes"]["gen_ai.usage.output_tokens"] > 0
    assert all(span["start_time"] <= span["end_time"] for span in every)
    assert claim["start_time"] <= backend["start_time"] <= stream["start_time"]
    assert stream["end_time"] <= backend["end_time"] <= claim["end_time"]
    assert "prompt-canary" not in json.dumps([gateway, worker])
