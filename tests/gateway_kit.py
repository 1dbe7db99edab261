"""A gateway for tests: the real server on a free port of this machine, in this event loop."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn

from sollol_client import AsyncClient
from sollol_client.gateway import GatewayConfig, build
from waiting import wait_until


@asynccontextmanager
async def gateway(redis_url: str, **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway of a fabric, and a client that calls it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        settings = GatewayConfig(port=port, **config)
        app = build(settings, AsyncClient(redis_url, app="gateway"))
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_config=None, loop="none", server_header=False, timeout_graceful_shutdown=1, ws="none"
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            await wait_until(
                lambda: server.started or serving.done(), timeout=10, what="the gateway to start"
            )
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20
            ) as client:
                yield client
        finally:
            server.should_exit = True
            await serving


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The lines of an NDJSON answer."""
    return [json.loads(line) for line in answer.text.splitlines()]
