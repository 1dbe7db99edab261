"""Which models a backend has in memory, since when, and what making room for another costs. No clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .hardware import Hardware
from .priors import IN_MEMORY

# As long as a backend can have served without loading anything.
_NEVER_LOADED_MS = 1e12
# A server needs a moment to find a model that it has in memory; that is no loading. What takes this long is
# one even when we believed the model to be there.
_LEAST_LOAD_MS, _SURE_LOAD_MS = 50.0, 1000.0
_BYTES_PER_MIB = 1024 * 1024


@dataclass(slots=True)
class Residence:
    """The models in memory; times are monotonic seconds.

    Attributes:
        loaded: their names.
    """

    loaded: frozenset[str] = frozenset()
    _since: dict[str, float] = field(default_factory=dict)
    _settled_since: float = -math.inf
    _is_known: bool = False

    def told(self, loaded: frozenset[str], now: float) -> bool:
        """The backend says what is loaded; gives whether something has been unloaded."""
        was_unloaded = bool(self.loaded - loaded)
        if self._is_known and loaded - self.loaded:
            self._settled_since = now
        since = now if self._is_known else -math.inf  # who knows how long it was there before us
        self._since = {name: self._since.get(name, since) for name in loaded}
        self.loaded, self._is_known = loaded, True
        return was_unloaded

    def ran(self, model: str, load_ms: float, began: float, now: float) -> bool:
        """A job has just run on it, which began then; gives whether `load_ms` of that was a real loading.

        What was in memory before may have had to go; until the backend tells, it counts as gone. To believe in a
        model that has gone costs two loadings, to doubt one that is there costs a moment.
        """
        was_cold = self._since.get(model, math.inf) > began
        self._since.setdefault(model, now)
        self.loaded |= {model}
        if load_ms < (_LEAST_LOAD_MS if was_cold else _SURE_LOAD_MS):
            return False
        self.loaded, self._since = frozenset({model}), {model: self._since[model]}
        self._settled_since = max(self._settled_since, began + load_ms / 1000)
        return True

    def settled_ms(self, now: float) -> float:
        """Since the last loading."""
        return max(0.0, min(_NEVER_LOADED_MS, (now - self._settled_since) * 1000))


def reload_ms(size_bytes: int, loaded: Mapping[str, tuple[int, float]], hardware: Hardware | None) -> float:
    """What it costs later that a model had to make room for another.

    1. There is room enough, or nobody knows: nothing.
    2. One other model frees enough: the one that comes back soonest.
    3. Several would have to go: the one that takes longest to come back.

    Args:
        size_bytes: of the model that is to be loaded.
        loaded: size in bytes and load time in ms of each model in memory.
    """
    lacking = size_bytes * IN_MEMORY - _free_bytes(hardware)
    if lacking <= 0 or not loaded:  # 1
        return 0.0
    enough = [load_ms for size, load_ms in loaded.values() if size * IN_MEMORY >= lacking]
    return min(enough) if enough else max(load_ms for _, load_ms in loaded.values())  # 2, 3


def short_mib(size_bytes: int, hardware: Hardware | None) -> int:
    """By how many MiB this machine's memory, that of its GPUs included, is too small for a model; 0 = it has room."""
    if hardware is None or not hardware.ram_total_mib:
        return 0
    shared = any(gpu.shares_ram for gpu in hardware.gpus)
    room_mib = hardware.ram_total_mib + (0 if shared else hardware.vram_total_mib)
    return max(0, math.ceil(size_bytes * IN_MEMORY / _BYTES_PER_MIB) - room_mib)


def _free_bytes(hardware: Hardware | None) -> float:
    if hardware is None:
        return math.inf
    free_mib = hardware.vram_free_mib if hardware.vram_total_mib else hardware.ram_available_mib
    return free_mib * _BYTES_PER_MIB
