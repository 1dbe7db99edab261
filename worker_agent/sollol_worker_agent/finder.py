"""Looks for LLM servers on this machine, at the start and from time to time."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sollol_broker.periodic import Periodic

from .backends import find_local
from .backends.protocol import Backend

log = logging.getLogger(__name__)

# Somebody who has just started Ollama should not have to restart the worker.
_LOOK_SECONDS = 15.0


class Finder(Periodic):
    """Calls `on_found` once for each server that listens where such servers usually do.

    Args:
        ollama_host, ollama_nodes: the values of OLLAMA_HOST and OLLAMA_NODES, if set.
    """

    def __init__(
        self, on_found: Callable[[Backend], None], *, ollama_host: str | None, ollama_nodes: str | None
    ) -> None:
        super().__init__(self._turn, name="looking for LLM servers", seconds=_LOOK_SECONDS)
        self._on_found = on_found
        self._ollama_host = ollama_host
        self._ollama_nodes = ollama_nodes
        self._known: set[str] = set()

    async def look(self) -> int:
        """Look once; gives how many servers were new."""
        found = await find_local(ollama_host=self._ollama_host, ollama_nodes=self._ollama_nodes)
        new = 0
        for backend in found:
            if backend.url in self._known:
                await backend.close()
                continue
            self._known.add(backend.url)
            log.info("found %s at %s", backend.kind, backend.url)
            self._on_found(backend)
            new += 1
        return new

    async def _turn(self) -> None:
        await self.look()
