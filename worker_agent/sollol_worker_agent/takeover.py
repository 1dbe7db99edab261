"""Takes over an answer that an earlier attempt began: goes on behind what was shown, or says it again, or gives up.

What was shown to a reader stays: the text in the job's events is never taken back.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
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
        said, is_whole = self.so_far.said, self.so_far.is_whole
        why, here = refusal(self.kind, self.request) or refusal_of(said), ""
        if is_whole and not said.text and not _has_called(said):  # 1
            source = self._begin()
        elif not is_whole or _has_called(said):  # 2
            if self.is_shown:
                lost = why if is_whole else "the beginning of the text is no longer in Redis"
                raise self._lost(lost, retryable=False)
            source = self._begin()
        elif not why and tokens_left(self.request, said) == 0:  # 3
            self.how = "complete"
            yield End({"done_reason": "length"})
            return
        else:
            if not why:  # 4
                try:
                    async with aclosing(self._continued(said)) as events:
                        async for event in events:
                            yield event
                    return
                except CannotContinue as cannot:
                    here = str(cannot)
            log.info("job %s: begins anew: %s", self.job_id, why or here)
            source = self._repeated(said, why or here, not why) if self.is_shown else self._begin()  # 5
        async with aclosing(source) as events:  # type: ignore[type-var]  # generators have aclose
            async for event in events:
                yield event

    def whole(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The closing fields of the whole answer."""
        return dict(fields) if self.how in ("", "repeated") else whole_fields(fields, self.said)

    def _begin(self) -> AsyncIterator[Piece | End]:
        ask = self.lane.backend.chat if self.kind is JobKind.CHAT else self.lane.backend.generate
        return ask(self.model, self.request, self.timeouts)

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

    async def _repeated(self, said: Said, why: str, retryable: bool) -> AsyncGenerator[Piece | End, None]:
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
