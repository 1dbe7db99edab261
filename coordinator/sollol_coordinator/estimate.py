"""How much memory a model needs on each device: a pure sum over what its file says.

The parts are those of llama.cpp: weights are exact; the cache is exact for plain and windowed attention (other
kinds count as plain, which is more); the compute buffer is an upper bound. A correction learned from what a
llama-server reported for its own load may scale the last one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sollol_broker.model_facts import ModelFacts

_MIB = 1024 * 1024
# Bytes per number of the cache types that llama-server takes.
CACHE_TYPES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
# Cells of the cache come in blocks.
_CELLS = 256
# The program itself, by kind of device: main memory of the process; driver context of a GPU.
_PROCESS_MIB = 24.0
_BYTES_PER_WORD = 110.0
_CONTEXT_MIB = {"cpu": 0.0, "cuda": 450.0, "rocm": 450.0, "vulkan": 250.0, "metal": 100.0, "sycl": 400.0}


@dataclass(frozen=True, slots=True)
class Load:
    """How a model is to be loaded.

    Attributes:
        context_tokens: for all slots together. slots: requests at once.
        batch_tokens: that are computed at once (llama-server's --ubatch-size).
        key_type, value_type: of the cache, one of CACHE_TYPES.
        shares_cache: all slots use one cache (--kv-unified).
        has_flash_attention: without it, all scores of a batch are kept.
        keeps_windows: windowed layers keep the whole context all the same (--swa-full).
    """

    context_tokens: int = 4096
    slots: int = 1
    batch_tokens: int = 512
    key_type: str = "f16"
    value_type: str = "f16"
    shares_cache: bool = False
    has_flash_attention: bool = True
    keeps_windows: bool = False

    def __post_init__(self) -> None:
        for kind in (self.key_type, self.value_type):
            if kind not in CACHE_TYPES:
                raise ValueError(f"{kind} is no type of cache; known are {', '.join(CACHE_TYPES)}")
        if min(self.context_tokens, self.slots, self.batch_tokens) < 1:
            raise ValueError("context, slots and batch are at least 1")


@dataclass(frozen=True, slots=True)
class Correction:
    """What loads of a model have taught: measured to estimated, of the compute buffer, and MiB beyond all parts."""

    compute: float = 1.0
    beyond_mib: float = 0.0


NO_CORRECTION = Correction()


@dataclass(frozen=True, slots=True)
class DeviceNeed:
    """What one device holds; MiB.

    Attributes:
        layers: how many, the output layer counted as one.
    """

    layers: int
    weights_mib: float
    cache_mib: float
    compute_mib: float
    context_mib: float = 0.0

    @property
    def total_mib(self) -> float:
        """All of it."""
        return self.weights_mib + self.cache_mib + self.compute_mib + self.context_mib


@dataclass(frozen=True, slots=True)
class Need:
    """What a model needs when all of it lies on one device; MiB."""

    weights_mib: float
    cache_mib: float
    compute_mib: float
    process_mib: float

    @property
    def total_mib(self) -> float:
        """All of it."""
        return self.weights_mib + self.cache_mib + self.compute_mib + self.process_mib


def cache_bytes(facts: ModelFacts, load: Load) -> list[float]:
    """The cache of each layer: cells x streams x heads x (key + value) numbers.

    1. Slots with caches of their own share the context out evenly; each is a stream.
    2. A windowed layer keeps no more than its window (of every slot that shares a cache) and one batch.
    """
    if load.slots > 1 and not load.shares_cache:  # 1
        cells, streams = _blocks(load.context_tokens // load.slots), load.slots
    else:
        cells, streams = _blocks(load.context_tokens), 1
    sharing = load.slots if streams == 1 else 1
    seen = min(cells, facts.window * sharing + load.batch_tokens)  # 2
    per_head = (
        facts.key_length * CACHE_TYPES[load.key_type] + facts.value_length * CACHE_TYPES[load.value_type]
    )
    return [
        (min(cells, _blocks(seen)) if windowed and not load.keeps_windows else cells)
        * streams
        * heads
        * per_head
        for heads, windowed in zip(facts.kv_heads, facts.windowed, strict=True)
    ]


def compute_bytes(facts: ModelFacts, load: Load) -> float:
    """The compute buffer of each device: activations and masks of a batch, and the scores without flash attention.

    The widths that are alive at once were found from what llama-server reported (b10068): 5 to 7 times the embedding
    beside two feed-forward ones in decoders, 3 beside one in encoders.
    """
    cells = _blocks(load.context_tokens // (1 if load.shares_cache else load.slots))
    masks = cells * load.batch_tokens * 2 * (2 if facts.window and any(facts.windowed) else 1)
    if any(facts.kv_heads):
        width = 2 * facts.feed_forward_length + 7 * facts.embedding_length
    else:
        width = facts.feed_forward_length + 3 * facts.embedding_length
    activations = load.batch_tokens * 4 * width
    scores = 0 if load.has_flash_attention else facts.heads * cells * load.batch_tokens * 4
    return activations + masks + scores


def estimate(facts: ModelFacts, load: Load, correction: Correction = NO_CORRECTION) -> Need:
    """The whole model on one device."""
    logits = facts.vocabulary * 4 * load.slots
    return Need(
        weights_mib=facts.weight_bytes / _MIB,
        cache_mib=sum(cache_bytes(facts, load)) / _MIB,
        compute_mib=(compute_bytes(facts, load) * correction.compute + logits) / _MIB + correction.beyond_mib,
        process_mib=process_mib(facts),
    )


def process_mib(facts: ModelFacts) -> float:
    """Main memory of the server's process besides the model."""
    return _PROCESS_MIB + facts.vocabulary * _BYTES_PER_WORD / _MIB


def split_layers(layers: int, shares: Sequence[float]) -> list[int]:
    """How many of `layers` + 1 (the output layer is the last) each device gets, as llama.cpp's --tensor-split does.

    Layer i goes to the first device d with i / (layers + 1) < the sum of the shares up to d, out of all.
    """
    total = sum(shares)
    ends = [end / total for end in accumulate(shares)]
    counts = [0] * len(shares)
    for layer in range(layers + 1):
        counts[next((at for at, end in enumerate(ends) if layer / (layers + 1) < end), len(ends) - 1)] += 1
    return counts


def needs_of(
    facts: ModelFacts,
    load: Load,
    counts: Sequence[int],
    kinds: Sequence[str] = (),
    correction: Correction = NO_CORRECTION,
) -> list[DeviceNeed]:
    """What each device holds when it gets so many consecutive layers, the output layer counted as the last.

    Args:
        kinds: of the devices, keys of the context overhead ("cpu", "cuda", …); "cpu" where missing.
    """
    caches, first, needs = cache_bytes(facts, load), 0, []
    logits = facts.vocabulary * 4 * load.slots
    for at, count in enumerate(counts):
        last = min(first + count, facts.layers)
        has_output = count > 0 and first + count > facts.layers
        weights = sum(facts.layer_bytes[first:last]) + (facts.output_bytes + facts.tied_bytes) * has_output
        compute = compute_bytes(facts, load) * correction.compute + logits * has_output if count else 0.0
        kind = kinds[at] if at < len(kinds) else "cpu"
        needs.append(
            DeviceNeed(
                layers=count,
                weights_mib=weights / _MIB,
                cache_mib=sum(caches[first:last]) / _MIB,
                compute_mib=compute / _MIB + (correction.beyond_mib if count else 0.0),
                context_mib=_CONTEXT_MIB.get(kind, 0.0) if count else 0.0,
            )
        )
        first += count
    return needs


def head_mib(facts: ModelFacts, load: Load) -> float:
    """Main memory of the head of a group: the process, and what stays with it (token embeddings)."""
    return process_mib(facts) + facts.input_bytes / _MIB + facts.vocabulary * 4 * load.slots / _MIB


def _blocks(cells: float) -> int:
    return max(1, math.ceil(cells / _CELLS)) * _CELLS
