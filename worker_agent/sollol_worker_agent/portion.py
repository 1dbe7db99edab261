"""Of a batch's chunk: how much a slow worker takes at once, so that its slot is not held beyond the bound; and which
part of its tokens each text has. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# A chunk may be off by so much before it is worth a second call.
_TOLERANCE = 1.5
# Of the bound: what is predicted is a mean.
_AIM = 0.7
_FEWEST_TEXTS = 2
# What the marks at both ends of a text cost beside its own characters, as if they were such.
_FRAME_CHARS = 8


def bound_ms(metadata: Mapping[str, Any]) -> float:
    """How long a call for this job should take at most; 0 = nobody minds."""
    bound = metadata.get("bound_ms")
    return (
        float(bound) if isinstance(bound, int | float) and not isinstance(bound, bool) and bound > 0 else 0.0
    )


def first_texts(texts: Sequence[str], *, predicted_ms: float, bound: float) -> int:
    """How many of the texts to embed now; the others become a chunk again, for whoever is free.

    Args:
        predicted_ms: for all of them, here.
    """
    if bound <= 0 or predicted_ms <= _TOLERANCE * bound or len(texts) <= _FEWEST_TEXTS:
        return len(texts)
    left = sum(map(len, texts)) * _AIM * bound / predicted_ms
    for count, text in enumerate(texts):
        left -= len(text)
        if left < 0:
            return max(_FEWEST_TEXTS, count)
    return len(texts)


def shares(tokens: int, texts: Sequence[str]) -> list[int]:
    """Of the tokens that a server counted for all texts together, about how many each has; in all exactly those."""
    weights = [len(text) + _FRAME_CHARS for text in texts]
    found, weighed, told, total = [], 0, 0, sum(weights)
    for weight in weights:
        weighed += weight
        found.append(tokens * weighed // total - told)
        told += found[-1]
    return found
