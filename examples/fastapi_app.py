"""The client inside a FastAPI application: one for the process, opened and closed with it.

uvicorn --app-dir examples fastapi_app:app
curl 'http://127.0.0.1:8000/similarity?a=a+cat&b=a+kitten'
"""

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from sollol import AsyncClient, SollolError

MODEL = os.environ.get("SOLLOL_MODEL", "smollm2")
EMBED_MODEL = os.environ.get("SOLLOL_EMBED_MODEL", "all-minilm")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for all requests."""
    async with AsyncClient(app="fastapi-example") as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/ask")
async def ask(request: Request, text: str) -> dict[str, str]:
    """One answer."""
    answer = await request.app.state.client.submit(
        chat=text, model=MODEL, deadline=60, options={"num_predict": 32}
    )
    return {"answer": answer.text, "node": answer.routing.node}


@app.get("/similarity")
async def similarity(request: Request, a: str, b: str) -> dict[str, float]:
    """How alike two texts are, from -1 to 1."""
    answer = await request.app.state.client.submit(embed=[a, b], model=EMBED_MODEL, deadline=60)
    first, second = answer.embeddings
    dot = sum(x * y for x, y in zip(first, second, strict=True))
    return {"cosine": dot / (math.hypot(*first) * math.hypot(*second))}


@app.exception_handler(SollolError)
async def failed(request: Request, error: SollolError) -> JSONResponse:
    """Its text says what happened and what to do; it never holds a prompt."""
    return JSONResponse({"error": str(error)}, status_code=502)
