"""A worker and a command that know their fabric from `sollol.toml` alone, as processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from fabric import program
from sollol import AsyncClient
from sollol_broker.embedded import EmbeddedBroker
from waiting import wait_until


async def test_one_file_tells_worker_and_command_of_the_fabric(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with EmbeddedBroker(appendonly=False, port=0, password="s3cret") as broker:  # noqa: S106
        where = broker.url.rpartition("@")[2]
        file = tmp_path / "sollol.toml"
        file.write_text(
            f'[redis]\nurl = "redis://{where}"\npassword_file = "{secret}"\n'
            '[worker]\nnode = "from-file"\nbackend = "echo://?models=echo"\nlabel = ["eu"]\n'
        )
        environment = {"SOLLOL_CONFIG": str(file), "SOLLOL_REDIS_URL": ""}
        async with (
            AsyncClient(broker.url) as client,
            program(tmp_path / "log", "sollol_worker_agent.cli", environment=environment) as process,
        ):
            await wait_until(client.nodes, timeout=30, what="the worker")
            command = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sollol.cli", "--config", str(file), "nodes", "--json"),
                stdout=asyncio.subprocess.PIPE,
                env={name: value for name, value in os.environ.items() if name != "SOLLOL_REDIS_URL"},
            )
            out, _ = await command.communicate()
            (node,) = json.loads(out)
            assert node["name"] == "from-file", process.said()
            assert node["workers"][0]["labels"] == ["eu"]
