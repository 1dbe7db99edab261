"""What Ollama would refuse of a request, in its words. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

from .refusals import Refused

# Go's types by field; a field that is not here may hold anything.
_COMMON = {
    "model": "string",
    "stream": "bool",
    "truncate": "bool",
    "options": "map[string]interface {}",
}
_TALK = {**_COMMON, "logprobs": "bool", "top_logprobs": "int", "shift": "bool"}
FIELDS: dict[str, dict[str, str]] = {
    "ChatRequest": {**_TALK, "messages": "[]api.Message", "tools": "api.Tools"},
    "GenerateRequest": {
        **_TALK,
        **dict.fromkeys(("prompt", "suffix", "system", "template"), "string"),
        "context": "[]int",
        "raw": "bool",
        "images": "[]api.ImageData",
    },
    "EmbedRequest": {**_COMMON, "dimensions": "int"},
    "EmbeddingRequest": {**_COMMON, "prompt": "string"},
    "ShowRequest": {"model": "string", "name": "string", "verbose": "bool"},
    "PullRequest": {"model": "string", "name": "string", "insecure": "bool", "stream": "bool"},
    "PushRequest": {"model": "string", "name": "string", "insecure": "bool", "stream": "bool"},
    "CreateRequest": {"model": "string", "from": "string", "stream": "bool"},
    "DeleteRequest": {"model": "string", "name": "string"},
    "CopyRequest": {"source": "string", "destination": "string"},
}
_MESSAGE = {
    **dict.fromkeys(("role", "content", "thinking", "tool_name", "tool_call_id"), "string"),
    "images": "[]api.ImageData",
    "tool_calls": "[]api.ToolCall",
}
_KINDS = {"string": str, "bool": bool, "int": int, "map[string]interface {}": dict}
_FLOATS = frozenset(
    ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
)
_INTS = frozenset(
    (
        *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_keep"),
        *("seed", "num_predict", "top_k", "repeat_last_n"),
    )
)
_DURATION = re.compile(r"[0-9]*\.?[0-9]+(?:ns|us|µs|μs|ms|s|m|h)")
_THINKING = (None, True, False, "low", "medium", "high", "max")


def check_fields(fields: object, struct: str) -> dict[str, Any]:
    """Check the types of a body's fields; unknown ones may be anything.

    Raises:
        Refused: 400, in the words of Go's JSON reader.
    """
    if not isinstance(fields, dict):
        raise Refused(400, f"json: cannot unmarshal {_kind(fields)} into Go value of type api.{struct}")
    for name, wanted in FIELDS[struct].items():
        _check(fields.get(name), struct, name, wanted)
    return fields


def check_talk(fields: Mapping[str, Any]) -> None:
    """Check the values of a chat or generate request that do not depend on its model.

    Raises:
        Refused: 400 or 500, as Ollama has it.
    """
    if not 0 <= (fields.get("top_logprobs") or 0) <= 20:
        raise Refused(400, "top_logprobs must be between 0 and 20")
    think = fields.get("think")
    if isinstance(think, bool) or think in _THINKING:
        pass
    elif isinstance(think, str):
        raise Refused(
            400, f'invalid think value: "{think}" (must be "high", "medium", "low", "max", true, or false)'
        )
    else:
        raise Refused(
            400, 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)'
        )
    check_format(fields.get("format"))
    for message in _items(fields, "messages"):
        _check_message(message)
    for tool in _items(fields, "tools"):
        if not isinstance(tool, dict):
            raise _mismatch(tool, "ChatRequest", "tools", "api.Tool")
        if not isinstance(tool.get("function"), dict | None):
            raise _mismatch(tool["function"], "Tool", "function", "api.ToolFunction")
    _check_images(fields.get("images"), "GenerateRequest")


def _items(fields: Mapping[str, Any], name: str) -> list[Any]:
    """A list's items; /api/generate does not know these fields, so there they may be anything."""
    value = fields.get(name)
    return value if isinstance(value, list) else []


def check_format(wanted: object) -> None:
    """Nothing, "json", or a schema.

    Raises:
        Refused: 500, as Ollama has it.
    """
    if wanted is None or isinstance(wanted, dict) or wanted in ("", "json"):
        return
    shown = json.dumps(json.dumps(wanted))
    raise Refused(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def check_options(options: Mapping[str, Any] | None) -> None:
    """Check the types of the options that Ollama knows; null = not set.

    Raises:
        Refused: 500, as Ollama has it.
    """
    for name, value in (options or {}).items():
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _FLOATS and not is_number:
            raise Refused(500, f'option "{name}" must be of type float32')
        if name in _INTS and not is_number:
            raise Refused(500, f'option "{name}" must be of type integer')
        if name == "use_mmap" and not isinstance(value, bool):
            raise Refused(500, f'option "{name}" must be of type boolean')
        if name == "stop" and not isinstance(value, list):
            raise Refused(500, f'option "{name}" must be of type array')
        if name == "stop" and not all(isinstance(each, str) for each in value):
            raise Refused(500, f'option "{name}" must be of an array of strings')


def is_unload(keep_alive: object) -> bool:
    """Whether a `keep_alive` says: put the model out of memory.

    Raises:
        Refused: 400, it is no duration.
    """
    if keep_alive is None:
        return False
    if isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool):
        return keep_alive == 0
    if not isinstance(keep_alive, str):
        raise Refused(400, f"Unsupported type: {_kind(keep_alive)}")
    amount = keep_alive.lstrip("+-")
    if amount == "0":
        return True
    if re.fullmatch(r"[0-9]*\.?[0-9]+", amount):
        raise Refused(400, f'time: missing unit in duration "{keep_alive}"')
    if not amount or "".join(_DURATION.findall(amount)) != amount:
        raise Refused(400, f'time: invalid duration "{keep_alive}"')
    return not re.search(r"[1-9]", amount)


def check_name(name: str) -> str:
    """A model's name: [host/][namespace/]model[:tag].

    Raises:
        Refused: 400, it is none.
    """
    last = name.rpartition("/")[2]
    model, colon, tag = last.partition(":")
    parts = name.split("/")
    if not model or (colon and not tag) or ":" in tag or len(parts) > 4 or not all(parts) or len(name) > 200:
        raise Refused(400, "invalid model name", field="model")
    if not name.isprintable() or " " in name:
        raise Refused(400, "invalid model name", field="model")
    return name


def _check_message(message: object) -> None:
    if not isinstance(message, dict):
        raise _mismatch(message, "ChatRequest", "messages", "api.Message")
    for name, wanted in _MESSAGE.items():
        _check(message.get(name), "Alias", name, wanted)
    _check_images(message.get("images"), "Alias")
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict | None):
            raise _mismatch(function, "ToolCall", "function", "api.ToolCallFunction")
        if not isinstance((function or {}).get("arguments"), dict | None):
            raise Refused(400, "expected JSON object")


def _check_images(images: object, where: str) -> None:
    for number, image in enumerate(images if isinstance(images, list) else ()):
        if not isinstance(image, str):
            raise _mismatch(image, where, "images", "api.ImageData")
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            told = f"json: cannot unmarshal string into {where}.images.{number} of type api.ImageData"
            raise Refused(400, f"{told}: illegal base64 data at input byte {_odd_byte(image)}") from None


def _odd_byte(text: str) -> int:
    """Where text stops being base64."""
    found = re.match(r"[A-Za-z0-9+/]*", text)
    return found.end() if found else 0


def _check(value: object, struct: str, name: str, wanted: str) -> None:
    if value is None:
        return
    kind = _KINDS.get(wanted, list)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return
    raise _mismatch(value, struct, name, wanted)


def _mismatch(value: object, struct: str, name: str, wanted: str) -> Refused:
    kind = f"number {value:g}" if wanted == "int" and isinstance(value, float) else _kind(value)
    return Refused(
        400, f"json: cannot unmarshal {kind} into Go struct field {struct}.{name} of type {wanted}"
    )


def _kind(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}
    return names.get(type(value), "null")
