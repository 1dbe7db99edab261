"""An rpc-server of our own: started afresh for each group, on loopback, and ended with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from sollol_broker.child import ChildProcess, describe_exit, free_port, is_taken, last_lines
from sollol_broker.errors import BackendError

from ..llama_binaries import LlamaBinary, find_rpc_server
from .wire import RpcReport, RpcState, ask

_START_SECONDS = 20.0
_POLL_SECONDS = 0.05
_ADDRESS = "127.0.0.1"


class RpcServer:
    """ggml-rpc-server on loopback. Ends with us, even when we are killed with -9.

    It is never used again after a client has left: what that client's death leaves in it nobody knows.

    Args:
        log_directory: for what it says; no prompt is in there.
        threads: for a device that is a CPU. caches: whether it keeps large tensors on disk, so that the next
            load of the same model reads them there and not from the network.
        port: 0 = a free one. binary: None = see `find_rpc_server`.
    """

    def __init__(
        self,
        *,
        log_directory: Path,
        threads: int = 1,
        caches: bool = True,
        port: int = 0,
        binary: LlamaBinary | None = None,
    ) -> None:
        self.log = log_directory / "rpc-server.log"
        self._threads = threads
        self._caches = caches
        self._process: ChildProcess | None = None
        self._given_port = port
        self._binary = binary
        self.port = port

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process id; None when it does not run."""
        return self._process.pid if self._process is not None and self.is_running else None

    async def start(self) -> RpcReport:
        """Start it; what it says of itself once it answers.

        Raises:
            BackendError: there is none, or it does not start; the text says what to do.
        """
        binary = self._binary or find_rpc_server()
        self.port = self._given_port or free_port()
        if self._given_port and is_taken(self._given_port):  # whoever has it would answer for ours
            raise BackendError(f"port {self.port} of 127.0.0.1 is taken: choose another")
        command = [str(binary.path), "-H", _ADDRESS, "-p", str(self.port), "-t", str(self._threads)]
        environment = binary.full_environment()
        caches = self._caches and await asyncio.to_thread(_make_cache, environment)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        try:
            self._process = ChildProcess(
                [*command, *(("-c",) if caches else ())], environment=environment, log=self.log
            )
        except OSError as error:
            raise BackendError(f"the rpc-server cannot be started: {error}") from error
        try:
            return await self._ready()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End it at once; what it has in memory is gone."""
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """The same from a thread of one's own; when the interpreter ends, Python starts no other."""
        if self._process is not None:
            self._process.stop(patience_seconds=0)

    async def wait_dead(self) -> str:
        """Wait until it has ended, however that comes about; returns how, in words."""
        process = self._process
        if process is None:
            return "never started"
        while (status := process.poll()) is None:  # noqa: ASYNC110  # it sets no event
            await asyncio.sleep(_POLL_SECONDS)
        return describe_exit(status)

    async def _ready(self) -> RpcReport:
        assert self._process is not None  # noqa: S101  # start() has just set it
        end = time.monotonic() + _START_SECONDS
        while True:
            if (status := self._process.poll()) is not None:
                said = last_lines(self.log)
                raise BackendError(f"the rpc-server ended while it started ({describe_exit(status)}): {said}")
            report = await ask(_ADDRESS, self.port)
            if report.state is RpcState.IDLE:
                return report
            if time.monotonic() > end:
                raise BackendError(
                    f"the rpc-server did not answer within {_START_SECONDS:.0f} s: {report.why}"
                )
            await asyncio.sleep(_POLL_SECONDS)


def _make_cache(environment: Mapping[str, str]) -> bool:
    """Make the directory for large tensors; False where that is not allowed, and none are kept.

    Several rpc-servers that start at once on a new machine would get in each other's way, and one of them would end.
    """
    usual = (
        Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/")) / ".cache") / "llama.cpp"
    )
    try:
        (Path(environment.get("LLAMA_CACHE") or usual) / "rpc").mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True
