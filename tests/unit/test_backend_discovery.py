"""Which backend stands behind a URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

import sollol_worker_agent.backends as face
from sollol_broker.errors import BackendError
from sollol_worker_agent.backends import connect, discovery, find_local
from sollol_worker_agent.backends.discovery import ollama_url
from sollol_worker_agent.doubles import OllamaDouble
from sollol_worker_agent.doubles.http_server import HttpServer, Reply, Request
from waiting import wait_until


@asynccontextmanager
async def answering(answers: Mapping[str, tuple[int, object]]) -> AsyncIterator[str]:
    async def handler(request: Request, reply: Reply) -> None:
        status, body = answers.get(request.path, (404, {"error": "not here"}))
        if isinstance(body, str):
            await reply.text(status, body)
        else:
            await reply.json(status, body)

    server = HttpServer(handler)
    await server.start()
    try:
        yield server.url
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("url", "kind", "address"),
    [
        ("echo://?slots=2", "echo", "echo://?slots=2"),
        ("ollama+http://gpu:11434/", "ollama", "http://gpu:11434"),
        ("llama+http://gpu:8080", "llama-server", "http://gpu:8080"),
        ("openai+https://gpu:8000/v1", "openai", "https://gpu:8000"),
    ],
)
async def test_a_prefix_is_taken_at_its_word(url: str, kind: str, address: str) -> None:
    backend = await connect(url, "key")
    assert (backend.kind, backend.url) == (kind, address)
    await backend.close()


async def test_ollama_is_recognised() -> None:
    async with OllamaDouble() as double:
        backend = await connect(double.url)
        assert backend.kind == "ollama"
        await backend.close()


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({"/props": (200, {"total_slots": 2})}, "llama-server"),
        ({"/props": (503, {"error": {"message": "Loading model", "code": 503}})}, "llama-server"),
        ({"/v1/models": (200, {"object": "list", "data": []})}, "openai"),
        ({"/api/version": (200, "no json"), "/v1/models": (200, {"data": None})}, "openai"),
    ],
)
async def test_the_others_are_recognised(answers: Mapping[str, tuple[int, object]], kind: str) -> None:
    async with answering(answers) as url:
        backend = await connect(url)
        assert backend.kind == kind
        await backend.close()


async def test_a_stranger_is_told_apart() -> None:
    async with answering({"/": (200, "It works!")}) as url:
        with pytest.raises(BackendError, match="neither Ollama nor llama-server"):
            await connect(url)


async def test_a_gateway_of_ours_is_taken_for_no_ollama() -> None:
    import uvicorn

    from sollol_client import AsyncClient
    from sollol_client.gateway.app import build
    from sollol_client.gateway.config import GatewayConfig

    app = build(GatewayConfig(), AsyncClient("redis://127.0.0.1:1/0"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started, timeout=20, what="the gateway")
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        with pytest.raises(BackendError, match="is a gateway of SOLLOL"):
            await connect(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        await serving


async def test_a_locked_server_asks_for_a_key() -> None:
    async with answering({"/api/version": (401, {"error": "who are you?"})}) as url:
        with pytest.raises(BackendError, match="API key"):
            await connect(url)


async def test_nobody_there() -> None:
    async with answering({}) as url:
        pass
    with pytest.raises(BackendError, match="cannot be reached") as failed:
        await connect(url)
    assert failed.value.retryable


async def test_find_local_looks_at_what_it_is_given_and_at_the_usual_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with OllamaDouble() as one, OllamaDouble() as two, OllamaDouble() as usual:
        port = int(usual.url.rpartition(":")[2])
        monkeypatch.setattr(discovery, "LOCAL_PORTS", {port: "Ollama", 1: "nobody"})
        found = await find_local(
            ollama_host=one.url.removeprefix("http://"), ollama_nodes=f"{two.url}, ,{one.url}"
        )
        assert [backend.url for backend in found] == [one.url, two.url, usual.url]
        for backend in found:
            await backend.close()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.5", "http://10.0.0.5:11434"),
        ("10.0.0.5:9999", "http://10.0.0.5:9999"),
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104 - read, not bound to
        (":9999", "http://127.0.0.1:9999"),
        ("http://gpu", "http://gpu:80"),
        ("https://gpu/", "https://gpu:443"),
        ("[::1]:11434", "http://[::1]:11434"),
    ],
)
def test_ollama_host(text: str, url: str) -> None:
    assert ollama_url(text) == url


def test_the_face_hands_on_what_it_promises() -> None:
    assert all(hasattr(face, name) for name in face.__all__)
    assert face.__all__ == sorted(face.__all__)
