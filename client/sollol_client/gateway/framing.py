"""How an API writes a stream: what each of them has to say of a job's pieces, its waiting and its end."""

from __future__ import annotations

from typing import Protocol

from ..answer import Answer, Delta
from .refusals import Refusal
from .running import Note


class Framing(Protocol):
    """How an API writes a stream. Each method gives the bytes to send; b"" = nothing.

    Attributes:
        media_type: its Content-Type.
        always_notes: a waiting client is told of its place in line without having asked.
    """

    media_type: str
    always_notes: bool

    def piece(self, piece: Delta) -> bytes:
        """New text."""

    def note(self, note: Note) -> bytes:
        """A place in line."""

    def end(self, answer: Answer) -> bytes:
        """The end of an answer that is whole; its text has been sent in pieces."""

    def failed(self, refusal: Refusal) -> bytes:
        """The end of an answer that is not."""
