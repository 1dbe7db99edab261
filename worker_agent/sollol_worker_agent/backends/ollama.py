"""Ollama: NDJSON over HTTP. The house's own format, so requests and answers pass through as they are."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from sollol_broker.errors import BackendError
from sollol_broker.model_calls import PATHS
from sollol_broker.words import JobKind
from sollol_worker_agent.backends.conversation import Call, converse
from sollol_worker_agent.backends.http import HttpDoor
from sollol_worker_agent.backends.openai_wire import templated_generate
from sollol_worker_agent.backends.probe import PROBE_TIMEOUTS, Probes, pieces_of, question, with_last
from sollol_worker_agent.backends.protocol import (
    CannotContinue,
    End,
    ModelInfo,
    Piece,
    Ranking,
    Said,
    Timeouts,
    Traffic,
    Vectors,
)
from sollol_worker_agent.backends.refusals import message_of
from sollol_worker_agent.backends.resuming import before_blanks, behind, for_the_rest

# What lists of models show, and nothing else needs.
_LISTED = ("name", "modified_at", "digest", "details")
# What the closing line carries beside the answer itself.
_NOT_CLOSING_FIELDS = frozenset(
    {"model", "created_at", "message", "response", "thinking", "logprobs", "done", "embeddings"}
)

_GENERATING = frozenset({"chat", "generate"})
_ALL_KINDS = frozenset({"chat", "generate", "embed"})


# A large file is checked in silence.
_LIBRARY_TIMEOUTS = Timeouts(first_token=600.0, between_tokens=600.0, total=0.0)


class OllamaBackend:
    """An Ollama server.

    Args:
        url: e.g. "http://127.0.0.1:11434".
        api_key: for an Ollama behind a proxy that asks for one; Ollama itself ignores it.

    Raises:
        ValueError: `url` is not an http or https address.
    """

    kind = "ollama"

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._door = HttpDoor(url, server="Ollama", api_key=api_key)
        self.url = self._door.url
        self._probes = Probes()

    async def models(self) -> list[ModelInfo]:
        """What is installed, loaded or not."""
        listing = await self._door.get("/api/tags")
        entries = listing.get("models") or ()
        for entry in entries:
            self._probes.note_version(entry["name"], str(entry.get("digest")))
        return [replace(model_info(entry), continues=self._probes.known(entry["name"])) for entry in entries]

    async def loaded(self) -> frozenset[str]:
        """Names of the models in memory; a model that is still loading is not among them."""
        listing = await self._door.get("/api/ps")
        return frozenset(entry["name"] for entry in listing.get("models") or ())

    async def slots(self) -> int:
        """Always 0: OLLAMA_NUM_PARALLEL cannot be asked for."""
        return 0

    @property
    def traffic(self) -> Traffic:
        """What has gone to the server so far."""
        return self._door.traffic

    async def version(self) -> str:
        """Ollama's release."""
        return str((await self._door.get("/api/version")).get("version") or "")

    def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Answer `messages`."""
        return self._converse("/api/chat", model, request, timeouts)

    def generate(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Continue `prompt`."""
        return self._converse("/api/generate", model, request, timeouts)

    def resume(
        self, kind: JobKind, model: str, request: Mapping[str, Any], said: Said, timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Go on with an answer: a raw prompt with the text behind it, a chat if the model's template passes a probe."""
        if request.get("raw"):
            prompt = str(request.get("prompt") or "") + said.text
            return self._converse(
                "/api/generate", model, {**for_the_rest(request, said), "prompt": prompt}, timeouts
            )
        return self._chat_rest(kind, model, request, said, timeouts)

    async def embed(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> Vectors:
        """Embed `input`."""
        answer = await self._door.post("/api/embed", {**request, "model": model}, timeouts)
        if not isinstance(answer.get("embeddings"), list):
            raise BackendError(f"Ollama at {self.url} answered /api/embed without embeddings", retryable=True)
        return Vectors(answer["embeddings"], _closing_fields(answer))

    async def rerank(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> Ranking:
        """Never: Ollama has no word for it."""
        raise BackendError(f"Ollama at {self.url} does not rerank", status=501, retryable=True)

    async def warm(self, model: str, request: Mapping[str, Any]) -> None:
        """Load `model`; takes as long as the load does."""
        await self._touch(model, request)

    async def unload(self, model: str) -> None:
        """Put `model` out of memory as soon as its running requests are done."""
        if any(same_model(model, name) for name in await self.loaded()):
            await self._touch(model, {"keep_alive": 0})

    async def library(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Ask it about its models, or to change them; yields what it says, line by line.

        Raises:
            BackendError: it refused, or failed.
        """
        async with self._door.stream(path, body, _LIBRARY_TIMEOUTS, method=PATHS[path]) as stream:
            while lines := await stream.read():
                for line in lines:
                    yield self._object(path, line)

    async def close(self) -> None:
        """Close all connections."""
        await self._door.close()

    def _object(self, path: str, line: bytes) -> dict[str, Any]:
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise BackendError(f"Ollama at {self.url} answered {path} with something that is no JSON object")
        return said

    async def _chat_rest(
        self, kind: JobKind, model: str, request: Mapping[str, Any], said: Said, timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        if not await self._probes.goes_on(model, request.get("think"), partial(self._ask, model, request)):
            raise CannotContinue("the model's template closes the last message")
        begun = before_blanks(said)
        if not begun.text:
            raise CannotContinue("it has said nothing but blanks")
        asked = for_the_rest(request, begun)
        chat = with_last(asked if kind is JobKind.CHAT else templated_generate(asked), begun.text)
        rest = behind(self._converse("/api/chat", model, chat, timeouts), said, begun)
        async with aclosing(rest) as events:
            async for event in events:
                yield event

    async def _ask(self, model: str, request: Mapping[str, Any], begun: str, tokens: int) -> list[Piece]:
        """See `probe.Ask`."""
        asked = question(request, tokens)
        chat = with_last(asked, begun) if begun else asked
        return await pieces_of(self._converse("/api/chat", model, chat, PROBE_TIMEOUTS))

    def _converse(
        self, path: str, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        async def prepare() -> Call:
            return Call(path, {**request, "model": model, "stream": True}, OllamaReader(self.url))

        return converse(self._door, prepare, timeouts)

    async def _touch(self, model: str, fields: Mapping[str, Any]) -> None:
        # A request without a prompt only loads. Embedding models refuse it, and take any text instead.
        patience = Timeouts()
        try:
            await self._door.post("/api/generate", {"model": model, "stream": False, **fields}, patience)
        except BackendError as error:
            if error.status != 400 or "does not support" not in str(error):
                raise
            await self._door.post("/api/embed", {"model": model, "input": "a", **fields}, patience)


class OllamaReader:
    """Reads the lines of /api/chat and /api/generate."""

    def __init__(self, url: str) -> None:
        self._url = url

    def feed(self, line: bytes) -> Sequence[Piece | End]:
        """One line is one JSON object; the last has `done` true and may carry text, too."""
        try:
            said = json.loads(line)
        except ValueError as error:
            raise BackendError(
                f"Ollama at {self._url} sent a line that is not JSON; the answer is truncated",
                retryable=True,
            ) from error
        if "error" in said:
            # Only what happens after the first token arrives this way: the runner died, mostly.
            raise BackendError(
                f"Ollama at {self._url} failed while it answered: {message_of(said['error'])}",
                retryable=True,
                said=message_of(said["error"]),
            )
        piece = _piece(said)
        if not said.get("done"):
            return (piece,) if piece is not None else ()
        end = End(_closing_fields(said))
        return (piece, end) if piece is not None else (end,)


def model_info(entry: Mapping[str, Any]) -> ModelInfo:
    """One entry of /api/tags."""
    details = entry.get("details") or {}
    capabilities = tuple(entry.get("capabilities") or ())
    return ModelInfo(
        name=entry["name"],
        kinds=_kinds(capabilities, str(details.get("family") or "")),
        size_bytes=int(entry.get("size") or 0),
        context_tokens=int(details.get("context_length") or 0),
        capabilities=capabilities,
        listing={name: entry[name] for name in _LISTED if name in entry},
    )


def same_model(asked: str, listed: str) -> bool:
    """Whether two names mean one model: case is ignored, and no tag means ":latest"."""
    return _full(asked) == _full(listed)


def _full(name: str) -> str:
    name = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _kinds(capabilities: tuple[str, ...], family: str) -> frozenset[str]:
    """What may be asked of a model.

    1. The server tells its capabilities: those count.
    2. An older server does not, but bert families only embed.
    3. Otherwise everything; such servers also embed with completion models.
    """
    if capabilities:  # 1
        kinds = frozenset({"embed"}) if "embedding" in capabilities else frozenset()
        return kinds | _GENERATING if "completion" in capabilities else kinds
    if "bert" in family:  # 2
        return frozenset({"embed"})
    return _ALL_KINDS  # 3


def _piece(said: Mapping[str, Any]) -> Piece | None:
    message = said.get("message")
    if message is None:
        text, thinking, tool_calls = said.get("response") or "", said.get("thinking") or "", None
    else:
        text, thinking = message.get("content") or "", message.get("thinking") or ""
        tool_calls = message.get("tool_calls")
    logprobs = said.get("logprobs")
    if not (text or thinking or tool_calls or logprobs):
        return None
    return Piece(text, thinking, tuple(tool_calls or ()), tuple(logprobs or ()))


def _closing_fields(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name not in _NOT_CLOSING_FIELDS}
