"""SOLLOL's names for rpc-servers, as its users write them, on real rpc-servers and a real llama-server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sollol.llama_cpp_coordinator import LlamaCppCoordinator
from sollol.ollama_gguf_resolver import OllamaGGUFResolver, resolve_ollama_model
from sollol.rpc_auto_setup import auto_setup_rpc_backends, stop_rpc_backends
from sollol.rpc_discovery import auto_discover_rpc_backends, check_rpc_server, discover_rpc_backends
from sollol.rpc_registry import RPCBackendRegistry
from sollol_broker.child import free_port
from sollol_broker.errors import BackendError, InvalidJob
from sollol_worker_agent.llama_binaries import find_rpc_server
from waiting import wait_until

_DIGEST = "ab" * 32


@pytest.fixture
def backends() -> Iterator[list[dict[str, Any]]]:
    """Two real rpc-servers."""
    try:
        yield auto_setup_rpc_backends(num_backends=2)
    finally:
        stop_rpc_backends()


@pytest.fixture
def ollama_store(tmp_path: Path, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An Ollama store with SmolLM2 in it; gives the model's name."""
    manifest = tmp_path / "store/manifests/registry.ollama.ai/library/smollm2/135m"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{_DIGEST}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    blob = tmp_path / f"store/blobs/sha256-{_DIGEST}"
    blob.parent.mkdir()
    blob.symlink_to(smollm2_path)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    return "smollm2:135m"


def test_backends_are_started_and_found_again(backends: list[dict[str, Any]]) -> None:
    assert [each["host"] for each in backends] == ["127.0.0.1"] * 2
    assert all(each["port"] >= 50052 for each in backends)
    assert all(check_rpc_server(**each) for each in backends)
    # What runs already is not started again.
    assert auto_setup_rpc_backends(num_backends=1) == backends[:1]
    assert auto_setup_rpc_backends(num_backends=2) == backends

    stop_rpc_backends()

    assert not any(check_rpc_server(**each) for each in backends)


def test_named_backends_are_taken_first(
    backends: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = backends[1]["port"]
    monkeypatch.setenv("RPC_BACKENDS", f"127.0.0.1:{free_port()},127.0.0.1:{port}")

    assert auto_setup_rpc_backends(num_backends=1) == [{"host": "127.0.0.1", "port": port}]
    assert {"host": "127.0.0.1", "port": port} in auto_discover_rpc_backends(port=free_port())


def test_a_network_is_searched_only_when_it_is_named(backends: list[dict[str, Any]]) -> None:
    port = backends[0]["port"]

    assert discover_rpc_backends(cidr="127.0.0.0/29", port=port) == [{"host": "127.0.0.1", "port": port}]
    assert discover_rpc_backends(port=port) == [{"host": "127.0.0.1", "port": port}]


def test_programs_of_a_folder_are_taken(tmp_path: Path) -> None:
    programs = tmp_path / "build/bin"
    programs.mkdir(parents=True)
    (programs / "rpc-server").symlink_to(find_rpc_server().path)
    try:
        (backend,) = auto_setup_rpc_backends(num_backends=1, llama_dir=str(tmp_path))
        assert check_rpc_server(**backend)
        with pytest.raises(BackendError, match="setup-llama-cpp --build --source"):
            auto_setup_rpc_backends(num_backends=2, llama_dir=str(tmp_path / "nothing"))
    finally:
        stop_rpc_backends()


async def test_all_of_it_works_inside_a_coroutine() -> None:
    try:
        (backend,) = auto_setup_rpc_backends(num_backends=1)
        assert check_rpc_server(backend["host"], backend["port"])
    finally:
        stop_rpc_backends()


async def test_backends_end_with_the_process_that_asked_for_them(tmp_path: Path) -> None:
    script = (
        "from sollol.rpc_auto_setup import auto_setup_rpc_backends\n"
        "print(auto_setup_rpc_backends(num_backends=1)[0]['port'], flush=True)\n"
        "import time\ntime.sleep(600)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert process.stdout is not None
    port = int(await asyncio.wait_for(process.stdout.readline(), 60))
    assert check_rpc_server("127.0.0.1", port)

    process.send_signal(signal.SIGKILL)
    await process.wait()

    await wait_until(
        lambda: not check_rpc_server("127.0.0.1", port), timeout=10, what="the rpc-server has ended"
    )


def test_a_program_that_ends_says_nothing_of_its_backends() -> None:
    script = (
        "from sollol.rpc_auto_setup import auto_setup_rpc_backends\n"
        "print(auto_setup_rpc_backends(num_backends=1)[0]['port'])\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert not check_rpc_server("127.0.0.1", int(ended.stdout))


def test_a_registry_knows_who_answers(backends: list[dict[str, Any]]) -> None:
    nobody = free_port()
    with RPCBackendRegistry() as registry:
        registry.add_backend("rpc_1", f"grpc://127.0.0.1:{backends[0]['port']}")
        registry.add_backend("127.0.0.1", backends[1]["port"])
        registry.add_backend("127.0.0.1", nobody)

        told = registry.health_check_all()

        assert told == {
            **{f"127.0.0.1:{each['port']}": True for each in backends},
            f"127.0.0.1:{nobody}": False,
        }
        assert [each.port for each in registry.get_healthy_backends()] == [each["port"] for each in backends]
        best = registry.get_best_backend()
        assert best is not None
        assert best.free_mib > 0


async def test_a_model_by_hand_as_the_readme_has_it(
    backends: list[dict[str, Any]], ollama_store: str
) -> None:
    registry = RPCBackendRegistry()
    registry.load_from_config(backends)
    port = free_port()
    coordinator = LlamaCppCoordinator(
        coordinator_port=port,
        rpc_backends=registry.get_all_backends(),
        context_size=1024,
        gpu_layers=-1,
    )
    try:
        await coordinator.start(model_name=ollama_store)
        answer = await coordinator.generate("The sea is", max_tokens=12, temperature=0)
        assert coordinator.base_url == f"http://127.0.0.1:{port}"
        # The layers lie on the rpc-servers: they have what the model weighs.
        assert _resident_mib("ggml-rpc-server") > 100
        assert all(each.is_in_use and each.is_healthy for each in registry.get_all_backends())
    finally:
        await coordinator.stop()
        registry.stop_heartbeat()

    assert answer["content"] == answer["response"] != ""
    assert answer["tokens_predicted"] == 12
    assert not coordinator.is_running
    assert all(check_rpc_server(**each) for each in backends)


def test_the_same_called_plainly_says_the_same(backends: list[dict[str, Any]], smollm2_path: Path) -> None:
    texts = []
    for chosen in (backends, backends[:1], []):
        with LlamaCppCoordinator(str(smollm2_path), chosen, port=free_port(), ctx_size=1024) as coordinator:
            answer = coordinator.chat(
                [{"role": "user", "content": "Name a fruit."}], max_tokens=12, temperature=0
            )
        assert answer["message"] == answer["choices"][0]["message"]
        texts.append(answer["message"]["content"])

    assert texts[0] == texts[1] == texts[2] != ""


def test_what_cannot_be_started_is_told(
    backends: list[dict[str, Any]], smollm2_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    nobody = LlamaCppCoordinator(str(smollm2_path), [f"127.0.0.1:{free_port()}"], port=free_port())
    try:
        with pytest.raises(BackendError, match="cannot be used"):
            nobody.start()
        with pytest.raises(BackendError, match="call start"):
            nobody.generate("x")
        with pytest.raises(InvalidJob, match="not in Ollama's store"):
            nobody.start("no-such-model")
        with pytest.raises(InvalidJob, match="no model is named"):
            LlamaCppCoordinator(rpc_backends=backends).start()
    finally:
        nobody.stop()


def test_an_rpc_server_that_dies_ends_the_server_and_is_told(
    backends: list[dict[str, Any]], smollm2_path: Path
) -> None:
    with LlamaCppCoordinator(str(smollm2_path), backends, port=free_port(), ctx_size=1024) as coordinator:
        stop_rpc_backends()

        with pytest.raises(BackendError, match="When an rpc-server dies, it ends, too"):
            coordinator.generate("The sea is", max_tokens=4)


def test_ollamas_names_lead_to_files(ollama_store: str, smollm2_path: Path) -> None:
    found = resolve_ollama_model(ollama_store)

    assert found is not None
    assert os.path.samefile(found, smollm2_path)
    assert OllamaGGUFResolver().resolve("nothing") is None
    assert OllamaGGUFResolver().list_available_models() == {"smollm2:135m": found}


def _resident_mib(program: str) -> float:
    """Of this process' own children, however deep."""
    me = psutil.Process()
    found = [each for each in me.children(recursive=True) if each.name().startswith(program[:15])]
    return sum(each.memory_info().rss for each in found) / 1024**2
