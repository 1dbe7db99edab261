"""An older release of SOLLOL, as far as a fabric can tell: its own code, version and functions, in its own processes.

It is made of a copy of this tree, or of the one that SOLLOL_OLDER_RELEASE names: a check-out of a real older release.
What a test needs to be different is changed in the copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_ROOMS = ("broker", "client", "worker_agent")
VERSION = "0.99.0"

# A worker as `fabric.worker_process` starts it: the copy's code comes first, whatever is installed.
_WORKER = "from sollol_worker_agent.cli import main; main()"
_ASK = """
import sys
from sollol_broker.version import VERSION
from sollol import Client
with Client(sys.argv[1], app="old-app") as client:
    job = client.submit(chat=sys.argv[3], model=sys.argv[2], wait_for_node=True)
    print(VERSION, job.id, flush=True)
    if sys.argv[4] == "wait":
        print(job.result(timeout=60).text, flush=True)
"""


@dataclass(frozen=True, slots=True)
class OlderRelease:
    """A copy of the code in `directory`."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """For a Python that is to run it."""
        return {"PYTHONPATH": ":".join(str(self.directory / room) for room in _ROOMS)}

    def worker(self, url: str, node: str, *more: str) -> list[str]:
        """The command of one of its workers."""
        return [sys.executable, "-c", _WORKER, "--redis", url, "--node", node, "--lease", "1", *more]

    def ask(
        self, environ: Mapping[str, str], url: str, model: str, question: str, *, waits: bool
    ) -> list[str]:
        """What one of its clients says: its version, the job's id and, if it waits, the answer."""
        command = [sys.executable, "-c", _ASK, url, model, question, "wait" if waits else "leave"]
        done = subprocess.run(
            command,
            env={**environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()


def older_release(directory: Path, changes: Mapping[str, tuple[str, str]] | None = None) -> OlderRelease:
    """Copy the code, give it another version and with that another function library.

    Args:
        changes: path of a file in the tree → (old text, new text), besides.
    """
    source = Path(os.environ.get("SOLLOL_OLDER_RELEASE") or _ROOT)
    for room in _ROOMS:
        shutil.copytree(source / room, directory / room, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "broker/sollol_broker/version.py").write_text(f'VERSION = "{VERSION}"\n')
    words = directory / "broker/sollol_broker/lua/_words.lua"
    words.write_text(f"-- {VERSION}\n{words.read_text()}")
    for path, (old, new) in (changes or {}).items():
        file = directory / path
        text = file.read_text()
        assert old in text, f"{path} has no {old!r}: the test's change of it must follow"
        file.write_text(text.replace(old, new))
    return OlderRelease(directory)
