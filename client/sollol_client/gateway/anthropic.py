"""Anthropic's API: messages."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from .anthropic_translate import message_asked
from .anthropic_wire import MessageEvents
from .body import parsed, read_body
from .refusals import Refused
from .replies import json_reply, stream_reply
from .serving import Serving


class Anthropic:
    """Answers what Anthropic's API answers."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """Its paths."""
        return [
            Route("/v1/messages", self.messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self.count_tokens, methods=["POST"], include_in_schema=False),
        ]

    async def count_tokens(self, http: HttpRequest) -> Response:
        """POST /v1/messages/count_tokens: as with Ollama, there is none. Its clients do without, and guess."""
        raise Refused(
            404, "tokens are not counted here; the answer of /v1/messages tells how many there were"
        )

    async def messages(self, http: HttpRequest) -> Response:
        """POST /v1/messages."""
        asked = message_asked(parsed(await read_body(http, self._serving.config.max_body_bytes)))
        running = await self._serving.run(http, asked)
        events = MessageEvents(asked.model, running.sent_id)
        if asked.stream:
            return await stream_reply(running, events, self._serving.config)
        async with running:
            answer = await running.answer()
        return json_reply(events.whole(answer), headers=running.headers())
