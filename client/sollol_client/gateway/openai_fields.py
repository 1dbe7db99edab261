"""What the OpenAI and Anthropic APIs have in common, in Ollama's words: options, formats, tools, pictures. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .numbers import check_numbers
from .refusals import Refused

# What a field has to be, in the words of its refusal.
NUMBER, INTEGER, TEXT = "a number", "a whole number", "text"
YES_NO, LIST, OBJECT = "true or false", "a list", "an object"
_PYTHON: dict[str, tuple[type, ...]] = {
    NUMBER: (int, float), INTEGER: (int,), TEXT: (str,), YES_NO: (bool,), LIST: (list,), OBJECT: (dict,),
}  # fmt: skip

# Fields that every kind of server honours only as one of Ollama's options; their names there are the same.
SAME_OPTIONS = {
    "temperature": NUMBER,
    "top_p": NUMBER,
    "top_k": INTEGER,
    "min_p": NUMBER,
    "typical_p": NUMBER,
    "seed": INTEGER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "repeat_penalty": NUMBER,
    "repeat_last_n": INTEGER,
}

# Ollama's levels of thinking, by what others call them.
_EFFORTS: dict[str, bool | str] = {
    "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high",
    "ultra": "high", "max": "high",
}  # fmt: skip


def fields_of(body: object, types: Mapping[str, str]) -> dict[str, Any]:
    """A body's fields, without those that are null.

    Args:
        types: what those must be that are known.

    Raises:
        Refused: 400, the body is no object, or one of them is something else or out of its range.
    """
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    for name, wanted in types.items():
        if name in given:
            check_type(given[name], wanted, name)
    check_numbers(given)
    return given


def check_type(value: object, wanted: str, field: str) -> None:
    """Raise Refused (400) unless a value is what is wanted."""
    fits = isinstance(value, _PYTHON[wanted]) and (wanted == YES_NO or not isinstance(value, bool))
    if not fits:
        raise Refused(400, f"{field}: {wanted} is needed", field=field)


def model_of(given: Mapping[str, Any]) -> str:
    """The model, as the caller wrote it.

    Raises:
        Refused: 400, there is none.
    """
    if not given.get("model"):
        raise Refused(400, "model is required", field="model")
    return str(given["model"])


def options_of(given: Mapping[str, Any], most_tokens: object, stop: object) -> dict[str, Any]:
    """Ollama's `options`; such an object in the body counts less than the fields beside it.

    Args:
        most_tokens: of the answer; None = not said. stop: a text or several; None = none.
    """
    said: dict[str, Any] = dict(given.get("options") or {})
    said.update({name: given[name] for name in SAME_OPTIONS if name in given})
    if most_tokens is not None:
        said["num_predict"] = most_tokens
    if stop:
        said["stop"] = [stop] if isinstance(stop, str) else stop
        if not isinstance(said["stop"], list) or not all(isinstance(each, str) for each in said["stop"]):
            raise Refused(400, "stop: a text or a list of texts is needed", field="stop")
    return said


def settings_of(
    given: Mapping[str, Any],
    *,
    most_tokens: object,
    stop: object,
    form: tuple[object, str],
    effort: tuple[object, str] = (None, ""),
) -> dict[str, Any]:
    """How an answer is to be made: Ollama's `options`, `format` and `think`, those of them that were said.

    Args:
        most_tokens, stop: as for `options_of`. form, effort: the answer's format and the effort of reasoning, each with
            its field in the body.

    Raises:
        Refused: 400, one of them makes no sense.
    """
    said = {
        "options": options_of(given, most_tokens, stop) or None,
        "format": format_of(*form),
        "think": effort_of(*effort),
    }
    return {name: value for name, value in said.items() if value is not None}


def format_of(wanted: object, field: str) -> Any:
    """Ollama's `format` for an answer's format as OpenAI has it: {"type": "text" | "json_object" | "json_schema"}.

    Raises:
        Refused: 400, it is something else.
    """
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        # llama-server takes a schema here, too.
        schema = wanted.get("schema") if isinstance(wanted, dict) else None
        return schema if isinstance(schema, dict) and schema else "json"
    if kind == "json_schema" and isinstance(wanted, dict):
        # The responses API has the schema one level higher.
        holder = wanted.get("json_schema") if isinstance(wanted.get("json_schema"), dict) else wanted
        schema = holder.get("schema") if isinstance(holder, dict) else None
        if isinstance(schema, dict):
            return schema
        raise Refused(400, f"{field}: json_schema needs a schema", field=field)
    raise Refused(400, f"{field}: the types are text, json_object and json_schema", field=field)


def effort_of(wanted: object, field: str) -> bool | str | None:
    """Ollama's `think` for an effort of reasoning; None = not said.

    Raises:
        Refused: 400, there is no such effort.
    """
    if wanted is None:
        return None
    if not isinstance(wanted, str) or wanted not in _EFFORTS:
        raise Refused(400, f"{field}: one of {', '.join(_EFFORTS)} is needed", field=field)
    return _EFFORTS[wanted]


def function_tool(function: object, field: str) -> dict[str, Any]:
    """A tool in the shape that Ollama and OpenAI's chats share.

    Raises:
        Refused: 400, it has no name.
    """
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Refused(400, f"{field}: a function with a name is needed", field=field)
    return {"type": "function", "function": {name: v for name, v in function.items() if v is not None}}


def chosen_tools(
    tools: Sequence[dict[str, Any]], choice: object, *, parallel: bool | None = None
) -> dict[str, Any]:
    """The fields that say which tools there are, and which must be used.

    Not every server knows how to take one tool by name, or none: then the others are not shown to the model.

    Args:
        choice: "none", "auto", "required", or an object that names a function, as OpenAI has them.

    Raises:
        Refused: 400, no such tool, or no such choice.
    """
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools") or choice
        names = {_named(each) for each in allowed.get("tools") or () if isinstance(each, dict)}
        tools = [tool for tool in tools if tool["function"]["name"] in names]
        choice = allowed.get("mode", "auto")
    elif isinstance(choice, dict):
        name = _named(choice)
        tools = [tool for tool in tools if tool["function"]["name"] == name]
        if not tools:
            raise Refused(400, "tool_choice: it names none of the tools", field="tool_choice")
        choice = "required"
    if choice not in (None, "none", "auto", "required"):
        raise Refused(400, "tool_choice: none, auto, required or a function is needed", field="tool_choice")
    if not tools or choice == "none":
        return {}
    said: dict[str, Any] = {"tools": list(tools)}
    if choice == "required":
        said["tool_choice"] = "required"
    if parallel is not None:
        said["parallel_tool_calls"] = parallel
    return said


def picture_of(url: object, field: str) -> str:
    """The base64 text of a picture given as a data: URI.

    Raises:
        Refused: 400, it is something else. An address is not fetched: it may lie inside our network.
    """
    kind, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (kind.startswith("data:") and kind.endswith(";base64") and comma):
        raise Refused(
            400, f"{field}: pictures are taken as data:…;base64,… only, not by address", field=field
        )
    return data


def arguments_of(text: object, field: str) -> dict[str, Any]:
    """The arguments of a tool call in a conversation, as an object.

    Raises:
        Refused: 400, they are none.
    """
    arguments = text
    if isinstance(text, str):
        try:
            arguments = json.loads(text or "{}")
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise Refused(400, f"{field}: the arguments of a tool call are a JSON object", field=field)
    return arguments


def arguments_text(call: Mapping[str, Any]) -> str:
    """The arguments of a call that a model made, as JSON."""
    arguments = (call.get("function") or {}).get("arguments")
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments or {}, ensure_ascii=False, separators=(",", ":"))


def call_id(call: Mapping[str, Any], job_id: str, number: int) -> str:
    """The id of a call that a model made; the servers' own where they give one."""
    return str(call.get("id") or f"call_{job_id}_{number}")


def _named(choice: Mapping[str, Any]) -> object:
    function = choice.get("function")
    return function.get("name") if isinstance(function, dict) else choice.get("name")
