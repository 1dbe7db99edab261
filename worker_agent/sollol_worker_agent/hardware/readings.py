"""What a node's hardware looks like at one moment: plain values, checked and in fixed units.

Memory is in MiB, temperature in degrees Celsius, power in watts, shares in percent. How the numbers
are come by stands in the readers beside this file; nothing here touches the machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

BYTES_PER_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ram:
    """The memory of the machine itself, in MiB.

    Attributes:
        total_mib: what the operating system manages.
        available_mib: what a new program could get without swapping.
    """

    total_mib: int
    available_mib: int


@dataclass(frozen=True, slots=True)
class Memory:
    """A GPU's memory in MiB; used and free never exceed the total, whatever a driver says."""

    total_mib: int
    used_mib: int
    free_mib: int

    @classmethod
    def own(cls, total_mib: int, used_mib: int) -> Memory:
        """Memory soldered to the GPU, of which `used_mib` is taken."""
        total = max(total_mib, 0)
        used = min(max(used_mib, 0), total)
        return cls(total, used, total - used)

    @classmethod
    def borrowed(cls, total_mib: int, ram: Ram) -> Memory:
        """Memory that the GPU takes from RAM: no more of it is free than of the RAM itself."""
        total = min(max(total_mib, 0), max(ram.total_mib, 0))
        free = min(total, max(ram.available_mib, 0))
        return cls(total, total - free, free)

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            self.total_mib + other.total_mib, self.used_mib + other.used_mib, self.free_mib + other.free_mib
        )


# A GPU that is there, but of whose memory nobody knows anything: it promises none.
UNKNOWN_MEMORY = Memory(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as it is now.

    Attributes:
        index: its number on this node; for NVIDIA the driver's own.
        vendor: "nvidia", "amd", "intel" or "apple".
        name: the model, as the driver or the PCI id tells it.
        uuid: the same after a restart: the driver's UUID, or the PCI address.
        memory_total_mib: memory that models may use; 0 when it is unknown.
        memory_used_mib: of it taken, by whomever.
        memory_free_mib: of it free; used and free never exceed the total.
        utilisation_percent: 0 to 100; None when the GPU does not say.
        temperature_c: degrees Celsius; None when the GPU does not say.
        power_w: watts drawn now; None when the GPU does not say.
        source: who said so: "gpustat", "sysfs" or "estimate".
        is_estimate: whether the memory figures are guessed rather than read.
        shares_ram: whether that memory is the machine's RAM, so that the two must not be added up.
        driver: the driver's release; "" when it is not known.
    """

    index: int
    vendor: str
    name: str
    uuid: str
    memory_total_mib: int
    memory_used_mib: int
    memory_free_mib: int
    utilisation_percent: int | None
    temperature_c: int | None
    power_w: float | None
    source: str
    is_estimate: bool
    shares_ram: bool = False
    driver: str = ""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Everything that a node advertises about its hardware, at one moment.

    Attributes:
        gpus: NVIDIA first, then the others; empty on a machine that computes on its CPU alone.
        cpu_model: as the operating system names it; "unknown" when it does not.
        cpu_count: logical CPUs that this process may use, at least 1.
        cpu_percent: 0 to 100 over all CPUs, since the last reading.
        load_1m: processes running or waiting, averaged over one minute.
        ram_total_mib: RAM, in MiB.
        ram_available_mib: RAM that a new program could get without swapping, in MiB.
        is_estimate: whether any memory figure, of a GPU or of the RAM, is guessed rather than read.
        unread: why an NVIDIA GPU that is in the machine could not be read; "" = all were.
    """

    gpus: tuple[Gpu, ...]
    cpu_model: str
    cpu_count: int
    cpu_percent: float
    load_1m: float
    ram_total_mib: int
    ram_available_mib: int
    is_estimate: bool
    unread: str = ""

    @property
    def vram_total_mib(self) -> int:
        """Memory of all GPUs together, in MiB."""
        return sum(gpu.memory_total_mib for gpu in self.gpus)

    @property
    def vram_free_mib(self) -> int:
        """Free memory of all GPUs together, in MiB."""
        return sum(gpu.memory_free_mib for gpu in self.gpus)

    def as_dict(self) -> dict[str, object]:
        """The same as plain data that JSON can carry: all fields, and the two sums."""
        plain: dict[str, object] = asdict(self)
        plain["gpus"] = [asdict(gpu) for gpu in self.gpus]
        plain["vram_total_mib"] = self.vram_total_mib
        plain["vram_free_mib"] = self.vram_free_mib
        return plain


def as_percent(value: int | None) -> int | None:
    """A share from 0 to 100; None stays None."""
    return None if value is None else min(max(value, 0), 100)


def as_celsius(value: int | None) -> int | None:
    """Whole degrees, none below zero (a GPU that says so has a broken sensor); None stays None."""
    return None if value is None else max(value, 0)


def as_watts(value: float | None) -> float | None:
    """Watts, none below zero; None stays None."""
    return None if value is None else max(float(value), 0.0)
