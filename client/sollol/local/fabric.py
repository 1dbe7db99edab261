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
        lenders: agents besides that serve nothing by themselves, and lend memory to groups of nodes.
        coordinator: whether one runs, so that groups are formed.
        ram_mib: main memory that each agent may use for models; None = all of it.
        directories: of GGUF files of which groups may be formed, besides those in Ollama's store.
        password: that the private Redis asks for; None = none. listen: addresses of this machine on which it listens
            besides.
        gateway_port: where a gateway listens on 127.0.0.1; None = there is none.
        dashboard_port: where the monitoring page listens on 127.0.0.1; None = there is none.
        progress: told in a few words what happens.
    """

    def __init__(
        self,
        *,
        redis_url: str | None = None,
        directory: Path | None = None,
        port: int | None = None,
        password: str | None = None,
        listen: Sequence[str] = (),
        workers: int = 1,
        models: Sequence[str] = (),
        lenders: int = 0,
        coordinator: bool = False,
        ram_mib: int | None = None,
        directories: Sequence[Path] = (),
        gateway_port: int | None = None,
        dashboard_port: int | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        more = {"bind": " ".join(["127.0.0.1", *listen])} if listen else {}
        self._broker = (
            None
            if redis_url
            else EmbeddedBroker(directory=directory, port=port, password=password, config=more)
        )
        self._given_url = redis_url
        self._count = workers
        self._models = tuple(models)
        self._lenders = lenders
        self._has_coordinator = coordinator
        self._limits: tuple[str, ...] = () if ram_mib is None else ("--ram", str(ram_mib))
        self._directories = tuple(directories)
        self._gateway_port = gateway_port
        self._dashboard_port = dashboard_port
        self._progress = progress
        self._processes: dict[str, ChildProcess] = {}
        self._nodes: set[str] = set()
        self.logs = Path(tempfile.mkdtemp(prefix="sollol-"))

    @property
    def url(self) -> str:
        """Where clients find it."""
        return self._broker.url if self._broker is not None else str(self._given_url)

    @property
    def gateway_url(self) -> str:
        """Where the gateway is; "" = there is none."""
        return f"http://127.0.0.1:{self._gateway_port}" if self._gateway_port is not None else ""

    @property
    def dashboard_url(self) -> str:
        """Where the monitoring page is; "" = there is none."""
        return f"http://127.0.0.1:{self._dashboard_port}/" if self._dashboard_port is not None else ""

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
        count = self._count + self._lenders
        what = f"{count} workers" if count > 1 else "a worker"
        self._progress(f"starting {what}" + (f" with {', '.join(self._names())}" if self._models else ""))
        for number in range(1, self._count + 1):
            self._start_worker(f"worker {number}", self._node(number), self._serving())
        for number in range(1, self._lenders + 1):
            self._start_worker(f"lender {number}", f"{_node_name()}-lender-{number}", ("--no-search",))
        if self._has_coordinator:
            self._run("coordinator", "sollol_coordinator.cli", "--metrics", "off")
        self._wait_until_ready()
        if self._gateway_port is not None:
            self._progress(f"starting a gateway on port {self._gateway_port}")
            page = ("--dashboard", self.dashboard_url) if self.dashboard_url else ()
            self._run("gateway", "sollol_client.gateway.cli", "--port", str(self._gateway_port), *page)
            self._wait_for("gateway", self._gateway_port)
        if self._dashboard_port is not None:
            self._progress(f"starting the monitoring page on port {self._dashboard_port}")
            self._run("page", "sollol_coordinator.page.cli", "--port", str(self._dashboard_port))
            self._wait_for("page", self._dashboard_port)

    def stop(self) -> None:
        """Stop the workers (they drain first), then Redis, and remove the logs."""
        for process in self._processes.values():
            process.send(signal.SIGTERM)
        end = time.monotonic() + _DRAIN_SECONDS
        for process in self._processes.values():
            process.stop(patience_seconds=max(0.1, end - time.monotonic()))
        self._processes = {}
        if self._broker is not None:
            self._broker.stop()
        shutil.rmtree(self.logs, ignore_errors=True)

    def check(self) -> None:
        """Look whether all parts still live.

        Raises:
            FabricError: one has died; its log's last lines are in the text.
        """
        for name, process in self._processes.items():
            if (status := process.poll()) is not None:
                how, said = describe_exit(status), self._tail(name)
                raise FabricError(f"{name} ended ({how}), so all was stopped; it said last: {said}")
        if self._broker is not None and not self._broker.is_running:
            raise FabricError(f"the private Redis died, so all was stopped; its log is {self._broker.log}")

    def _start_worker(self, name: str, node: str, more: Sequence[str]) -> None:
        self._nodes.add(node)
        command = ["sollol_worker_agent.cli", "--node", node, "--drain", "8", *self._limits, *more]
        for directory in self._directories:
            command += ["--models-dir", str(directory)]
        self._run(name, *command)

    def _run(self, name: str, *command: str) -> None:
        # The URL may hold a password: it goes by the environment, which only this user can read.
        environment = {**os.environ, "SOLLOL_REDIS_URL": self.url}
        self._processes[name] = ChildProcess(
            [sys.executable, "-m", *command], environment=environment, log=self._log(name)
        )

    def _serving(self) -> list[str]:
        return [word for model in self._models for word in ("--model", model)]

    def _node(self, number: int) -> str:
        return _node_name() if self._count == 1 else f"{_node_name()}-{number}"

    def _wait_until_ready(self) -> None:
        end, wanted = time.monotonic() + _READY_SECONDS, set(self._names())
        count = self._count + self._lenders
        with Client(self.url, app="sollol-up") as client:
            while time.monotonic() < end:
                self.check()
                nodes = client.nodes()
                live = [worker for node in nodes for worker in node.workers]
                serving = [worker for worker in live if worker.models.keys() >= wanted]
                are_here = self._nodes <= {node.name for node in nodes}
                if are_here and len(live) >= count and len(serving) >= self._count:
                    return
                time.sleep(_LOOK_SECONDS)
        said = self._tail(next(iter(self._processes)))
        raise FabricError(f"the workers were not ready after {_READY_SECONDS:.0f} s:\n{said}")

    def _wait_for(self, name: str, port: int) -> None:
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end:
            self.check()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(_LOOK_SECONDS)
        raise FabricError(f"the {name} was not ready after {_READY_SECONDS:.0f} s: {self._tail(name)}")

    def _names(self) -> list[str]:
        return [model.partition("=")[0] for model in self._models]

    def _log(self, name: str) -> Path:
        return self.logs / f"{name.replace(' ', '-')}.log"

    def _tail(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return " | ".join(self._log(name).read_text("utf-8", "replace").splitlines()[-3:])
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
