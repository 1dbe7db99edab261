"""What a server's refusal says, and whether another node may do better. Pure rules, no HTTP.

Servers like to quote the request in their error texts; nothing of a prompt leaves this file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Long enough for every error text seen so far, short enough for one log line.
_MAX_TEXT = 300

# Shorter strings than this are too common to be cut out of an error text without wrecking it.
_MIN_SECRET = 6

# Statuses that speak about this node (its key, its load, its patience), not about the request.
_NODE_STATUSES = frozenset({401, 403, 408, 425, 429})

# Servers answer 500 to some requests which no other node would take either.
_REQUEST_FAULTS = (
    "must be of type",  # Ollama: option "temperature" must be of type float32
    "invalid format",  # Ollama: format is neither "json" nor a schema
    "exceeds the context length",  # Ollama: /api/embeddings
    "is too large to process",  # llama-server: /v1/embeddings
)

# llama-server's 500 for what is asked too much of the model: a text beyond its batch, a picture without a projector.
_ASKED_TOO_MUCH = ("is too large to process", "input is not supported")
# How it names its limits, in tokens.
_LIMITS = re.compile(r"(?:current batch size: |available context size \()(\d+)")


def meant(status: int, text: str) -> int:
    """The status that a server ought to have answered with `text`: 400 where it puts the request's fault on itself."""
    return 400 if status == 500 and any(each in text for each in _ASKED_TOO_MUCH) else status


def most_tokens(text: str) -> int | None:
    """How many tokens the server takes of a text, if that is what it refuses the request for."""
    found = _LIMITS.search(text)
    return int(found[1]) if found else None


def is_retryable(status: int, text: str) -> bool:
    """Whether another node may do better than the one that answered `status` with `text`.

    1. The node's own trouble (key, load, patience): yes.
    2. 404: yes if it is the model that is missing.
    3. 5xx: yes, unless the text puts the fault in the request.
    4. Everything else is the request's fault.
    """
    if status in _NODE_STATUSES:  # 1
        return True
    lowered = text.lower()
    if status == 404:  # 2
        return "model" in lowered
    if status >= 500:  # 3
        return not any(fault in lowered for fault in _REQUEST_FAULTS)
    return False  # 4


def advice(status: int) -> str:
    """What to do about `status`, as the end of a sentence; empty when there is nothing to say."""
    if status in (401, 403):
        return "; check the API key of this backend"
    if status == 404:
        return "; install it there, or send the job to a node that has it"
    if status in (429, 503):
        return "; it is busy or still loading, try again or add nodes"
    return ""


def text_of(body: bytes, request: Mapping[str, Any]) -> str:
    """The server's own words, short, in one line and without anything that `request` said."""
    text = _words(body)
    for secret in sorted(_secrets(request), key=len, reverse=True):
        text = text.replace(secret, "[…]")
    text = " ".join(text.split())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def message_of(error: object) -> str:
    """The text in any of the error shapes: a string, {"message": …}, {"error": …}, {"detail": …}."""
    if isinstance(error, Mapping):
        for name in ("error", "message", "detail"):
            if error.get(name):
                return message_of(error[name])
        return ""
    if isinstance(error, list):  # FastAPI: [{"loc", "msg", "input"}], where input is the user's own
        return "; ".join(
            f"{'.'.join(str(part) for part in entry.get('loc', ()))}: {entry.get('msg', '')}"
            for entry in error
            if isinstance(entry, Mapping)
        )
    return str(error)


def _words(body: bytes) -> str:
    text = body.decode("utf-8", "replace").strip()
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    return message_of(parsed) or "no reason given"


def _secrets(request: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    for name in ("prompt", "input", "system", "suffix", "template", "messages", "images",
                 "input_prefix", "input_suffix", "query", "documents"):  # fmt: skip
        for text in _strings(request.get(name)):
            found.update((text, json.dumps(text)[1:-1]))
            found.update(line.strip() for line in text.splitlines())
    return {text for text in found if len(text) >= _MIN_SECRET}


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if name not in ("role", "type"):
                yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)
