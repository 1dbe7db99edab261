"""What the tests with other people's clients share."""

from __future__ import annotations

from dataclasses import dataclass


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
