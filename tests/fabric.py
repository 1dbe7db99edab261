"""Workers for tests: in this event loop, in a thread with a loop of its own, or as a process to be killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sollol_broker.library import Library
from sollol_broker.url import parse
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import Backend, connect
from sollol_worker_agent.config import WorkerConfig
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

T = TypeVar("T")

# Things happen sooner than by default, so that tests of them take a moment. What runs out lasts longer than a machine
# that is busy with other things may stall.
_FAST: Mapping[str, Any] = {
    "lease_seconds": 3.0,
    "advertise_seconds": 2.0,
    "poll_seconds": 0.15,
    "reap_seconds": 0.2,
    "drain_seconds": 10.0,
}


async def _agent(
    url: str,
    backends: tuple[Backend | str, ...],
    node: str,
    config: Mapping[str, Any],
    functions: Library | None = None,
) -> Agent:
    """An agent that has joined; a backend may be named by its URL."""
    connected = [await connect(each) if isinstance(each, str) else each for each in backends]
    agent = Agent(parse(url), WorkerConfig(node=node, **{**_FAST, **config}), connected, functions=functions)
    await agent.start()
    return agent


@asynccontextmanager
async def worker(
    url: str,
    *backends: Backend | str,
    node: str = "n1",
    functions: Library | None = None,
    **config: Any,
) -> AsyncIterator[Agent]:
    """A worker in this event loop; at the end what still runs is handed back.

    Args:
        functions: None = this release's; a test of a test may switch a promise off.
    """
    agent = await _agent(url, backends, node, config, functions)
    try:
        yield agent
    finally:
        await agent.stop(drain_seconds=0)


@dataclass(slots=True)
class ThreadLoop:
    """An event loop in a thread, for tests that block in their own."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for what it gives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=30)

    def call(self, function: Callable[[], object]) -> None:
        """Call a plain function there, such as an event's `set`."""

        async def calling() -> None:
            function()

        self.run(calling())


@contextmanager
def thread_loop() -> Iterator[ThreadLoop]:
    """A running ThreadLoop."""
    there = ThreadLoop()
    thread = threading.Thread(target=there.loop.run_forever, daemon=True)
    thread.start()
    try:
        yield there
    finally:
        there.run(there.loop.shutdown_asyncgens())
        there.loop.call_soon_threadsafe(there.loop.stop)
        thread.join(timeout=10)
        there.loop.close()


@dataclass(slots=True)
class Town:
    """One Redis with one worker on an Ollama double, in a thread; for tests of the sync client."""

    url: str
    loop: ThreadLoop
    ollama: OllamaDouble
    agent: Agent

    def hold(self) -> None:
        """Let no token flow until `go`."""
        self.loop.call(self.ollama.tokens_may_flow.clear)

    def go(self) -> None:
        """Let tokens flow."""
        self.loop.call(self.ollama.tokens_may_flow.set)

    @property
    def asked(self) -> int:
        """How many requests the backend has got."""
        return len(self.ollama.seen.requests)


CHAT_MODEL = DoubleModel("tiny", capabilities=("completion", "tools", "vision"))
EMBED_MODEL = DoubleModel("tiny-embed", capabilities=("embedding",))


@contextmanager
def town(url: str, *, node: str = "n1", parallel: int = 4, **config: Any) -> Iterator[Town]:
    """A worker of `parallel` slots on an Ollama double with the models "tiny" and "tiny-embed"."""

    async def build() -> Town:
        ollama = OllamaDouble([CHAT_MODEL, EMBED_MODEL], parallel=parallel)
        await ollama.__aenter__()
        agent = await _agent(url, (ollama.url,), node, {"slots": parallel, **config})
        return Town(url, there, ollama, agent)

    with thread_loop() as there:
        built = there.run(build())
        try:
            yield built
        finally:
            built.go()
            there.run(built.agent.stop(drain_seconds=0))
            there.run(built.ollama.stop())


async def let_tokens_flow(ollama: OllamaDouble, until: int) -> None:
    """While it is held: let it send tokens, one at a time for each answer, until it has sent so many."""
    loop = asyncio.get_running_loop()

    def one_more() -> bool:
        if ollama.seen.tokens >= until:
            return True
        ollama.tokens_may_flow.set()
        loop.call_soon(ollama.tokens_may_flow.clear)
        return False

    await wait_until(one_more, timeout=10, what=f"{until} tokens")


@dataclass(slots=True)
class WorkerProcess:
    """`sollol-worker` as a process of its own."""

    process: asyncio.subprocess.Process
    log: Path

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace")

    async def exit_status(self) -> int:
        """Wait for its end."""
        async with asyncio.timeout(90):
            return await self.process.wait()


@asynccontextmanager
async def worker_process(
    url: str, log: Path, *arguments: str, node: str = "n1", environment: Mapping[str, str] | None = None
) -> AsyncIterator[WorkerProcess]:
    """`python -m sollol_worker_agent.cli --redis URL --node NODE …`; killed at the end if it still lives."""
    command = ("--redis", url, "--node", node, "--lease", "1", *arguments)
    async with program(log, "sollol_worker_agent.cli", *command, environment=environment) as process:
        yield process


@asynccontextmanager
async def program(
    log: Path, module: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[WorkerProcess]:
    """`python -m MODULE …`; killed at the end if it still lives."""
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            env={**os.environ, **(environment or {})},
            stdout=sink,
            stderr=sink,
        )
    try:
        yield WorkerProcess(process, log)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def until(condition: Callable[[], object], what: str) -> None:
    """`wait_until` for tests that block."""
    asyncio.run(wait_until(condition, timeout=10, what=what))


@contextmanager
def script(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in a process of its own; killed at the end if it still lives."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def output_of(code: str, *arguments: str) -> str:
    """Run a Python program to its end; what it printed."""
    with script(code, *arguments) as process:
        printed, errors = process.communicate(timeout=30)
    if process.returncode != 0:
        pytest.fail(f"the script ended with {process.returncode}:\n{errors}")
    return printed
