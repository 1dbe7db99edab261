"""Servers of the gateway's benchmark, each a process: `python -m benchmarks.http_servers echo PORT | proxy PORT URL`.

The echo answers at once, as Ollama and as OpenAI; the proxy is what one would write in an afternoon.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODEL = "echo:latest"
_STAMP = "2026-01-01T00:00:00Z"
_END = {"total_duration": 1, "load_duration": 1, "prompt_eval_count": 1, "eval_count": 1, "eval_duration": 1}


def echo() -> Starlette:
    """An LLM server without a model."""

    async def chat(http: Request) -> Response:
        asked = json.loads(await http.body())
        text = asked["messages"][-1]["content"]
        line: dict[str, Any] = {"model": asked["model"], "created_at": _STAMP}
        line |= {
            "message": {"role": "assistant", "content": text},
            "done": True,
            "done_reason": "stop",
            **_END,
        }
        kind = "application/json" if asked.get("stream") is False else "application/x-ndjson"
        return Response(json.dumps(line) + "\n", media_type=kind)

    async def completions(http: Request) -> Response:
        asked = json.loads(await http.body())
        message = {"role": "assistant", "content": asked["messages"][-1]["content"]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        more = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"]}
        return JSONResponse({**more, "choices": [choice], "usage": usage})

    async def listing(http: Request) -> Response:
        return JSONResponse({"models": [{"name": MODEL, "model": MODEL, "digest": "0", "size": 1}]})

    async def version(http: Request) -> Response:
        return JSONResponse({"version": "0.33.0"})

    return Starlette(
        routes=[
            Route("/api/chat", chat, methods=["POST"]),
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/api/tags", listing),
            Route("/api/ps", listing),
            Route("/api/version", version),
        ]
    )


def proxy(target: str) -> Starlette:
    """Passes each request on, and streams the answer back."""
    client = httpx.AsyncClient(base_url=target, timeout=None, trust_env=False)  # noqa: S113  # as its target likes

    async def forward(http: Request) -> Response:
        request = client.build_request(http.method, http.url.path, content=await http.body())
        answer = await client.send(request, stream=True)
        return StreamingResponse(
            answer.aiter_raw(),
            answer.status_code,
            media_type=answer.headers["content-type"],
            background=BackgroundTask(answer.aclose),
        )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])], lifespan=lifespan)


if __name__ == "__main__":
    name, port, *rest = sys.argv[1:]
    app = proxy(rest[0]) if name == "proxy" else echo()
    uvicorn.run(app, port=int(port), log_level="warning", access_log=False)
