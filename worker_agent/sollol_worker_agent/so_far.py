"""What earlier attempts of a job have said, read from its events. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sollol_broker.codec import unpack
from sollol_broker.envelope import MAX_ANSWER_BYTES
from sollol_broker.outcome import Seam

from .backends.protocol import Piece, Said


@dataclass(frozen=True, slots=True)
class SoFar:
    """What followers of a job have been shown.

    Attributes:
        seams: where attempts went on with the text of earlier ones.
        is_whole: no piece is missing. Long answers lose their oldest ones.
    """

    said: Said = field(default_factory=Said)
    seams: tuple[Seam, ...] = ()
    is_whole: bool = True


def so_far(entries: Iterable[Mapping[bytes, bytes]]) -> SoFar:
    """Put together what the pieces of an events stream say.

    1. A piece of an older attempt behind those of a newer one is a dead attempt's leftover: it does not count.
    2. A piece that does not follow the one before has lost its beginning.
    3. An attempt that begins at 0 has begun anew; else it goes on.
    """
    pieces: list[Piece] = []
    seams: list[Seam] = []
    chars, fence, seq, is_whole = 0, 0, 0, True
    for entry in entries:
        its_fence, its_seq = int(entry[b"f"]), int(entry[b"s"])
        if (its_fence, its_seq) <= (fence, seq):  # 1
            continue
        data = unpack(entry[b"d"], max_bytes=MAX_ANSWER_BYTES)
        at, follows = data.get("at", 0), its_seq == (seq + 1 if its_fence == fence else 1)
        if its_seq == 1 and at == 0:  # 3
            pieces, seams, chars, is_whole = [], [], 0, True
        elif not follows or at != chars:  # 2
            is_whole = False
        fence, seq = its_fence, its_seq
        pieces.append(piece_of(data))
        chars = at + len(pieces[-1].text)
        if "seam" in data:
            seams.append(Seam(**data["seam"]))
    return SoFar(Said(tuple(pieces)), tuple(seams), is_whole)


def piece_of(data: Mapping[str, Any]) -> Piece:
    """A piece as `joined` packed it."""
    return Piece(
        data.get("text", ""),
        data.get("thinking", ""),
        tuple(data.get("tool_calls", ())),
        tuple(data.get("logprobs", ())),
        data.get("tokens", 1),
        tuple(data.get("ids", ())),
    )
