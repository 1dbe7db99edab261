"""What this machine could bring into a group: its llama.cpp, the devices that it uses, and the memory left on them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sollol_broker.errors import BackendError

from ..hardware import Hardware
from ..llama_binaries import LlamaBinary, find_llama_server
from .server import RpcServer

_LIST_SECONDS = 20.0
_DEVICE = re.compile(r"^\s+([A-Za-z]+)(\d+): .*\((\d+) MiB, (\d+) MiB free\)", re.M)
# What llama.cpp calls its devices, and how the planner calls their kind.
_KINDS = {
    "cuda": "cuda",
    "rocm": "rocm",
    "hip": "rocm",
    "vulkan": "vulkan",
    "metal": "metal",
    "mtl": "metal",
    "sycl": "sycl",
}


@dataclass(frozen=True, slots=True)
class LlamaDevice:
    """A GPU as llama.cpp names it; memory in MiB."""

    name: str
    kind: str
    free_mib: float


@dataclass(frozen=True, slots=True)
class LlamaBuild:
    """The llama.cpp of this machine.

    Attributes:
        build: such as "b10068 (571d0d5)"; "" = there is none.
        rpc_version: protocol of its rpc-server; None = there is none, or it does not run here.
    """

    build: str = ""
    rpc_version: tuple[int, int, int] | None = None


async def find_build() -> LlamaBuild:
    """Look for it, and start its rpc-server once to hear which protocol it speaks."""
    try:
        build = find_llama_server().build()
    except BackendError:
        return LlamaBuild()
    with tempfile.TemporaryDirectory(prefix="sollol-rpc-") as directory:
        server = RpcServer(log_directory=Path(directory), caches=False)
        try:
            report = await server.start()
        except BackendError:
            return LlamaBuild(build)
        finally:
            await server.stop()
    return LlamaBuild(build, report.version)


def list_devices(binary: LlamaBinary) -> list[LlamaDevice]:
    """The GPUs that llama-server would use; blocks for about a second."""
    try:
        said = subprocess.run(  # noqa: S603  # a program that was found on this machine
            [binary.path, "--list-devices"],
            env=binary.full_environment(),
            capture_output=True,
            timeout=_LIST_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_devices((said.stdout + said.stderr).decode(errors="replace"))


def parse_devices(said: str) -> list[LlamaDevice]:
    """Read what --list-devices prints."""
    return [
        LlamaDevice(f"{kind}{number}", _KINDS[kind.lower()], float(free))
        for kind, number, _, free in _DEVICE.findall(said)
        if kind.lower() in _KINDS
    ]


def capped(devices: Sequence[LlamaDevice], hardware: Hardware) -> list[LlamaDevice]:
    """The devices with no more memory than the node advertises, whose owner may keep some back."""
    left, out = float(hardware.vram_free_mib), []
    for device in devices if hardware.gpus else ():
        free = min(device.free_mib, left)
        left -= free
        out.append(LlamaDevice(device.name, device.kind, free))
    return out
