"""The messages of OpenAI's chats in Ollama's words. Pure."""

from __future__ import annotations

from typing import Any

from .openai_fields import arguments_of, picture_of
from .refusals import Refused

# Other names of roles.
_ROLES = {"developer": "system", "function": "tool"}
# Fields that are translated; all others stay.
_TRANSLATED = frozenset({"role", "content", "tool_calls", "reasoning", "reasoning_content", "tool_call_id"})
# Parts of a message that the fabric has no place for.
_NO_PLACE = {"input_audio": "sound", "audio": "sound", "file": "files", "input_file": "files"}


def messages_of(given: object) -> list[dict[str, Any]]:
    """A conversation: pictures, tool calls and their results, and thinking where Ollama has them.

    Raises:
        Refused: 400, it has something that cannot be said.
    """
    if not isinstance(given, list):
        raise Refused(400, "messages: a list is needed", field="messages")
    if not given:
        raise Refused(400, "[] is too short - 'messages'", field="messages")
    said: list[dict[str, Any]] = []
    tools: dict[str, str] = {}  # by the id of the call that used them
    for number, message in enumerate(given):
        field = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(400, f"{field}: an object with a role is needed", field=field)
        new = _message(message, field)
        for call in new.get("tool_calls", ()):
            tools[call["id"]] = call["function"]["name"]
        if new["role"] == "tool":
            answered = str(message.get("tool_call_id") or "")
            new.update({"tool_call_id": answered} if answered else {})
            if name := tools.get(answered) or message.get("name"):
                new["tool_name"] = name
        said.append(new)
    return said


def content_of(content: object, field: str) -> tuple[str, list[str]]:
    """The text of a message, and its pictures in base64; texts are joined by line breaks.

    Raises:
        Refused: 400, it is no content, or of a kind that cannot be passed on.
    """
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise Refused(400, f"{field}: text or a list of parts is needed", field=field)
    texts, pictures = [], []
    for number, part in enumerate(content):
        where = f"{field}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("text", "input_text", "output_text", "refusal"):
            text = part.get("refusal" if kind == "refusal" else "text")
            if not isinstance(text, str):
                raise Refused(400, f"{where}.text: text is needed", field=where)
            texts.append(text)
        elif kind in ("image_url", "input_image"):
            url = part.get("image_url")
            pictures.append(picture_of(url.get("url") if isinstance(url, dict) else url, where))
        else:
            told = _NO_PLACE.get(str(kind), "parts of this type")
            raise Refused(400, f"{where}: {told} cannot be passed on; send text and pictures", field=where)
    return "\n".join(texts), pictures


def calls_of(given: object, field: str) -> list[dict[str, Any]]:
    """The tool calls of an assistant's message.

    Raises:
        Refused: 400, one is none.
    """
    if not isinstance(given, list):
        raise Refused(400, f"{field}: a list is needed", field=field)
    calls = []
    for number, call in enumerate(given):
        where = f"{field}[{number}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused(400, f"{where}: a call of a function with a name is needed", field=where)
        calls.append(
            tool_call(call.get("id") or f"call_{number}", function["name"], function.get("arguments"), where)
        )
    return calls


def tool_call(call_id: object, name: str, arguments: object, field: str) -> dict[str, Any]:
    """A tool call of an earlier answer, as Ollama has it; raises Refused (400)."""
    return {
        "id": str(call_id),
        "function": {"name": name, "arguments": arguments_of(arguments or {}, field)},
    }


def _message(message: dict[str, Any], field: str) -> dict[str, Any]:
    role = message["role"].lower()
    text, pictures = content_of(message.get("content"), f"{field}.content")
    new = {
        name: value
        for name, value in message.items()
        if name not in _TRANSLATED and value not in (None, [], {})
    }
    new.update(role=_ROLES.get(role, role), content=text)
    if pictures:
        new["images"] = pictures
    if thoughts := message.get("reasoning_content") or message.get("reasoning"):
        new["thinking"] = str(thoughts)
    if calls := message.get("tool_calls"):
        new["tool_calls"] = calls_of(calls, f"{field}.tool_calls")
    return new
