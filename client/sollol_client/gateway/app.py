"""The gateway as an ASGI app: which path leads where, and how an error looks there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from sollol_broker.errors import SollolError

from ..aio import AsyncClient
from .config import GatewayConfig
from .ollama import Ollama
from .refusals import refusal_of
from .replies import json_reply
from .serving import Serving
from .shapes import error_body


def build(config: GatewayConfig, client: AsyncClient) -> Starlette:
    """The app; it opens the client when it starts, and closes it when it stops."""
    serving = Serving(client, config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    app = Starlette(
        routes=[*Ollama(serving).routes()],
        exception_handlers={SollolError: _refuse, HTTPException: _no_such_path},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


async def _refuse(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, SollolError)  # noqa: S101  # it is registered for those
    refusal = refusal_of(error)
    return json_reply(error_body(http.url.path, refusal), refusal.status, refusal.headers())


async def _no_such_path(http: HttpRequest, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "404 page not found", 405: "405 method not allowed"}
    headers = error.headers if isinstance(error, HTTPException) else None
    return PlainTextResponse(words.get(status, str(error)), status, headers=dict(headers or {}))
