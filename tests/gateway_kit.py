"""A gateway for tests: the real server on a free port of this machine, in this event loop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from sollol_client import AsyncClient
from sollol_client.gateway import GatewayConfig, build
from waiting import wait_until


@asynccontextmanager
async def gateway(redis_url: str, **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway of a fabric, and a client that calls it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        settings = GatewayConfig(port=port, **config)
        app = build(settings, AsyncClient(redis_url, app="gateway"))
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_config=None, loop="none", server_header=False, timeout_graceful_shutdown=1, ws="none"
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            await wait_until(
                lambda: server.started or serving.done(), timeout=10, what="the gateway to start"
            )
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20
            ) as client:
                yield client
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def gateway_process(
    redis_url: str, log: Path, *arguments: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    """`sollol-gateway` as users start it; it may be killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sollol_client.gateway.cli", "--port", str(port), *arguments),
            env={**os.environ, "SOLLOL_REDIS_URL": redis_url},
            stdout=sink,
            stderr=sink,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            await wait_until(lambda: _is_up(http), timeout=30, what="the gateway to be ready")
            yield process, http
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await process.wait()


@dataclass(frozen=True)
class Call:
    """What a webhook's receiver has got; headers by lower-case name."""

    headers: dict[str, str]
    body: bytes


@asynccontextmanager
async def listener() -> AsyncIterator[tuple[str, list[Call]]]:
    """A small HTTP server and the calls that it has got."""
    heard: list[Call] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        parts = [line.partition(": ") for line in head.split("\r\n")[1:]]
        headers = {name.lower(): value for name, _, value in parts if name}
        heard.append(Call(headers, await reader.readexactly(int(headers["content-length"]))))
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/done?x=1", heard


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The lines of an NDJSON answer."""
    return [json.loads(line) for line in answer.text.splitlines()]


async def _is_up(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def run_batches(http: httpx.AsyncClient, text: str, *, chat: str, embed: str) -> str:
    """Run a batch of texts, and one of OpenAI's, with this text wherever one can stand; what the chat has answered."""
    endpoint, names = "/v1/chat/completions", {"a": text}
    body = {"model": chat, "messages": [{"role": "user", "content": text}]}
    line = {"custom_id": text, "method": "POST", "url": endpoint, "body": body}
    texts = {"model": embed, "documents": [text], "metadata": names}
    job_id = (await http.post("/api/batch/embed", json=texts)).json()["job_id"]
    form = {"file": (f"{text}.jsonl", json.dumps(line))}
    file = (await http.post("/v1/files", data={"purpose": "batch"}, files=form)).json()
    asked = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h", "metadata": names}
    batch_id = (await http.post("/v1/batches", json=asked)).json()["id"]

    async def ended() -> bool:
        paths = (f"/api/batch/jobs/{job_id}", f"/v1/batches/{batch_id}")
        return all([(await http.get(path)).json()["status"] == "completed" for path in paths])

    await wait_until(ended, timeout=40, what="the batches to end")
    assert [each["id"] for each in (await http.get("/v1/batches")).json()["data"]] == [batch_id]
    batch = (await http.get(f"/v1/batches/{batch_id}")).json()
    told = json.loads((await http.get(f"/v1/files/{batch['output_file_id']}/content")).text)
    assert (await http.delete(f"/v1/files/{file['id']}")).json()["deleted"]
    return str(told["response"]["body"]["choices"][0]["message"]["content"])
