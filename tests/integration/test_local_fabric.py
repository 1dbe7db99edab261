"""What `sollol up` runs: what it says when a part of it dies."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from sollol.local.fabric import FabricError, LocalFabric, free_port
from waiting import wait_until


def _told(fabric: LocalFabric) -> str:
    try:
        fabric.check()
    except FabricError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("sollol_worker_agent.cli", "worker 1 ended (killed by SIGKILL), so all was stopped; it said last: "),
        (
            "sollol_client.gateway.cli",
            "gateway ended (killed by SIGKILL), so all was stopped; it said last: ",
        ),
        (
            "sollol_coordinator.page.cli",
            "page ended (killed by SIGKILL), so all was stopped; it said last: ",
        ),
        ("valkey-server", "the private Redis died, so all was stopped; its log is "),
    ],
)
async def test_a_part_that_dies_is_named(toy_chat_model: Path, program: str, said: str) -> None:
    others = psutil.Process().children()
    fabric = LocalFabric(
        models=[f"toy={toy_chat_model}"], gateway_port=free_port(0), dashboard_port=free_port(0)
    )
    await asyncio.to_thread(fabric.__enter__)
    try:
        assert _told(fabric) == ""
        async with httpx.AsyncClient(base_url=fabric.gateway_url, trust_env=False) as http:
            assert (await http.get("/api/tags")).json()["models"][0]["name"] == "toy:latest"
            # The gateway knows where the page is.
            page = await http.get("/api/dashboard", follow_redirects=True)
            assert (str(page.url), page.status_code) == (fabric.dashboard_url, 200)
            node = (await http.get(f"{fabric.dashboard_url}api/overview")).json()["nodes"][0]
            assert [model["name"] for model in node["models"]] == ["toy"]
        children = [each for each in psutil.Process().children() if each not in others]
        (part,) = (each for each in children if any(program in word for word in each.cmdline()))
        part.send_signal(signal.SIGKILL)
        await wait_until(lambda: _told(fabric).startswith(said), timeout=10, what="its end to be told")
        assert "\n" not in _told(fabric)
    finally:
        await asyncio.to_thread(fabric.__exit__, None, None, None)
