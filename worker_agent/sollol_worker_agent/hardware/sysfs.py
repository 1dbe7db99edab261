"""AMD and Intel GPUs, read from the files that Linux keeps under /sys. No vendor tool is needed.

NVIDIA is left to its driver, and so is every other display: the drivers of virtual machines and of a
server's service processor have no memory for models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from sollol_worker_agent.hardware.pci_names import gpu_name
from sollol_worker_agent.hardware.readings import (
    BYTES_PER_MIB,
    UNKNOWN_MEMORY,
    Gpu,
    Memory,
    Ram,
    as_celsius,
    as_percent,
    as_watts,
)

_AMD = 0x1002
_NVIDIA = 0x10DE
_INTEL = 0x8086
# "card0" is a GPU; "card0-DP-1" is one of its plugs and "renderD128" its second door.
_CARD = re.compile(r"card(\d+)")
# Where Intel's processors keep the graphics that are built in; a card of its own sits behind a bridge.
_INTEL_BUILT_IN = re.compile(r"0000:00:02\.\d")
# MiB. Firmware sets aside up to this much for graphics built into an AMD processor unless its owner
# chooses more; who chooses more wants models there, and then it counts like a card's own memory.
_SMALL_CARVE_OUT_MIB = 4096
# Share of RAM for graphics built into Intel's processors: what Linux lets a GPU take by default.
_BUILT_IN_SHARE = 0.5
# MiB. A window onto a card's memory below this is the old fixed 256 MiB, which tells nothing about its size.
_TELLING_WINDOW_MIB = 1024
# A PCI device has six windows; lines after these belong to its ROM and to its virtual functions.
_PCI_WINDOWS = 6


@dataclass(frozen=True, slots=True)
class _Found:
    """A GPU's memory and how sure it is."""

    memory: Memory
    is_estimate: bool = False
    shares_ram: bool = False


class SysfsReader:
    """Reads the AMD and Intel GPUs of a Linux machine; elsewhere there are none.

    Args:
        root: where sysfs is mounted.
    """

    def __init__(self, *, root: Path = Path("/sys")) -> None:
        self._root = root

    def read(self, ram: Ram) -> tuple[Gpu, ...]:
        """The GPUs as they are now, each once, numbered from 0. Never raises.

        Args:
            ram: the machine's RAM, for graphics that share it.
        """
        by_address: dict[str, Gpu] = {}
        for card in self._cards():
            gpu = self._gpu(card, ram)
            if gpu is not None:
                by_address.setdefault(gpu.uuid, gpu)
        return tuple(replace(gpu, index=index) for index, gpu in enumerate(by_address.values()))

    def has_nvidia(self) -> bool:
        """Whether the kernel shows a card of NVIDIA's, which another reader has to read."""
        return any(_number(card / "device" / "vendor") == _NVIDIA for card in self._cards())

    def _cards(self) -> list[Path]:
        """The cards' folders, in the kernel's order."""
        folder = self._root / "class" / "drm"
        numbered = [(match, path) for path in _children(folder) if (match := _CARD.fullmatch(path.name))]
        return [path for match, path in sorted(numbered, key=lambda pair: int(pair[0][1]))]

    def _gpu(self, card: Path, ram: Ram) -> Gpu | None:
        device = card / "device"
        vendor = _number(device / "vendor")
        facts = _facts(device / "uevent")
        address = facts.get("PCI_SLOT_NAME", "")
        if vendor == _AMD:
            maker, found = "amd", _amd_memory(device, ram)
        elif vendor == _INTEL:
            maker, found = "intel", self._intel_memory(card, address, ram)
        else:
            return None
        if found is None:
            return None
        return Gpu(
            index=0,
            vendor=maker,
            name=_text(device / "product_name") or gpu_name(facts.get("PCI_ID", f"{vendor:04x}")),
            uuid=address or card.name,
            memory_total_mib=found.memory.total_mib,
            memory_used_mib=found.memory.used_mib,
            memory_free_mib=found.memory.free_mib,
            utilisation_percent=as_percent(_number(device / "gpu_busy_percent")),
            temperature_c=as_celsius(_scaled(_sensor(device, "temp1_input", "temp2_input"), 1000)),
            power_w=as_watts(_watts(_sensor(device, "power1_average", "power1_input"))),
            source="sysfs",
            is_estimate=found.is_estimate,
            shares_ram=found.shares_ram,
        )

    def _intel_memory(self, card: Path, address: str, ram: Ram) -> _Found:
        """Where Intel's drivers tell it:

        1. i915 with Intel's own additions: total and free beside the card.
        2. xe: the total for each tile; what is used only for root, in debugfs.
        3. Built into the processor: a share of RAM.
        4. A card of its own with the plain i915: the window onto its memory is as large as the memory,
           if the machine's firmware lets it be ("resizable BAR").
        """
        device = card / "device"
        total, free = _mib(card / "lmem_total_bytes"), _mib(card / "lmem_avail_bytes")
        if total:  # 1
            return _Found(Memory.own(total, total - (total if free is None else free)), free is None)
        total = sum(_mib(tile / "physical_vram_size_bytes") or 0 for tile in _tiles(device))
        if total:  # 2
            used = self._debugfs_used_mib(address)
            return _Found(Memory.own(total, used or 0), is_estimate=used is None)
        if not address or _INTEL_BUILT_IN.fullmatch(address):  # 3
            share = Memory.borrowed(int(ram.total_mib * _BUILT_IN_SHARE), ram)
            return _Found(share, is_estimate=True, shares_ram=True)
        window = _largest_window_mib(device / "resource")  # 4
        if window < _TELLING_WINDOW_MIB:
            return _Found(UNKNOWN_MEMORY, is_estimate=True)
        return _Found(Memory.own(window, 0), is_estimate=True)

    def _debugfs_used_mib(self, address: str) -> int | None:
        """Memory in use on all tiles, by xe's own account; None when debugfs is closed to us."""
        if not address:
            return None
        used = [
            int(match[1])
            for tile in _tiles(self._root / "kernel" / "debug" / "dri" / address)
            if (match := re.search(r"^\s*usage:\s*(\d{1,18})\s*$", _text(tile / "vram_mm"), re.MULTILINE))
        ]
        return sum(used) // BYTES_PER_MIB if used else None


def _amd_memory(device: Path, ram: Ram) -> _Found | None:
    """amdgpu's account; None under the old driver, which keeps none and runs no models.

    Graphics built into the processor use RAM (GTT) beside the little that the firmware set aside.
    """
    total = _mib(device / "mem_info_vram_total")
    if not total:
        return None
    vram = Memory.own(total, _mib(device / "mem_info_vram_used") or 0)
    if total > _SMALL_CARVE_OUT_MIB or _is_amd_card(device):
        return _Found(vram)
    gtt = Memory.own(_mib(device / "mem_info_gtt_total") or 0, _mib(device / "mem_info_gtt_used") or 0)
    free = min(gtt.free_mib, ram.available_mib)
    borrowed = Memory.borrowed(gtt.total_mib, Ram(ram.total_mib, free))
    return _Found(vram + borrowed, is_estimate=True, shares_ram=True)


def _is_amd_card(device: Path) -> bool:
    """Whether it is a card of its own: amdgpu shows these two files for such cards alone."""
    return bool(_text(device / "mem_info_vram_vendor") or _text(device / "mem_busy_percent"))


def _tiles(folder: Path) -> list[Path]:
    return [path for path in _children(folder) if re.fullmatch(r"tile\d+", path.name)]


def _sensor(device: Path, *names: str) -> int | None:
    """The first of these readings that a sensor of the device gives."""
    monitors = _children(device / "hwmon")
    readings = (_number(monitor / name) for name in names for monitor in monitors)
    return next((reading for reading in readings if reading is not None), None)


def _largest_window_mib(resource: Path) -> int:
    sizes = [0]
    for line in _text(resource).splitlines()[:_PCI_WINDOWS]:
        words = [_parsed(word) for word in line.split()]
        if len(words) == 3 and words[0] is not None and words[1] is not None:
            sizes.append(words[1] - words[0] + 1)
    return max(sizes) // BYTES_PER_MIB


def _facts(uevent: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in _text(uevent).splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    """A file's text without its last line break; "" when it is not there or must not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    # ValueError: a card that is unplugged while we look has left names with odd bytes behind.
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int | None:
    return _parsed(_text(path))


def _parsed(text: str) -> int | None:
    """A decimal or 0x number; None for all else."""
    try:
        return int(text, 0)
    except ValueError:
        return None


def _mib(path: Path) -> int | None:
    return _scaled(_number(path), BYTES_PER_MIB)


def _scaled(value: int | None, divisor: int) -> int | None:
    return None if value is None else value // divisor


def _watts(microwatts: int | None) -> float | None:
    # A number too large for a float is no reading of any sensor.
    return None if microwatts is None or microwatts.bit_length() > 63 else round(microwatts / 1e6, 1)
