"""What a node's owner keeps back: a cap on the memory that is advertised. Pure rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sollol_worker_agent.hardware.readings import Gpu, Memory, Ram


@dataclass(frozen=True, slots=True)
class Limits:
    """The most memory that a node may advertise.

    Attributes:
        vram_mib: MiB over all GPUs together; None means no cap, 0 that no GPU memory is offered.
        ram_mib: MiB of RAM; None means no cap.

    Raises:
        ValueError: a cap is negative.
    """

    vram_mib: int | None = None
    ram_mib: int | None = None

    def __post_init__(self) -> None:
        for name, cap in (("vram_mib", self.vram_mib), ("ram_mib", self.ram_mib)):
            if cap is not None and cap < 0:
                raise ValueError(f"{name} is {cap}; give a number of MiB from 0 up, or leave it out")

    def cap_ram(self, ram: Ram) -> Ram:
        """RAM under the cap. What is in use is mostly not the LLM server's, so it does not eat up the cap."""
        if self.ram_mib is None:
            return ram
        return Ram(min(ram.total_mib, self.ram_mib), min(ram.available_mib, self.ram_mib))

    def cap_gpus(self, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
        """GPUs under the cap. The first are filled first, so that a large model still fits on one of them;
        memory in use counts against the cap, for on a GPU it is mostly the LLM server's own models.
        """
        if self.vram_mib is None:
            return tuple(gpus)
        left = self.vram_mib
        capped: list[Gpu] = []
        for gpu in gpus:
            memory = Memory.own(min(gpu.memory_total_mib, left), gpu.memory_used_mib)
            left -= memory.total_mib
            capped.append(
                replace(
                    gpu,
                    memory_total_mib=memory.total_mib,
                    memory_used_mib=memory.used_mib,
                    memory_free_mib=min(memory.free_mib, gpu.memory_free_mib),
                )
            )
        return tuple(capped)
