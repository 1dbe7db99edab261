"""A Redis whose power can be cut: what its disk had not confirmed is gone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from sollol_broker.embedded import EmbeddedBroker

_SOURCE = Path(__file__).with_name("fsync_watch.c")


@dataclass(slots=True)
class PoweredBroker:
    """An embedded broker with a plug."""

    broker: EmbeddedBroker
    folder: Path

    @property
    def safe_bytes(self) -> int:
        """How much of its append-only file the disk has for sure."""
        note = self._log.with_name(f"{self._log.name}.safe")
        return int(note.read_text() or 0) if note.exists() else 0

    def cut(self, safe: int | None = None) -> int:
        """Pull the plug; gives the bytes that were lost. `broker.start` brings it back.

        Args:
            safe: what the disk had confirmed; None = as much as it has by now.
        """
        self.broker.kill()
        safe = self.safe_bytes if safe is None else safe
        lost = self._log.stat().st_size - safe
        os.truncate(self._log, safe)
        return lost

    @property
    def _log(self) -> Path:
        (found,) = self.folder.glob("appendonlydir/*.incr.aof")
        return found


@contextmanager
def powered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, appendfsync: Literal["always", "everysec"]
) -> Iterator[PoweredBroker]:
    """A started one; its data lies under `folder`."""
    library = folder / "fsync_watch.so"
    compiled = subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert compiled.returncode == 0, f"the compiler comes with: apt-get install gcc\n{compiled.stderr}"
    data = folder / "redis"
    broker = EmbeddedBroker(directory=data, port=0, appendfsync=appendfsync)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    try:
        broker.start()
        yield PoweredBroker(broker, data)
    finally:
        broker.stop()
