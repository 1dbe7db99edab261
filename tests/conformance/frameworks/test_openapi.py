"""Whatever is sent to the paths of the OpenAPI document, the gateway does not answer with a 5xx."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

from fabric import CHAT_MODEL, EMBED_MODEL, worker
from gateway_kit import gateway
from sollol_worker_agent.doubles import OllamaDouble

# What changes a node's models says 501 where no node can; the dashboard leads to another program.
_LEFT_OUT = "^/api/(pull|push|create|copy|delete|blobs|dashboard)"
_LEAST_CASES = 2000


async def test_no_request_is_answered_with_a_server_error(redis_url: str, tmp_path: Path) -> None:
    async with (
        OllamaDouble([CHAT_MODEL, EMBED_MODEL], parallel=4) as ollama,
        # Minutes of what schemathesis works out must not be taken for its end.
        worker(
            *(redis_url, ollama.url, "echo://?models=tiny-rerank"),
            slots=4,
            lease_seconds=30.0,
            advertise_seconds=10.0,
        ),
        gateway(redis_url) as http,
    ):
        described = (await http.get("/openapi.json")).json()
        for path in described["paths"].values():
            for operation in path.values():
                for content in operation.get("requestBody", {}).get("content", {}).values():
                    # Made-up names would end most requests before they reach a backend.
                    if "model" in (fields := content["schema"]["properties"]):
                        fields["model"] = {"enum": ["tiny", "tiny-embed", "tiny-rerank"]}
        document = tmp_path / "openapi.json"
        document.write_text(json.dumps(described))
        run = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("st")),
            *("run", str(document), "--url", str(http.base_url)),
            *("--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--max-examples", "60"),
            *("--exclude-path-regex", _LEFT_OUT, "--continue-on-failure", "--no-color"),
            *("--suppress-health-check", "all", "--request-timeout", "10"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
        )
        said = (await run.communicate())[0].decode()
    assert run.returncode == 0, said[-8000:]
    made = re.search(r"([\d,]+) generated", said)
    assert made is not None, said[-2000:]
    assert int(made[1].replace(",", "")) >= _LEAST_CASES
