"""From sources to a build that works and that workers find."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from sollol_worker_agent.llama_binaries import LlamaBinary, builds_directory

from . import build as building
from .build import RPC_SERVER, SERVER
from .install import folder_of, install, make_current
from .smoke import try_out
from .source import Source, fetch, fetched


def sources_directory() -> Path:
    """Where sources that were fetched lie."""
    return builds_directory() / "source"


def fetched_or_fetch(git_ref: str | None, progress: Callable[[str], None]) -> Source:
    """The sources, fetched unless they are here. Raises SetupError as `fetch` does."""
    return fetched(sources_directory(), git_ref) or fetch(sources_directory(), git_ref, progress)


def set_up(source: Source, flags: Sequence[str], jobs: int, progress: Callable[[str], None]) -> LlamaBinary:
    """Build it unless that was done before, try it out, and have workers use it from now on.

    Blocks for many minutes.

    Raises:
        SetupError: it cannot be built, or does not work here; workers go on with what they had.
    """
    progress(f"reading {source.directory}")
    number = building.build_hash(source, flags)
    target = folder_of(number)
    if not (target / SERVER).is_file():
        work = builds_directory() / f"work-{target.name}"
        programs = building.build(source, flags, work=work, jobs=jobs, progress=progress)
        install(programs, build_hash=number, source=source.name, flags=flags)
        shutil.rmtree(work, ignore_errors=True)
    progress("trying it out")
    server = LlamaBinary(target / SERVER)
    asyncio.run(try_out(server, LlamaBinary(target / RPC_SERVER)))
    make_current(target)
    return server
