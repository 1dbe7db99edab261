"""`sollol-gateway` as users start it: a process, or several, that end in order."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import httpx
import pytest

from fabric import CHAT_MODEL, worker
from gateway_kit import gateway_process
from sollol_broker.api_keys import KeyRole
from sollol_broker.key_store import KeyStore
from sollol_client import AsyncClient
from sollol_worker_agent.doubles import OllamaDouble

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}


async def test_several_processes_serve_one_port_and_count_together(redis_url: str, tmp_path: Path) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway_process(redis_url, tmp_path / "log", "--workers", "2") as (process, http),
    ):
        for _ in range(6):  # a connection each, so that both may get some
            async with httpx.AsyncClient(base_url=http.base_url, trust_env=False) as one:
                assert (await one.post("/api/chat", json=CHAT)).status_code == 200
        counted = 'sollol_gateway_requests_total{method="POST",path="/api/chat",status="200"} 6.0'
        assert counted in (await http.get("/metrics")).text
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() in (0, -signal.SIGTERM)


async def test_who_listens_for_others_asks_for_keys(redis_url: str, tmp_path: Path) -> None:
    async with AsyncClient(redis_url) as client:
        secret, _ = await KeyStore(client.session.broker).add("tests", KeyRole.VIEWER)
    log = tmp_path / "log"
    everywhere = "0.0.0.0"  # noqa: S104  # that is the point
    async with gateway_process(redis_url, log, "--host", everywhere) as (_, http):
        assert (await http.get("/api/tags")).status_code == 401
        assert (await http.get("/api/tags", headers={"X-API-Key": secret})).status_code == 200
    assert "with API keys" in log.read_text()
    assert secret not in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--allow-origin", "*"), 2, "error: origins: name them, '*' would let every page in the world in"),
        (("--redis", "redis://127.0.0.1:1/0"), 3, "error: cannot reach Redis at redis://127.0.0.1:1/0 ("),
    ],
)
async def test_what_cannot_work_is_one_line(arguments: tuple[str, ...], status: int, said: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sollol_client.gateway.cli", *arguments), stderr=asyncio.subprocess.PIPE
    )
    _, told = await process.communicate()
    assert process.returncode == status
    assert told.decode().startswith(said)
    assert told.count(b"\n") == 1
