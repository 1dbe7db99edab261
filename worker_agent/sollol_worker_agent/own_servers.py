"""llama-servers that the agent starts itself, and starts again when they die."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sollol_broker.errors import BackendError

from .backends import LlamaServerBackend
from .llama_process import LlamaServerProcess

log = logging.getLogger(__name__)

_FIRST_DELAY_SECONDS = 1.0
_LONGEST_DELAY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class OwnModel:
    """A GGUF file to serve, as `--model [NAME=]FILE` says it.

    Attributes:
        name: the model's name in the fabric; None = the file's name without ".gguf", in lower case.
        slots: requests at once; None = 1.
        extra_args: more llama-server arguments.
    """

    path: Path
    name: str | None = None
    slots: int | None = None
    threads: int | None = None
    extra_args: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, *, slots: int | None = None) -> OwnModel:
        """From "FILE" or "NAME=FILE".

        Raises:
            ValueError: there is no such file.
        """
        name, found, path = text.rpartition("=")
        file = Path(path).expanduser()
        if not file.is_file():
            raise ValueError(f"there is no model file {file}: give the path of a .gguf file")
        return cls(file, name if found else None, slots)


class OwnServers:
    """The llama-servers of one agent.

    Args:
        models: one server each.
    """

    def __init__(self, models: Sequence[OwnModel]) -> None:
        self._logs = Path(tempfile.mkdtemp(prefix="sollol-worker-"))
        self._servers = [self._server(model) for model in models]
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> list[LlamaServerBackend]:
        """Start them all, and keep them up from then on; gives their backends.

        Raises:
            BackendError: one of them does not start; none is left running.
        """
        try:
            await asyncio.gather(*(server.start() for server in self._servers))
        except BaseException:
            await self.stop()
            raise
        self._keepers = [asyncio.create_task(self._keep(server)) for server in self._servers]
        return [LlamaServerBackend(server.url, model=server.alias) for server in self._servers]

    async def stop(self) -> None:
        """Stop them all; whatever they were working on is cut off."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(server.stop() for server in self._servers))
        await asyncio.to_thread(shutil.rmtree, self._logs, ignore_errors=True)

    def _server(self, model: OwnModel) -> LlamaServerProcess:
        alias = model.name or model.path.name.removesuffix(".gguf").lower()
        return LlamaServerProcess(
            model_path=model.path,
            alias=alias,
            slots=model.slots or 1,
            threads=model.threads,
            log_directory=self._logs,
            extra_args=model.extra_args,
            progress=lambda said: log.info("%s: %s", alias, said),
        )

    async def _keep(self, server: LlamaServerProcess) -> None:
        delay = _FIRST_DELAY_SECONDS
        while True:
            why = await server.wait_dead()
            log.error("llama-server for %s ended: %s; starting it again in %.0f s", server.alias, why, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)
            with contextlib.suppress(BackendError):
                await server.start()
                delay = _FIRST_DELAY_SECONDS
