"""What the tests with other people's clients share."""

from __future__ import annotations

from dataclasses import dataclass

# Each answer is made anew: an answer that is kept would come in one piece.
UNCACHED = {"X-Sollol-Cache": "false"}


@dataclass(frozen=True, slots=True)
class Door:
    """Where a client is pointed at.

    Attributes:
        url: without "/v1". chat, embed: models there. is_ours: it is the gateway.
    """

    url: str
    embed_url: str
    is_ours: bool
    chat: str = "smollm2"
    embed: str = "toy-embed"
