"""llama-servers that the agent starts itself, and starts again when they die."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sollol_broker.errors import BackendError

from .backends import LlamaServerBackend
from .hardware import Hardware
from .llama_process import LlamaServerProcess
from .residence import short_mib

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

    @property
    def shown_name(self) -> str:
        """What the fabric calls it."""
        return self.name or self.path.name.removesuffix(".gguf").lower()

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


def too_large(models: Sequence[OwnModel], hardware: Hardware) -> list[OwnModel]:
    """Those that this machine could not have in memory, not even with part of them on its CPU."""
    return [each for each in models if short_mib(each.path.stat().st_size, hardware)]


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
        await self.resume()
        return [LlamaServerBackend(server.url, model=server.alias) for server in self._servers]

    async def pause(self) -> None:
        """Stop them all for now: their memory is needed for something else."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers = []
        await asyncio.gather(*(server.stop() for server in self._servers))

    async def resume(self) -> None:
        """Start them again, where they were; one that does not start is tried again from time to time."""
        if not self._keepers:
            self._keepers = [asyncio.create_task(self._keep(server)) for server in self._servers]

    async def stop(self) -> None:
        """Stop them all; whatever they were working on is cut off."""
        await self.pause()
        await asyncio.to_thread(shutil.rmtree, self._logs, ignore_errors=True)

    def _server(self, model: OwnModel) -> LlamaServerProcess:
        alias = model.shown_name
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
            try:
                await server.start()
                delay = _FIRST_DELAY_SECONDS
                why = await server.wait_dead()
            except BackendError as error:
                why = str(error)
            log.error("llama-server for %s ended: %s; starting it again in %.0f s", server.alias, why, delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)
