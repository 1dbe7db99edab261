"""A whole fabric on this machine: a private Redis (unless one is given) and some workers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from sollol_broker.child import ChildProcess, describe_exit
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.errors import SollolError
from sollol_client import Client

# Loading the two small models takes about two seconds; a cold disk may take a minute.
_READY_SECONDS = 120.0
_LOOK_SECONDS = 0.1
# The workers' own drain, and some time to hand back.
_DRAIN_SECONDS = 10.0


class FabricError(SollolError):
    """The local fabric did not come up, or a part of it died."""


class LocalFabric:
    """Starts and stops everything; nothing outlives the process that made it.

    Args:
        redis_url: use this Redis; None = start a private one.
        directory: where the private Redis keeps its data; None = a temporary place.
        port: of the private Redis on 127.0.0.1; None = a socket only.
        workers: how many agents.
        models: what each of them serves, as `--model` takes it: "NAME=FILE.gguf". Empty: they look for
            the LLM servers of this machine.
        progress: told in a few words what happens.
    """

    def __init__(
        self,
        *,
        redis_url: str | None = None,
        directory: Path | None = None,
        port: int | None = None,
        workers: int = 1,
        models: Sequence[str] = (),
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._broker = None if redis_url else EmbeddedBroker(directory=directory, port=port)
        self._given_url = redis_url
        self._count = workers
        self._models = tuple(models)
        self._progress = progress
        self._workers: list[ChildProcess] = []
        self.logs = Path(tempfile.mkdtemp(prefix="sollol-"))

    @property
    def url(self) -> str:
        """Where clients find it."""
        return self._broker.url if self._broker is not None else str(self._given_url)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all parts and wait until the workers serve.

        Raises:
            SollolError: something did not start; its log's last lines are in the text.
        """
        if self._broker is not None:
            self._progress("starting a private Redis")
            self._broker.start()
        what = f"{self._count} workers" if self._count > 1 else "a worker"
        self._progress(f"starting {what}" + (f" with {', '.join(self._names())}" if self._models else ""))
        for number in range(1, self._count + 1):
            self._workers.append(self._start_worker(number))
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop the workers (they drain first), then Redis, and remove the logs."""
        for worker in self._workers:
            worker.send(signal.SIGTERM)
        end = time.monotonic() + _DRAIN_SECONDS
        for worker in self._workers:
            worker.stop(patience_seconds=max(0.1, end - time.monotonic()))
        self._workers = []
        if self._broker is not None:
            self._broker.stop()
        shutil.rmtree(self.logs, ignore_errors=True)

    def check(self) -> None:
        """Look whether all parts still live.

        Raises:
            FabricError: one has died; its log's last lines are in the text.
        """
        for number, worker in enumerate(self._workers, 1):
            if (status := worker.poll()) is not None:
                how, said = describe_exit(status), self._tail(number)
                raise FabricError(f"worker {number} ended ({how}), so all was stopped; it said last: {said}")
        if self._broker is not None and not self._broker.is_running:
            raise FabricError(f"the private Redis died, so all was stopped; its log is {self._broker.log}")

    def _start_worker(self, number: int) -> ChildProcess:
        node = _node_name() if self._count == 1 else f"{_node_name()}-{number}"
        command = [sys.executable, "-m", "sollol_worker_agent.cli", "--node", node, "--drain", "8"]
        for model in self._models:
            command += ["--model", model]
        # The URL may hold a password: it goes by the environment, which only this user can read.
        environment = {**os.environ, "SOLLOL_REDIS_URL": self.url}
        return ChildProcess(command, environment=environment, log=self._log(number))

    def _wait_until_ready(self) -> None:
        end, wanted = time.monotonic() + _READY_SECONDS, set(self._names())
        with Client(self.url, app="sollol-up") as client:
            while time.monotonic() < end:
                self.check()
                live = [worker for node in client.nodes() for worker in node.workers]
                if len(live) >= self._count and all(worker.models.keys() >= wanted for worker in live):
                    return
                time.sleep(_LOOK_SECONDS)
        raise FabricError(f"the workers were not ready after {_READY_SECONDS:.0f} s:\n{self._tail(1)}")

    def _names(self) -> list[str]:
        return [model.partition("=")[0] for model in self._models]

    def _log(self, number: int) -> Path:
        return self.logs / f"worker-{number}.log"

    def _tail(self, number: int) -> str:
        with contextlib.suppress(OSError):
            return " | ".join(self._log(number).read_text("utf-8", "replace").splitlines()[-3:])
        return "nothing"


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else a free port of 127.0.0.1."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise FabricError("no free port on 127.0.0.1")


def _node_name() -> str:
    return re.sub(r"[^a-z0-9._-]", "-", socket.gethostname().split(".")[0].lower()) or "node"
