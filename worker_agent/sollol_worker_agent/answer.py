"""What a finished job sends back: Ollama's answer, put together from the pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sollol_broker.vectors import pack_vectors
from sollol_broker.words import JobKind

from .backends.protocol import End, Piece, Ranking, Vectors


class Collector:
    """Gathers the pieces of one answer. Lists are joined once, at the end."""

    def __init__(self, kind: JobKind, model: str) -> None:
        self._kind = kind
        self._model = model
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._tool_calls: list[Mapping[str, Any]] = []
        self._logprobs: list[Mapping[str, Any]] = []

    def add(self, piece: Piece) -> None:
        """Take the next piece in."""
        if piece.text:
            self._texts.append(piece.text)
        if piece.thinking:
            self._thoughts.append(piece.thinking)
        self._tool_calls.extend(piece.tool_calls)
        self._logprobs.extend(piece.logprobs)

    @property
    def text(self) -> str:
        """What has been said so far."""
        return "".join(self._texts)

    def answer(self, end: End) -> dict[str, Any]:
        """The whole answer, in the shape of Ollama's unstreamed one."""
        said = {"thinking": "".join(self._thoughts)} if self._thoughts else {}
        common = {"model": self._model, "created_at": _now(), "done": True, **end.fields}
        if self._logprobs:
            common["logprobs"] = list(self._logprobs)
        if self._kind is JobKind.GENERATE:
            return {**common, "response": self.text, **said}
        message: dict[str, Any] = {"role": "assistant", "content": self.text, **said}
        if self._tool_calls:
            message["tool_calls"] = [dict(call) for call in self._tool_calls]
        return {**common, "message": message}


def embed_answer(model: str, vectors: Vectors) -> dict[str, Any]:
    """Ollama's embed answer; the vectors travel as float32, not as decimal text."""
    return {"model": model, "embeddings": pack_vectors(vectors.vectors), **vectors.fields}


def rerank_answer(model: str, ranking: Ranking) -> dict[str, Any]:
    """What a rerank job gives back; Ollama has no word for it, so it has the field names of the others."""
    results = [{"index": index, "relevance_score": score} for index, score in ranking.results]
    return {"model": model, "results": results, **ranking.fields}


def warm_answer(model: str, took_ns: int) -> dict[str, Any]:
    """Ollama's answer to a request that only loads."""
    return {
        "model": model,
        "created_at": _now(),
        "response": "",
        "done": True,
        "done_reason": "load",
        "total_duration": took_ns,
        "load_duration": took_ns,
    }


def joined(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Several pieces as one entry of the events stream; absent keys are empty, absent `tokens` is 1."""
    data: dict[str, Any] = {}
    if text := "".join(piece.text for piece in pieces):
        data["text"] = text
    if thinking := "".join(piece.thinking for piece in pieces):
        data["thinking"] = thinking
    if calls := [dict(call) for piece in pieces for call in piece.tool_calls]:
        data["tool_calls"] = calls
    if logprobs := [dict(each) for piece in pieces for each in piece.logprobs]:
        data["logprobs"] = logprobs
    if (tokens := sum(piece.tokens for piece in pieces)) != 1:
        data["tokens"] = tokens
    if ids := [each for piece in pieces for each in piece.ids]:
        data["ids"] = ids
    return data


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
