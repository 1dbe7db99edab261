"""From the body of OpenAI's /v1/responses to what is asked of the fabric. Pure."""

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
from .openai_messages import content_of, tool_call
from .refusals import Refused

# What the fields of a body have to be; others may be anything.
RESPONSE_FIELDS = {
    **SAME_OPTIONS,
    "model": TEXT,
    "stream": YES_NO,
    "instructions": TEXT,
    "max_output_tokens": INTEGER,
    "temperature": NUMBER,
    "tools": LIST,
    "parallel_tool_calls": YES_NO,
    "reasoning": OBJECT,
    "text": OBJECT,
    "options": OBJECT,
    "metadata": OBJECT,
    "top_logprobs": INTEGER,
}
# What these ask for is done here, or is nothing to a server.
_NOT_FOR_SERVERS = frozenset(
    {"input", "tool_choice", "stop", "include", "store", "truncation", "service_tier", "user", "background",
     "stream_options", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "max_tool_calls",
     "client_metadata"}
)  # fmt: skip
# What would need a memory of earlier requests, and the gateway has none.
_STATEFUL = ("previous_response_id", "conversation", "prompt")


def response_asked(body: object) -> Asked:
    """From the body of /v1/responses.

    Tools that are no functions (web search, a shell) are not shown to the model: no server of ours could run them.

    Raises:
        Refused: 400, it makes no sense, or refers to an earlier response.
    """
    given = fields_of(body, RESPONSE_FIELDS)
    model = model_of(given)
    for name in _STATEFUL:
        if given.get(name):
            raise Refused(
                400, f"{name}: nothing is kept here; send the whole conversation as input", field=name
            )
    if given.get("background"):
        raise Refused(400, "background: submit it to /api/jobs instead", field="background")
    payload = {n: v for n, v in given.items() if n not in RESPONSE_FIELDS and n not in _NOT_FOR_SERVERS}
    payload["messages"] = _messages(given.get("input"), given.get("instructions", ""))
    tools = [
        function_tool({n: v for n, v in tool.items() if n != "type"}, f"tools[{number}]")
        for number, tool in enumerate(given.get("tools") or ())
        if isinstance(tool, dict) and tool.get("type", "function") == "function"
    ]
    parallel = given.get("parallel_tool_calls")
    payload.update(chosen_tools(tools, given.get("tool_choice"), parallel=parallel))
    if given.get("top_logprobs"):
        payload.update(logprobs=True, top_logprobs=given["top_logprobs"])
    payload.update(
        settings_of(
            given,
            most_tokens=given.get("max_output_tokens"),
            stop=given.get("stop"),
            form=((given.get("text") or {}).get("format"), "text.format"),
            effort=((given.get("reasoning") or {}).get("effort"), "reasoning.effort"),
        )
    )
    return Asked(JobKind.CHAT, model, payload, bool(given.get("stream")))


def _messages(given: object, instructions: str) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str) and given:
        return [*said, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise Refused(400, "input: a text or a list of items is needed", field="input")
    tools: dict[str, str] = {}
    thoughts = ""
    for number, item in enumerate(given):
        field = f"input[{number}]"
        if not isinstance(item, dict):
            raise Refused(400, f"{field}: an object is needed", field=field)
        kind = item.get("type", "message")
        if kind == "reasoning":
            thoughts += _thoughts(item, field)
            continue
        if kind == "function_call":
            _add_call(said, item, field)
            tools[str(item.get("call_id"))] = str(item.get("name"))
        elif kind == "function_call_output":
            said.append(_result(item, tools, field))
        elif kind == "message":
            said.append(_message(item, field))
        else:
            raise Refused(400, f"{field}: items of type {str(kind)[:40]!r} cannot be passed on", field=field)
        if thoughts and said[-1]["role"] == "assistant":
            said[-1]["thinking"], thoughts = thoughts, ""
    return said


def _message(item: Mapping[str, Any], field: str) -> dict[str, Any]:
    role = item.get("role")
    if not isinstance(role, str) or not role:
        raise Refused(
            400, f"{field}.role: user, assistant, system or developer is needed", field=f"{field}.role"
        )
    text, pictures = content_of(item.get("content"), f"{field}.content")
    message: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": text}
    return {**message, "images": pictures} if pictures else message


def _add_call(said: list[dict[str, Any]], item: Mapping[str, Any], field: str) -> None:
    """Calls that follow each other, or the text of their answer, are one message."""
    if not isinstance(item.get("name"), str) or not item.get("call_id"):
        raise Refused(400, f"{field}: a call has a name and a call_id", field=field)
    call = tool_call(item["call_id"], item["name"], item.get("arguments"), field)
    if said and said[-1]["role"] == "assistant":
        said[-1].setdefault("tool_calls", []).append(call)
    else:
        said.append({"role": "assistant", "content": "", "tool_calls": [call]})


def _result(item: Mapping[str, Any], tools: Mapping[str, str], field: str) -> dict[str, Any]:
    answered = str(item.get("call_id") or "")
    if not answered:
        raise Refused(400, f"{field}: call_id is needed", field=field)
    text, pictures = content_of(item.get("output"), f"{field}.output")
    said: dict[str, Any] = {"role": "tool", "content": text, "tool_call_id": answered}
    if name := tools.get(answered):
        said["tool_name"] = name
    return {**said, "images": pictures} if pictures else said


def _thoughts(item: Mapping[str, Any], field: str) -> str:
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list):
        raise Refused(400, f"{field}: summary is a list of parts", field=field)
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
