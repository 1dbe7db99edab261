"""How much of a batch's chunk a slow worker takes at once, so that its slot is not held beyond the bound. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# A chunk may be off by so much before it is worth a second call.
_TOLERANCE = 1.5
# Of the bound: what is predicted is a mean.
_AIM = 0.7
_FEWEST_TEXTS = 2


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
