"""`sollol discover` against real servers and a double of Ollama, on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

from fabric import CHAT_MODEL, program
from sollol import AsyncClient
from sollol.scan import Pace, scan
from sollol_broker.child import free_port
from sollol_worker_agent.doubles import OllamaDouble
from sollol_worker_agent.rpc.server import RpcServer
from waiting import wait_until

# A machine that is busy with other things takes its time to answer.
_DISCOVER = ("discover", "--timeout", "20")


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


async def test_each_kind_of_server_is_told_apart(toy_llama_server: str, tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    rpc = RpcServer(log_directory=tmp_path, caches=False)
    await rpc.start()
    try:
        async with (
            OllamaDouble([CHAT_MODEL]) as ollama,
            await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0) as rude,
        ):
            ports = {
                "ollama": port_of(ollama.url),
                "llama-server": port_of(toy_llama_server),
                "rpc": rpc.port,
                "unknown": rude.sockets[0].getsockname()[1],
                "nobody": free_port(),
            }
            targets = [("127.0.0.1", port) for port in ports.values()]
            found = await scan(targets, timeout_seconds=5, pace=Pace())
    finally:
        await rpc.stop()
    by_kind = {each.kind: each for each in found}
    assert {kind: each.port for kind, each in by_kind.items()} == {
        kind: port for kind, port in ports.items() if kind != "nobody"
    }
    assert by_kind["ollama"].models == ("tiny:latest",)
    assert by_kind["llama-server"].models == ("toy",)
    assert by_kind["ollama"].version
    assert by_kind["llama-server"].version
    assert by_kind["rpc"].version.count(".") == 2
    assert by_kind["ollama"].latency_ms > 0


async def test_adopted_servers_answer_jobs_and_are_adopted_once(redis_url: str, tmp_path: Path) -> None:
    async with OllamaDouble([CHAT_MODEL]) as ollama, AsyncClient(redis_url) as client:
        what = (*_DISCOVER, "--subnet", "127.0.0.1", "--ports", str(port_of(ollama.url)), "--adopt")
        environ = {"SOLLOL_REDIS_URL": redis_url}
        async with program(tmp_path / "log", "sollol.cli", *what, environment=environ) as process:
            answer = await client.submit(chat="hi", model="tiny", wait_for_node=True).result(timeout=30)
            assert answer.routing.backend == "ollama"
            await wait_until(lambda: "Ctrl-C" in process.said(), timeout=20, what="what to do next")
            assert "sollol install-service worker --name" in process.said()
            async with program(tmp_path / "again", "sollol.cli", *what, environment=environ) as again:
                assert await again.exit_status() == 0
                assert "is served already, by node" in again.said()
                assert "Nothing is left to front." in again.said()
            assert len((await client.nodes())[0].workers) == 1
            process.process.send_signal(signal.SIGINT)
            assert await process.exit_status() == 0
        assert await client.nodes() == []


async def test_what_was_found_as_json(tmp_path: Path) -> None:
    async with OllamaDouble([CHAT_MODEL]) as ollama:
        what = (*_DISCOVER, "--json", "--subnet", "127.0.0.1/32", "--ports", str(port_of(ollama.url)))
        async with program(tmp_path / "log", "sollol.cli", *what, environment=dict(os.environ)) as process:
            assert await process.exit_status() == 0
            (found,) = json.loads(process.said())
    assert (found["kind"], found["models"], found["url"]) == ("ollama", ["tiny:latest"], ollama.url)
