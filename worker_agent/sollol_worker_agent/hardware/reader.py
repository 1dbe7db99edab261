"""The whole machine in one reading: asks every reader, and brings their answers together."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil as real_psutil

from sollol_worker_agent.hardware.apple import read_apple
from sollol_worker_agent.hardware.host import HostReader, Psutil
from sollol_worker_agent.hardware.limits import Limits
from sollol_worker_agent.hardware.nvidia import NvidiaReader
from sollol_worker_agent.hardware.readings import Gpu, Hardware
from sollol_worker_agent.hardware.sysfs import SysfsReader


class HardwareReader:
    """Reads what a node advertises about its hardware.

    Args:
        nvidia: who reads NVIDIA GPUs; None builds one with `clock`.
        sysfs_root: where sysfs is mounted.
        proc_root: where /proc is mounted.
        psutil: the psutil module, or what a test puts in its place.
        clock: monotonic seconds.
        system: as platform.system() says.
        machine: as platform.machine() says.
        limits: what the owner keeps back; None keeps nothing back.
    """

    def __init__(
        self,
        *,
        nvidia: NvidiaReader | None = None,
        sysfs_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
        psutil: Psutil = real_psutil,
        clock: Callable[[], float] = time.monotonic,
        system: str = platform.system(),
        machine: str = platform.machine(),
        limits: Limits | None = None,
    ) -> None:
        self._nvidia = nvidia or NvidiaReader(clock=clock)
        self._sysfs = SysfsReader(root=sysfs_root)
        self._host = HostReader(facade=psutil, proc_root=proc_root)
        self._system = system
        self._machine = machine
        self._limits = limits or Limits()

    def read(self) -> Hardware:
        """The hardware as it is now. Never raises: what cannot be read is estimated and marked so.

        Blocks for a few milliseconds, 0.15 s more the first time (gpustat is imported) and 0.1 s more
        for each NVIDIA GPU (gpustat measures the processes on it), so call it in a thread. Not for two
        threads at once.
        """
        host = self._host.read()
        ram = self._limits.cap_ram(host.ram)
        nvidia = self._nvidia.read(ram)
        others = self._sysfs.read(ram) or read_apple(ram, system=self._system, machine=self._machine)
        gpus = self._limits.cap_gpus(worth_offering(number_on(nvidia, others)))
        return Hardware(
            gpus=gpus,
            cpu_model=host.cpu_model,
            cpu_count=host.cpu_count,
            cpu_percent=host.cpu_percent,
            load_1m=host.load_1m,
            ram_total_mib=ram.total_mib,
            ram_available_mib=ram.available_mib,
            is_estimate=host.is_estimate or any(gpu.is_estimate for gpu in gpus),
            unread=self._nvidia.problem if not nvidia and self._sysfs.has_nvidia() else "",
        )


def number_on(first: Sequence[Gpu], others: Sequence[Gpu]) -> list[Gpu]:
    """All GPUs, `first` with the numbers that they have and `others` numbered on from there."""
    start = max((gpu.index for gpu in first), default=-1) + 1
    return [*first, *(replace(gpu, index=start + position) for position, gpu in enumerate(others))]


def worth_offering(gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that an LLM server would use.

    1. Each GPU once, by its uuid.
    2. Beside a GPU with memory of its own, graphics that share the RAM are left out: LLM servers
       ignore them there, and their borrowed memory would hide how little the real GPU has left.
    """
    once = list({gpu.uuid: gpu for gpu in reversed(gpus)}.values())[::-1]  # 1
    own = [gpu for gpu in once if not gpu.shares_ram]
    return own or once  # 2
