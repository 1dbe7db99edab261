"""A web page that shows the answer while it is made.

    python examples/web_chat.py            then open http://127.0.0.1:8765

The browser reads server-sent events; whoever closes the page cancels the job, and the GPU is free at once.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Route

from sollol import AsyncClient, Priority, SollolError

MODEL = os.environ.get("SOLLOL_MODEL", "smollm2")
PAGE = """<!doctype html><meta charset="utf-8"><title>Chat</title>
<style>body { font: 16px/1.5 sans-serif; max-width: 40em; margin: 3em auto } #answer { white-space: pre-wrap }</style>
<form id="form"><input id="text" size="50" autofocus placeholder="Ask something"> <button>Ask</button></form>
<p id="answer"></p>
<script>
  form.onsubmit = (event) => {
    event.preventDefault();
    answer.textContent = "";
    const stream = new EventSource("/ask?text=" + encodeURIComponent(text.value));
    stream.onmessage = (message) => { answer.textContent += JSON.parse(message.data); };
    for (const end of ["done", "failed"]) stream.addEventListener(end, (message) => {
      stream.close();
      answer.textContent += "\\n" + JSON.parse(message.data);
    });
  };
</script>"""


async def page(request: Request) -> HTMLResponse:
    """The page itself."""
    return HTMLResponse(PAGE)


async def ask(request: Request) -> StreamingResponse:
    """The answer to ?text=…, piece by piece."""
    job = request.app.state.client.submit(
        chat=request.query_params["text"],
        model=MODEL,
        stream=True,
        priority=Priority.HIGH,
        options={"num_predict": 100},
    )

    async def events() -> AsyncIterator[str]:
        try:
            async for piece in job:
                yield f"data: {json.dumps(str(piece))}\n\n"
            answer = await job
            yield f"event: done\ndata: {json.dumps('answered by ' + answer.routing.node)}\n\n"
        except SollolError as error:
            yield f"event: failed\ndata: {json.dumps(str(error))}\n\n"
        finally:
            job.cancel()  # the browser is gone; does nothing to a job that has ended

    return StreamingResponse(events(), media_type="text/event-stream")


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """One client for all requests."""
    async with AsyncClient(app="web-chat") as client:
        app.state.client = client
        yield


app = Starlette(routes=[Route("/", page), Route("/ask", ask)], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8765")), log_level="warning")
