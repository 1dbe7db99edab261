"""Rpc-servers on this machine, started by a call and tied to this process.

They split one machine's memory, so they are for trying things out, and for GPUs that one llama-server does not see.
Several machines form groups by themselves: `sollol-worker` on each, and one `sollol-coordinator`.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sollol_broker.child import is_taken
from sollol_broker.errors import BackendError, SollolError
from sollol_worker_agent.llama_binaries import LlamaBinary, find_rpc_server
from sollol_worker_agent.rpc.server import RpcServer
from sollol_worker_agent.rpc.wire import RpcState

from .either_way import run_apart
from .rpc_discovery import DEFAULT_PORT, as_backend, ask_all, named

log = logging.getLogger(__name__)

_MOST_PORTS = 200
_NAMES = ("ggml-rpc-server", "rpc-server")
# Our own servers, by port: a second call finds those of the first.
_started: dict[int, RpcServer] = {}
_lock = threading.Lock()


def auto_setup_rpc_backends(
    num_backends: int = 1,
    llama_dir: str | None = None,
    auto_build: bool = True,
    discover_network: bool = True,
) -> list[dict[str, Any]]:
    """So many rpc-servers that work, as [{"host": "127.0.0.1", "port": 50052}, …].

    Those that $RPC_BACKENDS names and that answer come first, then those that an earlier call has started; the rest
    is started on loopback, from port 50052 on. They end with this process, even when it is killed.

    Args:
        llama_dir: a folder of llama.cpp with its programs in it, or in its build/bin; None = see
            `sollol setup-llama-cpp`.
        auto_build: build llama.cpp where there is none, which takes many minutes.
        discover_network: use what $RPC_BACKENDS names. No network is searched; see `discover_rpc_backends(cidr=…)`.

    Raises:
        SollolError: one of them does not start, or llama.cpp cannot be had; the text says what to do.
    """
    if num_backends < 1:
        raise ValueError(f"num_backends is at least 1, got {num_backends}")
    found = []
    if discover_network and (targets := named()):
        found = [as_backend(each) for each in ask_all(targets, 1.0) if each.state is RpcState.IDLE]
    with _lock:
        for port in [port for port, server in _started.items() if not server.is_running]:
            _drop(port)
        ours = [{"host": "127.0.0.1", "port": port} for port in _started]
        missing = num_backends - len(found) - len(ours)
        if missing > 0:
            binary = _binary(llama_dir, auto_build)
            ports = _free_ports()
            ours += [{"host": "127.0.0.1", "port": _start(next(ports), binary)} for _ in range(missing)]
    return [*found, *ours][:num_backends]


def stop_rpc_backends() -> None:
    """End those that `auto_setup_rpc_backends` has started here; the end of the program does so, too."""
    with _lock:
        for port in list(_started):
            _drop(port)


atexit.register(stop_rpc_backends)


def _start(port: int, binary: LlamaBinary) -> int:
    server = RpcServer(
        log_directory=Path(tempfile.mkdtemp(prefix="sollol-rpc-")), port=port, binary=binary, caches=False
    )
    try:
        run_apart(server.start())
    except BaseException:
        shutil.rmtree(server.log.parent, ignore_errors=True)
        raise
    _started[port] = server
    return port


def _drop(port: int) -> None:
    server = _started.pop(port)
    server.end()  # plainly: at the end of a program no thread is to be had
    shutil.rmtree(server.log.parent, ignore_errors=True)


def _free_ports() -> Iterator[int]:
    for port in range(DEFAULT_PORT, DEFAULT_PORT + _MOST_PORTS):
        if not is_taken(port):
            yield port
    raise SollolError(
        f"no free port from {DEFAULT_PORT} to {DEFAULT_PORT + _MOST_PORTS - 1}: end what has them"
    )


def _binary(llama_dir: str | None, auto_build: bool) -> LlamaBinary:
    if llama_dir is not None:
        for folder in (Path(llama_dir), Path(llama_dir) / "build/bin", Path(llama_dir) / "bin"):
            for name in _NAMES:
                if (folder / name).is_file():
                    return LlamaBinary(folder / name)
        raise BackendError(
            f"{llama_dir} holds no rpc-server: sollol setup-llama-cpp --build --source {llama_dir}"
        )
    try:
        return find_rpc_server()
    except BackendError:
        if not auto_build:
            raise
    from .llama_cpp.build import default_flags, default_jobs
    from .llama_cpp.setup import fetched_or_fetch, set_up

    log.warning("llama.cpp is not installed here: building it, which takes many minutes")
    set_up(fetched_or_fetch(None, log.info), default_flags(), default_jobs(), log.info)
    return find_rpc_server()
