"""How a batch is cut into chunks, and how many of them are under way at once. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Of the bound: paces are means, and a chunk of long words takes more tokens than its characters say.
_AIM = 0.7
# Nothing is known of the model's speed yet: so few texts, or tokens, teach it without keeping anyone waiting for long.
_UNKNOWN_ITEMS, _UNKNOWN_TOKENS = 8, 256
_FEWEST_ITEMS = 2
# Workers that bring less than this share of all that is done are not what chunks are made for.
_MINOR_SHARE = 0.1
# What a server spends on a text beside its tokens: marks at both ends.
_FRAME_TOKENS = 2
# Chunks under way for each slot: one that runs, one that is ready when it ends.
_PER_SLOT = 2
_FEWEST_OPEN, _FEWEST_SINGLE, _MOST_OPEN = 4, 64, 256


@dataclass(frozen=True, slots=True)
class Speed:
    """What one worker adds to a model: its slots, and ms per prompt token with all of them busy."""

    slots: int
    prompt_ms: float


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """How large a chunk may be.

    Attributes:
        most_tokens: so that one call keeps within the bound. most_items, most_bytes: what a job can carry.
    """

    most_tokens: float
    most_items: int = 512
    most_bytes: int = 512 * 1024


def chunk_tokens(speeds: Sequence[Speed], bound_ms: float, *, is_known: bool) -> ChunkLimits:
    """The limits of a chunk that keeps every worker busy for no longer than the bound.

    1. Nobody has run the model yet: little, until its speed is known.
    2. The slowest of the workers that matter decides: of those that together do nine tenths of the work.
    """
    usable = sorted(
        (each for each in speeds if each.slots > 0 and each.prompt_ms > 0), key=lambda s: s.prompt_ms
    )
    if not is_known or not usable:  # 1
        return ChunkLimits(_UNKNOWN_TOKENS, most_items=_UNKNOWN_ITEMS)
    total = sum(each.slots / each.prompt_ms for each in usable)  # 2
    done, slowest = 0.0, usable[0].prompt_ms
    for each in usable:
        if done >= (1 - _MINOR_SHARE) * total:
            break
        done, slowest = done + each.slots / each.prompt_ms, each.prompt_ms
    return ChunkLimits(_AIM * bound_ms / slowest)


def fixed_chunk(count: int) -> ChunkLimits:
    """The limits of a chunk whose size the caller has chosen."""
    return ChunkLimits(math.inf, most_items=count)


def items_for(sizes: Sequence[tuple[int, int]], limits: ChunkLimits, chars_per_token: float) -> int:
    """How many of the next items go into one chunk: at least one, and two where they are short.

    Args:
        sizes: characters and bytes of each.
    """
    tokens = spent = 0.0
    for count, (chars, size) in enumerate(sizes):
        tokens += chars / chars_per_token + _FRAME_TOKENS
        spent += size
        is_long = tokens > max(limits.most_tokens, _UNKNOWN_TOKENS if count < _FEWEST_ITEMS else 0)
        if count >= limits.most_items or (count and (is_long or spent > limits.most_bytes)):
            return count
    return len(sizes)


def window(slots: int, *, is_single: bool = False) -> int:
    """How many chunks are under way at once, where a model's workers have so many slots.

    Args:
        is_single: they have one item each, and may be short.
    """
    fewest = _FEWEST_SINGLE if is_single else _FEWEST_OPEN
    return max(fewest, min(_MOST_OPEN, _PER_SLOT * slots + 2))
