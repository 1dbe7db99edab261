"""Three machines on one network that know nothing of each other: one begins, one joins, one is found."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from hosts import Network, hosts

from sollol_broker.embedded import EmbeddedBroker
from sollol_coordinator.cli import main as coordinator
from sollol_worker_agent.llama_binaries import find_llama_server
from waiting import wait_until

_PATIENCE_SECONDS = 60.0


@asynccontextmanager
async def running(
    network: Network, host: int, log: Path, *command: str, env: Mapping[str, str]
) -> AsyncIterator[None]:
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *network.on(host), *command, env={**os.environ, **env}, stdout=sink, stderr=sink
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await process.wait()


async def asked(network: Network, host: int, *command: str, env: Mapping[str, str]) -> Any:
    """What a command on a host says as JSON; None while it fails."""
    process = await asyncio.create_subprocess_exec(
        *(*network.on(host), sys.executable, "-m", "sollol.cli", *command, "--json"),
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    return json.loads(out) if process.returncode == 0 else None


async def says(log: Path, what: str) -> None:
    await wait_until(lambda: what in log.read_text(errors="replace"), timeout=_PATIENCE_SECONDS, what=what)


async def test_a_fabric_grows_over_a_network_by_being_announced_and_by_adoption(
    toy_chat_model: Path, tmp_path: Path
) -> None:
    python = (sys.executable, "-m")
    server = find_llama_server()
    with hosts(3) as network:
        third = network.address(2)
        first = {"SOLLOL_HOME": str(tmp_path), "SOLLOL_REDIS_URL": ""}
        up = (
            "sollol.cli",
            "up",
            "--announce",
            "--gateway-port",
            "0",
            "--dashboard-port",
            "0",
            "--model",
            f"toy={toy_chat_model}",
        )
        llama = (str(server.path), "-m", str(toy_chat_model), "--alias", "other", "--host", third, "-t", "1")
        worker = ("sollol_worker_agent.cli", "--find", "--backend", "echo://?models=echo", "--node", "second")
        nobody = {"SOLLOL_REDIS_URL": ""}
        joins = {**nobody, "SOLLOL_REDIS_PASSWORD_FILE": str(tmp_path / "redis-password")}
        async with (
            running(network, 0, tmp_path / "up", *python, *up, env=first),
            running(network, 2, tmp_path / "llama", *llama, env=server.full_environment()),
        ):
            await says(tmp_path / "up", "Ctrl-C stops")
            secret = (tmp_path / "redis-password").read_text().strip()
            assert secret not in (tmp_path / "up").read_text()
            async with (
                running(network, 1, tmp_path / "second", *python, *worker, env=joins),
                running(network, 1, tmp_path / "lost", *python, *worker, env=nobody),
            ):
                (heard,) = await asked(network, 1, "discover", "--fabrics", env={})
                assert heard["url"].startswith(f"redis://{network.address(0)}:")
                assert (heard["fabric"], heard["needs"]) == ("default", ["password"])
                assert secret not in json.dumps(heard)
                await says(tmp_path / "second", f"found fabric default at {heard['url']}")
                # Of the password nothing is announced, so who has none is told so.
                await says(tmp_path / "lost", "asks for a password")
                await says(tmp_path / "llama", "listening on")
                adopt = ("sollol.cli", "discover", "--subnet", third, "--ports", "8080", "--adopt")
                here = {**joins, "SOLLOL_REDIS_URL": heard["url"]}
                async with running(network, 1, tmp_path / "adopt", *python, *adopt, env=here):
                    question = ("-m", "other", "--chat", "hi", "--option", "num_predict=2", "--wait-for-node")
                    answer = await asked(network, 1, "submit", *question, "--wait", env=here)
                    assert answer["routing"]["node"] == third
                    nodes = {each["name"]: each for each in await asked(network, 1, "nodes", env=here)}
                    assert len(nodes) == 3
                    assert "second" in nodes
                    # It is not this machine, so nothing is said of its hardware.
                    assert (nodes[third]["host"], nodes[third]["hardware"]) == (third, {})


def test_a_coordinator_announces_no_redis_that_others_cannot_reach() -> None:
    with EmbeddedBroker(appendonly=False, port=0) as broker:
        said = CliRunner().invoke(coordinator, ["--redis", broker.url, "--metrics", "off", "--announce"])
    assert said.exit_code == 2
    assert "listens on this machine alone" in said.output
