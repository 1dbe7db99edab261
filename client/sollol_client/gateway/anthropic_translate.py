"""From the body of Anthropic's /v1/messages to what is asked of the fabric. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sollol_broker.words import JobKind

from .asked import Asked
from .openai_fields import (
    INTEGER,
    LIST,
    NUMBER,
    OBJECT,
    SAME_OPTIONS,
    TEXT,
    YES_NO,
    chosen_tools,
    fields_of,
    function_tool,
    model_of,
    settings_of,
)
from .openai_messages import tool_call
from .refusals import Refused

# What the fields of a body have to be; others may be anything.
MESSAGE_FIELDS = {
    **SAME_OPTIONS,
    "model": TEXT,
    "max_tokens": INTEGER,
    "messages": LIST,
    "stream": YES_NO,
    "temperature": NUMBER,
    "stop_sequences": LIST,
    "tools": LIST,
    "tool_choice": OBJECT,
    "thinking": OBJECT,
    "output_config": OBJECT,
    "options": OBJECT,
}
_NOT_FOR_SERVERS = frozenset(
    {"system", "metadata", "service_tier", "container", "mcp_servers", "context_management", "betas",
     "anthropic_beta", "anthropic_version", "output_format", "cache_control", "inference_geo"}
)  # fmt: skip
# Anthropic's choices of tools, by what OpenAI calls them.
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def message_asked(body: object) -> Asked:
    """From the body of /v1/messages.

    Tools that Anthropic's own servers would run are not shown to the model.

    Raises:
        Refused: 400, it makes no sense.
    """
    given = fields_of(body, MESSAGE_FIELDS)
    model = model_of(given)
    if given.get("max_tokens", 0) <= 0:
        raise Refused(400, "max_tokens is required and must be positive", field="max_tokens")
    if not given.get("messages"):
        raise Refused(400, "messages is required", field="messages")
    payload = {n: v for n, v in given.items() if n not in MESSAGE_FIELDS and n not in _NOT_FOR_SERVERS}
    payload["messages"] = _messages(given["messages"], given.get("system"))
    payload.update(_tools(given))
    output = given.get("output_config") or {}
    payload.update(
        settings_of(
            given,
            most_tokens=given["max_tokens"],
            stop=given.get("stop_sequences"),
            form=(output.get("format") or given.get("output_format"), "output_config.format"),
            effort=(_effort(given), "output_config.effort"),
        )
    )
    return Asked(JobKind.CHAT, model, payload, bool(given.get("stream")))


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    tools = []
    for number, tool in enumerate(given.get("tools") or ()):
        field = f"tools[{number}]"
        if not isinstance(tool, dict):
            raise Refused(400, f"{field}: an object is needed", field=field)
        if tool.get("type", "custom") == "custom":
            parts = {"name": tool.get("name"), "description": tool.get("description")}
            tools.append(function_tool({**parts, "parameters": tool.get("input_schema")}, field))
    choice = given.get("tool_choice") or {}
    kind = choice.get("type", "auto")
    if kind not in ("tool", *_CHOICES):
        raise Refused(400, "tool_choice: its type is auto, any, tool or none", field="tool_choice")
    wanted = {"name": choice.get("name")} if kind == "tool" else _CHOICES[kind]
    alone = bool(choice.get("disable_parallel_tool_use"))
    return chosen_tools(tools, wanted, parallel=False if alone else None)


def _effort(given: Mapping[str, Any]) -> object:
    """Models that can think do so unless told otherwise; one that cannot would refuse to be asked for it."""
    kind = (given.get("thinking") or {}).get("type")
    if kind == "disabled":
        return "none"
    effort = (given.get("output_config") or {}).get("effort")
    return effort if kind in ("enabled", "adaptive") and effort != "none" else None


def _messages(given: list[Any], system: object) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    if system:
        text, _ = _plain(system, "system")
        said.append({"role": "system", "content": text})
    tools: dict[str, str] = {}
    for number, message in enumerate(given):
        field = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant", "system"):
            raise Refused(400, f"{field}.role: user or assistant is needed", field=f"{field}.role")
        said += _message(role, message.get("content"), tools, f"{field}.content")
    return said


def _message(role: str, content: object, tools: dict[str, str], field: str) -> list[dict[str, Any]]:
    """A message; results of tools in it are messages of their own, before the rest."""
    if not isinstance(content, list):
        text, _ = _plain(content, field)
        return [{"role": role, "content": text}]
    results: list[dict[str, Any]] = []
    plain: list[object] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(content):
        where = f"{field}[{number}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            if not isinstance(block.get("name"), str) or not block.get("id"):
                raise Refused(400, f"{where}: tool_use has an id and a name", field=where)
            calls.append(tool_call(block["id"], block["name"], block.get("input"), where))
            tools[str(block["id"])] = block["name"]
        elif kind == "tool_result":
            results.append(_result(block, tools, where))
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind != "redacted_thinking":
            plain.append(block)
    text, pictures = _plain(plain, field)
    new: dict[str, Any] = {"role": role, "content": text}
    for name, value in (("images", pictures), ("thinking", "\n".join(thoughts)), ("tool_calls", calls)):
        if value:
            new[name] = value
    return [*results, new] if len(new) > 2 or text or not results else results


def _result(block: Mapping[str, Any], tools: Mapping[str, str], field: str) -> dict[str, Any]:
    answered = str(block.get("tool_use_id") or "")
    if not answered:
        raise Refused(400, f"{field}: tool_use_id is needed", field=field)
    text, pictures = _plain(block.get("content") or "", field)
    said: dict[str, Any] = {"role": "tool", "content": text, "tool_call_id": answered}
    if name := tools.get(answered):
        said["tool_name"] = name
    return {**said, "images": pictures} if pictures else said


def _plain(content: object, field: str) -> tuple[str, list[str]]:
    """Texts, joined by line breaks, and pictures in base64."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise Refused(400, f"{field}: text or a list of blocks is needed", field=field)
    texts, pictures = [], []
    for number, block in enumerate(content):
        where = f"{field}[{number}]"
        kind = block.get("type") if isinstance(block, dict) else None
        source = block.get("source") if kind in ("image", "document") else None
        inline, data = (source.get("type"), source.get("data")) if isinstance(source, dict) else (None, None)
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind == "image" and inline == "base64" and isinstance(data, str):
            pictures.append(data)
        elif kind == "document" and inline == "text" and isinstance(data, str):
            texts.append(data)
        else:
            raise Refused(400, f"{where}: only texts, and pictures in base64, can be passed on", field=where)
    return "\n".join(texts), pictures
