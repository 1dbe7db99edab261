"""What Ollama's answers look like: plain data in, plain data out."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from sollol_worker_agent.doubles.ollama_scheduler import DoubleModel

DIMENSIONS = 16


def options_of(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request's options; empty when it has none."""
    return asked.get("options") or {}


def answer_line(name: str, is_chat: bool, **fields: Any) -> dict[str, Any]:
    """One line of an answer, chat or generate, with `fields` where they belong."""
    text, thinking = fields.pop("text", ""), fields.pop("thinking", None)
    calls, logprobs = fields.pop("tool_calls", None), fields.pop("logprobs", None)
    line: dict[str, Any] = {"model": name, "created_at": stamp()}
    said = {"role": "assistant", "content": text} if is_chat else {"response": text}
    if thinking:
        said["thinking"] = thinking
    if calls:
        said["tool_calls"] = calls
    line.update({"message": said} if is_chat else said)
    line["done"] = "done_reason" in fields
    # Go leaves zero numbers out.
    line.update({field_name: value for field_name, value in fields.items() if value != 0})
    if logprobs:
        line["logprobs"] = logprobs
    return line


def logprob(token: str, top: int) -> dict[str, Any]:
    """A token's log probability with `top` alternatives."""
    said: dict[str, Any] = {"token": token, "logprob": -0.5, "bytes": list(token.encode())}
    if top:
        said["top_logprobs"] = [{**said, "logprob": -0.5 - at} for at in range(top)]
    return said


def tokens_of(text: str) -> list[str]:
    """`text` as tokens: each word with the space before it."""
    return re.findall(r"\s*\S+", text)


def tag(model: DoubleModel) -> dict[str, Any]:
    """An entry of /api/tags."""
    return {
        "name": model.full_name,
        "model": model.full_name,
        "modified_at": stamp(),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": details(model, with_lengths=True),
        "capabilities": list(model.capabilities),
    }


def details(model: DoubleModel, *, with_lengths: bool) -> dict[str, Any]:
    """The details of an entry; the lengths only stand in /api/tags."""
    family = "bert" if model.only_embeds else "llama"
    details: dict[str, Any] = {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": "1.00M",
        "quantization_level": "Q4_K_M",
    }
    if with_lengths:
        details |= {"context_length": model.context_tokens, "embedding_length": DIMENSIONS}
    return details


def vector(text: str, size: int) -> list[float]:
    """An embedding of length 1, the same for the same text."""
    digest = hashlib.blake2b(text.encode(), digest_size=DIMENSIONS).digest()
    values = [byte - 127.5 for byte in digest][:size]
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]


def stamp() -> str:
    """The time as Ollama writes it."""
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
