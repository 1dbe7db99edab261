"""A coordinator and workers of limited memory as processes, for tests of groups."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from sollol import Client
from sollol_broker.errors import NoNodeForModel
from sollol_broker.groups import GroupState, GroupView
from waiting import wait_until

OPTIONS = {"temperature": 0, "num_predict": 48}
QUESTION = "Tell me about the sea."
# SmolLM2 with 2,048 tokens of context needs about 190 MiB; the head needs 58 MiB besides its layers.
RAM_MIB = (105, 100, 100)


@dataclass
class Fleet:
    """A coordinator and workers as processes of their own."""

    url: str
    model: Path
    logs: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, name: str, *command: str, before: Sequence[str] = ()) -> None:
        """Start one; its log lies beside the others'. `before`: what the command begins with."""
        with (self.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*before, sys.executable, "-m", *command, "--redis", self.url],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": str(self.logs), "OLLAMA_MODELS": str(self.logs / "none")},
            )

    def worker(
        self, name: str, ram_mib: int, *, before: Sequence[str] = (), address: str = "127.0.0.1"
    ) -> None:
        """A worker whose node has so much memory."""
        self.run(
            name,
            "sollol_worker_agent.cli",
            *("--node", name, "--model", f"big={self.model}", "--address", address),
            *("--ram", str(ram_mib), "--lease", "3"),
            before=before,
        )

    def coordinator(self, name: str = "coordinator", *more: str) -> None:
        """One of several, perhaps."""
        self.run(
            name,
            "sollol_coordinator.cli",
            # Of an option that comes twice, the last counts.
            *("--metrics", "off", "--context", "2048", "--lease", "2", *more),
        )

    def kill(self, name: str) -> None:
        """With -9."""
        self.processes[name].kill()
        self.processes.pop(name).wait(10)

    def log(self, name: str) -> str:
        """What one has said so far."""
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def parts(self) -> list[psutil.Process]:
        """Processes of its groups, also those whose agent was killed: they share its home."""
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = " ".join(each.cmdline())
                is_part = "--rpc 127" in words or "ggml-rpc-server" in words or "rpc.relay" in words
                if is_part and each.environ().get("HOME") == str(self.logs):
                    found.append(each)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


async def ready(client: Client, fleet: Fleet) -> GroupView:
    """Wait until a group is ready."""

    def found() -> list[GroupView]:
        return [group for group in client.groups() if group.state is GroupState.READY]

    await wait_until(lambda: bool(found()), timeout=60, what=f"a group\n{fleet.log('coordinator')}")
    return found()[0]


async def is_formable(client: Client) -> None:
    """Wait until the model can be asked: before the coordinator has seen the nodes, a job for it is refused."""

    def is_taken() -> bool:
        try:
            client.submit(chat="x", model="big", options={"num_predict": 1}).result(timeout=90)
        except NoNodeForModel:
            return False
        return True

    await wait_until(is_taken, timeout=120, what="the model can be asked")


def text_of(client: Client, model: str = "big") -> str:
    """What it says to the question."""
    return client.submit(chat=QUESTION, model=model, options=OPTIONS).result(timeout=120).text
