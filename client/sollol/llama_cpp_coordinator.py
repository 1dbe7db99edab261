"""A llama-server by hand, with its layers on rpc-servers that one names.

A fabric does this by itself when a model fits no node, through encrypted tunnels, and mends it when a part dies
(docs/llama-cpp.md). By hand nothing of that happens: when an rpc-server dies, the llama-server ends with it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from sollol_broker.errors import BackendError, InvalidJob
from sollol_broker.portal import Portal
from sollol_coordinator.estimate import Load
from sollol_worker_agent.llama_process import LlamaServerProcess
from sollol_worker_agent.rpc.machine import find_build
from sollol_worker_agent.rpc.wire import RpcReport, RpcState, ask

from .either_way import call_in_thread, plainly_or_awaited, warn_once
from .llama_cpp.by_hand import RemoteDevice, split_over
from .llama_cpp.model_file import find_model_file, read_facts
from .rpc_registry import RPCBackend, RPCBackendRegistry

T = TypeVar("T")

_DEFAULT_PORT, _DEFAULT_CONTEXT = 8080, 2048
_ALL_LAYERS = -1
# Loading over a network: a fixed part, and what each GiB takes.
_LOAD_SECONDS, _LOAD_SECONDS_PER_GIB = 300.0, 20.0
_ASK_SECONDS = 5.0


class LlamaCppCoordinator:
    """Starts one llama-server whose layers lie on rpc-servers, and asks it.

        coordinator = LlamaCppCoordinator(coordinator_port=18080, rpc_backends=backends, context_size=4096)
        await coordinator.start(model_name="llama3.1:70b")
        print((await coordinator.generate("Hello", max_tokens=500))["content"])

    Every method works plainly as well as awaited (hence `Any`). The server ends with `stop`, and with this process.

    Args:
        model_path: a GGUF file, or a model's name in Ollama's store; None = `start` is told.
        rpc_backends: {"host", "port"}, "HOST:PORT" or `RPCBackend` each; none = this machine alone.
        port, coordinator_port: where llama-server listens, on 127.0.0.1 whatever host and coordinator_host say.
        n_gpu_layers, gpu_layers: how many layers lie on the rpc-servers; -1 (the default) = all. They are shared out
            by the memory that each has free.
        ctx_size, context_size: context in tokens; 2048 unless told.
        rpc_registry: its healthy backends are taken when `rpc_backends` names none.
    """

    def __init__(
        self,
        model_path: str | Path | None = None,
        rpc_backends: Sequence[RPCBackend | Mapping[str, Any] | str] | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        n_gpu_layers: int | None = None,
        ctx_size: int | None = None,
        rpc_registry: RPCBackendRegistry | None = None,
        *,
        coordinator_host: str | None = None,
        coordinator_port: int | None = None,
        gpu_layers: int | None = None,
        context_size: int | None = None,
    ) -> None:
        self._model = str(model_path) if model_path is not None else None
        self._registry = rpc_registry
        self._given = [RPCBackend.of(each) for each in rpc_backends or ()]
        if (coordinator_host or host) not in ("127.0.0.1", "localhost"):
            warn_once(
                "llama-server asks for no password, so LlamaCppCoordinator has it listen on 127.0.0.1 only: others "
                "reach models through the fabric"
            )
        self._port = _first(coordinator_port, port, _DEFAULT_PORT)
        self._layers = _first(gpu_layers, n_gpu_layers, _ALL_LAYERS)
        self._context = _first(context_size, ctx_size, _DEFAULT_CONTEXT)
        self._used: list[RPCBackend] = []
        self._logs: Path | None = None
        self._server: LlamaServerProcess | None = None
        self._portal: Portal | None = None

    @property
    def base_url(self) -> str:
        """Where llama-server answers."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_running(self) -> bool:
        """Whether the llama-server lives."""
        return self._server is not None and self._server.is_running

    def start(self, model_name: str | None = None) -> Any:
        """Load the model; does nothing when it runs.

        Args:
            model_name: a GGUF file, or a name in Ollama's store; None = the model of the constructor.

        Raises:
            InvalidJob: no model was named, or its file is not here.
            BackendError: an rpc-server does not answer, speaks another protocol or has too little memory; or
                llama-server does not start. The text says which, and what to do.
        """
        return self._do(self._start(model_name or self._model))

    def stop(self) -> Any:
        """End it; the rpc-servers are free for others at once."""
        return plainly_or_awaited(call_in_thread(self._leave, "sollol-llama-cpp-stop"))

    def generate(self, prompt: str, max_tokens: int = 512, temperature: float = 0.7, **kwargs: Any) -> Any:
        """Continue a prompt; llama-server's answer ("content", "tokens_predicted", "timings", …), and "response".

        Args:
            kwargs: whatever else llama-server's /completion takes.

        Raises:
            BackendError: it does not run, refuses, or ended in mid-answer.
        """
        body = {"prompt": prompt, "n_predict": max_tokens, "temperature": temperature, **kwargs}
        return self._do(self._post("/completion", body, "response", lambda answer: answer.get("content", "")))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 512,
        temperature: float = 0.7,
        **kwargs: Any,
    ) -> Any:
        """Answer messages; OpenAI's shape ("choices", "usage", …), and Ollama's "message".

        Raises:
            BackendError: as for `generate`.
        """
        body = {"messages": list(messages), "max_tokens": max_tokens, "temperature": temperature, **kwargs}
        return self._do(
            self._post(
                "/v1/chat/completions", body, "message", lambda answer: answer["choices"][0]["message"]
            )
        )

    def __enter__(self) -> Self:
        self._opened().run(self._start(self._model))
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    async def __aenter__(self) -> Self:
        await asyncio.wrap_future(self._opened().start(self._start(self._model)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._leave)

    def _do(self, work: Coroutine[Any, Any, T]) -> Any:
        return plainly_or_awaited(self._opened().start(work))

    def _opened(self) -> Portal:
        self._portal = self._portal or Portal("sollol-llama-cpp")
        return self._portal

    def _leave(self) -> None:
        portal, self._portal = self._portal, None
        if portal is not None:
            portal.run(self._stop())
            portal.close()

    async def _start(self, model: str | None) -> None:
        if self.is_running:
            return
        if model is None:
            raise InvalidJob("no model is named: start(model_name=…), or model_path=…", field="model_name")
        path = await asyncio.to_thread(find_model_file, model)
        if path is None:
            raise InvalidJob(f"{model} is no file here, and not in Ollama's store", field="model_name")
        backends = self._given or await asyncio.to_thread(self._healthy)
        arguments = await self._split(path, backends) if backends else []
        self._logs = Path(tempfile.mkdtemp(prefix="sollol-llama-cpp-"))
        server = LlamaServerProcess(
            model_path=path,
            alias=Path(model).name.removesuffix(".gguf"),
            log_directory=self._logs,
            context_tokens=self._context,
            port=self._port,
            start_seconds=_LOAD_SECONDS + _LOAD_SECONDS_PER_GIB * path.stat().st_size / 1024**3,
            extra_args=arguments,
        )
        self._mark(backends, is_in_use=True)
        try:
            await server.start()
        except BaseException:
            await self._stop()
            raise
        self._server = server

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
            self._server = None
        self._mark(self._used, is_in_use=False)
        if self._logs is not None:
            await asyncio.to_thread(shutil.rmtree, self._logs, ignore_errors=True)
            self._logs = None

    async def _split(self, path: Path, backends: Sequence[RPCBackend]) -> list[str]:
        """What llama-server is told. Devices are named one by one: one that is not told goes on alone, silently."""
        own = (await find_build()).rpc_version
        # One after the other: a host may be named twice by mistake, and serves one client.
        reports = [await ask(each.host, each.port, timeout_seconds=_ASK_SECONDS) for each in backends]
        for report in reports:
            _check(report, own)
        devices = [
            RemoteDevice(f"{report.host}:{report.port}", device.free_mib)
            for report in reports
            for device in report.devices
        ]
        facts = await asyncio.to_thread(read_facts, path)
        split = split_over(facts, Load(self._context), devices)
        if split.missing_mib and self._layers == _ALL_LAYERS:
            lacks = ", ".join(f"{name} {mib:,.0f} MiB" for name, mib in split.missing_mib.items())
            raise BackendError(
                f"the model does not fit these rpc-servers: {lacks} short. Add one, or lower the context; "
                "`sollol doctor rpc` shows the split"
            )
        names = ",".join(f"RPC{at}" for at in range(len(devices)))
        layers = facts.layers + 1 if self._layers == _ALL_LAYERS else self._layers
        return [
            *("--rpc", ",".join(each.address for each in backends), "--device", names),
            *(
                "--n-gpu-layers",
                str(layers),
                "--tensor-split",
                ",".join(map(str, split.shares)),
                "--fit",
                "off",
            ),
        ]

    async def _post(self, path: str, body: Mapping[str, Any], key: str, text: Any) -> dict[str, Any]:
        if self._server is None:
            raise BackendError("no llama-server runs: call start() first")
        try:
            # A long answer takes as long as it takes; trust_env: no proxy on the way to it.
            async with httpx.AsyncClient(trust_env=False, timeout=None) as http:  # noqa: S113
                answer = await http.post(f"{self._server.url}{path}", json=body)
        except httpx.HTTPError as error:
            how = f": {await self._server.wait_dead()}" if not self._server.is_running else ""
            raise BackendError(
                f"llama-server gave no answer{how}. When an rpc-server dies, it ends, too: start both again"
            ) from error
        if answer.is_error:
            raise BackendError(f"llama-server refused: {answer.text[:500]}", status=answer.status_code)
        data: dict[str, Any] = answer.json()
        return {**data, key: text(data)}

    def _healthy(self) -> list[RPCBackend]:
        if self._registry is None:
            return []
        return [each for each in self._registry.get_healthy_backends() if not each.is_in_use]

    def _mark(self, backends: Sequence[RPCBackend], *, is_in_use: bool) -> None:
        for each in backends:
            each.is_in_use = is_in_use
        self._used = list(backends) if is_in_use else []


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def _check(report: RpcReport, own: tuple[int, int, int] | None) -> None:
    name = f"{report.host}:{report.port}"
    if report.state is not RpcState.IDLE or report.version is None:
        raise BackendError(f"the rpc-server at {name} cannot be used ({report.state}): {report.why}")
    if own is not None and (report.version[0] != own[0] or report.version[1] > own[1]):
        theirs, ours = (".".join(map(str, each)) for each in (report.version, own))
        raise BackendError(
            f"{name} speaks version {theirs} of the RPC protocol, and llama-server here {ours}: install the same build "
            "of llama.cpp on both (sollol setup-llama-cpp)"
        )
