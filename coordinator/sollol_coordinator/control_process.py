"""A process that runs control jobs of one queue; begun anew when it ends."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from sollol_broker.child import ChildProcess, describe_exit, last_lines
from sollol_broker.periodic import Periodic

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_LONGEST_DELAY_SECONDS = 30.0


class ControlProcess:
    """`python -m sollol_coordinator.control_worker QUEUE`; it ends with us, even when we are killed with -9.

    Args:
        environment: all of it, with SOLLOL_REDIS_URL.
        log_file: where it writes.
    """

    def __init__(self, queue: str, *, environment: Mapping[str, str], log_file: Path) -> None:
        self._queue = queue
        self._environment = environment
        self._log_file = log_file
        self._process: ChildProcess | None = None
        self._watch = Periodic(self._look, name=f"the process for jobs of {queue}", seconds=_LOOK_SECONDS)
        self._delay = _LOOK_SECONDS

    def start(self) -> None:
        """Begin, unless it has."""
        if self._process is None:
            self._process = self._new()
            self._watch.start()

    async def stop(self) -> None:
        """End it; a job that it runs ends with it."""
        await self._watch.stop()
        if self._process is not None:
            await asyncio.to_thread(self._process.stop, patience_seconds=3.0)

    def _new(self) -> ChildProcess:
        command = [sys.executable, "-m", "sollol_coordinator.control_worker", self._queue]
        return ChildProcess(command, environment=self._environment, log=self._log_file)

    async def _look(self) -> float:
        """See whether it runs; gives seconds until the next look."""
        assert self._process is not None  # noqa: S101  # it is started first
        if (status := self._process.poll()) is None:
            self._delay = _LOOK_SECONDS
            return self._delay
        said = last_lines(self._log_file, 3)
        log.error("the process for jobs of %s ended (%s): %s", self._queue, describe_exit(status), said)
        self._delay = min(_LONGEST_DELAY_SECONDS, 2 * self._delay)
        self._process = self._new()
        return self._delay
