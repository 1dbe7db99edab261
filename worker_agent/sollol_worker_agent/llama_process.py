"""A llama.cpp server of our own for one GGUF file: found, started, watched and ended here.

How one asks it for text is the backend's business; `LlamaServerProcess.url` is where.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from sollol_broker.child import ChildProcess, describe_exit, free_port, is_taken, last_lines
from sollol_broker.errors import BackendError

from .gguf_header import BadGguf, GgufHeader, read_header
from .llama_binaries import HOW_TO_INSTALL, LlamaBinary, find_llama_server

# More threads than this rarely help one small server, and leave nothing for its neighbours.
_MOST_DEFAULT_THREADS = 8
# A slot's context when the caller does not choose; long enough to chat, small enough for a small machine.
_DEFAULT_CONTEXT_TOKENS = 4096
# llama.cpp keeps finished prompts in main memory, 8 GB of them unless told otherwise.
_PROMPT_CACHE_MIB = 256
# Loading: a fixed part, and what a slow network disk needs for the file.
_START_SECONDS = 60.0
_LOAD_BYTES_PER_SECOND = 20e6
# With a stream open it takes 30 s to obey SIGTERM; our jobs are drained before we get here.
_STOP_SECONDS = 2.0
# How soon we notice: its readiness at start, and its death later.
_READY_POLL_SECONDS = 0.05
_DEATH_POLL_SECONDS = 0.1
# Another process may take a port between our choice and the server's bind.
_PORT_TRIES = 3


class LlamaServerProcess:
    """A llama-server for one model, on loopback, that ends with us even when we are killed with -9.

        async with LlamaServerProcess(model_path=path, alias="smollm2", log_directory=logs) as server:
            backend = LlamaCppBackend(server.url)

    It can be started again after it died or was stopped, at the same URL unless another process has
    taken the port meanwhile.
    Its log holds errors only, and neither prompts nor answers.

    Args:
        model_path: the GGUF file.
        alias: the model's name in its API. None = the file's name without ".gguf".
        slots: how many requests it works on at once; more wait inside it.
        context_tokens: prompt and answer together, per slot. None = 4096. Never more than the model knows.
        threads: processor threads. None = all but one, at most 8: the agent and others need one too.
        embeddings: whether it makes vectors instead of text. None = as the file says.
        port: on 127.0.0.1; 0 = a free one.
        binary: the program. None = see `find_llama_server`.
        log_directory: where its log goes, as "llama-server-ALIAS.log".
        start_seconds: how long it may load. None = a minute, and a second for each 20 MB of the file.
        extra_args: more llama-server arguments, after ours, so that they win.
        progress: told in a few words what happens while it starts.
    """

    def __init__(
        self,
        *,
        model_path: Path,
        log_directory: Path,
        alias: str | None = None,
        slots: int = 1,
        context_tokens: int | None = None,
        threads: int | None = None,
        embeddings: bool | None = None,
        port: int = 0,
        binary: Path | None = None,
        start_seconds: float | None = None,
        extra_args: Sequence[str] = (),
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.model_path = model_path
        self.alias = alias or model_path.name.removesuffix(".gguf")
        self.log = log_directory / f"llama-server-{re.sub(r'[^A-Za-z0-9._-]', '_', self.alias)}.log"
        self._slots = slots
        self._context_tokens = context_tokens or _DEFAULT_CONTEXT_TOKENS
        self._threads = threads or max(1, min((os.cpu_count() or 1) - 1, _MOST_DEFAULT_THREADS))
        self._embeddings = embeddings
        self._given_port = port
        self._port = port
        self._given_binary = binary
        self._start_seconds = start_seconds
        self._extra_args = tuple(extra_args)
        self._progress = progress or (lambda _: None)
        self._header: GgufHeader | None = None
        self._process: ChildProcess | None = None

    @property
    def url(self) -> str:
        """Its base URL, e.g. "http://127.0.0.1:41234".

        Raises:
            RuntimeError: it was to choose a port by itself and has not been started yet.
        """
        if not self._port:
            raise RuntimeError("a llama-server on a free port has no URL before start()")
        return f"http://127.0.0.1:{self._port}"

    @property
    def header(self) -> GgufHeader:
        """What the model file says about itself.

        Raises:
            BackendError: the file cannot be read or is no GGUF file.
        """
        if self._header is None:
            try:
                self._header = read_header(self.model_path)
            except (OSError, BadGguf) as error:
                raise BackendError(f"the model file cannot be used: {error}") from error
        return self._header

    @property
    def is_embedding(self) -> bool:
        """Whether it makes vectors instead of text. Raises BackendError like `header`."""
        return self.header.is_embedding if self._embeddings is None else self._embeddings

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process id; None when it does not run."""
        return self._process.pid if self._process and self.is_running else None

    async def start(self) -> None:
        """Start it and wait until the model is loaded; does nothing when it runs.

        A cancelled start leaves no process behind.

        Raises:
            BackendError: it is not installed, does not fit this processor, lacks a library, cannot read
                the model, its port is taken, or it took too long. The text says which, what to do, and
                holds the end of its log.
        """
        if self.is_running:
            return
        header = await asyncio.to_thread(lambda: self.header)
        binary = LlamaBinary(self._given_binary, {}) if self._given_binary else find_llama_server()
        budget = self._start_seconds or _START_SECONDS + header.size_bytes / _LOAD_BYTES_PER_SECOND
        self._progress(f"loading {self.alias} ({header.size_bytes / 1e6:.0f} MB)")
        try:
            for _ in range(_PORT_TRIES):
                self._port = self._port or free_port()
                # Another llama-server there would answer for ours while ours is still starting.
                if not is_taken(self._port):
                    self._process = self._launch(binary)
                    if await self._ready(budget):
                        return
                if self._given_port:
                    break
                self._port = 0
            raise BackendError(
                f"port {self._given_port} of 127.0.0.1 is taken: end what listens there, or choose another"
                if self._given_port
                else f"no port of 127.0.0.1 could be had in {_PORT_TRIES} tries"
            )
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End it; requests that it still works on are cut off. Does nothing when it does not run."""
        process = self._process
        if process is None:
            return
        process.send(signal.SIGTERM)
        end = time.monotonic() + _STOP_SECONDS
        try:
            while process.poll() is None and time.monotonic() < end:  # noqa: ASYNC110  # it sets no event
                await asyncio.sleep(_READY_POLL_SECONDS)
        finally:
            process.stop(patience_seconds=0)

    async def kill(self) -> None:
        """End it at once, whatever it is at."""
        if self._process is not None:
            await asyncio.to_thread(self._process.stop, patience_seconds=0)

    async def wait_dead(self) -> str:
        """Wait until the process has ended, however that comes about; returns how, in words.

        A supervisor waits here and calls `start` again.
        """
        process = self._process
        if process is None:
            return "never started"
        while (status := process.poll()) is None:  # noqa: ASYNC110  # it sets no event
            await asyncio.sleep(_DEATH_POLL_SECONDS)
        return describe_exit(status)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def command(self) -> list[str]:
        """The arguments it is started with, the program left out. Raises BackendError like `header`."""
        known = self.header.context_tokens or self._context_tokens
        context = min(self._context_tokens, known)
        arguments = ["--model", str(self.model_path), "--alias", self.alias]
        arguments += ["--host", "127.0.0.1", "--port", str(self._port)]
        arguments += ["--parallel", str(self._slots), "--ctx-size", str(self._slots * context)]
        arguments += ["--threads", str(self._threads), "--cache-ram", str(_PROMPT_CACHE_MIB)]
        arguments += ["--no-webui", "--slots", "--metrics", "--offline"]
        # Errors only: a warning about a request that cannot be parsed quotes it, and each request
        # would add a dozen lines to a log that nobody rotates.
        arguments += ["--log-verbosity", "1"]
        ranks = self.header.is_reranker and not self._embeddings
        if self.is_embedding or ranks:
            # An input must fit into one physical batch, or the server refuses it.
            arguments += ["--reranking" if ranks else "--embeddings"]
            arguments += ["--batch-size", str(context), "--ubatch-size", str(context)]
            if self.is_embedding and self.header.pooling is None:
                arguments += ["--pooling", "mean"]
        return [*arguments, *self._extra_args]

    def _launch(self, binary: LlamaBinary) -> ChildProcess:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            # Each start begins a new log, so that an error message quotes this start.
            self.log.write_bytes(b"")
            return ChildProcess(
                [binary.path, *self.command()], environment=binary.full_environment(), log=self.log
            )
        except OSError as error:
            raise BackendError(f"llama-server cannot be started: {error}") from error

    async def _ready(self, budget_seconds: float) -> bool:
        """Wait until it can answer; False when another process has its port."""
        assert self._process is not None  # noqa: S101  # start() has just set it
        started = time.monotonic()
        told = 0
        # trust_env: a proxy of the user's has no business on loopback.
        async with httpx.AsyncClient(trust_env=False, timeout=1.0) as http:
            while True:
                answers = await self._is_healthy(http)
                waited = time.monotonic() - started
                if (status := self._process.poll()) is not None:
                    said = last_lines(self.log)
                    # Its last words may be missing: it does not wait for its log when it gives up.
                    if "couldn't bind" in said or is_taken(self._port):
                        return False
                    raise BackendError(_why_it_ended(status, said))
                if answers:
                    self._progress(f"{self.alias} is ready after {waited:.1f} s")
                    return True
                if waited > budget_seconds:
                    raise BackendError(
                        f"llama-server has not loaded {self.model_path} within {budget_seconds:.3g} s; "
                        f"is the machine out of memory? {_quote(last_lines(self.log))}"
                    )
                if waited >= told + 1:
                    told = int(waited)
                    self._progress(f"loading {self.alias} for {told} s")
                await asyncio.sleep(_READY_POLL_SECONDS)

    async def _is_healthy(self, http: httpx.AsyncClient) -> bool:
        try:
            return (await http.get(f"{self.url}/health")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


def _why_it_ended(status: int, said: str) -> str:
    """What to tell the user about a server that ended while it started.

    1. SIGILL: the program uses instructions that this processor lacks.
    2. A shared library is missing; libgomp is the usual one.
    3. Anything else: its own last words.
    """
    if status == -signal.SIGILL:  # 1
        return (
            "llama-server was killed by SIGILL: this build uses instructions that the processor does not "
            f"have. Use another build: {HOW_TO_INSTALL}"
        )
    if missing := re.search(r"loading shared libraries: (\S+?):", said):  # 2
        hint = "apt-get install libgomp1" if missing[1].startswith("libgomp") else "install what provides it"
        return f"llama-server lacks the shared library {missing[1]}: {hint}"
    return f"llama-server ended while it started ({describe_exit(status)}). {_quote(said)}"  # 3


def _quote(said: str) -> str:
    return f"Its log:\n{said}" if said else "Its log is empty."
