"""Anthropic's messages out: whole, or as events in their order. Pure but for random ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..answer import Answer, Delta
from .openai_fields import arguments_text, call_id
from .openai_wire import comment, event
from .refusals import Refusal
from .replies import routing_of
from .running import Note
from .shapes import error_body

_EMPTY = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}


class MessageEvents:
    """Writes one message.

    Args:
        model: as the caller wrote it. job_id: the message is called by it.
    """

    media_type = "text/event-stream"
    always_notes = True

    def __init__(self, model: str, job_id: str) -> None:
        self._job_id = job_id
        self._head = {"id": f"msg_{job_id}", "type": "message", "role": "assistant", "model": model}
        self._begun = False
        self._index = -1
        self._open = ""

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer of a request that is not streamed."""
        content: list[dict[str, Any]] = []
        if answer.thinking:
            content.append({"type": "thinking", **_EMPTY["thinking"], "thinking": answer.thinking})
        if answer.text or not answer.tool_calls:
            content.append({"type": "text", "text": answer.text})
        for number, call in enumerate(answer.tool_calls):
            content.append({**self._call(call, number), "input": _input(call)})
        return {
            **self._head,
            "content": content,
            "stop_reason": stop_reason(answer),
            "stop_sequence": None,
            "usage": _usage(answer),
            "_sollol_routing": routing_of(answer),
        }

    def piece(self, piece: Delta) -> bytes:
        """See Framing."""
        sent = self._begin()
        if piece.thinking:
            sent += self._say("thinking", piece.thinking)
        if piece:
            sent += self._say("text", str(piece))
        return sent + self._calls(piece.tool_calls)

    def note(self, note: Note) -> bytes:
        """See Framing."""
        return comment(note)

    def end(self, answer: Answer) -> bytes:
        """See Framing."""
        sent = self._begin()
        if self._index < 0:
            sent += self._start("text", {"type": "text", "text": ""})
        delta = {"stop_reason": stop_reason(answer), "stop_sequence": None}
        last = {"delta": delta, "usage": _usage(answer), "_sollol_routing": routing_of(answer)}
        return sent + self._stop() + _event("message_delta", **last) + _event("message_stop")

    def failed(self, refusal: Refusal) -> bytes:
        """See Framing."""
        return event(error_body("/v1/messages", refusal), name="error")

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        # How many tokens went in is known at the end only.
        usage = {"input_tokens": 0, "output_tokens": 0}
        more: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event("message_start", message={**self._head, **more})

    def _say(self, kind: str, text: str) -> bytes:
        sent = b""
        if self._open != kind:
            sent = self._start(kind, {"type": kind, **_EMPTY[kind]})
        return sent + _event(
            "content_block_delta", index=self._index, delta={"type": f"{kind}_delta", kind: text}
        )

    def _calls(self, calls: Iterable[Mapping[str, Any]]) -> bytes:
        sent = b""
        for number, call in enumerate(calls):
            sent += self._start("tool_use", {**self._call(call, number), "input": {}})
            delta = {"type": "input_json_delta", "partial_json": arguments_text(call)}
            sent += _event("content_block_delta", index=self._index, delta=delta)
        return sent

    def _start(self, kind: str, block: Mapping[str, Any]) -> bytes:
        sent = self._stop()
        self._index += 1
        self._open = kind
        return sent + _event("content_block_start", index=self._index, content_block=dict(block))

    def _stop(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event("content_block_stop", index=self._index)

    def _call(self, call: Mapping[str, Any], number: int) -> dict[str, Any]:
        called = {"type": "tool_use", "id": call_id(call, self._job_id, number)}
        return {**called, "name": call["function"]["name"]}


def stop_reason(answer: Answer) -> str:
    """Why an answer ended; which of the stop sequences it met does not come through the fabric."""
    if answer.tool_calls:
        return "tool_use"
    return "max_tokens" if answer.get("done_reason") == "length" else "end_turn"


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, name=kind)


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "input_tokens": int(answer.get("prompt_eval_count") or 0),
        "output_tokens": int(answer.get("eval_count") or 0),
    }


def _input(call: Mapping[str, Any]) -> Any:
    return (call.get("function") or {}).get("arguments") or {}
