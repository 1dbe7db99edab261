"""Apple Silicon: the GPU uses the machine's one memory, and no file tells how much of it."""

from __future__ import annotations

from sollol_worker_agent.hardware.readings import Gpu, Memory, Ram

# macOS lets the GPU hold about two thirds of a small Mac's memory and three quarters of a large one's
# (Metal's recommendedMaxWorkingSetSize); newer systems allow a little more, so this errs on the safe side.
_SMALL_MAC_MIB = 32 * 1024
_SMALL_MAC_SHARE = 2 / 3
_LARGE_MAC_SHARE = 3 / 4


def read_apple(ram: Ram, *, system: str, machine: str) -> tuple[Gpu, ...]:
    """The GPU of an Apple Silicon Mac, its memory estimated from RAM; () on all other machines.

    Args:
        ram: the machine's RAM.
        system: as platform.system() says: "Darwin" on a Mac.
        machine: as platform.machine() says: "arm64" on Apple Silicon.
    """
    if (system, machine) != ("Darwin", "arm64"):
        return ()
    share = _SMALL_MAC_SHARE if ram.total_mib <= _SMALL_MAC_MIB else _LARGE_MAC_SHARE
    memory = Memory.borrowed(int(ram.total_mib * share), ram)
    gpu = Gpu(
        index=0,
        vendor="apple",
        name="Apple Silicon GPU",
        uuid="apple-0",
        memory_total_mib=memory.total_mib,
        memory_used_mib=memory.used_mib,
        memory_free_mib=memory.free_mib,
        utilisation_percent=None,
        temperature_c=None,
        power_w=None,
        source="estimate",
        is_estimate=True,
        shares_ram=True,
    )
    return (gpu,)
