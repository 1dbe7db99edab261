"""NVIDIA GPUs, read through the gpustat package, which asks the driver's NVML library.

Where the driver tells no memory, the rule is (numbers as in `_memory`):

1. A total above zero is taken as it stands.
2. On the chips whose GPU shares the machine's RAM (DGX Spark, Jetson) most of the RAM is estimated.
3. Elsewhere (a card cut into MIG slices, a card whose memory the driver hides) none is promised: RAM
   would be a wild guess there, and a worker that promises memory it lacks fails its jobs.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence

from sollol_worker_agent.hardware.readings import (
    UNKNOWN_MEMORY,
    Gpu,
    Memory,
    Ram,
    as_celsius,
    as_percent,
    as_watts,
)

log = logging.getLogger(__name__)

Answer = Mapping[str, object]

# Seconds before a missing driver is asked for again. Hardware is read every few seconds, a driver is
# installed or reloaded once in a while, and a failing start of NVML can take a second on some systems.
RETRY_SECONDS = 60.0
# Share of RAM that a GPU without memory of its own may use: the rest keeps the system and the agent alive.
UNIFIED_SHARE = 0.9
# Chips whose GPU has no memory of its own, as NVML names them: "NVIDIA GB10", "Orin (nvgpu)", "NVIDIA Thor".
_UNIFIED_CHIPS = re.compile(r"\b(GB10|Thor|Orin|Xavier|Tegra|Jetson)\b", re.IGNORECASE)


def query_gpustat() -> Sequence[Answer]:
    """gpustat's entry for each GPU that answers; a card that fell off the bus is left out.

    gpustat waits 0.1 s per GPU to measure the processes on it, which cannot be switched off.

    Raises:
        Exception: whatever gpustat or NVML raises when there is no driver; NVML's errors have no
            useful root that could be named without importing it.
    """
    # Imported here, for it takes 0.15 s and most nodes of a cluster may have no NVIDIA GPU.
    import gpustat  # type: ignore[import-untyped]  # gpustat ships no types

    found = gpustat.new_query()
    return [{**stat.entry, "driver": found.driver_version} for stat in found if stat.available]


class NvidiaReader:
    """Reads all NVIDIA GPUs of the machine; without a driver there are none.

    Args:
        clock: monotonic seconds.
        query: who is asked; raises when there is no driver.
        retry_seconds: how long a failure is remembered before the driver is asked again.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        query: Callable[[], Sequence[Answer]] = query_gpustat,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._clock = clock
        self._query = query
        self._retry_seconds = retry_seconds
        self._retry_at: float | None = None
        self._reason = ""

    def read(self, ram: Ram) -> tuple[Gpu, ...]:
        """The GPUs as they are now, in the driver's order; () without a driver. Never raises.

        Args:
            ram: the machine's RAM, for chips whose GPU shares it.
        """
        if self._retry_at is not None and self._clock() < self._retry_at:
            return ()
        try:
            gpus = tuple(_gpu(answer, ram) for answer in self._query())
        # Import errors, NVML's own errors, OSError from ctypes: for the node they all mean "no NVIDIA GPU".
        except Exception as error:
            self._remember(error)
            return ()
        self._retry_at = None
        self._reason = ""
        return gpus

    @property
    def problem(self) -> str:
        """Why the last reading found no driver; "" = it found one."""
        return self._reason

    def _remember(self, error: Exception) -> None:
        """Keep away from the driver for a while, and say why when the reason is a new one."""
        self._retry_at = self._clock() + self._retry_seconds
        reason = f"{type(error).__name__}: {error}"
        if reason != self._reason:
            log.info(
                "no NVIDIA GPU: %s", reason, extra={"reason": reason, "retry_seconds": self._retry_seconds}
            )
        self._reason = reason


def _gpu(answer: Answer, ram: Ram) -> Gpu:
    name = str(answer["name"])
    memory, is_estimate, shares_ram = _memory(answer, name, ram)
    return Gpu(
        index=max(_whole(answer.get("index")) or 0, 0),
        vendor="nvidia",
        name=name,
        uuid=str(answer["uuid"]),
        memory_total_mib=memory.total_mib,
        memory_used_mib=memory.used_mib,
        memory_free_mib=memory.free_mib,
        utilisation_percent=as_percent(_whole(answer.get("utilization.gpu"))),
        temperature_c=as_celsius(_whole(answer.get("temperature.gpu"))),
        power_w=as_watts(_whole(answer.get("power.draw"))),
        source="gpustat",
        is_estimate=is_estimate,
        shares_ram=shares_ram,
        driver=str(answer.get("driver") or ""),
    )


def _memory(answer: Answer, name: str, ram: Ram) -> tuple[Memory, bool, bool]:
    """The memory, whether it is an estimate, and whether it is the machine's RAM."""
    total = _whole(answer.get("memory.total"))
    if total:  # 1
        return Memory.own(total, _whole(answer.get("memory.used")) or 0), False, False
    if _UNIFIED_CHIPS.search(name):  # 2
        return Memory.borrowed(int(ram.total_mib * UNIFIED_SHARE), ram), True, True
    return UNKNOWN_MEMORY, True, False  # 3


def _whole(value: object) -> int | None:
    """A number as int; None for what NVML does not support."""
    return int(value) if isinstance(value, (int, float)) else None
