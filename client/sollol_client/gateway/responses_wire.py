"""OpenAI's responses out: whole, or as numbered events in their order. Pure but for the clock."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..answer import Answer, Delta
from .openai_fields import arguments_text, call_id
from .openai_wire import chat_logprobs, comment, event
from .refusals import Refusal
from .replies import routing_of
from .running import Note
from .shapes import error_body

# What an answer repeats of its request, and what stands there when that did not say.
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "tools": [],
    "tool_choice": "auto",
    "truncation": "disabled",
    "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}},
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "top_logprobs": 0,
    "temperature": 1,
    "reasoning": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "safety_identifier": None,
    "prompt_cache_key": None,
}


class ResponseEvents:
    """Writes one response.

    Args:
        body: of the request. job_id: the response is called by it.
    """

    media_type = "text/event-stream"
    always_notes = True

    def __init__(self, body: Mapping[str, Any], job_id: str) -> None:
        given = {name: body[name] for name in _ECHOED if body.get(name) is not None}
        self._job_id = job_id
        self._head = {
            "id": f"resp_{job_id}",
            "object": "response",
            "created_at": int(time.time()),
            "model": body.get("model"),
            "previous_response_id": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            **_ECHOED,
            **given,
        }
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer of a request that is not streamed."""
        output = []
        if answer.thinking:
            output.append(self._filled(self._item("reasoning", 0), answer.thinking, []))
        if answer.text or not answer.tool_calls:
            item = self._item("message", len(output))
            output.append(self._filled(item, answer.text, chat_logprobs(answer.get("logprobs") or ())))
        output += self._calls(answer.tool_calls, len(output))
        return self._ended(answer, output)

    def piece(self, piece: Delta) -> bytes:
        """See Framing."""
        sent = self._begin()
        if piece.thinking:
            sent += self._say("reasoning", "response.reasoning_text", piece.thinking, [])
        if piece or piece.logprobs:
            sent += self._say("message", "response.output_text", str(piece), chat_logprobs(piece.logprobs))
        if piece.tool_calls:
            sent += self._close()
            for item in self._calls(piece.tool_calls, len(self._output)):
                sent += self._called(item)
        return sent

    def note(self, note: Note) -> bytes:
        """See Framing."""
        return comment(note)

    def end(self, answer: Answer) -> bytes:
        """See Framing."""
        sent = self._begin()
        if not self._output and self._open is None:
            sent += self._say("message", "response.output_text", "", [])
        sent += self._close()
        response = self._ended(answer, self._output)
        return sent + self._event(f"response.{response['status']}", response=response)

    def failed(self, refusal: Refusal) -> bytes:
        """See Framing."""
        error = error_body("/v1/", refusal)["error"]
        told = {"code": error["code"] or error["type"], "message": error["message"]}
        output = [*self._output, *([self._open] if self._open is not None else [])]
        response = {**self._state("failed", output), "error": told}
        sent = self._begin() + self._event("error", **told, param=error["param"])
        return sent + self._event("response.failed", response=response)

    def _begin(self) -> bytes:
        if self._number:
            return b""
        created = self._event("response.created", response=self._state("in_progress", []))
        return created + self._event("response.in_progress", response=self._state("in_progress", []))

    def _say(self, kind: str, said: str, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        sent = b""
        if self._open is None or self._open["type"] != kind:
            sent += self._close()
            self._open = self._item(kind, len(self._output))
            sent += self._event("response.output_item.added", **self._at(), item=self._open)
            part = _part(kind, "", [])
            sent += self._event("response.content_part.added", **self._in(), part=part)
        self._text.append(text)
        self._logprobs += logprobs
        if not text and not logprobs:
            return sent
        more = {"logprobs": logprobs} if kind == "message" else {}
        return sent + self._event(f"{said}.delta", **self._in(), delta=text, **more)

    def _close(self) -> bytes:
        """Close the item that is open."""
        item = self._open
        if item is None:
            return b""
        text, is_message = "".join(self._text), item["type"] == "message"
        filled = self._filled(item, text, self._logprobs)
        said = "response.output_text" if is_message else "response.reasoning_text"
        more = {"logprobs": self._logprobs} if is_message else {}
        sent = self._event(f"{said}.done", **self._in(), text=text, **more)
        sent += self._event("response.content_part.done", **self._in(), part=filled["content"][0])
        sent += self._event("response.output_item.done", **self._at(), item=filled)
        self._output.append(filled)
        self._open, self._text, self._logprobs = None, [], []
        return sent

    def _called(self, item: dict[str, Any]) -> bytes:
        at, arguments = {"output_index": len(self._output)}, item["arguments"]
        begun = {**item, "arguments": "", "status": "in_progress"}
        inside = {**at, "item_id": item["id"]}
        self._output.append(item)
        return (
            self._event("response.output_item.added", **at, item=begun)
            + self._event("response.function_call_arguments.delta", **inside, delta=arguments)
            + self._event(
                "response.function_call_arguments.done", **inside, name=item["name"], arguments=arguments
            )
            + self._event("response.output_item.done", **at, item=item)
        )

    def _at(self) -> dict[str, Any]:
        return {"output_index": len(self._output)}

    def _in(self) -> dict[str, Any]:
        assert self._open is not None  # noqa: S101  # it is called for an open item
        return {"item_id": self._open["id"], "output_index": len(self._output), "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event(data, name=kind)

    def _item(self, kind: str, number: int) -> dict[str, Any]:
        stem = {"message": "msg", "reasoning": "rs"}[kind]
        item: dict[str, Any] = {
            "id": f"{stem}_{self._job_id}_{number}",
            "type": kind,
            "status": "in_progress",
        }
        more: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
        return {**item, **more, "content": []}

    def _filled(self, item: Mapping[str, Any], text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {**item, "status": "completed", "content": [_part(item["type"], text, logprobs)]}

    def _calls(self, calls: Iterable[Mapping[str, Any]], first: int) -> list[dict[str, Any]]:
        return [
            {
                "id": f"fc_{self._job_id}_{number}",
                "type": "function_call",
                "status": "completed",
                "call_id": call_id(call, self._job_id, number),
                "name": call["function"]["name"],
                "arguments": arguments_text(call),
            }
            for number, call in enumerate(calls, start=first)
        ]

    def _ended(self, answer: Answer, output: list[dict[str, Any]]) -> dict[str, Any]:
        is_cut = answer.get("done_reason") == "length"
        asked, said = int(answer.get("prompt_eval_count") or 0), int(answer.get("eval_count") or 0)
        return {
            **self._state("incomplete" if is_cut else "completed", output),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "completed_at": None if is_cut else int(time.time()),
            "usage": {
                "input_tokens": asked,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": said,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": asked + said,
            },
            "_sollol_routing": routing_of(answer),
        }

    def _state(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "output": output,
            "error": None,
            "incomplete_details": None,
            "completed_at": None,
            "usage": None,
        }


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
