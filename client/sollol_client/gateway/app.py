"""The gateway as an ASGI app: which path leads where, and how an error looks there."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sollol_broker.errors import QuotaExceeded, SollolError
from sollol_broker.live_log import LiveLog

from ..aio import AsyncClient
from .anthropic import Anthropic
from .batch_desk import BatchDesk
from .config import GatewayConfig
from .doorkeeper import Doorkeeper
from .gate import Gate
from .jobs import Jobs
from .library import Library
from .metrics import Metrics
from .metrics_port import MetricsPort
from .ollama import Ollama
from .ollama_lists import OllamaLists
from .openai import OpenAI
from .openapi import document
from .refusals import quota_headers, refusal_of
from .replies import json_reply
from .rerank import Rerank
from .service import Service
from .serving import Serving
from .shapes import error_body
from .webhooks import Webhooks


def build(config: GatewayConfig, client: AsyncClient) -> Starlette:
    """The app; it opens the client when it starts, and closes it when it stops."""
    serving = Serving(client, config)
    metrics = Metrics()
    metrics_port = MetricsPort(config, metrics, client.session.broker)
    webhooks = Webhooks(config)
    batches = BatchDesk(serving, webhooks)
    live = LiveLog(
        client.session.broker,
        source="gateway",
        process=client.session.inbox_name,
        node=platform.node().split(".")[0],
        sample=config.log_sample,
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with client:
            live.start()
            live.capture()
            batches.start()
            metrics_port.start()
            yield
            metrics_port.stop()
            await batches.stop()
            await webhooks.stop()
            await live.stop()

    app = Starlette(
        routes=[
            *Ollama(serving).routes(),
            *OllamaLists(serving).routes(),
            *Library(serving).routes(),
            *Jobs(serving, webhooks).routes(),
            *OpenAI(serving).routes(),
            *batches.routes(),
            *Anthropic(serving).routes(),
            *Rerank(serving).routes(),
            *Service(serving, metrics).routes(),
            Route("/openapi.json", _describe, include_in_schema=False),
        ],
        middleware=[
            Middleware(
                Gate,
                config=config,
                doorkeeper=Doorkeeper(client.session.broker, needed=config.needs_keys),
                metrics=metrics,
                live=live,
            )
        ],
        exception_handlers={SollolError: _refuse, HTTPException: _no_such_path},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


async def _describe(http: HttpRequest) -> Response:
    """GET /openapi.json: what there is."""
    return json_reply(document(http.app.routes))


async def _refuse(http: HttpRequest, error: Exception) -> Response:
    """Writes an error as its path's API does."""
    assert isinstance(error, SollolError)  # noqa: S101  # it is registered for those
    refusal = refusal_of(error)
    headers = refusal.headers()
    if isinstance(error, QuotaExceeded):
        headers |= quota_headers(error.left, refusal.retry_after)
    return json_reply(error_body(http.url.path, refusal), refusal.status, headers)


async def _no_such_path(http: HttpRequest, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "404 page not found", 405: "405 method not allowed"}
    headers = error.headers if isinstance(error, HTTPException) else None
    return PlainTextResponse(words.get(status, str(error)), status, headers=dict(headers or {}))
