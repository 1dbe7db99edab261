"""OpenAI's API: chats, completions, responses, vectors and the list of models."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from sollol_broker.names import canonical_model

from .asked import Asked
from .body import parsed, read_body
from .caller import caller_of
from .choices import ChoicesReply, answers_of, headers_of
from .ollama_lists import models_of
from .openai_translate import Talk, chat_talk, completion_talk, embed_asked
from .openai_wire import Completions, embed_reply, model_entry
from .refusals import UnknownModel
from .replies import json_reply, stream_reply
from .responses_translate import response_asked
from .responses_wire import ResponseEvents
from .serving import Serving


class OpenAI:
    """Answers what OpenAI's API answers."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """Its paths."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/responses", self.responses, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.model, methods=["GET"]),
        ]

    async def chat(self, http: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        return await self._talk(http, chat_talk(await self._body(http)))

    async def completions(self, http: HttpRequest) -> Response:
        """POST /v1/completions."""
        return await self._talk(http, completion_talk(await self._body(http)))

    async def responses(self, http: HttpRequest) -> Response:
        """POST /v1/responses."""
        body = await self._body(http)
        asked = response_asked(body)
        assert isinstance(body, dict)  # noqa: S101  # else it would have been refused
        running = await self._serving.run(http, asked)
        events = ResponseEvents(body, running.sent_id)
        if asked.stream:
            return await stream_reply(running, events, self._serving.config)
        async with running:
            answer = await running.answer()
        return json_reply(events.whole(answer), headers=running.headers())

    async def embeddings(self, http: HttpRequest) -> Response:
        """POST /v1/embeddings."""
        asked, in_base64 = embed_asked(await self._body(http))
        async with await self._serving.run(http, asked) as running:
            answer = await running.answer()
        reply = embed_reply(asked.model, answer, in_base64=in_base64)
        return json_reply(reply, headers=running.headers())

    async def models(self, http: HttpRequest) -> Response:
        """GET /v1/models."""
        entries = [model_entry(each["name"], each) for each in (await self._listed(http)).values()]
        return json_reply({"object": "list", "data": entries})

    async def model(self, http: HttpRequest) -> Response:
        """GET /v1/models/{model}."""
        asked = http.path_params["model"]
        listed = (await self._listed(http)).get(canonical_model(asked))
        if listed is None:
            raise UnknownModel(asked)
        return json_reply(model_entry(asked, listed))

    async def _listed(self, http: HttpRequest) -> dict[str, dict[str, Any]]:
        workers = await self._serving.client.session.registry.workers()
        return models_of([each for each in workers if each.state == "up"], caller_of(http))

    async def _talk(self, http: HttpRequest, talk: Talk) -> Response:
        async with AsyncExitStack() as entered:
            runnings = [await self._serving.run(http, talk.asked[0])]
            completions = Completions(talk, runnings[0].sent_id)
            if talk.stream and len(talk.asked) == 1:
                return await stream_reply(runnings[0], completions.choice(0), self._serving.config)
            await entered.enter_async_context(runnings[0])
            for number, asked in enumerate(talk.asked[1:], start=1):
                running = await self._serving.run(http, _apart(http, asked, number), number)
                runnings.append(await entered.enter_async_context(running))
            config = self._serving.config
            if talk.stream:
                await runnings[0].begun(config.patience_seconds)
                return ChoicesReply(runnings, completions, config.note_seconds, entered.pop_all())
            answers = await answers_of(runnings)
        return json_reply(completions.whole(answers), headers=headers_of(runnings))

    async def _body(self, http: HttpRequest) -> object:
        return parsed(await read_body(http, self._serving.config.max_body_bytes))


def _apart(http: HttpRequest, asked: Asked, number: int) -> Asked:
    """A further choice: under the key of the first it would be the same job."""
    key = http.headers.get("x-sollol-idempotency-key")
    return replace(asked, submit={"idempotency_key": f"{key}-{number}"}) if key else asked
