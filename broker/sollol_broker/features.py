"""What a request tells of itself before it runs: its task, its size, and the conversation it belongs to.

Pure rules over a payload with Ollama's names. They guess from little text and are never a gate: a wrong guess
costs a worse prediction and nothing else. What only a model's history can tell (characters per token, usual
lengths of answers) is learned inside Redis.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .words import JobKind

# LLaVA and its kin cut a picture of 336 pixels into patches of 14; newer models take 256 to some thousands.
PICTURE_TOKENS = 576
# An instruction stands at one end of the text, or in the system prompt; a document lies between.
_LOOK_CHARS = 500
# A shorter beginning is computed anew sooner than a worker that still has it would be free.
_LONG_HEAD_CHARS = 1_000
# Tokens, prompt and answer together, up to which a request is simple, and up to which it is not yet complex.
_SIMPLE_TOKENS, _MEDIUM_TOKENS = 500, 2_000
# From this size on a model without a GPU makes a few tokens a second.
_LARGE_MODEL_BILLIONS = 7.0

# Beginnings of telling words, found one by one: a regular expression of them all is several times slower.
_STEMS = {
    "classification": "classif|categoris|categoriz|sentiment|which category|what category|which class|what class"
    "|which label|what label|label the |label this |label each |label every |positive or negative|true or false"
    "|yes or no",
    "extraction": "extract|pull out|parse |named entit|list all |list every |list each |find all |find every "
    "|find each |identify all |identify every |identify each |name all |name every |name each ",
    "summarization": "summar|tl;dr|tldr|key points|main points|main ideas|condens|in a nutshell",
    "analysis": "analyze|analyse|analyzing|analysing|analysis|compare|comparison|evaluat|assess|critique"
    "|pros and cons|investigate|diagnose|explain why|root cause",
}
_TELLING = tuple((stem, task) for task, stems in _STEMS.items() for stem in stems.split("|"))
# Kinds of jobs that are a task of their own; those that give no text.
_TASK_OF_KIND: dict[str, str] = {
    JobKind.EMBED: "embedding",
    JobKind.RERANK: "reranking",
    JobKind.WARM: "warming",
}
_TEXTLESS = frozenset(_TASK_OF_KIND.values())
_SIZE = re.compile(r"(?:^|[^a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])")


def task_type(kind: str, payload: Mapping[str, Any]) -> str:
    """What is asked for: generation, embedding, classification, extraction, summarization, analysis, or the job's kind.

    1. An embed job is embedding, a rerank job reranking, a warm job warming.
    2. The first telling word decides: of the user's last text, of the system prompt, of that text's end.
    3. Without one, an answer in a given format is classification where it is a choice, else extraction.
    4. All else is generation.
    """
    if kind in _TASK_OF_KIND:  # 1
        return _TASK_OF_KIND[kind]
    asked, system = _asked(payload), _system(payload)
    for text in (asked[:_LOOK_CHARS], system[:_LOOK_CHARS], asked[_LOOK_CHARS:][-_LOOK_CHARS:]):  # 2
        if found := _first_told(text.lower()):
            return found
    wanted = payload.get("format")  # 3
    if wanted:
        return "classification" if _is_choice(wanted) else "extraction"
    return "generation"  # 4


def prompt_characters(payload: Mapping[str, Any]) -> int:
    """How many characters the model is given to read, tools among them; pictures are `picture_tokens`."""
    count = sum(len(text) for text in _texts(payload))
    tools = payload.get("tools")
    return count + (len(json.dumps(tools, default=str, ensure_ascii=False)) if tools else 0)


def picture_tokens(blobs: Sequence[bytes]) -> int:
    """How many tokens the pictures will take, about."""
    return PICTURE_TOKENS * len(blobs)


def output_cap(options: object) -> int:
    """The most tokens of the answer that the caller allows; 0 = not said."""
    return _count(options, "num_predict") or _count(options, "max_tokens")


def context_needed(payload: Mapping[str, Any]) -> int:
    """The context length in tokens that is asked for explicitly; 0 = not said."""
    return _count(payload.get("options"), "num_ctx")


def complexity(tokens: int) -> str:
    """A word for the size of a request, prompt and expected answer together: simple, medium or complex."""
    if tokens <= _SIMPLE_TOKENS:
        return "simple"
    return "medium" if tokens <= _MEDIUM_TOKENS else "complex"


def needs_gpu(model: str, task: str, tokens: int) -> bool:
    """Whether one would rather not run it without a GPU, as far as the model's name tells its size.

    Args:
        tokens: prompt and expected answer together.
    """
    if model_billions(model) >= _LARGE_MODEL_BILLIONS:
        return True
    return task not in _TEXTLESS and complexity(tokens) == "complex"


def model_billions(model: str) -> float:
    """Parameters in billions as the model's name says them ("llama3.1:70b", "mixtral:8x7b"); 0 = it does not."""
    sizes = [int(many or 1) * float(each) for many, each in _SIZE.findall(model.lower())]
    return max(sizes, default=0.0)


def affinity(app: str, session: str | None, payload: Mapping[str, Any]) -> str:
    """8 hex digits that jobs with a beginning in common share; "" = nothing worth a way back.

    That is the session where one is named; else the head of the prompt (system prompt and first message) where
    the chat has gone on from there, or where the head alone is long. A digest: no text can be read from it.
    """
    if session:
        return _digest(app, "session", session)
    messages = payload.get("messages")
    if isinstance(messages, list):
        head = _chat_head(messages)
        goes_on = any(_role(message) == "assistant" for message in messages)
    else:
        head, goes_on = _system(payload) + _text(payload.get("prompt")), False
    if not head or not (goes_on or len(head) > _LONG_HEAD_CHARS):
        return ""
    return _digest(app, "head", head if goes_on or isinstance(messages, list) else head[:_LONG_HEAD_CHARS])


def _digest(app: str, what: str, text: str) -> str:
    # A lone surrogate can stand in any text of Python; it is refused elsewhere, with a proper error.
    return hashlib.sha256(f"{app}\0{what}\0{text}".encode(errors="surrogatepass")).hexdigest()[:8]


def _chat_head(messages: Sequence[Any]) -> str:
    parts = []
    for message in messages:
        role = _role(message)
        if role in ("system", "user"):
            parts.append(f"{role}\0{_content(message)}")
        if role == "user":
            break
    return "\0".join(parts)


def _first_told(text: str) -> str:
    """The task of the first telling word; "" = there is none."""
    first, told = len(text), ""
    for stem, task in _TELLING:
        at = text.find(stem, 0, first)
        while at > 0 and text[at - 1].isalnum():
            at = text.find(stem, at + 1, first)
        if at >= 0:
            first, told = at, task
    return told


def _asked(payload: Mapping[str, Any]) -> str:
    """The user's last text."""
    messages = payload.get("messages")
    if isinstance(messages, list):
        return next((_content(message) for message in reversed(messages) if _role(message) == "user"), "")
    return _text(payload.get("prompt"))


def _system(payload: Mapping[str, Any]) -> str:
    messages = payload.get("messages")
    if isinstance(messages, list):
        return next((_content(message) for message in messages if _role(message) == "system"), "")
    return _text(payload.get("system"))


def _texts(payload: Mapping[str, Any]) -> Iterator[str]:
    for name in ("system", "prompt", "suffix"):
        yield _text(payload.get(name))
    given = payload.get("input")
    yield from (_text(each) for each in (given if isinstance(given, list) else [given]))
    documents = payload.get("documents")
    for document in documents if isinstance(documents, list) else ():
        yield _text(payload.get("query"))  # it is read again with each
        yield _text(document)
    messages = payload.get("messages")
    for message in messages if isinstance(messages, list) else ():
        yield _content(message)
        if isinstance(message, Mapping) and message.get("tool_calls"):
            yield json.dumps(message["tool_calls"], default=str, ensure_ascii=False)


def _is_choice(wanted: object) -> bool:
    """Whether a JSON schema asks for little more than one word out of a list."""
    if not isinstance(wanted, Mapping):
        return False
    properties = wanted.get("properties")
    parts = list(properties.values()) if isinstance(properties, Mapping) else [wanted]
    return len(parts) <= 2 and any(
        isinstance(part, Mapping) and ("enum" in part or part.get("type") == "boolean") for part in parts
    )


def _role(message: object) -> str:
    return _text(message.get("role")) if isinstance(message, Mapping) else ""


def _content(message: object) -> str:
    return _text(message.get("content")) if isinstance(message, Mapping) else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(options: object, name: str) -> int:
    value = options.get(name) if isinstance(options, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
