"""`sollol bench run` against a real llama-server: both ways are really gone, and counted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from click.testing import CliRunner, Result

from fabric import worker
from sollol import AsyncClient
from sollol.cli.app import app

_TOKENS = 4


async def _bench(redis_url: str, *arguments: str) -> Result:
    told = ["bench", "run", "--redis", redis_url, "--tokens", str(_TOKENS), "-n", "5", "-c", "2", *arguments]
    return await asyncio.to_thread(CliRunner().invoke, app, told)


async def test_the_fabric_is_measured_beside_its_servers_and_those_that_are_named(
    redis_url: str, toy_llama_server: str
) -> None:
    async with worker(redis_url, f"llama+{toy_llama_server}"), AsyncClient(redis_url, app="tests") as client:
        said = await _bench(redis_url, "-m", "toy", "--json")
        assert said.exit_code == 0, said.output
        told: dict[str, Any] = json.loads(said.stdout)
        assert told["servers"] == [toy_llama_server]
        assert [(way["way"], way["answers"], way["failed"]) for way in told["ways"]] == [
            ("fabric", 5, {}),
            ("direct", 5, {}),
        ]
        for way in told["ways"]:
            assert 0 < way["first_seconds"]["p50"] <= way["whole_seconds"]["p50"]
            assert way["tokens_per_second"] > 0
        # With the one to warm up; what was asked directly is not among them.
        assert (await client.stats())["jobs"]["done"] == 6
        shown = await _bench(redis_url, "-m", "toy", "--direct", toy_llama_server)
        assert "fabric / direct: " in shown.stdout
        wrong = await _bench(redis_url, "-m", "toy", "--direct", "http://127.0.0.1:1")
        assert (wrong.exit_code, "no LLM server with OpenAI's API has 'toy' there" in wrong.output) == (
            2,
            True,
        )
    assert (await _bench(redis_url, "-m", "toy")).exit_code == 4
