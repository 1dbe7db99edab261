"""The chunks of a stream in Ollama's shape. Pure but for the clock."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sollol_broker.words import JobKind
from sollol_client import Answer, Delta

from ..routing_dict import with_routing

# What the pieces have said already.
_SAID = ("thinking", "tool_calls", "logprobs")


def piece_chunk(kind: JobKind, model: str, piece: Delta) -> dict[str, Any]:
    """New text."""
    said: dict[str, Any] = {"thinking": piece.thinking} if piece.thinking else {}
    if piece.tool_calls and kind is JobKind.CHAT:
        said["tool_calls"] = piece.tool_calls
    chunk = {**_begun(kind, model, str(piece), said), "done": False}
    if piece.logprobs:
        chunk["logprobs"] = piece.logprobs
    return chunk


def end_chunk(kind: JobKind, answer: Answer) -> dict[str, Any]:
    """The last one: no text, why it ended, what it took, and "_sollol_routing"."""
    whole = with_routing(answer)
    closing = {
        name: value
        for name, value in whole.items()
        if name not in ("message", "response", "created_at", *_SAID)
    }
    return {**_begun(kind, str(answer.get("model", "")), "", {}), **closing, "done": True}


def _begun(kind: JobKind, model: str, text: str, said: dict[str, Any]) -> dict[str, Any]:
    begun = {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}
    if kind is JobKind.CHAT:
        return {**begun, "message": {"role": "assistant", "content": text, **said}}
    return {**begun, "response": text, **said}
