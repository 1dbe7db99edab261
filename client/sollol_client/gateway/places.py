"""Streams that are gone on with: each piece names its place, and what a caller has seen is not sent again."""

from __future__ import annotations

from collections.abc import Sequence

from sollol_broker.errors import InvalidJob

from ..answer import Answer, Delta
from ..follow import check_entry_id, entry_order
from .framing import Framing
from .refusals import Refusal
from .running import Note, Running

# Of how many choices a stream names the places: each event carries them all.
MOST_PLACES = 8
_BEGINNING = "0-0"


def places_of(last: str, number: int) -> tuple[str, str]:
    """From a Last-Event-ID, `JOB/ENTRY` of each choice with commas between: the job of a choice, and its entry.

    Raises:
        InvalidJob: it is none, or has no such choice.
    """
    parts = last.split(",") if last.count(",") < MOST_PLACES else []
    job_id, slash, entry = (parts[number] if number < len(parts) else "").partition("/")
    try:
        if not (job_id and slash and entry):
            raise InvalidJob("it names no place")
        check_entry_id(entry)
    except InvalidJob:
        raise InvalidJob(
            "Last-Event-ID: JOB/ENTRY is needed, as the stream gave it", field="last-event-id"
        ) from None
    return job_id, entry


class Placed:
    """The framing of one choice, for a caller that may come back or has.

    It is given all pieces from the beginning, so that events count on as before; those that its caller has seen are
    left out of what it gives.

    Args:
        runnings: of all choices of the stream. entries: the last one sent of each, shared by their framings.
        index: which of them this is.
    """

    def __init__(self, framing: Framing, runnings: Sequence[Running], entries: list[str], index: int) -> None:
        self.media_type = framing.media_type
        self.always_notes = framing.always_notes
        self._framing = framing
        self._runnings = runnings
        self._entries = entries
        self._index = index
        self._names = framing.media_type == "text/event-stream" and len(runnings) <= MOST_PLACES

    def piece(self, piece: Delta) -> bytes:
        """See Framing."""
        sent = self._framing.piece(piece)
        if not piece.entry_id:
            return sent
        if entry_order(piece.entry_id) <= entry_order(self._runnings[self._index].after or _BEGINNING):
            return b""
        self._entries[self._index] = piece.entry_id
        if not self._names:
            return sent
        places = zip(self._runnings, self._entries, strict=True)
        return _called(",".join(f"{running.id}/{entry}" for running, entry in places), sent)

    def note(self, note: Note) -> bytes:
        """See Framing."""
        return self._framing.note(note)

    def end(self, answer: Answer) -> bytes:
        """See Framing."""
        return self._framing.end(answer)

    def failed(self, refusal: Refusal) -> bytes:
        """See Framing."""
        return self._framing.failed(refusal)


def placed(framings: Sequence[Framing], runnings: Sequence[Running]) -> list[Framing]:
    """The framings of a stream's choices, as their caller wants them: one that cannot come back needs no places."""
    if not all(running.is_detached for running in runnings):
        return list(framings)
    entries = [running.after or _BEGINNING for running in runnings]
    return [Placed(framing, runnings, entries, index) for index, framing in enumerate(framings)]


def _called(event_id: str, events: bytes) -> bytes:
    """Some events, the last of them with an id: whoever has that has them all."""
    before, gap, last = events.removesuffix(b"\n\n").rpartition(b"\n\n")
    return before + gap + b"id: " + event_id.encode() + b"\n" + last + b"\n\n" if events else b""
