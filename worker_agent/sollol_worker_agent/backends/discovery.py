"""Which make of server listens at a URL, and which of the usual ones listen on this machine.

Only addresses that were handed in, and the usual ports of this machine; no other host is ever tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from sollol_broker.errors import BackendError
from sollol_worker_agent.backends.echo import EchoBackend
from sollol_worker_agent.backends.http import HttpDoor
from sollol_worker_agent.backends.llama_server import LlamaServerBackend
from sollol_worker_agent.backends.ollama import OllamaBackend
from sollol_worker_agent.backends.openai_compatible import OpenAIBackend
from sollol_worker_agent.backends.protocol import Backend, Timeouts

# Where these servers listen when nobody tells them otherwise.
LOCAL_PORTS = {
    11434: "Ollama",
    8080: "llama-server",
    8000: "vLLM",
    1234: "LM Studio",
    30000: "SGLang",
}

# A server on this machine connects in microseconds; one that takes longer is no server.
_LOCAL = Timeouts(connect=0.5, first_token=2.0, between_tokens=2.0, total=3.0)

# A named server may be far away, or busy.
_NAMED = Timeouts(connect=5.0, first_token=10.0, between_tokens=10.0, total=15.0)

_PREFIXES = ("ollama+", "llama+", "openai+")


class OurGateway(BackendError):
    """What answers is a gateway of SOLLOL and no LLM server."""


async def connect(url: str, api_key: str | None = None) -> Backend:
    """The backend behind `url`.

    Args:
        url: "echo://…"; "ollama+http://host:port", "llama+http://…" or "openai+http://…", which are
            taken at their word; or plain "http://host:port", which is asked what it is.
        api_key: sent as a bearer token if given.

    Raises:
        ValueError: no such scheme, or not a URL.
        BackendError: nobody answers at a plain URL, or nobody we know.
    """
    if url.startswith("echo:"):
        return EchoBackend(url)
    prefix = next((prefix for prefix in _PREFIXES if url.startswith(prefix)), "")
    address = url.removeprefix(prefix)
    if prefix == "ollama+":
        return OllamaBackend(address, api_key)
    if prefix == "llama+":
        return LlamaServerBackend(address, api_key=api_key)
    if prefix == "openai+":
        return OpenAIBackend(address, api_key)
    return await detect(address, api_key)


async def detect(url: str, api_key: str | None = None, *, timeouts: Timeouts = _NAMED) -> Backend:
    """Ask the server at `url` what it is.

    1. Ollama tells its version at /api/version.
    2. llama-server tells its slots at /props; while it loads, it answers 503 there.
    3. Whoever lists models at /v1/models speaks OpenAI's API.
    4. A gateway of SOLLOL speaks as all of them do, and is none: a fabric that fronted its own would go in circles.

    Raises:
        ValueError: `url` is not an http or https address.
        BackendError: nobody answers there, or nobody we know.
    """
    door = HttpDoor(url, server="the server", api_key=api_key)
    try:
        _, answer = await _ask(door, "/api/version", timeouts)
        if door.powered_by == "SOLLOL":  # 4
            raise OurGateway(f"{url} is a gateway of SOLLOL and no LLM server; name the servers behind it")
        if "version" in answer:  # 1
            return OllamaBackend(url, api_key)
        status, answer = await _ask(door, "/props", timeouts)
        if "total_slots" in answer or status == 503:  # 2
            return LlamaServerBackend(url, api_key=api_key)
        _, answer = await _ask(door, "/v1/models", timeouts)
        if "data" in answer:  # 3
            return OpenAIBackend(url, api_key)
    finally:
        await door.close()
    raise BackendError(
        f"{url} answers, but is neither Ollama nor llama-server nor OpenAI-compatible; "
        f"write ollama+, llama+ or openai+ before the URL if it is one after all"
    )


async def find_local(
    *, ollama_host: str | None = None, ollama_nodes: str | Iterable[str] | None = None
) -> list[Backend]:
    """The servers that listen where they usually do; those that do not answer are left out.

    Args:
        ollama_host: the value of OLLAMA_HOST: "host", "host:port" or a URL. 0.0.0.0 means this machine.
        ollama_nodes: the value of OLLAMA_NODES: several of them, with commas between, or a list.
    """
    nodes = ollama_nodes.split(",") if isinstance(ollama_nodes, str) else list(ollama_nodes or ())
    named = [ollama_url(text.strip()) for text in [ollama_host or "", *nodes] if text.strip()]
    usual = [f"http://127.0.0.1:{port}" for port in LOCAL_PORTS]
    found = await asyncio.gather(*(_try(url) for url in dict.fromkeys([*named, *usual])))
    return [backend for backend in found if backend is not None]


def ollama_url(text: str) -> str:
    """The URL that an OLLAMA_HOST means: "10.0.0.5" is "http://10.0.0.5:11434".

    Raises:
        ValueError: the port is not a number.
    """
    parts = urlsplit(text if "://" in text else f"http://{text}")
    host = parts.hostname or "127.0.0.1"
    if host in ("0.0.0.0", "::", "localhost"):  # noqa: S104 - read, not bound to
        host = "127.0.0.1"
    port = parts.port or {"https": 443}.get(parts.scheme, 80 if "://" in text else 11434)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


async def _try(url: str) -> Backend | None:
    try:
        return await detect(url, timeouts=_LOCAL)
    except (BackendError, ValueError):
        return None


async def _ask(door: HttpDoor, path: str, timeouts: Timeouts) -> tuple[int, dict[str, Any]]:
    """The status, and the answer if it is a JSON object.

    Raises:
        BackendError: nobody answers, or only to those who have a key.
    """
    try:
        answer = await door.get(path, timeouts)
    except BackendError as error:
        if error.status in (None, 401, 403):
            raise
        return error.status or 0, {}
    return 200, answer if isinstance(answer, dict) else {}
