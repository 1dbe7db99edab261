"""From Ollama's words to OpenAI's and back: pure translation, no HTTP.

The same functions serve llama-server and the plain OpenAI-compatible servers (vLLM, SGLang,
LM Studio); a `Dialect` holds what differs. Reading a stream is next door, in `openai_stream.py`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sollol_broker.errors import BackendError


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one make of server calls things.

    Attributes:
        options: Ollama's option names and this server's.
        passes_unknown_options: whether other options are worth sending as they are.
        json_object: the `response_format` that makes an answer any JSON object.
        negatives: whether a negative `max_tokens` or `seed` is understood (no limit, random).
    """

    options: Mapping[str, str]
    passes_unknown_options: bool
    json_object: Mapping[str, Any]
    negatives: bool


_STANDARD_OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}

LLAMA_SERVER = Dialect(
    options={
        **_STANDARD_OPTIONS,
        "num_keep": "n_keep",
        "top_k": "top_k",
        "min_p": "min_p",
        "typical_p": "typical_p",
        "repeat_last_n": "repeat_last_n",
        "repeat_penalty": "repeat_penalty",
    },
    passes_unknown_options=True,
    # Without a schema llama-server b10068 accepts json_object and then constrains nothing.
    json_object={"type": "json_object", "schema": {"type": "object"}},
    negatives=True,
)

OPENAI = Dialect(
    # The last three are no part of OpenAI's own API; vLLM and SGLang know them by these names, and
    # they are sent only when the user set them.
    options={
        **_STANDARD_OPTIONS,
        "top_k": "top_k",
        "min_p": "min_p",
        "repeat_penalty": "repetition_penalty",
    },
    passes_unknown_options=False,
    json_object={"type": "json_object"},
    negatives=False,
)

# Options which Ollama applies when it loads a model; these servers load theirs before we come.
LOAD_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram",
     "numa", "vocab_only", "f16_kv", "logits_all", "penalize_newline", "tfs_z", "draft_num_predict"}
)  # fmt: skip

# Fields of a request that are translated below, or that mean something to Ollama only.
_CHAT_FIELDS = frozenset(
    {"model", "messages", "options", "format", "tools", "think", "stream", "keep_alive", "truncate",
     "shift", "logprobs", "top_logprobs", "chat_template_kwargs"}
)  # fmt: skip
_GENERATE_FIELDS = _CHAT_FIELDS | {"prompt", "system", "template", "context", "raw", "suffix", "images"}
_EMBED_FIELDS = frozenset(
    {"model", "input", "options", "dimensions", "stream", "keep_alive", "truncate", "encoding_format"}
)

# The first characters of a file in base64, and what they say about its type.
_IMAGE_TYPES = {"iVBOR": "png", "/9j/": "jpeg", "R0lG": "gif", "UklGR": "webp", "Qk": "bmp"}


def chat_body(model: str, request: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    """The body of /v1/chat/completions for one of Ollama's /api/chat.

    Raises:
        BackendError: the request asks for something that cannot be said, or must not be.
    """
    body = {
        **_others(request, _CHAT_FIELDS),
        **options(request.get("options"), dialect),
        "model": model,
        "messages": messages(request.get("messages") or ()),
        "stream": True,
    }
    if request.get("tools"):
        body["tools"] = request["tools"]
    if (answer_format := response_format(request.get("format"), dialect)) is not None:
        body["response_format"] = answer_format
    if request.get("logprobs"):
        body["logprobs"] = True
        body["top_logprobs"] = request.get("top_logprobs") or 0
    body.update(thinking(request, dialect))
    refuse_dangerous(body)
    return body


def templated_generate(request: Mapping[str, Any]) -> dict[str, Any]:
    """/api/generate without `raw` as the chat that it is: the server applies its chat template.

    Raises:
        BackendError: `template` and `context` are Ollama's own and cannot be honoured here; an
            Ollama node can, so another try makes sense.
    """
    for name in ("template", "context"):
        if request.get(name):
            raise BackendError(
                f"only Ollama understands {name!r} of a generate request; leave it out, use chat, or "
                f"send the job to an Ollama node",
                status=400,
                retryable=True,
            )
    user: dict[str, Any] = {"role": "user", "content": request.get("prompt") or ""}
    if request.get("images"):
        user["images"] = request["images"]
    system = [{"role": "system", "content": request["system"]}] if request.get("system") else []
    kept = {name: value for name, value in request.items() if name not in _GENERATE_FIELDS - _CHAT_FIELDS}
    return {**kept, "messages": [*system, user]}


def completion_body(model: str, request: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    """The body of /v1/completions for a raw prompt.

    Raises:
        BackendError: the request asks for something that cannot be said, or must not be.
    """
    body = {
        **_others(request, _GENERATE_FIELDS),
        **options(request.get("options"), dialect),
        "model": model,
        "prompt": request.get("prompt") or "",
        "stream": True,
    }
    if request.get("suffix"):
        body["suffix"] = request["suffix"]
    if (answer_format := response_format(request.get("format"), dialect)) is not None:
        body["response_format"] = answer_format
    if request.get("logprobs"):
        body["logprobs"] = request.get("top_logprobs") or 0
    refuse_dangerous(body)
    return body


def llama_completion_body(request: Mapping[str, Any]) -> dict[str, Any]:
    """The body of llama-server's own /completion for a raw prompt, or of /infill for one with a suffix.

    Raises:
        BackendError: the request asks for something that cannot be said, or must not be.
    """
    body = {
        **_others(request, _GENERATE_FIELDS),
        **options(request.get("options"), LLAMA_SERVER),
        "stream": True,
    }
    if "max_tokens" in body:
        body["n_predict"] = body.pop("max_tokens")
    prompt = request.get("prompt") or ""
    if request.get("suffix"):
        body.update(input_prefix=prompt, input_suffix=request["suffix"])
    else:
        body["prompt"] = prompt
    wanted = request.get("format")
    if response_format(wanted, LLAMA_SERVER) is not None:
        body["json_schema"] = wanted if isinstance(wanted, Mapping) else {"type": "object"}
    if request.get("logprobs"):
        # 0 would switch probabilities off altogether.
        body["n_probs"] = max(1, request.get("top_logprobs") or 0)
    refuse_dangerous(body)
    return body


def embed_body(model: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The body of /v1/embeddings. `dimensions` is not sent: `vectors` cuts, and no server has to know how."""
    return {
        **_others(request, _EMBED_FIELDS),
        "model": model,
        "input": request["input"],
        "encoding_format": "float",
    }


def options(given: Mapping[str, Any] | None, dialect: Dialect) -> dict[str, Any]:
    """Ollama's `options` in the server's words; unset (None) and load-time options are left out."""
    said: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if value is None or name in LOAD_OPTIONS:
            continue
        if name in ("num_predict", "seed") and isinstance(value, int) and value < 0:
            if not dialect.negatives:
                continue
            value = -1  # Ollama's -2 ("fill the context") comes to the same as no limit.
        if name in dialect.options:
            said[dialect.options[name]] = value
        elif dialect.passes_unknown_options:
            said[name] = value
    return said


def response_format(wanted: object, dialect: Dialect) -> dict[str, Any] | None:
    """Ollama's `format`: nothing, "json", or a JSON schema.

    Raises:
        BackendError: it is something else.
    """
    if wanted is None or wanted == "":
        return None
    if wanted == "json":
        return dict(dialect.json_object)
    if isinstance(wanted, Mapping):
        return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": wanted}}
    raise BackendError('invalid format: expected "json" or a JSON schema object', status=400)


def thinking(request: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    """Ollama's `think` (true, false or a level) as arguments of the chat template."""
    arguments = dict(request.get("chat_template_kwargs") or {})
    said: dict[str, Any] = {}
    think = request.get("think")
    if isinstance(think, bool):
        arguments.setdefault("enable_thinking", think)
    elif isinstance(think, str) and think:
        arguments.setdefault("enable_thinking", True)
        if dialect is LLAMA_SERVER:
            arguments.setdefault("reasoning_effort", think)
        else:
            said["reasoning_effort"] = think
    if arguments:
        said["chat_template_kwargs"] = arguments
    return said


def messages(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ollama's messages as OpenAI's: images become parts, tool calls and their results get ids."""
    said = []
    open_calls: list[tuple[str, str]] = []  # (id, tool name) of calls whose result has not come yet
    for at, message in enumerate(given):
        new = {
            name: value
            for name, value in message.items()
            if name not in ("images", "tool_calls", "tool_name", "thinking")
        }
        if message.get("images"):
            new["content"] = _parts(str(message.get("content") or ""), message["images"])
        if message.get("thinking"):
            new["reasoning_content"] = message["thinking"]
        if message.get("tool_calls"):
            new["tool_calls"] = [_openai_call(call, at, n) for n, call in enumerate(message["tool_calls"])]
            open_calls = [(call["id"], call["function"]["name"]) for call in new["tool_calls"]]
        if message.get("role") == "tool":
            name = str(message.get("tool_name") or message.get("name") or "")
            new["tool_call_id"] = message.get("tool_call_id") or _answered(open_calls, name)
            open_calls = [call for call in open_calls if call[0] != new["tool_call_id"]]
            if name:
                new["name"] = name
        said.append(new)
    return said


def vectors(answer: Mapping[str, Any], dimensions: object) -> list[list[float]]:
    """The embeddings in the order of their inputs, cut to `dimensions` if given, with length 1."""
    entries = sorted(answer["data"], key=lambda entry: int(entry.get("index", 0)))
    size = dimensions if isinstance(dimensions, int) and dimensions > 0 else None
    return [normalised(entry["embedding"][:size]) for entry in entries]


def ranking(answer: Any, documents: int, most: object) -> list[tuple[int, float]]:
    """The scores of an answer to /v1/rerank, best first, at most `most` of them if that is a number.

    Raises:
        KeyError, TypeError, ValueError: there are none, or they are of other documents.
    """
    # Most servers answer as Jina's does; SGLang with the bare list, and TEI calls the score by its last word.
    entries = answer if isinstance(answer, list) else answer["results"]
    found = {}
    for entry in entries:
        index = entry["index"]
        score = float(entry["relevance_score"] if "relevance_score" in entry else entry["score"])
        if not isinstance(index, int) or not 0 <= index < documents or index in found or math.isnan(score):
            raise ValueError
        found[index] = score
    least = min(most, documents) if isinstance(most, int) else documents
    if len(found) < least:
        raise ValueError
    return sorted(found.items(), key=lambda each: -each[1])[:least]


def normalised(vector: Sequence[float]) -> list[float]:
    """`vector` with length 1; a zero vector stays as it is."""
    length = math.sqrt(sum(value * value for value in vector))
    if length == 0.0 or abs(length - 1.0) < 1e-6:
        return list(vector)
    return [value / length for value in vector]


def short_name(server_name: str) -> str:
    """A model's name as users know it: of a file path only the stem, in lower case.

    llama-server without `--alias` calls its model by the path of the file.
    """
    if not (server_name.lower().endswith(".gguf") or server_name.startswith(("/", "./", "../"))):
        return server_name
    base = server_name.replace("\\", "/").rpartition("/")[2].lower()
    return base.removesuffix(".gguf")


def refuse_dangerous(body: Mapping[str, Any]) -> None:
    """Refuse what would harm the server or the jobs beside this one.

    1. A negative `n_discard` makes older llama-servers write outside their buffers
       (CVE-2026-21869), and `n_keep` goes into the same sum.
    2. `id_slot` picks a slot, and with it another user's cached prompt.
    3. `n` above 1 takes several slots for one job, and all answers but one would be thrown away.
    4. `chat_parser` makes llama-servers before b11393 write into freed memory (CVE-2026-107183).

    Raises:
        BackendError: status 400, not retryable.
    """
    for name, least in (("n_discard", 0), ("n_keep", -1)):  # 1
        value = body.get(name)
        if value is not None and not (isinstance(value, int) and value >= least):
            raise BackendError(f"{name} must be a whole number from {least} up", status=400)
    for name in ("id_slot", "slot_id"):  # 2
        if body.get(name) not in (None, -1):
            raise BackendError(f"{name} cannot be chosen here; leave it out", status=400)
    for name in ("n", "n_cmpl", "best_of"):  # 3
        if body.get(name) not in (None, 1):
            raise BackendError(f"{name} must be 1; send several jobs instead", status=400)
    if body.get("chat_parser") is not None:  # 4
        raise BackendError("chat_parser cannot be chosen here; leave it out", status=400)


def _others(request: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name not in known}


def _parts(text: str, images: Sequence[str | bytes]) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    for image in images:
        data = base64.b64encode(image).decode("ascii") if isinstance(image, bytes) else str(image)
        said.append({"type": "image_url", "image_url": {"url": _image_url(data)}})
    return said


def _image_url(data: str) -> str:
    # An http URL is not let through: the server would fetch it, from inside the network it stands in.
    if data.startswith("data:"):
        return data
    kind = next((kind for start, kind in _IMAGE_TYPES.items() if data.startswith(start)), "png")
    return f"data:image/{kind};base64,{data}"


def _openai_call(call: Mapping[str, Any], message_at: int, n: int) -> dict[str, Any]:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    return {
        "id": call.get("id") or f"call_{message_at}_{n}",
        "type": "function",
        "function": {"name": function.get("name") or "", "arguments": arguments},
    }


def _answered(open_calls: Sequence[tuple[str, str]], tool: str) -> str:
    # Ollama's results often name only the tool: the first open call of that tool is meant.
    for call_id, name in open_calls:
        if name == tool or not tool:
            return call_id
    return open_calls[0][0] if open_calls else "call_0"
