"""What the tests of `OllamaPool` share: Ollama's stand-ins in a thread of their own, so that plain calls reach them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fabric import thread_loop
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble

MODELS = (
    DoubleModel("tiny"),
    DoubleModel("endless", answer="word " * 10_000, token_seconds=0.01),
    DoubleModel("embedder", capabilities=("embedding",)),
)
HI = [{"role": "user", "content": "hi"}]
SAID = "the quick brown fox jumps over the lazy dog"


@contextmanager
def ollamas(count: int = 1, *, parallel: int = 1) -> Iterator[list[OllamaDouble]]:
    """So many servers, each with `MODELS` and so many slots."""
    with thread_loop() as there:
        servers = [OllamaDouble(models=MODELS, parallel=parallel) for _ in range(count)]
        try:
            for server in servers:
                there.run(server.__aenter__())
            yield servers
        finally:
            for server in servers:
                there.run(server.stop())


def address(server: OllamaDouble) -> dict[str, str | int]:
    """As `nodes=` takes it."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return {"host": host, "port": int(port)}


def name(server: OllamaDouble) -> str:
    """As statistics call it."""
    return server.url.removeprefix("http://")
