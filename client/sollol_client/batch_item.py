"""One item of a batch with its answer or its error."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from sollol_broker.batch_record import BatchView, Chunk, EndedChunk
from sollol_broker.errors import InvalidJob, JobCancelled, SollolError
from sollol_broker.outcome import Routing, read_outcome
from sollol_broker.words import JobKind

from .answer import Answer, make_answer

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class BatchItem:
    """What became of an item.

    Attributes:
        index: of the input, from 0.
        answer: of a chat or generate item. vector_bytes: of an embed item: float32, little-endian.
        prompt_tokens: of an embed item: about its part of what the server counted for the texts that it embedded with
            it, whose sum is exact; 0 = not counted. An answer has its own count.
        error: why it has neither.
        routing: where it was answered, and how long that took.
    """

    index: int
    answer: Answer | None = None
    vector_bytes: bytes = b""
    prompt_tokens: int = 0
    error: SollolError | None = None
    routing: Routing | None = None

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.error is None

    @property
    def vector(self) -> list[float]:
        """Of an embed item.

        Raises:
            SollolError: the item's error, if it has one.
        """
        if self.error is not None:
            raise self.error
        flat = array("f", self.vector_bytes)
        if sys.byteorder == "big":
            flat.byteswap()
        return flat.tolist()

    @property
    def text(self) -> str:
        """Of a chat or generate item; raises as `vector` does."""
        if self.error is not None:
            raise self.error
        return self.answer.text if self.answer is not None else ""


def items_of(view: BatchView, ended: EndedChunk, data: bytes) -> Iterator[BatchItem]:
    """The items of a chunk, of what it gave."""
    chunk = ended.chunk
    try:
        outcome = read_outcome(view.job_id(ended.sent), ended.state, data)
        if isinstance(outcome, SollolError):
            yield from failed_items(chunk, outcome)
            return
        routing = Routing.from_dict(outcome["routing"])
        if view.kind is not JobKind.EMBED:
            yield BatchItem(chunk.start, answer=make_answer(outcome), routing=routing)
            return
        packed = outcome["answer"]["embeddings"]
        flat, width = packed["f32"], len(packed["f32"]) // chunk.count
        if packed["n"] != chunk.count or width * chunk.count != len(flat) or width % _FLOAT_BYTES:
            raise InvalidJob("")
        tokens = outcome["answer"].get("tokens_each") or [0] * chunk.count
        if len(tokens) != chunk.count or not all(isinstance(each, int) for each in tokens):
            raise InvalidJob("")
    except (InvalidJob, KeyError, TypeError):
        error = InvalidJob(
            f"the answer for items {chunk.start} to {chunk.end - 1} of batch {view.id} is malformed"
        )
        yield from failed_items(chunk, error)
        return
    for i in range(chunk.count):
        vector = flat[i * width : (i + 1) * width]
        yield BatchItem(chunk.start + i, vector_bytes=vector, prompt_tokens=tokens[i], routing=routing)


def failed_items(chunk: Chunk, error: SollolError) -> Iterator[BatchItem]:
    """All items of a chunk with the same error."""
    for index in range(chunk.start, chunk.end):
        yield BatchItem(index, error=error)


def never_run(view: BatchView, chunk: Chunk) -> Iterator[BatchItem]:
    """The items that a batch which ended early has not come to."""
    told = f"batch {view.id} was {view.state.value} before this item was answered"
    return failed_items(chunk, JobCancelled(f"{told}: {view.why}" if view.why else told))
