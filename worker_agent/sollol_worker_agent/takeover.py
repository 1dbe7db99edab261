"""Takes over an answer that an earlier attempt began: goes on behind what was shown, or says it again, or gives up.

What was shown to a reader stays: the text in the job's events is never taken back.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from sollol_broker.errors import BackendError
from sollol_broker.words import JobKind

from .backends.protocol import CannotContinue, End, Piece, Said, TextLost, Timeouts
from .backends.resuming import (
    refusal,
    refusal_of,
    repeated,
    stopped,
    stops_of,
    tokens_left,
    whole_fields,
)
from .lane import Lane
from .so_far import SoFar

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Takeover:
    """One attempt at an answer, whether something of it has been said before or not.

    Args:
        is_shown: somebody may have read what was said: it must not change.

    Attributes:
        how: "" = from the beginning; else see `Seam`. Known when the first event has come.
    """

    lane: Lane
    job_id: str
    kind: JobKind
    model: str
    request: Mapping[str, Any]
    timeouts: Timeouts
    so_far: SoFar = field(default_factory=SoFar)
    is_shown: bool = True
    how: str = ""

    @property
    def said(self) -> Said:
        """What earlier attempts have said and this one goes on with."""
        return self.so_far.said if self.how else Said()

    async def events(self) -> AsyncGenerator[Piece | End, None]:
        """What is new, then one End, whose fields tell of this attempt alone.

        1. Nothing was said: begin.
        2. Something is missing of it, or a tool may have been called: begin anew if nobody has seen it, else fail.
        3. The text is as long as it may become: end.
        4. Go on behind it, where that is sure to be right.
        5. Otherwise begin anew; if somebody has seen the text, only what repeats it may go on behind it.

        Raises:
            BackendError: the backend's own.
        TextLost: what was shown cannot be gone on with here.
        """
        said = self.so_far.said
        if not said.text and not _has_called(said):  # 1
            async for event in self._begin():
                yield event
            return
        why = refusal(self.kind, self.request) or refusal_of(said)
        if not self.so_far.is_whole or _has_called(said):  # 2
            why = "the beginning of the text is no longer in Redis" if not self.so_far.is_whole else why
            if self.is_shown:
                raise self._lost(why, retryable=False)
            async for event in self._begin():
                yield event
            return
        if not why and tokens_left(self.request, said) == 0:  # 3
            self.how = "complete"
            yield End({"done_reason": "length"})
            return
        if not why:  # 4
            try:
                async for event in self._continued(said):
                    yield event
                return
            except CannotContinue as cannot:
                here = str(cannot)
        else:
            here = ""
        log.info("job %s: begins anew: %s", self.job_id, why or here)
        async for event in self._again(said, why or here, retryable=not why):  # 5
            yield event

    def whole(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The closing fields of the whole answer."""
        return dict(fields) if self.how in ("", "repeated") else whole_fields(fields, self.said)

    async def _begin(self) -> AsyncGenerator[Piece | End, None]:
        ask = self.lane.backend.chat if self.kind is JobKind.CHAT else self.lane.backend.generate
        async with aclosing(ask(self.model, self.request, self.timeouts)) as events:  # type: ignore[type-var]  # generators have aclose
            async for event in events:
                yield event

    async def _continued(self, said: Said) -> AsyncGenerator[Piece | End, None]:
        backend = self.lane.backend
        rest = backend.resume(self.kind, self.model, self.request, said, self.timeouts)
        try:
            async with aclosing(stopped(rest, said.text, stops_of(self.request))) as events:
                async for event in events:
                    if isinstance(event, Piece) and event.thinking and not self.how:
                        raise CannotContinue("the model began to think about it")
                    self.how = "continued"
                    yield event
        except BackendError as error:
            if self.how or error.retryable:
                raise
            # Refused as a longer conversation; the job itself had been taken.
            raise CannotContinue(str(error)) from error

    async def _again(self, said: Said, why: str, *, retryable: bool) -> AsyncGenerator[Piece | End, None]:
        if not self.is_shown:
            async for event in self._begin():
                yield event
            return
        try:
            async with aclosing(repeated(self._begin(), said.text)) as events:
                async for event in events:
                    self.how = "repeated"
                    yield event
        except CannotContinue as differs:
            raise self._lost(f"{why}; {differs}", retryable=retryable) from differs

    def _lost(self, why: str, *, retryable: bool) -> TextLost:
        return TextLost(
            f"job {self.job_id}: its node went away in mid-answer, and the text cannot be continued: {why}",
            retryable=retryable,
            partial=self.so_far.said.text,
        )


def _has_called(said: Said) -> bool:
    return any(piece.tool_calls for piece in said.pieces)
