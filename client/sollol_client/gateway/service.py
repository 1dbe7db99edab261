"""What is asked of the gateway itself: whether it is well, what the fabric has done, where the page is."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from sollol_broker.errors import SollolError
from sollol_broker.prometheus import FabricFigures
from sollol_broker.version import VERSION

from .metrics import Metrics
from .replies import json_reply
from .serving import Serving

# An orchestrator asks every few seconds, and gives up soon.
_PROBE_SECONDS = 2.0


class Service:
    """Answers for the gateway."""

    def __init__(self, serving: Serving, metrics: Metrics) -> None:
        self._serving = serving
        self._metrics = metrics
        self._fabric: FabricFigures | None = None
        if serving.config.fabric_metrics:
            self._fabric = FabricFigures(serving.client.session.broker)

    def routes(self) -> list[Route]:
        """Its paths."""
        return [
            Route("/api/health", self.health),
            Route("/api/stats", self.stats),
            Route("/api/dashboard", self.dashboard),
            Route("/metrics", self.metrics),
            Route("/livez", self.livez),
            Route("/readyz", self.readyz),
        ]

    async def health(self, http: HttpRequest) -> Response:
        """GET /api/health: who we are."""
        status = "degraded" if await self._broken() else "healthy"
        return json_reply({"service": "SOLLOL", "version": VERSION, "status": status})

    async def stats(self, http: HttpRequest) -> Response:
        """GET /api/stats: what the fabric has done since it began."""
        client = self._serving.client
        stats: dict[str, Any] = await client.stats()
        stats["queues"] = [
            {"model": each.model, "waiting": each.waiting, "running": each.running}
            for each in await client.queues()
        ]
        return json_reply({"service": "SOLLOL", **stats, "cache": client.get_cache_stats()})

    async def dashboard(self, http: HttpRequest) -> Response:
        """GET /api/dashboard: to the page."""
        return RedirectResponse(self._serving.config.dashboard)

    async def metrics(self, http: HttpRequest) -> Response:
        """GET /metrics: for Prometheus."""
        text = self._metrics.text()
        if self._fabric is not None:
            text += await self._fabric.text()
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def livez(self, http: HttpRequest) -> Response:
        """GET /livez: whether the process is alive."""
        return PlainTextResponse("ok")

    async def readyz(self, http: HttpRequest) -> Response:
        """GET /readyz: whether jobs can be taken: Redis has to accept a write."""
        why = await self._broken()
        return PlainTextResponse(f"not ready: {why}", 503) if why else PlainTextResponse("ok")

    async def _broken(self) -> str:
        """Why Redis cannot be written to; "" = it can. A Redis with a full disk still answers a PING."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._serving.client.session.lookout.attend()
        except TimeoutError:
            return f"Redis did not answer within {_PROBE_SECONDS:g} s"
        except SollolError as error:
            return str(error)
        return ""
