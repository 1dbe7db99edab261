"""`sollol doctor rpc` against real rpc-servers, and real workers of a real fabric."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sollol_broker.child import free_port
from sollol_worker_agent.llama_process import LlamaServerProcess
from sollol_worker_agent.rpc.head import read_buffers
from sollol_worker_agent.rpc.server import RpcServer
from waiting import wait_until


async def doctor(*words: str) -> tuple[int, dict[str, Any]]:
    """Run it; its exit code, and what it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sollol.cli", "doctor", "rpc", "--json", *words,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, json.loads(said)


def severities(told: dict[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in told["findings"]:
        found.setdefault(finding["id"], set()).add(finding["severity"])
    return found


def complaints(told: dict[str, Any]) -> set[str]:
    """What is wrong, save the speed: that tells how busy this machine is."""
    bad = {finding["id"] for finding in told["findings"] if finding["severity"] in ("warning", "error")}
    return bad - {"rpc.latency", "rpc.bandwidth"}


def _worker(url: str, name: str, ram_mib: int, model: Path, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sollol_worker_agent.cli", "--redis", url, "--node", name]
    command += ["--model", f"big={model}", "--address", "127.0.0.1", "--ram", str(ram_mib)]
    with (home / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HOME": str(home), "OLLAMA_MODELS": str(home / "none")},
        )


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[list[RpcServer]]:
    """Two real rpc-servers."""
    started = [RpcServer(log_directory=tmp_path / name, caches=False) for name in ("a", "b")]
    try:
        for server in started:
            await server.start()
        yield started
    finally:
        for server in started:
            await server.stop()


async def test_two_servers_and_the_split_of_a_model(
    servers: list[RpcServer], smollm2_path: Path, tmp_path: Path
) -> None:
    endpoints = [f"127.0.0.1:{server.port}" for server in servers]

    code, told = await doctor(*endpoints, "--model", str(smollm2_path), "--context", "2048")

    assert code in (0, 1), told
    assert not complaints(told)
    assert severities(told)["rpc.reachable"] == severities(told)["rpc.version"] == {"ok"}
    assert all(each["mib_per_s"] > 0 and each["trip_ms"] > 0 for each in told["endpoints"])
    assert [row["layers"] for row in told["split"]] == [16, 15]
    # Nothing was loaded, and a llama-server that is told the same gives what was predicted.
    head = LlamaServerProcess(
        model_path=smollm2_path,
        log_directory=tmp_path,
        context_tokens=2048,
        threads=1,
        extra_args=[
            *("--rpc", ",".join(endpoints), "--device", "RPC0,RPC1", "--n-gpu-layers", "99"),
            *("--tensor-split", "16,15", "--fit", "off", "--log-verbosity", "4"),
        ],
    )
    async with head:
        report = read_buffers(head.log, "head", {server.port: str(at) for at, server in enumerate(servers)})
        busy_code, busy = await doctor(endpoints[0])
    for at, row in enumerate(told["split"]):
        assert report[f"{at} model"] == pytest.approx(row["weights_mib"], abs=0.1)
        assert report[f"{at} KV"] == pytest.approx(row["cache_mib"], abs=0.1)
    # One that has a client does not answer.
    assert busy_code == 0
    assert severities(busy) == {"rpc.reachable": {"note"}}
    assert busy["endpoints"][0]["state"] == "busy"


async def test_a_model_is_found_by_its_name_in_ollamas_store(
    servers: list[RpcServer], smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "ab" * 32
    manifest = tmp_path / "manifests/registry.ollama.ai/library/smollm2/135m"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    (tmp_path / "blobs").mkdir()
    (tmp_path / f"blobs/sha256-{digest}").symlink_to(smollm2_path)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    endpoint = f"127.0.0.1:{servers[0].port}"

    code, told = await doctor(endpoint, "--model", "smollm2:135m")
    unknown_code, unknown = await doctor(endpoint, "--model", "nothing")

    assert code in (0, 1), told
    assert not complaints(told)
    assert [row["layers"] for row in told["split"]] == [31]
    assert (unknown_code, severities(unknown)["rpc.model"]) == (2, {"error"})


async def test_where_nothing_or_something_else_listens(redis_url: str) -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        code, told = await doctor(f"127.0.0.1:{free_port()}", f"127.0.0.1:{port}")

    assert code == 2
    assert [each["state"] for each in told["endpoints"]] == ["down", "foreign"]


async def test_the_nodes_of_a_fabric_and_the_group_that_they_could_form(
    redis_url: str, smollm2_path: Path, tmp_path: Path
) -> None:
    workers = []
    try:
        for name, ram in (("a", 105), ("b", 100), ("c", 100)):
            workers.append(_worker(redis_url, name, ram, smollm2_path, tmp_path))
        told: dict[str, Any] = {}

        async def all_are_seen() -> bool:
            nonlocal told
            _, told = await doctor("--redis", redis_url, "--model", "big", "--context", "2048")
            return len(told["split"]) == 3

        await wait_until(all_are_seen, timeout=60, what="a plan for three nodes")
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(20)

    assert sum(row["layers"] for row in told["split"]) == 31
    assert severities(told)["rpc.nodes"] == {"ok"}
    assert severities(told)["rpc.split"] == {"ok"}
