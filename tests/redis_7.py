"""Debian's Redis 7.0, the oldest server that we promise to work with; Valkey comes with the tests' packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def redis_7_on_path(folder: Path) -> Iterator[None]:
    """Let `find_server("redis")` find it.

    Debian's package redis-tools holds the whole server under another name; redis-server would start a service, too.
    """
    if not (program := shutil.which("redis-server")):
        program = shutil.which("redis-check-rdb")
        assert program, (
            "Redis 7 is not installed; it comes with: apt-get install redis-tools (or redis-server)"
        )
    (folder / "redis-server").symlink_to(Path(program).resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield
