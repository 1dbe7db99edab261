"""Puts what was built where workers find it, in a folder per build, with a record of what it was built of."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sollol_worker_agent.llama_binaries import CURRENT, RECORD, builds_directory

from .commands import find

# Enough of the hash to tell builds apart.
_SHOWN = 12


def folder_of(build_hash: str) -> Path:
    """Where a build lies, or will."""
    return builds_directory() / build_hash[:_SHOWN]


def install(programs: Mapping[str, Path], *, build_hash: str, source: str, flags: Sequence[str]) -> Path:
    """Copy the programs, stripped, into the build's folder, all or nothing; gives the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    target = folder_of(build_hash)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".installing-", dir=target.parent) as work:
        unfinished = Path(work) / "build"
        unfinished.mkdir()
        for name, path in programs.items():
            shutil.copy2(path, unfinished / name)
            if (strip := find("strip")) is not None:
                # It only makes the file smaller.
                subprocess.run([strip, unfinished / name], check=False, capture_output=True)  # noqa: S603
        record = {"hash": build_hash, "source": source, "flags": list(flags)}
        (unfinished / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    return target


def make_current(build: Path) -> None:
    """From now on workers that start take this build."""
    link = build.parent / f".{CURRENT}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(build.name)
    link.replace(build.parent / CURRENT)
