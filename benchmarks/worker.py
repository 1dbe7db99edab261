"""Worker processes of all contenders: started, waited for, and ended here, whatever happens."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sollol_broker.child import ChildProcess, describe_exit, last_lines

# A worker prints this line once it takes jobs.
READY = "benchmark worker is ready"
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0


@contextlib.contextmanager
def worker(contender: str, *arguments: str) -> Iterator[ChildProcess]:
    """Run one worker process; it is ready when the context is entered, and gone when it is left.

    Raises:
        RuntimeError: it did not start; the text holds the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="sollol-bench-") as directory:
        log = Path(directory) / "worker.log"
        # The same sources as ours, also when they come from PYTHONPATH.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "benchmarks.contenders", contender, *arguments]
        process = ChildProcess(command, environment=environment, log=log)
        try:
            _wait_until_ready(process, log, contender)
            yield process
        finally:
            process.stop(patience_seconds=_STOP_SECONDS)


def _wait_until_ready(process: ChildProcess, log: Path, contender: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while READY not in log.read_text(errors="replace"):
        if (status := process.poll()) is not None:
            raise RuntimeError(
                f"the {contender} worker ended ({describe_exit(status)}):\n{last_lines(log, 20)}"
            )
        if time.monotonic() > end:
            raise RuntimeError(f"the {contender} worker was not ready within {_START_SECONDS:.0f} s")
        time.sleep(0.02)
