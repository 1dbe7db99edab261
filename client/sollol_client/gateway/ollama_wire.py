"""Ollama's API in and out: from a body to what is asked of the fabric, from pieces to lines. Pure but for the clock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sollol_broker.words import JobKind

from ..answer import Answer, Delta
from .asked import Asked
from .ollama_checks import check_fields, check_name, check_options, check_talk, is_unload
from .refusals import Refusal, Refused, UnknownModel
from .replies import as_json, routing_of
from .running import Note

# What belongs to the answer itself; the rest of it closes the last line.
_NOT_CLOSING = frozenset(
    {
        "model",
        "created_at",
        "message",
        "response",
        "thinking",
        "logprobs",
        "done",
        "embeddings",
        "remote_model",
    }
)
# Bodies of other kinds of requests; a backend would not look at them.
_BODIES = frozenset({"messages", "prompt", "input", "model", "stream"})


def chat_asked(body: object) -> Asked:
    """From the body of /api/chat.

    Raises:
        Refused: Ollama would refuse it, too.
    """
    fields = check_fields(body, "ChatRequest")
    if not fields.get("model"):
        raise Refused(400, "model is required", field="model")
    return _talk(JobKind.CHAT, fields, {"messages": _messages(fields.get("messages") or [])})


def generate_asked(body: object) -> Asked:
    """From the body of /api/generate; raises as `chat_asked`."""
    fields = check_fields(body, "GenerateRequest")
    if not fields.get("model"):
        raise UnknownModel("")
    if fields.get("raw") and (fields.get("system") or fields.get("template") or fields.get("context")):
        raise Refused(400, "raw mode does not support template, system, or context")
    return _talk(JobKind.GENERATE, fields, {"prompt": fields.get("prompt") or ""})


def embed_asked(body: object) -> Asked:
    """From the body of /api/embed; raises as `chat_asked`."""
    fields = check_fields(body, "EmbedRequest")
    if not fields.get("model"):
        raise UnknownModel("")
    texts = fields.get("input") or []
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "invalid input type", field="input")
    return _asked(JobKind.EMBED, fields, {"input": texts}, stream=False)


def embeddings_asked(body: object) -> Asked:
    """From the body of the old /api/embeddings; raises as `chat_asked`."""
    fields = check_fields(body, "EmbeddingRequest")
    if not fields.get("model"):
        raise Refused(400, "model is required", field="model")
    prompt = fields.get("prompt") or ""
    return _asked(JobKind.EMBED, fields, {"input": [prompt] if prompt else []}, stream=False)


def is_load(asked: Asked) -> bool:
    """Whether it only wants the model in memory, or out of it."""
    return not asked.payload[
        "messages" if asked.kind is JobKind.CHAT else "prompt"
    ] and not asked.payload.get("suffix")


class OllamaLines:
    """Ollama's NDJSON.

    Args:
        entries: each line names its place in the job's stream, for a caller that may come back.
    """

    media_type = "application/x-ndjson"
    always_notes = False

    def __init__(self, asked: Asked, *, entries: bool = False) -> None:
        self._entries = entries
        self._model = asked.model
        self._is_chat = asked.kind is JobKind.CHAT

    def piece(self, piece: Delta) -> bytes:
        """See Framing."""
        said: dict[str, Any] = {"thinking": piece.thinking} if piece.thinking else {}
        if piece.tool_calls:
            said["tool_calls"] = with_index(piece.tool_calls)
        line = self._line(str(piece), said, done=False)
        if piece.logprobs:
            line["logprobs"] = piece.logprobs
        if self._entries:
            line["_sollol_entry"] = piece.entry_id
        return as_json(line) + b"\n"

    def note(self, note: Note) -> bytes:
        """See Framing."""
        return as_json({**self._line("", {}, done=False), "_sollol_progress": note.as_dict()}) + b"\n"

    def end(self, answer: Answer) -> bytes:
        """See Framing."""
        line = {**self._line("", {}, done=True), **closing(answer), "_sollol_routing": routing_of(answer)}
        return as_json(line) + b"\n"

    def failed(self, refusal: Refusal) -> bytes:
        """See Framing."""
        return as_json({"error": refusal.text}) + b"\n"

    def whole(self, answer: Answer) -> dict[str, Any]:
        """An answer that is not streamed."""
        said: dict[str, Any] = {"thinking": answer.thinking} if answer.thinking else {}
        if answer.tool_calls:
            said["tool_calls"] = with_index(answer.tool_calls)
        line = {**self._line(answer.text, said, done=True), **closing(answer)}
        if answer.get("logprobs"):
            line["logprobs"] = answer["logprobs"]
        return {**line, "_sollol_routing": routing_of(answer)}

    def touched(self, done_reason: str) -> dict[str, Any]:
        """The answer to a request that only loads or unloads."""
        return {**self._line("", {}, done=True), "done_reason": done_reason}

    def _line(self, text: str, said: Mapping[str, Any], *, done: bool) -> dict[str, Any]:
        begin = {"model": self._model, "created_at": now()}
        if self._is_chat:
            return {**begin, "message": {"role": "assistant", "content": text, **said}, "done": done}
        return {**begin, "response": text, **said, "done": done}


def embed_reply(asked: Asked, answer: Answer) -> dict[str, Any]:
    """The answer of /api/embed."""
    fields = {"model": asked.model, "embeddings": answer.embeddings, **closing(answer)}
    return {**fields, "_sollol_routing": routing_of(answer)}


def closing(answer: Answer) -> dict[str, Any]:
    """What closes an answer: why it ended, what it took. Times of waiting count, as in Ollama."""
    fields = {name: value for name, value in answer.items() if name not in _NOT_CLOSING}
    waited = 0 if answer.routing.cached else round(answer.routing.queue_wait_ms * 1e6)
    for name in ("total_duration", "load_duration"):
        if isinstance(fields.get(name), int):
            fields[name] += waited
    return fields


def with_index(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls, each with the number that tells several apart."""
    return [
        {**call, "function": {"index": number, **call.get("function", {})}}
        for number, call in enumerate(calls)
    ]


def now() -> str:
    """This moment, as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _talk(kind: JobKind, fields: Mapping[str, Any], body: Mapping[str, Any]) -> Asked:
    check_talk(fields)
    check_options(fields.get("options"))
    return _asked(kind, fields, body, stream=fields.get("stream") is not False)


def _asked(kind: JobKind, fields: Mapping[str, Any], body: Mapping[str, Any], *, stream: bool) -> Asked:
    is_unload(fields.get("keep_alive"))
    rest = {name: value for name, value in fields.items() if name not in _BODIES and value is not None}
    return Asked(kind, check_name(fields["model"]), {**rest, **body}, stream)


def _messages(messages: list[Any]) -> list[Any]:
    """Roles in lower case; one that is missing is the user's."""
    return [
        {**message, "role": str(message.get("role") or "user").lower()}
        if isinstance(message, dict)
        else message
        for message in messages
    ]
