"""The machine around the GPUs: CPU, load and RAM, through psutil.

The limits of this process's own cgroup are left out on purpose: the LLM server usually runs in another
container, so a small limit on the agent says nothing about what the server may use.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

from sollol_worker_agent.hardware.readings import BYTES_PER_MIB, Ram

log = logging.getLogger(__name__)

T = TypeVar("T")

# MiB of RAM assumed where neither psutil nor the C library knows: the least that serves any model.
ASSUMED_RAM_MIB = 4096
# Lines of /proc/cpuinfo that may name the processor: x86, then the boards with an Arm processor.
_MODEL_KEYS = ("model name", "Model", "Hardware", "cpu model")


class VirtualMemory(Protocol):
    """What psutil knows about RAM, in bytes."""

    @property
    def total(self) -> int: ...

    @property
    def available(self) -> int: ...


class Psutil(Protocol):
    """The three functions of psutil that are asked; the module itself is one."""

    def virtual_memory(self) -> VirtualMemory: ...

    def cpu_percent(self, interval: float | None = None) -> float: ...

    def getloadavg(self) -> tuple[float, float, float]: ...


@dataclass(frozen=True, slots=True)
class Host:
    """CPU, load and RAM at one moment; see Hardware for the units."""

    cpu_model: str
    cpu_count: int
    cpu_percent: float
    load_1m: float
    ram: Ram
    is_estimate: bool


def usable_cpus() -> int:
    """Logical CPUs that this process may run on; cpusets and affinity masks are honoured."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


class HostReader:
    """Reads CPU, load and RAM; what cannot be read is estimated, never raised.

    Args:
        facade: psutil, or what a test puts in its place.
        proc_root: where /proc is mounted.
        count_cpus: how many logical CPUs may be used.
    """

    def __init__(
        self,
        *,
        facade: Psutil = psutil,
        proc_root: Path = Path("/proc"),
        count_cpus: Callable[[], int] = usable_cpus,
    ) -> None:
        self._psutil = facade
        self._count_cpus = count_cpus
        self._cpu_model = _cpu_model(proc_root)
        # psutil counts from the last call, so that without this first one the first reading would be 0.
        _ask(facade.cpu_percent)

    def read(self) -> Host:
        """The machine as it is now; takes well under a millisecond."""
        ram = self._ram()
        load = _ask(self._psutil.getloadavg)
        return Host(
            cpu_model=self._cpu_model,
            cpu_count=max(_ask(self._count_cpus) or 1, 1),
            cpu_percent=min(max(_ask(self._psutil.cpu_percent) or 0.0, 0.0), 100.0),
            load_1m=max(load[0], 0.0) if load else 0.0,
            ram=ram or _estimated_ram(),
            is_estimate=ram is None,
        )

    def _ram(self) -> Ram | None:
        memory = _ask(self._psutil.virtual_memory)
        if memory is None or memory.total < BYTES_PER_MIB:
            return None
        available = min(max(memory.available, 0), memory.total)
        return Ram(memory.total // BYTES_PER_MIB, available // BYTES_PER_MIB)


def _ask(question: Callable[[], T]) -> T | None:
    try:
        return question()
    # psutil parses the kernel's texts; on odd kernels OSError, ValueError, KeyError and others were all seen.
    except Exception as error:
        log.debug("the machine does not say", extra={"question": repr(question), "reason": repr(error)})
        return None


def _estimated_ram() -> Ram:
    """What the C library counts, half of it taken to be in use."""
    pages = _ask(lambda: os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // BYTES_PER_MIB)
    total = pages if pages and pages > 0 else ASSUMED_RAM_MIB
    return Ram(total, total // 2)


def _cpu_model(proc_root: Path) -> str:
    """The processor's name from cpuinfo, or what Python knows, or "unknown"."""
    text = _ask(lambda: (proc_root / "cpuinfo").read_text(encoding="utf-8", errors="replace")) or ""
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    named = next((facts[key] for key in _MODEL_KEYS if facts.get(key)), "")
    return " ".join(named.split()) or _ask(platform.processor) or _ask(platform.machine) or "unknown"
