"""A stand-in for an Ollama server: same wire, same queueing, and it fails when told to.

Its answers follow Ollama 0.33. What it does not do: /v1, blobs, and anything outside its own little registry.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from sollol_worker_agent.doubles.http_server import HttpServer, Reply, Request
from sollol_worker_agent.doubles.ollama_answer import Answer, Faults, Seen, Working
from sollol_worker_agent.doubles.ollama_library import Library
from sollol_worker_agent.doubles.ollama_scheduler import DoubleModel, Refused, Runner, Scheduler
from sollol_worker_agent.doubles.ollama_shapes import (
    DIMENSIONS,
    answer_line,
    details,
    options_of,
    stamp,
    tag,
    vector,
)

_FLOAT_OPTIONS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
_POSTS = frozenset({"/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"})
_LIBRARY = {"/api/pull": "POST", "/api/push": "POST", "/api/create": "POST", "/api/copy": "POST",
            "/api/delete": "DELETE"}  # fmt: skip
_GETS = frozenset({"/", "/api/version", "/api/tags", "/api/ps"})
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_FOR_EVER = datetime.datetime(2318, 1, 1, tzinfo=datetime.UTC)
_DIMENSIONS = 16


class OllamaDouble:
    """An Ollama server on a free loopback port.

        async with OllamaDouble(models=["tiny"]) as ollama:
            ollama.faults.die_after_tokens = 3
            ...

    Args:
        models: names, or DoubleModel where more is to be said.
        parallel: OLLAMA_NUM_PARALLEL.
        max_loaded: OLLAMA_MAX_LOADED_MODELS.
        max_queue: OLLAMA_MAX_QUEUE.
        keep_alive: OLLAMA_KEEP_ALIVE, in seconds.

    Attributes:
        url: where it listens.
        faults: what it is told to do wrong.
        seen: what it has seen.
        scheduler: what is in memory and who waits; `scheduler.loads_may_finish` holds loads.
        tokens_may_flow: clear it to hold every answer before its next token.
        library: what it holds and may pull.
        tool_calls: [(name, arguments)] to answer with when a chat offers tools; None calls the first
            tool without arguments.
    """

    def __init__(
        self,
        models: Iterable[str | DoubleModel] = ("tiny",),
        *,
        parallel: int = 1,
        max_loaded: int = 3,
        max_queue: int = 512,
        keep_alive: float = 300.0,
    ) -> None:
        installed = [model if isinstance(model, DoubleModel) else DoubleModel(model) for model in models]
        self.models = {model.full_name.lower(): model for model in installed}
        self.library = Library(self.models)
        self.faults = Faults()
        self.seen = Seen()
        self.scheduler = Scheduler(parallel=parallel, max_loaded=max_loaded, max_queue=max_queue)
        self.scheduler.loads_may_finish.set()
        self.tokens_may_flow = asyncio.Event()
        self.tokens_may_flow.set()
        self.tool_calls: list[tuple[str, dict[str, Any]]] | None = None
        self._keep_alive = keep_alive
        self._server = HttpServer(self._handle)

    @property
    def url(self) -> str:
        """Where it listens, once entered."""
        return self._server.url

    @property
    def connections(self) -> int:
        """How many connections have been accepted so far."""
        return self._server.connections

    async def __aenter__(self) -> Self:
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close the port and all connections at once, as Ollama does on SIGTERM."""
        await self._server.stop()
        self.scheduler.stop()

    # From here on: one method per thing that the wire can ask.

    async def _handle(self, request: Request, reply: Reply) -> None:
        path = request.path
        if path in _LIBRARY and request.method == _LIBRARY[path]:
            return await self._answer_library(path, request, reply)
        if path not in _GETS | _POSTS:
            return await reply.text(404, "404 page not found")
        if request.method not in (("POST",) if path in _POSTS else ("GET", "HEAD")):
            return await reply.text(405, "405 method not allowed")
        if path in _GETS:
            return await self._answer_get(path, reply)
        try:
            asked = _parsed(request.body)
            if path == "/api/show":
                return await reply.json(200, self._show(asked))
            self.seen.requests.append((path, asked))
            self.seen.headers.append(request.headers)
            if self.faults.answer_status:
                raise Refused(self.faults.answer_status, self.faults.answer_text)
            if path in ("/api/embed", "/api/embeddings"):
                return await self._embed(path, asked, reply)
            return await self._infer(path, asked, reply)
        except Refused as refused:
            return await reply.json(refused.status, {"error": refused.text})

    async def _answer_get(self, path: str, reply: Reply) -> None:
        if path == "/":
            return await reply.text(200, "Ollama is running")
        if path == "/api/version":
            return await reply.json(200, {"version": "0.33.0"})
        if path == "/api/tags":
            return await reply.json(200, {"models": [tag(model) for model in self.models.values()]})
        runners = sorted(self.scheduler.runners.values(), key=self._expiry, reverse=True)
        return await reply.json(200, {"models": [self._ps(runner) for runner in runners]})

    async def _answer_library(self, path: str, request: Request, reply: Reply) -> None:
        try:
            said = self.library.call(path, _parsed(request.body))
        except Refused as refused:
            return await reply.json(refused.status, {"error": refused.text})
        if not said:
            return await reply.text(200, "")
        for line in said:
            await reply.line(line)
        return await reply.end()

    def _show(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        name = str(asked.get("model") or asked.get("name") or "")
        if not name:
            raise Refused(400, "model is required")
        full = name if ":" in name else f"{name}:latest"
        model = self._model(name, f"model '{full}' not found")
        return {
            "modelfile": f"FROM {model.full_name}\n",
            "parameters": "",
            "template": "{{ .Prompt }}",
            "details": details(model, with_lengths=False),
            "model_info": {
                "general.architecture": "llama",
                "llama.context_length": model.context_tokens,
                "llama.embedding_length": DIMENSIONS,
            },
            "capabilities": list(model.capabilities),
            "modified_at": stamp(),
        }

    async def _infer(self, path: str, asked: dict[str, Any], reply: Reply) -> None:
        began_at = time.perf_counter_ns()
        is_chat = path == "/api/chat"
        name = str(asked.get("model") or "")
        if is_chat and not name:
            raise Refused(400, "model is required")
        model = self._model(name, f"model '{name}' not found")
        self._check(model, asked, is_chat)
        keep_alive = self._seconds(asked.get("keep_alive"))
        is_load = not asked.get("messages" if is_chat else "prompt")
        if is_load and keep_alive == 0:
            await self.scheduler.expire(model)
            await reply.json(200, answer_line(name, is_chat, done_reason="unload"))
            return
        async with self.scheduler.runner(model, options_of(asked), keep_alive) as runner:
            loaded_at = time.perf_counter_ns()
            if is_load:
                await reply.json(200, answer_line(name, is_chat, done_reason="load"))
                return
            async with self.scheduler.slot(runner):
                answer = Answer(
                    model,
                    asked,
                    is_chat=is_chat,
                    began_at=began_at,
                    loaded_at=loaded_at,
                    faults=self.faults,
                    seen=self.seen,
                    tokens_may_flow=self.tokens_may_flow,
                    tool_calls=self.tool_calls,
                )
                await answer.send(reply)

    async def _embed(self, path: str, asked: dict[str, Any], reply: Reply) -> None:
        began_at = time.perf_counter_ns()
        name = str(asked.get("model") or "")
        if not name:
            raise Refused(400, "model is required")
        model = self._model(name, f'model "{name}" not found, try pulling it first')
        given = asked.get("input" if path == "/api/embed" else "prompt") or []
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refused(400, "invalid input type")
        if "embedding" not in model.capabilities:
            raise Refused(501, "This server does not support embeddings. Start it with `--embeddings`")
        async with self.scheduler.runner(
            model, options_of(asked), self._seconds(asked.get("keep_alive"))
        ) as runner:
            loaded_at = time.perf_counter_ns()
            async with self.scheduler.slot(runner), Working(self.seen):
                await self.tokens_may_flow.wait()
                vectors = [vector(text, int(asked.get("dimensions") or DIMENSIONS)) for text in texts]
        if path == "/api/embeddings":
            return await reply.json(200, {"embedding": vectors[0] if vectors else []})
        answer: dict[str, Any] = {"model": name, "embeddings": vectors}
        if vectors:
            answer["total_duration"] = time.perf_counter_ns() - began_at
            answer["load_duration"] = loaded_at - began_at
            answer["prompt_eval_count"] = sum(len(text.split()) + 2 for text in texts)
        return await reply.json(200, answer)

    def _model(self, name: str, not_found: str) -> DoubleModel:
        model = self.models.get((name if ":" in name else f"{name}:latest").lower())
        if model is None:
            raise Refused(404, not_found)
        return model

    def _check(self, model: DoubleModel, asked: Mapping[str, Any], is_chat: bool) -> None:
        name = asked["model"]
        if model.only_embeds:
            raise Refused(400, f'"{name}" does not support {"chat" if is_chat else "generate"}')
        if not 0 <= (asked.get("top_logprobs") or 0) <= 20:
            raise Refused(400, "top_logprobs must be between 0 and 20")
        if asked.get("think") not in (None, True, False, "low", "medium", "high", "max"):
            raise Refused(400, f'invalid think value: "{asked["think"]}"')
        if asked.get("think") and "thinking" not in model.capabilities:
            raise Refused(400, f'"{name}" does not support thinking')
        if asked.get("tools") and "tools" not in model.capabilities:
            raise Refused(400, f"registry.ollama.ai/library/{model.full_name} does not support tools")
        if asked.get("suffix") and "insert" not in model.capabilities:
            raise Refused(400, f"registry.ollama.ai/library/{model.full_name} does not support insert")
        if asked.get("raw") and (asked.get("system") or asked.get("template") or asked.get("context")):
            raise Refused(400, "raw mode does not support template, system, or context")
        for option in _FLOAT_OPTIONS:
            if isinstance(options_of(asked).get(option), str):
                raise Refused(500, f'option "{option}" must be of type float32')
        wanted = asked.get("format")
        if isinstance(wanted, str) and wanted not in ("", "json"):
            shown = json.dumps(json.dumps(wanted))
            raise Refused(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')
        for message in asked.get("messages") or ():
            if not isinstance(message.get("content", ""), str):
                raise Refused(
                    400, "json: cannot unmarshal array into Go struct field Message.content of type string"
                )

    def _seconds(self, keep_alive: object) -> float:
        if keep_alive is None:
            return self._keep_alive
        if isinstance(keep_alive, int | float):
            return float(keep_alive)
        text = str(keep_alive)
        if re.fullmatch(r"-?[0-9.]+", text):
            raise Refused(400, f'time: missing unit in duration "{text}"')
        found = _DURATION.findall(text)
        if not found or "".join(number + unit for number, unit in found) != text.lstrip("+-"):
            raise Refused(400, f'time: invalid duration "{text}"')
        seconds = sum(float(number) * _UNITS[unit] for number, unit in found)
        return -seconds if text.startswith("-") else seconds

    def _ps(self, runner: Runner) -> dict[str, Any]:
        size = 0 if self.faults.no_sizes else runner.model.size_bytes
        return {
            "name": runner.model.full_name,
            "model": runner.model.full_name,
            "size": size,
            "digest": runner.model.digest,
            "details": details(runner.model, with_lengths=False),
            "expires_at": self._expiry(runner).isoformat().replace("+00:00", "Z"),
            "size_vram": size,
            "context_length": runner.context_tokens,
        }

    def _expiry(self, runner: Runner) -> datetime.datetime:
        if runner.keep_alive < 0:
            return _FOR_EVER
        now = datetime.datetime.now(datetime.UTC)
        left = runner.keep_alive if runner.users else runner.expires_at - self.scheduler.now()
        return now + datetime.timedelta(seconds=left)


def _parsed(body: bytes) -> dict[str, Any]:
    if not body:
        raise Refused(400, "missing request body")
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise Refused(400, "unexpected EOF") from error
    if not isinstance(asked, dict):
        raise Refused(400, "json: cannot unmarshal value into Go value of type api.ChatRequest")
    return asked
