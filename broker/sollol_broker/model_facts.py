"""What a model file says of the memory it will need: plain values that travel from whoever has the file.

The worker reads them from a GGUF header; the coordinator plans with them, without having the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model file; sizes in bytes, lists with one entry per layer.

    Attributes:
        architecture: llama.cpp's name for the kind of network.
        layer_bytes: weights of each layer.
        input_bytes: token embeddings and what else stays with the head's main memory.
        output_bytes: the output layer. tied_bytes: token embeddings that serve as output layer as well, and are
            needed twice when that layer is on another device than the input; 0 where it has weights of its own.
        kv_heads: heads of the cache; 0 in encoders, which keep none. key_length, value_length: numbers per head.
        window: tokens that a windowed layer looks back; 0 = the model has none. windowed: which layers are.
        embedding_length, feed_forward_length, heads: widths that the compute buffers grow with.
        vocabulary: tokens known. context_tokens: trained with; 0 = it does not say.
    """

    architecture: str
    layer_bytes: tuple[int, ...]
    input_bytes: int
    output_bytes: int
    tied_bytes: int
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    window: int
    windowed: tuple[bool, ...]
    embedding_length: int
    feed_forward_length: int
    heads: int
    vocabulary: int
    context_tokens: int

    @property
    def layers(self) -> int:
        """How many, the output layer not counted."""
        return len(self.layer_bytes)

    @property
    def weight_bytes(self) -> int:
        """All weights, each counted once."""
        return self.input_bytes + sum(self.layer_bytes) + self.output_bytes

    def to_json(self) -> str:
        """As it lies in an advert."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From an advert.

        Raises:
            ValueError: it is not what `to_json` wrote.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or {each.name for each in fields(cls)} - data.keys():
            raise ValueError("these are no model facts")
        # What a newer release says beyond is not for us.
        known = {each.name: data[each.name] for each in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        return cls(**values)
