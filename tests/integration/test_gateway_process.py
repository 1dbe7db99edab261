"""`sollol-gateway` as users start it: a process, or several, that end in order."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from fabric import CHAT_MODEL, worker
from gateway_kit import gateway_process
from sollol_broker.api_keys import KeyRole
from sollol_broker.child import free_port
from sollol_broker.key_store import KeyStore
from sollol_client import AsyncClient
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}


@asynccontextmanager
async def _prometheus(port: int) -> AsyncIterator[Callable[..., Awaitable[set[str]]]]:
    """What gives the lines that a metrics port tells; it comes without an API key, and by any name."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as http:

        async def read(path: str = "/metrics") -> set[str]:
            return set((await http.get(path, headers={"Host": "gateway:9090"})).text.splitlines())

        yield read


async def test_several_processes_serve_one_port_and_count_together(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    told = ("--workers", "2", "--metrics-port", str(port))
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway_process(redis_url, tmp_path / "log", *told) as (process, http),
    ):
        for _ in range(6):  # a connection each, so that both may get some
            async with httpx.AsyncClient(base_url=http.base_url, trust_env=False) as one:
                assert (await one.post("/api/chat", json=CHAT)).status_code == 200
        counted = 'sollol_gateway_requests_total{method="POST",path="/api/chat",status="200"} 6.0'
        idle = "sollol_gateway_requests_in_flight 0.0"
        async with _prometheus(port) as read:

            async def told_of_all() -> bool:
                return counted in (await http.get("/metrics")).text and {counted, idle} <= await read()

            await wait_until(told_of_all, timeout=30, what="six chats, and none under way")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() in (0, -signal.SIGTERM)
    assert "Application startup complete" in (tmp_path / "log").read_text()  # each process says what it does


async def test_who_listens_for_others_asks_for_keys(redis_url: str, tmp_path: Path) -> None:
    async with AsyncClient(redis_url) as client:
        secret, _ = await KeyStore(client.session.broker).add("tests", KeyRole.VIEWER)
    log = tmp_path / "log"
    everywhere = "0.0.0.0"  # noqa: S104  # that is the point
    port = free_port()
    told = ("--host", everywhere, "--metrics-port", str(port), "--fabric-metrics")
    async with gateway_process(redis_url, log, *told) as (_, http):
        assert (await http.get("/api/tags")).status_code == 401
        assert (await http.get("/api/tags", headers={"X-API-Key": secret})).status_code == 200
        assert (await http.get("/metrics")).status_code == 401
        async with _prometheus(port) as read:
            asked = 'sollol_gateway_requests_total{method="GET",path="/api/tags",status="200"} 1.0'

            async def told_of_all() -> bool:
                return {asked, "sollol_redis_up 1.0"} <= await read()

            await wait_until(told_of_all, timeout=30, what="one look at the models, and the fabric")
            assert "models" not in "".join(await read("/api/tags"))
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
        *(sys.executable, "-m", "sollol_client.gateway.cli", "--port", "0", *arguments),
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == status
    assert told.decode().startswith(said)
    assert told.count(b"\n") == 1


async def test_a_metrics_port_that_is_taken_is_one_line(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sollol_client.gateway.cli", "--redis", redis_url, "--port", "0"),
            *("--metrics-port", str(port)),
            stderr=asyncio.subprocess.PIPE,
        )
        _, told = await process.communicate()
    assert process.returncode == 2
    assert told.decode().startswith(f"error: port {port} of 127.0.0.1 cannot be listened on (")
    assert "choose another with --metrics-port" in told.decode()
    assert told.count(b"\n") == 1
