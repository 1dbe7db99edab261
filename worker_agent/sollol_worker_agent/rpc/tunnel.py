"""The process that carries a group's traffic: started, watched and ended here."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sollol_broker.child import ChildProcess, describe_exit, last_lines
from sollol_broker.errors import BackendError

from .identity import Identity
from .relay import CARRIED, CUT, READY, Passage

_START_SECONDS = 15.0
_POLL_SECONDS = 0.02


class Tunnel:
    """Passages of one group on this node. Ends with us, even when we are killed with -9.

    Args:
        log: file for what it says, which is next to nothing.
    """

    def __init__(self, passages: Sequence[Passage], identity: Identity, log: Path) -> None:
        self._passages = passages
        self._identity = identity
        self._log = log
        self._process: ChildProcess | None = None
        self.ports: tuple[int, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def carried_bytes(self) -> int:
        """Both ways since the start, as of half a second ago."""
        _, found, count = last_lines(self._log, 1).partition(CARRIED)
        return int(count) if found and count.strip().isdigit() else 0

    @property
    def cut(self) -> list[int]:
        """Which passages the network has cut off, by number."""
        _, found, rest = last_lines(self._log).partition(CUT)
        return [int(each) for each in json.loads(rest.splitlines()[0])] if found else []

    async def start(self) -> tuple[int, ...]:
        """Start it; the ports on which the passages listen, in order.

        Raises:
            BackendError: it does not start.
        """
        config = {"passages": [asdict(each) for each in self._passages], **asdict(self._identity)}
        self._log.write_bytes(b"")
        command = [sys.executable, "-m", "sollol_worker_agent.rpc.relay"]
        self._process = ChildProcess(command, stdin=json.dumps(config).encode(), log=self._log)
        end = time.monotonic() + _START_SECONDS
        while True:
            said = last_lines(self._log)
            if READY in said:
                self.ports = tuple(json.loads(said.split(READY)[1].splitlines()[0]))
                return self.ports
            if (status := self._process.poll()) is not None:
                raise BackendError(f"the group's tunnel did not start ({describe_exit(status)}): {said}")
            if time.monotonic() > end:
                await self.stop()
                raise BackendError(f"the group's tunnel was not ready within {_START_SECONDS:.0f} s")
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self) -> None:
        """End it at once."""
        if self._process is not None:
            await asyncio.to_thread(self._process.stop, patience_seconds=0)
