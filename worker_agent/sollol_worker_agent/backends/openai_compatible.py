"""Servers that speak OpenAI's API: vLLM, SGLang, LM Studio and their like."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from sollol_broker.errors import BackendError
from sollol_broker.words import JobKind
from sollol_worker_agent.backends.conversation import Call, converse, only_touches, touched
from sollol_worker_agent.backends.http import HttpDoor
from sollol_worker_agent.backends.openai_stream import ChatReader, CompletionReader
from sollol_worker_agent.backends.openai_wire import (
    OPENAI,
    chat_body,
    completion_body,
    embed_body,
    ranking,
    templated_generate,
    vectors,
)
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
from sollol_worker_agent.backends.resuming import for_the_rest

# /v1/models does not tell what a model is for; these names do. A wrong guess costs one refused job. To try would be no
# better: some servers load a model when it is asked for.
_RERANKING_NAMES = ("rerank", "cross-encoder")
_EMBEDDING_NAMES = ("embed", "minilm", "bge-", "gte-", "e5-", "jina-clip")


class OpenAIBackend:
    """An OpenAI-compatible server.

    Args:
        url: with or without the "/v1" at its end, e.g. "http://127.0.0.1:8000".
        api_key: sent as a bearer token if given.

    Raises:
        ValueError: `url` is not an http or https address.
    """

    kind = "openai"

    def __init__(self, url: str, api_key: str | None = None) -> None:
        url = url.rstrip("/").removesuffix("/v1")
        self._door = HttpDoor(url, server="the OpenAI-compatible server", api_key=api_key)
        self.url = self._door.url
        self._probes = Probes()

    async def models(self) -> list[ModelInfo]:
        """What the server lists; which of them embed or rerank is guessed by name."""
        listing = await self._door.get("/v1/models")
        found = [model_info(entry) for entry in listing.get("data") or ()]
        return [replace(info, continues=self._probes.known(info.name)) for info in found]

    async def loaded(self) -> frozenset[str]:
        """All of them: such a server loads its models when it starts, or does not say."""
        return frozenset(model.name for model in await self.models())

    async def slots(self) -> int:
        """Always 0: the API has no word for it."""
        return 0

    @property
    def traffic(self) -> Traffic:
        """What has gone to the server so far."""
        return self._door.traffic

    async def version(self) -> str:
        """The release, where there is a /version to ask: vLLM and SGLang have one."""
        answer = await self._door.get("/version")
        return str(answer.get("version") or "") if isinstance(answer, dict) else ""

    def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Answer `messages`."""
        if only_touches(request):
            return touched(request)

        async def prepare() -> Call:
            return self._chat_call(model, request)

        return converse(self._door, prepare, timeouts)

    def generate(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Continue `prompt`: as it is with `raw` or `suffix`, otherwise inside the chat template."""
        if only_touches(request):
            return touched(request)

        async def prepare() -> Call:
            if not (request.get("raw") or request.get("suffix")):
                return self._chat_call(model, templated_generate(request))
            return self._completion_call(model, request)

        return converse(self._door, prepare, timeouts)

    def resume(
        self, kind: JobKind, model: str, request: Mapping[str, Any], said: Said, timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Go on with an answer: a raw prompt with the text behind it, a chat if the server passes a probe."""

        async def prepare() -> Call:
            asked = for_the_rest(request, said)
            if request.get("raw"):
                prompt = str(request.get("prompt") or "") + said.text
                return self._completion_call(model, {**asked, "prompt": prompt})
            if not await self._probes.goes_on(
                model, request.get("think"), partial(self._ask, model, request)
            ):
                raise CannotContinue("the server does not go on with an answer that it is given")
            return self._begun(model, asked if kind is JobKind.CHAT else templated_generate(asked), said.text)

        return converse(self._door, prepare, timeouts)

    async def embed(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> Vectors:
        """Embed `input`; the vectors have length 1."""
        return await embed_through(self._door, model, request, timeouts)

    async def rerank(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> Ranking:
        """Say how well each of `documents` answers `query`."""
        return await rerank_through(self._door, model, request, timeouts)

    async def warm(self, model: str, request: Mapping[str, Any]) -> None:
        """Do nothing: the server decides what is in memory."""

    async def unload(self, model: str) -> None:
        """Do nothing: the server decides what is in memory."""

    async def close(self) -> None:
        """Close all connections."""
        await self._door.close()

    def _completion_call(self, model: str, request: Mapping[str, Any]) -> Call:
        body = completion_body(model, request, OPENAI)
        body.setdefault("stream_options", {"include_usage": True})
        reader = CompletionReader(self._who(), top_logprobs=request.get("top_logprobs") or 0)
        return Call("/v1/completions", body, reader)

    def _begun(self, model: str, request: Mapping[str, Any], text: str) -> Call:
        """A chat whose last message is to be gone on with; vLLM, SGLang and llama-server know these two words."""
        call = self._chat_call(model, with_last(request, text))
        return replace(
            call, body={**call.body, "add_generation_prompt": False, "continue_final_message": True}
        )

    async def _ask(self, model: str, request: Mapping[str, Any], begun: str, tokens: int) -> list[Piece]:
        """See `probe.Ask`."""
        asked = question(request, tokens)
        call = self._begun(model, asked, begun) if begun else self._chat_call(model, asked)

        async def prepare() -> Call:
            return call

        return await pieces_of(converse(self._door, prepare, PROBE_TIMEOUTS))

    def _chat_call(self, model: str, request: Mapping[str, Any]) -> Call:
        body = chat_body(model, request, OPENAI)
        body.setdefault("stream_options", {"include_usage": True})
        reader = ChatReader(self._who(), top_logprobs=request.get("top_logprobs") or 0)
        return Call("/v1/chat/completions", body, reader)

    def _who(self) -> str:
        return f"{self._door.server} at {self.url}"


async def embed_through(
    door: HttpDoor, model: str, request: Mapping[str, Any], timeouts: Timeouts
) -> Vectors:
    """Embed by way of /v1/embeddings, which llama-server speaks just the same.

    An empty input has no embeddings, as with Ollama; the server is not asked.

    Raises:
        BackendError: refused, broken, or an answer without one vector per input.
    """
    given = request.get("input")
    if not given:
        return Vectors([])
    began_at = time.perf_counter_ns()
    answer = await door.post("/v1/embeddings", embed_body(model, request), timeouts)
    try:
        found = vectors(answer, request.get("dimensions"))
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(
            f"{door.server} at {door.url} answered /v1/embeddings without embeddings", retryable=True
        ) from error
    wanted = len(given) if isinstance(given, list | tuple) else 1
    if len(found) != wanted:
        raise BackendError(
            f"{door.server} at {door.url} sent {len(found)} embeddings for {wanted} texts", retryable=True
        )
    usage = answer.get("usage") or {}
    return Vectors(
        found,
        {
            "total_duration": time.perf_counter_ns() - began_at,
            "load_duration": 0,
            "prompt_eval_count": int(usage.get("prompt_tokens") or 0),
        },
    )


async def rerank_through(
    door: HttpDoor, model: str, request: Mapping[str, Any], timeouts: Timeouts
) -> Ranking:
    """Rerank by way of /v1/rerank, which llama-server, vLLM, SGLang and others speak alike.

    Raises:
        BackendError: refused, broken, or an answer without a score for each document.
    """
    began_at = time.perf_counter_ns()
    answer = await door.post("/v1/rerank", {**request, "model": model}, timeouts)
    try:
        found = ranking(answer, len(request["documents"]), request.get("top_n"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackendError(
            f"{door.server} at {door.url} answered /v1/rerank without a score for each document",
            retryable=True,
        ) from error
    usage = answer.get("usage") if isinstance(answer, dict) else None
    took = {"total_duration": time.perf_counter_ns() - began_at, "load_duration": 0}
    return Ranking(found, {**took, "prompt_eval_count": int((usage or {}).get("prompt_tokens") or 0)})


def model_info(entry: Mapping[str, Any]) -> ModelInfo:
    """One entry of /v1/models."""
    name = str(entry["id"])
    kinds = frozenset({"chat", "generate"})
    if any(part in name.lower() for part in _RERANKING_NAMES):
        kinds = frozenset({"rerank"})
    elif any(part in name.lower() for part in _EMBEDDING_NAMES):
        kinds = frozenset({"embed"})
    return ModelInfo(
        name=name,
        kinds=kinds,
        context_tokens=int(entry.get("max_model_len") or 0),
    )
