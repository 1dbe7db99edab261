"""How fast a model should run on this hardware, before it has run once. Pure.

All figures here are estimates: memory bandwidths from the makers' data sheets, the rest fitted by eye to
published llama.cpp benchmarks. A single real job outweighs them. Two facts carry the estimate:

- For each token of an answer all weights are read once: time = size / bandwidth.
- A prompt is computed many tokens at a time, so that a token of it takes a small share of that. The share
  depends on how much a chip computes for each byte that it reads.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from .hardware import Gpu, Hardware
from .pace import Expected, Pace

_GB = 1e9
_MIB = 1024 * 1024
# Share of its nominal bandwidth that a chip reaches while it reads weights.
_REACHED = 0.6
# Ms per output token beside the reading of weights: sampling, launching kernels.
_TOKEN_OVERHEAD_MS = 1.0
# The same for a prompt token, when hundreds are computed at once.
_PROMPT_OVERHEAD_MS = 0.02
# A model in memory takes this much more than its file: cache, buffers.
IN_MEMORY = 1.2
# A local SSD, and the start of the process that loads.
_DISK_BYTES_PER_MS = 1_000_000.0
_LOAD_OVERHEAD_MS = 2000.0
# Bytes per parameter of the usual 4-bit files; and of those whose names say otherwise.
_BYTES_PER_PARAMETER = 0.6
_QUANTISED = (
    ("f32", 4.0),
    ("f16", 2.0),
    ("fp16", 2.0),
    ("q8", 1.07),
    ("q6", 0.82),
    ("q5", 0.7),
    ("q3", 0.48),
    ("q2", 0.38),
)
_PARAMETERS = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")
# "30b-a3b": of 30 thousand million parameters 3 are read for each token.
_ACTIVE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b-a(\d+(?:\.\d+)?)b(?![a-z0-9])")
# Of a mixture of experts ("8x7b") each token asks two.
_EXPERTS_ASKED = 2


@dataclass(frozen=True, slots=True)
class Chip:
    """What a processor can do: GB/s, and how many prompt tokens take as long as one output token."""

    gb_per_second: float
    prompt_gain: float


# Generations by how much they compute: without matrix units, with them, with much of them, server chips.
_PLAIN, _MATRIX, _STRONG, _SERVER = 12.0, 32.0, 45.0, 60.0
_BUILT_IN = 8.0
# Looked through from top to bottom, so that "4070 ti super" stands before "4070".
_KNOWN: tuple[tuple[str, Chip], ...] = (
    *(
        (f"{name}", Chip(speed, _SERVER))
        for name, speed in (
            *(("b200", 8000), ("h200", 4800), ("gh200", 4000), ("h100 pcie", 2039), ("h100", 3350)),
            *(("h20", 4000), ("a100", 1555), ("a800", 1555), ("mi300", 5300), ("mi250", 1638)),
            *(("mi210", 1638), ("mi100", 1229), ("l40", 864), ("rtx 6000 ada", 960), ("rtx pro 6000", 1792)),
        )
    ),
    *(
        (name, Chip(speed, _STRONG))
        for name, speed in (
            *(("5090", 1792), ("5080", 960), ("5070 ti", 896), ("5070", 672), ("5060", 448)),
            *(("4090", 1008), ("4080", 717), ("4070 ti super", 672), ("4070", 504), ("4060 ti", 288)),
            *(("4060", 272), ("4050", 192), ("l4", 300), ("gb10", 273), ("thor", 273)),
        )
    ),
    *(
        (name, Chip(speed, _MATRIX))
        for name, speed in (
            *(("3090 ti", 1008), ("3090", 936), ("3080 ti", 912), ("3080", 760), ("3070 ti", 608)),
            *(("3070", 448), ("3060 ti", 448), ("3060", 360), ("3050", 224), ("2080 ti", 616)),
            *(("2080", 448), ("2070", 448), ("2060", 336), ("a6000", 768), ("a5000", 768)),
            *(("a4500", 640), ("a4000", 448), ("a2000", 288), ("a40", 696), ("a30", 933)),
            *(("a10", 600), ("a2", 200), ("t4", 320), ("v100", 900), ("titan rtx", 672), ("orin", 200)),
            *(("9070", 640), ("9060", 320), ("7900", 900), ("7700/7800", 500), ("7800", 624)),
            *(("7700", 432), ("7600", 288), ("a770", 560), ("a750", 512), ("a580", 512)),
            *(("a380", 186), ("a310", 124), ("b580", 456), ("b570", 380)),
        )
    ),
    *(
        (name, Chip(speed, _PLAIN))
        for name, speed in (
            *(("1080 ti", 484), ("1080", 320), ("1070", 256), ("1660", 192), ("1650", 128)),
            *(("1060", 192), ("1050", 112), ("p100", 732), ("p40", 346), ("m40", 288)),
            *(("6800/6900", 512), ("6900", 512), ("6800", 512), ("6700", 384), ("6600", 224)),
            *(("8050s/8060s", 256), ("xavier", 137)),
        )
    ),
)
# A laptop's chip of the same name reads about so much slower.
_LAPTOP = 0.65


def prior(hardware: Hardware | None, size_bytes: int, name: str) -> Pace:
    """What to expect of a model that has never run here.

    1. Its size is what the backend says, else what its name tells ("llama3.2:3b").
    2. Size or hardware unknown: a small GPU's figures, so that the node is tried, neither shunned nor flooded.
    3. Its weights fill the GPUs, the fastest first; the rest is read by the CPU.

    Args:
        size_bytes: its weights on disk; 0 = not known.
    """
    size = size_bytes or size_by_name(name)  # 1
    load_ms = _LOAD_OVERHEAD_MS + size / _DISK_BYTES_PER_MS if size else Expected().load_ms
    if hardware is None or not size:  # 2
        return Pace(Expected(load_ms=load_ms))
    output_ms = prompt_ms = 0.0
    read_share = _active_share(name)
    for part, chip in _spread(size * IN_MEMORY, hardware):  # 3
        read_ms = part / IN_MEMORY * read_share / (chip.gb_per_second * _REACHED * _GB) * 1000
        output_ms += read_ms
        prompt_ms += read_ms / chip.prompt_gain
    return Pace(Expected(prompt_ms + _PROMPT_OVERHEAD_MS, output_ms + _TOKEN_OVERHEAD_MS, load_ms))


def size_by_name(name: str) -> int:
    """The bytes of a model's weights, by the number of parameters in its name; 0 when it tells none."""
    lower = name.lower()
    found = _PARAMETERS.search(lower)
    if found is None:
        return 0
    experts, count, unit = found.groups()
    parameters = float(count) * (1e9 if unit == "b" else 1e6) * int(experts or 1)
    each = next((size for mark, size in _QUANTISED if mark in lower), _BYTES_PER_PARAMETER)
    return round(parameters * each)


def chip_of(gpu: Gpu) -> Chip:
    """What a GPU can do: by its name, else by its maker and memory."""
    return _chip(gpu.name.lower(), gpu.vendor, gpu.memory_total_mib / 1024, gpu.shares_ram)


@lru_cache(maxsize=64)
def _chip(name: str, vendor: str, gib: float, shares_ram: bool) -> Chip:
    for part, chip in _KNOWN:
        if re.search(rf"(?<![a-z0-9]){re.escape(part)}(?![0-9])", name):
            share = _LAPTOP if "laptop" in name or "mobile" in name else 1.0
            return Chip(chip.gb_per_second * share, chip.prompt_gain)
    if vendor == "apple":
        # The larger the memory, the larger the chip: plain, Pro, Max, Ultra.
        return Chip(100.0 if gib < 16 else 200.0 if gib < 30 else 400.0 if gib < 100 else 800.0, _PLAIN)
    if shares_ram:
        return Chip(60.0, _BUILT_IN)
    speed = 150.0 if gib < 6 else 300.0 if gib < 11 else 450.0 if gib < 20 else 800.0 if gib < 40 else 1500.0
    return Chip(speed, _SERVER if gib >= 40 else _MATRIX if vendor == "nvidia" else _PLAIN)


def cpu_chip(cpu_count: int) -> Chip:
    """What a CPU can do: two to a dozen memory channels, of which more cores reach more."""
    return Chip(min(max(5.0 * cpu_count, 20.0), 60.0) / _REACHED, _BUILT_IN)


def _spread(size: float, hardware: Hardware) -> list[tuple[float, Chip]]:
    """How many bytes lie on which chip."""
    spread: list[tuple[float, Chip]] = []
    for gpu in sorted(hardware.gpus, key=lambda gpu: -chip_of(gpu).gb_per_second):
        # A GPU that hides its memory has some all the same.
        hides = gpu.is_estimate and not gpu.memory_total_mib
        part = min(size, math.inf if hides else gpu.memory_total_mib * _MIB)
        if part > 0:
            spread.append((part, chip_of(gpu)))
            size -= part
    return [*spread, (size, cpu_chip(hardware.cpu_count))]


def _active_share(name: str) -> float:
    """The share of the weights that is read for each token."""
    lower = name.lower()
    if active := _ACTIVE.search(lower):
        return min(1.0, float(active[2]) / float(active[1])) if float(active[1]) > 0 else 1.0
    found = _PARAMETERS.search(lower)
    experts = int(found[1] or 1) if found else 1
    return min(1.0, _EXPERTS_ASKED / experts) if experts > 1 else 1.0
