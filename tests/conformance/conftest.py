"""A gateway in front of real llama-servers, and the same servers without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from conformance_kit import Door
from fabric import worker
from gateway_kit import gateway
from sollol_worker_agent.llama_process import LlamaServerProcess


@pytest.fixture(scope="session")
def smollm2_server(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real llama-server with the model "smollm2" and four slots. Its chat template knows tools."""
    server = LlamaServerProcess(
        model_path=smollm2_path,
        alias="smollm2",
        slots=4,
        threads=1,
        log_directory=tmp_path_factory.mktemp("logs"),
        extra_args=("--chat-template-file", str(Path(__file__).with_name("tools.jinja"))),
    )
    asyncio.run(server.start())
    try:
        yield server.url
    finally:
        asyncio.run(server.stop())


@pytest.fixture
async def ours(redis_url: str, smollm2_server: str, toy_embed_server: str) -> AsyncIterator[Door]:
    """The gateway of a fabric with both servers."""
    async with (
        worker(redis_url, smollm2_server, toy_embed_server, slots=4),
        gateway(redis_url) as http,
    ):
        url = str(http.base_url).rstrip("/")
        yield Door(url, url, is_ours=True)


@pytest.fixture(params=["gateway", "llama-server"])
def door(request: pytest.FixtureRequest, smollm2_server: str, toy_embed_server: str) -> Door:
    """The gateway, and then the servers themselves: what holds of one holds of the other."""
    if request.param == "llama-server":
        return Door(smollm2_server, toy_embed_server, is_ours=False)
    ours: Door = request.getfixturevalue("ours")
    return ours


@pytest.fixture
def is_idle(smollm2_server: str) -> Callable[[], Awaitable[bool]]:
    """Whether no slot of the server with "smollm2" is at work."""

    async def look() -> bool:
        async with httpx.AsyncClient(trust_env=False) as http:
            slots = (await http.get(f"{smollm2_server}/slots")).json()
        return not any(slot["is_processing"] for slot in slots)

    return look
