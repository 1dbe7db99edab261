"""Ollama's API: what models say. What they are, and what is in memory, lies in ollama_lists.py."""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from sollol_broker.words import JobKind

from ..answer import Answer
from .asked import FIELDS, Asked
from .body import parsed, read_body
from .ollama_checks import is_unload
from .ollama_wire import (
    OllamaLines,
    chat_asked,
    embed_asked,
    embed_reply,
    embeddings_asked,
    generate_asked,
    is_load,
)
from .refusals import Refused, UnknownModel
from .replies import json_reply, stream_reply
from .serving import Serving

# What counts when a model is only loaded, beside what is wished of the fabric.
_LOADED_WITH = (*FIELDS, "keep_alive", "options")


class Ollama:
    """Answers what Ollama answers."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """Its paths."""
        return [
            Route("/api/chat", self.chat, methods=["POST"]),
            Route("/api/generate", self.generate, methods=["POST"]),
            Route("/api/embed", self.embed, methods=["POST"]),
            Route("/api/embeddings", self.embeddings, methods=["POST"]),
        ]

    async def chat(self, http: HttpRequest) -> Response:
        """POST /api/chat."""
        return await self._talk(http, chat_asked(await self._body(http)))

    async def generate(self, http: HttpRequest) -> Response:
        """POST /api/generate."""
        return await self._talk(http, generate_asked(await self._body(http)))

    async def embed(self, http: HttpRequest) -> Response:
        """POST /api/embed."""
        asked = embed_asked(await self._body(http))
        if not asked.payload["input"]:
            await self._check_there(http, asked)
            return json_reply({"model": asked.model, "embeddings": []})
        answer, headers = await self._vectors(http, asked)
        return json_reply(embed_reply(asked, answer), headers=headers)

    async def embeddings(self, http: HttpRequest) -> Response:
        """POST /api/embeddings."""
        asked = embeddings_asked(await self._body(http))
        if not asked.payload["input"]:
            await self._check_there(http, asked)
            return json_reply({"embedding": []})
        answer, headers = await self._vectors(http, asked)
        return json_reply({"embedding": answer.embeddings[0]}, headers=headers)

    async def _talk(self, http: HttpRequest, asked: Asked) -> Response:
        lines = OllamaLines(asked)
        if is_load(asked):
            return await self._touch(http, asked, lines)
        running = await self._serving.run(http, asked)
        if asked.stream:
            lines = OllamaLines(asked, entries=running.is_detached)
            return await stream_reply(running, lines, self._serving.config)
        async with running:
            answer = await running.answer()
        return json_reply(lines.whole(answer), headers=running.headers())

    async def _touch(self, http: HttpRequest, asked: Asked, lines: OllamaLines) -> Response:
        """Load a model, on the node that would take its next job, or unload it wherever it is in memory."""
        if not is_unload(asked.payload.get("keep_alive")):
            wanted = {name: asked.payload[name] for name in _LOADED_WITH if name in asked.payload}
            warm = replace(asked, kind=JobKind.WARM, payload={**wanted, "warm": True}, stream=False)
            async with await self._serving.run(http, warm) as running:
                await running.answer()
            return json_reply(lines.touched("load"), headers=running.headers())
        await self._check_there(http, asked)
        await self._serving.unload(asked.model)
        return json_reply(lines.touched("unload"))

    async def _vectors(self, http: HttpRequest, asked: Asked) -> tuple[Answer, dict[str, str]]:
        try:
            async with await self._serving.run(http, asked) as running:
                return await running.answer(), running.headers()
        except UnknownModel:
            raise _pull_first(asked) from None

    async def _check_there(self, http: HttpRequest, asked: Asked) -> None:
        """Refuse a request without a job as one with a job would be."""
        if not await self._serving.sees(http, asked.model):
            raise _pull_first(asked) if asked.kind.value == "embed" else UnknownModel(asked.model)

    async def _body(self, http: HttpRequest) -> object:
        return parsed(await read_body(http, self._serving.config.max_body_bytes))


def _pull_first(asked: Asked) -> Refused:
    return Refused(404, f'model "{asked.model}" not found, try pulling it first', field="model")
