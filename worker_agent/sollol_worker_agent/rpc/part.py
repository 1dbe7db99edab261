"""What this node does for one group, from its reservation to its end: memory lent to the head, or the head itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from .head import Head
from .identity import Identity, new_identity
from .relay import Passage
from .server import RpcServer
from .tunnel import Tunnel

log = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0
# While a job runs, not a byte to or from any member for so long: one of them hangs.
_SILENCE_SECONDS = 12.0
# A process that somebody has stopped (kill -STOP) does not come back by itself.
_FROZEN_SECONDS = 5.0


class Part:
    """One node's part in one group. Whatever it starts ends with this process, even when that is killed with -9.

    Args:
        on_lost: called once when something of it has died or hangs, with what, and with the node that is to blame; the
            part has stopped by then.
        is_working: whether a job of the group runs here (the head asks).
    """

    def __init__(
        self,
        group: str,
        *,
        node: str,
        on_lost: Callable[[str, str], Awaitable[None]],
        is_working: Callable[[], bool],
        silence_seconds: float = _SILENCE_SECONDS,
    ) -> None:
        self.group = group
        self._node = node
        self.identity: Identity = new_identity(f"{group} {node}")
        self.head: Head | None = None
        self._on_lost = on_lost
        self._is_working = is_working
        self._silence_seconds = silence_seconds
        self._logs = Path(tempfile.mkdtemp(prefix="sollol-group-"))
        self._server: RpcServer | None = None
        self._tunnel: Tunnel | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._carried = (0, time.monotonic())
        self._frozen_since = 0.0

    @property
    def logs(self) -> Path:
        """Where its processes write; gone with it."""
        return self._logs

    async def lend(
        self, address: str, certificate: str, *, threads: int, is_local: bool = False
    ) -> dict[str, Any]:
        """Start a fresh rpc-server, and a tunnel to it that only the holder of `certificate` comes through.

        Args:
            is_local: the head is on this very machine and reaches the rpc-server's port on loopback: no tunnel.

        Returns:
            port (of the tunnel, or of the rpc-server itself), is_local, version of the protocol, devices with free_mib
            and total_mib.

        Raises:
            BackendError: one of them does not start.
        """
        self._server = RpcServer(log_directory=self._logs, threads=threads)
        report = await self._server.start()
        port = self._server.port
        if not is_local:
            passage = Passage((address, 0), ("127.0.0.1", port), True, certificate)
            self._tunnel = Tunnel([passage], self.identity, self._logs / "tunnel.log")
            (port,) = await self._tunnel.start()
        self._watch()
        devices = [{"free_mib": each.free_mib, "total_mib": each.total_mib} for each in report.devices]
        return {"port": port, "is_local": is_local, "version": list(report.version or ()), "devices": devices}

    async def lead(self, head: Head) -> dict[str, float]:
        """Start the head; gives what it reported. Raises BackendError as `Head.start` does."""
        self.head = head
        report = await head.start()
        self._watch()
        return report

    async def stop(self) -> None:
        """End all of it at once."""
        if self._watcher is not None and self._watcher is not asyncio.current_task():
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        for each in (self.head, self._tunnel, self._server):
            if each is not None:
                await each.stop()
        await asyncio.to_thread(shutil.rmtree, self._logs, ignore_errors=True)

    def _watch(self) -> None:
        self._carried = (0, time.monotonic())
        self._watcher = asyncio.create_task(self._watch_loop())

    async def _watch_loop(self) -> None:
        while not (why := self._fault()):
            await asyncio.sleep(_WATCH_SECONDS)
            if self.head is not None:
                with contextlib.suppress(OSError):
                    self.head.trim_log()
        blamed = (self.head.cut_off if self.head is not None else "") or self._node
        log.warning("group %s: %s", self.group, why)
        await self.stop()
        await self._on_lost(why, blamed)

    def _fault(self) -> str:
        """What is wrong; "" = nothing.

        1. A process has died.
        2. The rpc-server has been stopped: connections to it stay open, and nothing comes.
        3. The head works, and nothing goes to or comes from its members: one of them hangs.
        """
        if self.head is not None:
            if not self.head.is_running:
                cut_off = self.head.cut_off
                return f"{cut_off} is cut off" if cut_off else "llama-server, or its tunnel, has ended"  # 1
            return self._silence()  # 3
        if self._server is None or not self._server.is_running:
            return "the rpc-server has ended"  # 1
        if self._tunnel is not None and not self._tunnel.is_running:
            return "the tunnel has ended"  # 1
        return self._frozen()  # 2

    def _frozen(self) -> str:
        pid = self._server.pid if self._server is not None else None
        try:
            is_frozen = pid is not None and psutil.Process(pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            is_frozen = False
        if not is_frozen:
            self._frozen_since = 0.0
            return ""
        self._frozen_since = self._frozen_since or time.monotonic()
        return "the rpc-server is frozen" if time.monotonic() - self._frozen_since > _FROZEN_SECONDS else ""

    def _silence(self) -> str:
        assert self.head is not None  # noqa: S101  # only a head is asked
        carried, now = self.head.carried_bytes, time.monotonic()
        if carried != self._carried[0] or not self.head.has_tunnel or not self._is_working():
            self._carried = (carried, now)
            return ""
        silent = now - self._carried[1]
        return f"a member has not said anything for {silent:.0f} s" if silent > self._silence_seconds else ""


def threads_for(cpu_count: int, asked: int | None) -> int:
    """Threads for what computes on the CPU: as asked, else all but one, at most 8."""
    return asked or max(1, min(cpu_count - 1, 8))
