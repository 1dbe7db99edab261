"""How a batch is cut into chunks, and how many of them are under way at once. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
# Between a power of two and the next.
_MIDDLE = 1.4
# One chunk of so many has a size that was not the best before.
_AGAIN = 16
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
        most_tokens: so that one call keeps within the bound. most_chars: what one call takes best.
        most_items, most_bytes: what a job can carry.
    """

    most_tokens: float
    most_chars: float = math.inf
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


@dataclass(frozen=True, slots=True)
class SizeSeen:
    """What chunks of about one size took lately: sums of ms and characters."""

    took_ms: float
    chars: float

    @property
    def ms_per_char(self) -> float:
        """What a character costs in a chunk of this size."""
        return self.took_ms / max(1.0, self.chars)


def best_chars(seen: Mapping[int, SizeSeen], turn: int) -> float:
    """The size of the next chunk, in characters, of what sizes took lately; inf = as large as may be.

    1. Nothing is known.
    2. Sizes go by powers of two. The best is the one whose characters cost least.
    3. Its neighbours are tried while they are not known, the larger one first, and now and then again.

    Args:
        seen: by the power of two. turn: counts chunks.
    """
    if not seen:  # 1
        return math.inf
    best = min(seen, key=lambda power: seen[power].ms_per_char)  # 2
    for power, rest in ((best + 1, 0), (best - 1, 1)):  # 3
        is_its_turn = turn % 2 == rest if power not in seen else turn % _AGAIN == rest
        if is_its_turn:
            return _MIDDLE * 2.0**power
    return _MIDDLE * 2.0**best


def fixed_chunk(count: int) -> ChunkLimits:
    """The limits of a chunk whose size the caller has chosen."""
    return ChunkLimits(math.inf, most_items=count)


def items_for(sizes: Sequence[tuple[int, int]], limits: ChunkLimits, chars_per_token: float) -> int:
    """How many of the next items go into one chunk: at least one, and two where they are short.

    Args:
        sizes: characters and bytes of each.
    """
    tokens = spent = read = 0.0
    for count, (chars, size) in enumerate(sizes):
        tokens += chars / chars_per_token + _FRAME_TOKENS
        spent += size
        read += chars
        is_long = tokens > max(limits.most_tokens, _UNKNOWN_TOKENS if count < _FEWEST_ITEMS else 0)
        is_long = is_long or (read > limits.most_chars and count >= _FEWEST_ITEMS)
        if count >= limits.most_items or (count and (is_long or spent > limits.most_bytes)):
            return count
    return len(sizes)


def share_of_the_rest(left: int, slots: int) -> int:
    """How many of the last items one chunk may have, so that no slot idles while another one has all that is left."""
    return max(_FEWEST_ITEMS, math.ceil(left / max(1, slots)))


def window(slots: int, *, is_single: bool = False) -> int:
    """How many chunks are under way at once, where a model's workers have so many slots.

    Args:
        is_single: they have one item each, and may be short.
    """
    fewest = _FEWEST_SINGLE if is_single else _FEWEST_OPEN
    return max(fewest, min(_MOST_OPEN, _PER_SLOT * slots + 2))
