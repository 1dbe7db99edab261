"""Whether a llama.cpp works on this machine. Only an answer proves it: a build for another processor starts, tells its
version, lists its devices, and dies at the first number that it multiplies.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx

from sollol_broker.errors import BackendError
from sollol_worker_agent.llama_binaries import LlamaBinary
from sollol_worker_agent.llama_process import LlamaServerProcess
from sollol_worker_agent.rpc.server import RpcServer

from .errors import SetupError
from .toy import write_toy

_TOKENS = 8
_START_SECONDS, _ANSWER_SECONDS = 60.0, 30.0
# A process that cuts its connections is about to end.
_END_SECONDS = 2.0
_MOST_SHOWN = 500


async def try_out(server: LlamaBinary, rpc_server: LlamaBinary | None) -> None:
    """Let it answer with a tiny model: by itself, and with all layers on its rpc-server, if it has one.

    Raises:
        SetupError: it does not; the text says why, and what to do.
    """
    with tempfile.TemporaryDirectory(prefix="sollol-try-") as directory:
        work = Path(directory)
        write_toy(work / "toy.gguf")
        await _answer(server, work, ())
        if rpc_server is None:
            return
        remote = RpcServer(log_directory=work, caches=False, binary=rpc_server)
        try:
            await remote.start()
            await _answer(server, work, remote_arguments([f"127.0.0.1:{remote.port}"], 1))
        except BackendError as error:
            raise SetupError(f"{rpc_server.path}: {error}") from error
        finally:
            await remote.stop()


def remote_arguments(endpoints: Sequence[str], devices: int) -> list[str]:
    """What llama-server is to be told to put all layers on the devices of these rpc-servers."""
    names = ",".join(f"RPC{at}" for at in range(devices))
    return ["--rpc", ",".join(endpoints), "--device", names, "--n-gpu-layers", "999", "--fit", "off"]


async def _answer(server: LlamaBinary, work: Path, more: Sequence[str]) -> None:
    process = LlamaServerProcess(
        model_path=work / "toy.gguf",
        log_directory=work,
        threads=1,
        binary=server.path,
        start_seconds=_START_SECONDS,
        extra_args=more,
    )
    try:
        async with process:
            await _ask(process, server)
    except BackendError as error:
        raise SetupError(f"{server.path}: {error}") from error


async def _ask(process: LlamaServerProcess, server: LlamaBinary) -> None:
    body = {"prompt": "hello", "n_predict": _TOKENS, "temperature": 0, "ignore_eos": True}
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_ANSWER_SECONDS) as http:
            answer = await http.post(f"{process.url}/completion", json=body)
    except httpx.HTTPError as error:
        try:
            how = await asyncio.wait_for(process.wait_dead(), _END_SECONDS)
        except TimeoutError:
            how = "it still runs"
        raise SetupError(
            f"{server.path} gives no answer ({how}): {str(error) or type(error).__name__}"
        ) from error
    if answer.is_error or not answer.json().get("tokens_predicted"):
        raise SetupError(f"{server.path} cannot answer: {answer.text[:_MOST_SHOWN]}")
