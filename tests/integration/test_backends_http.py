"""The door to an LLM server: timeouts, refusals, broken connections, and what closing early does."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from sollol_broker.errors import BackendError, BackendTimeout
from sollol_worker_agent.backends import (
    Backend,
    OllamaBackend,
    OpenAIBackend,
    Piece,
    Timeouts,
    connections,
)
from sollol_worker_agent.backends.http import HttpDoor
from sollol_worker_agent.doubles.http_server import Handler, HttpServer, Reply, Request
from waiting import wait_until

PROMPT = "a prompt that nobody else may read"
REQUEST = {"messages": [{"role": "user", "content": PROMPT}]}
QUICK = Timeouts(connect=1.0, first_token=0.1, between_tokens=0.1, total=5.0)
PATIENT = Timeouts(connect=1.0, first_token=5.0, between_tokens=5.0, total=5.0)

TOKEN = {"message": {"role": "assistant", "content": "tok"}, "done": False}
LAST = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[HttpServer]:
    server = HttpServer(handler)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def ollama_at(handler: Handler) -> AsyncIterator[OllamaBackend]:
    async with serving(handler) as server:
        backend = OllamaBackend(server.url)
        try:
            yield backend
        finally:
            await backend.close()


async def failure(backend: Backend, timeouts: Timeouts = PATIENT) -> BackendError:
    with pytest.raises(BackendError) as failed:
        async for _ in backend.chat("m", REQUEST, timeouts):
            pass
    assert PROMPT not in str(failed.value)
    return failed.value


async def never(request: Request, reply: Reply) -> None:
    await asyncio.Event().wait()


def test_a_wrong_url_is_told_at_once() -> None:
    for url in ("ftp://host", "localhost:11434", "http://", "http://h:port"):
        with pytest.raises(ValueError, match="URL"):
            OllamaBackend(url)


async def test_a_refused_connection_names_the_url_and_what_to_do() -> None:
    async with serving(never) as server:
        url = server.url
    backend = OllamaBackend(url)
    error = await failure(backend)
    assert (error.status, error.retryable) == (None, True)
    assert url in str(error)
    assert "start it" in str(error)
    await backend.close()


async def test_first_token_timeout() -> None:
    async with ollama_at(never) as backend:
        error = await failure(backend, QUICK)
    assert isinstance(error, BackendTimeout)
    assert (error.phase, error.retryable, error.partial) == ("first_token", True, "")


async def test_headers_alone_are_no_first_token() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.raw(b"\n: ping\n", "text/event-stream")
        await asyncio.Event().wait()

    async with ollama_at(handler) as backend:
        error = await failure(backend, QUICK)
    assert isinstance(error, BackendTimeout)
    assert error.phase == "first_token"


async def test_between_tokens_timeout_keeps_what_had_come() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.line(TOKEN)
        await reply.line(TOKEN)
        await asyncio.Event().wait()

    async with ollama_at(handler) as backend:
        error = await failure(backend, QUICK)
    assert isinstance(error, BackendTimeout)
    assert (error.phase, error.partial) == ("between_tokens", "toktok")


async def test_total_timeout_is_not_retried() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        while True:
            await reply.line(TOKEN)
            await asyncio.sleep(0.005)

    async with ollama_at(handler) as backend:
        error = await failure(backend, Timeouts(1.0, 1.0, 1.0, total=0.1))
    assert isinstance(error, BackendTimeout)
    assert (error.phase, error.retryable) == ("total", False)


async def test_a_slow_reader_is_not_taken_for_a_slow_server() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.line(TOKEN)
        await reply.line(LAST)
        await reply.end()

    async with ollama_at(handler) as backend:
        said = []
        async for piece in backend.chat("m", REQUEST, Timeouts(1.0, 0.2, 0.05, 5.0)):
            said.append(piece)
            await asyncio.sleep(0.1)
    assert len(said) == 2


async def test_zero_means_no_limit() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.line(LAST)
        await reply.end()

    async with ollama_at(handler) as backend:
        assert len([said async for said in backend.chat("m", REQUEST, Timeouts(0, 0, 0, 0))]) == 1


@pytest.mark.parametrize(
    ("status", "text", "retryable"),
    [
        (400, "no such field", False),
        (404, "model 'm' not found", True),
        (429, "slow down", True),
        (500, "runner died", True),
        (503, "server busy", True),
    ],
)
async def test_a_refusal_has_the_servers_own_text(status: int, text: str, retryable: bool) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.json(status, {"error": f"{text} ({PROMPT})"})

    async with ollama_at(handler) as backend:
        error = await failure(backend)
    assert (error.status, error.retryable) == (status, retryable)
    assert text in str(error)


async def test_a_stream_that_is_cut_is_truncated() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.line(TOKEN)
        await reply.cut()

    async with ollama_at(handler) as backend:
        error = await failure(backend)
    assert (error.status, error.retryable) == (None, True)


async def test_a_body_without_the_end_mark_is_truncated() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.line(TOKEN)
        await reply.end()

    async with ollama_at(handler) as backend:
        error = await failure(backend)
    assert (error.retryable, error.partial) == (True, "tok")
    assert "truncated" in str(error)


async def test_half_a_line_at_the_end_is_truncated() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.raw(json.dumps(LAST).encode()[:-5], "application/x-ndjson")
        await reply.end()

    async with ollama_at(handler) as backend:
        assert (await failure(backend)).retryable


async def test_an_error_line_is_a_failure() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.line(TOKEN)
        await reply.line({"error": "an error was encountered while running the model: unexpected EOF"})
        await reply.end()

    async with ollama_at(handler) as backend:
        error = await failure(backend)
    assert (error.retryable, error.partial) == (True, "tok")
    assert "unexpected EOF" in str(error)


async def test_a_last_line_without_its_newline_counts() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.raw(json.dumps(LAST).encode(), "application/x-ndjson")
        await reply.end()

    async with ollama_at(handler) as backend:
        assert len([said async for said in backend.chat("m", REQUEST, PATIENT)]) == 1


async def test_lines_are_put_together_across_chunks() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        text = (
            json.dumps(TOKEN | {"message": {"content": "größer"}}, ensure_ascii=False)
            + "\n"
            + json.dumps(LAST)
        )
        for at in range(len(text.encode())):
            await reply.raw(text.encode()[at : at + 1], "application/x-ndjson")
        await reply.end()

    async with ollama_at(handler) as backend:
        first, _ = [said async for said in backend.chat("m", REQUEST, PATIENT)]
    assert isinstance(first, Piece)
    assert first.text == "größer"


async def test_an_answer_that_is_not_json_is_a_failure() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.text(200, "<html>")

    async with serving(handler) as server:
        door = HttpDoor(server.url, server="the server")
        with pytest.raises(BackendError, match="not JSON") as failed:
            await door.get("/")
        await door.close()
    assert failed.value.status == 200


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_early_closes_the_connection(how: str) -> None:
    left = asyncio.Event()

    async def handler(request: Request, reply: Reply) -> None:
        try:
            await reply.line(TOKEN)
            await asyncio.Event().wait()
        finally:
            left.set()

    async with ollama_at(handler) as backend:
        answer = backend.chat("m", REQUEST, PATIENT)
        await anext(answer)
        if how == "close":
            await answer.aclose()
        else:
            waiting = asyncio.ensure_future(anext(answer))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await asyncio.wait_for(left.wait(), 1)


async def test_a_request_that_is_cancelled_at_any_moment_leaves_no_connection_open() -> None:
    is_open: set[asyncio.StreamWriter] = set()
    accepted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        is_open.add(writer)
        while await reader.read(4096):
            pass
        is_open.discard(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    pool = connections.Connections(is_https=False)
    gc.disable()  # it would close what was lost
    try:
        for steps in range(60):
            asking = asyncio.ensure_future(pool.send(httpx.Request("GET", url)))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await wait_until(
            lambda: accepted > 10 and not is_open, timeout=20, what="all connections to be closed"
        )
    finally:
        gc.enable()
        await pool.close()
        server.close()
        await server.wait_closed()


async def test_a_finished_answer_leaves_its_connection_to_the_next() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.line(TOKEN)
        await reply.line(LAST)
        await reply.end()

    async with serving(handler) as server:
        backend = OllamaBackend(server.url)
        for _ in range(5):
            assert len([said async for said in backend.chat("m", REQUEST, PATIENT)]) == 2
        await backend.close()
    assert server.connections == 1


async def test_a_connection_that_died_while_it_was_idle_is_no_failure() -> None:
    # As llama-server does: the connection is closed after each streamed answer, unannounced.
    used: set[int] = set()

    async def handler(request: Request, reply: Reply) -> None:
        if id(reply.writer) in used:
            await reply.cut()
            return
        used.add(id(reply.writer))
        writers.append(reply.writer)
        await reply.line(LAST)
        await reply.end()

    writers: list[object] = []  # kept, so that no id is given out twice
    async with serving(handler) as server:
        backend = OllamaBackend(server.url)
        for _ in range(5):
            assert len([said async for said in backend.chat("m", REQUEST, PATIENT)]) == 1
        await backend.close()
    assert server.connections == 5


async def test_a_server_that_dies_of_a_request_gets_it_only_once() -> None:
    seen = 0

    async def handler(request: Request, reply: Reply) -> None:
        nonlocal seen
        seen += 1
        await reply.cut()

    async with ollama_at(handler) as backend:
        assert (await failure(backend)).retryable
    assert seen == 1


async def test_many_answers_at_once_do_not_wait_for_each_other() -> None:
    arrived = 0
    all_here = asyncio.Event()

    async def handler(request: Request, reply: Reply) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 150:
            all_here.set()
        await all_here.wait()
        await reply.line(LAST)
        await reply.end()

    async def ask(backend: OllamaBackend) -> None:
        async for _ in backend.chat("m", REQUEST, PATIENT):
            pass

    async with ollama_at(handler) as backend:
        await asyncio.gather(*(ask(backend) for _ in range(150)))
    assert arrived == 150


async def test_connections_are_used_again_and_those_that_are_idle_for_long_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_now = 0

    async def handler(request: Request, reply: Reply) -> None:
        nonlocal open_now
        if reply.writer not in seen:
            seen.append(reply.writer)
        open_now = sum(not writer.is_closing() for writer in seen)
        await together.wait()
        await reply.line(LAST)
        await reply.end()

    async def ask(backend: OllamaBackend) -> None:
        async for _ in backend.chat("m", REQUEST, PATIENT):
            pass

    seen: list[asyncio.StreamWriter] = []
    together = asyncio.Barrier(8)
    async with serving(handler) as server:
        backend = OllamaBackend(server.url)
        for _ in range(3):
            await asyncio.gather(*(ask(backend) for _ in range(8)))
        assert (server.connections, open_now) == (8, 8)
        together = asyncio.Barrier(1)
        monkeypatch.setattr(connections, "KEEPALIVE_SECONDS", -1.0)
        await ask(backend)
        await wait_until(
            lambda: all(writer.is_closing() for writer in seen), timeout=20, what="the idle ones to be closed"
        )
        await backend.close()
    assert server.connections <= 9


@pytest.mark.parametrize("make", [OllamaBackend, OpenAIBackend])
async def test_an_api_key_is_sent_as_a_bearer_token(make: type[OllamaBackend] | type[OpenAIBackend]) -> None:
    seen: list[str] = []

    async def handler(request: Request, reply: Reply) -> None:
        seen.append(request.headers.get("authorization", ""))
        await reply.json(200, {"models": [], "data": []})

    async with serving(handler) as server:
        for key in (None, "sesame"):
            backend = make(server.url, key)
            assert await backend.models() == []
            await backend.close()
    assert seen == ["", "Bearer sesame"]


async def test_a_request_that_is_no_json_is_refused_before_it_is_sent() -> None:
    async with ollama_at(never) as backend:
        request: dict[str, Any] = {"messages": [], "when": object()}
        with pytest.raises(BackendError) as failed:
            async for _ in backend.chat("m", request, QUICK):
                pass
    assert (failed.value.status, failed.value.retryable) == (400, False)
