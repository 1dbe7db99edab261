"""`make conformance-js`: the JavaScript clients of Ollama and OpenAI through the gateway, to doubles and llama-servers.

It needs node and npm, and fetches the packages; that is why it is no part of `make test`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import toy_models  # noqa: E402  # the tests' own folder comes first
from fabric import worker  # noqa: E402
from gateway_kit import gateway  # noqa: E402
from sollol.local import smollm2  # noqa: E402
from sollol_broker.embedded import EmbeddedBroker  # noqa: E402
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble  # noqa: E402
from sollol_worker_agent.llama_process import LlamaServerProcess  # noqa: E402

# The packages, each with the script of its name.
PACKAGES = {"ollama": "ollama@0.6", "openai": "openai@7"}


async def main() -> int:
    """Run it; gives the exit code."""
    if not (shutil.which("node") and shutil.which("npm")):
        print("node and npm are needed: apt-get install nodejs npm", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="sollol-js-") as folder:
        shutil.copytree(HERE / "js", folder, dirs_exist_ok=True)
        if failed := await _run(
            "npm", "install", "--silent", "--no-fund", "--no-audit", *PACKAGES.values(), folder=folder
        ):
            return failed
        codes = [await _stand_in(folder), await _llama(folder)]
    return max(codes)


async def _stand_in(folder: str) -> int:
    models = [
        DoubleModel("chatty", capabilities=("completion", "tools"), answer='{"a": 1}'),
        DoubleModel("embedder", capabilities=("embedding",)),
    ]
    with EmbeddedBroker(appendonly=False) as redis:
        async with (
            OllamaDouble(models) as ollama,
            worker(redis.url, ollama.url),
            gateway(redis.url) as http,
        ):
            return await _node("a stand-in", folder, str(http.base_url), WITH_TOOLS="1")


async def _llama(folder: str) -> int:
    models = {"chatty": smollm2(), "embedder": toy_models.make_toy_embedding(Path(folder) / "embed.gguf")}
    with EmbeddedBroker(appendonly=False) as redis:
        async with AsyncExitStack() as stack:
            urls = []
            for alias, path in models.items():
                server = LlamaServerProcess(
                    model_path=path, alias=alias, slots=2, threads=1, log_directory=Path(folder)
                )
                await server.start()
                stack.push_async_callback(server.stop)
                urls.append(server.url)
            await stack.enter_async_context(worker(redis.url, *urls))
            http = await stack.enter_async_context(gateway(redis.url))
            return await _node("llama-server", folder, str(http.base_url))


async def _node(what: str, folder: str, url: str, **environment: str) -> int:
    codes = []
    for name in PACKAGES:
        print(f"{name} before {what}: ", end="", flush=True)
        codes.append(await _run("node", f"{name}.mjs", folder=folder, GATEWAY_URL=url, **environment))
    return max(codes)


async def _run(*command: str, folder: str, **environment: str) -> int:
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, env={**os.environ, **environment})
    return await process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
