"""OpenAI's API out: from an answer and its pieces to chat completions, text completions and vectors. Pure."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ..answer import Answer, Delta
from .openai_fields import arguments_text, call_id
from .openai_translate import Talk
from .refusals import Refusal
from .replies import as_json, routing_of
from .running import Note
from .shapes import error_body

_FINGERPRINT = "fp_sollol"
DONE = b"data: [DONE]\n\n"


def event(data: object, *, name: str = "") -> bytes:
    """One server-sent event."""
    begin = f"event: {name}\n" if name else ""
    return begin.encode() + b"data: " + as_json(data) + b"\n\n"


def comment(note: Note) -> bytes:
    """What a waiting client may read and every other one skips: `: queued, position 3, ~12 s`."""
    said = [note.text] if note.text else []
    if note.position is not None:
        said += ["queued", f"position {note.position}"]
    if note.eta is not None:
        said.append(f"~{note.eta:.0f} s")
    return f": {', '.join(said) or 'working'}\n\n".encode()


class Completions:
    """Writes what a chat or a completion has said, whole or in events.

    Args:
        job_id: its answer is called by it.
    """

    media_type = "text/event-stream"
    always_notes = True

    def __init__(self, talk: Talk, job_id: str) -> None:
        self._talk = talk
        self._id = f"{'chatcmpl' if talk.is_chat else 'cmpl'}-{job_id}"
        self._job_id = job_id
        self._created = int(time.time())

    def choice(self, index: int) -> Choice:
        """The writer of one of its choices."""
        return Choice(self, index)

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The answer of a request that is not streamed."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return {
            **self.head("chat.completion" if self._talk.is_chat else "text_completion"),
            "choices": choices,
            "usage": self.usage(answers),
            "_sollol_routing": routing_of(answers[0]),
        }

    def close(self, answers: Sequence[Answer]) -> bytes:
        """What ends a stream all of whose choices are whole."""
        if not self._talk.include_usage:
            return DONE
        return event({**self.head(self.chunk), "choices": [], "usage": self.usage(answers)}) + DONE

    def usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        """The tokens of all choices; the prompt that some share counts once."""
        shared = max(1, len(answers) // self._talk.prompts)
        asked = sum(_count(answer, "prompt_eval_count") for answer in answers[::shared])
        said = sum(_count(answer, "eval_count") for answer in answers)
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}

    def head(self, kind: str) -> dict[str, Any]:
        """What each object begins with."""
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._talk.model,
            "system_fingerprint": _FINGERPRINT,
        }

    @property
    def chunk(self) -> str:
        """What a part of a stream is called."""
        return "chat.completion.chunk" if self._talk.is_chat else "text_completion"

    def piece(self, piece: Delta, index: int, *, is_first: bool, offset: int = 0) -> dict[str, Any]:
        """A piece of a choice, as a choice; `offset` characters came before it."""
        if not self._talk.is_chat:
            text = self._echo(index) + piece if is_first else str(piece)
            choice: dict[str, Any] = {"text": text, "index": index, "finish_reason": None}
            return {**choice, "logprobs": text_logprobs(piece.logprobs, offset)} if piece.logprobs else choice
        delta: dict[str, Any] = {"role": "assistant"} if is_first else {}
        if piece or not (piece.thinking or piece.tool_calls):
            delta["content"] = str(piece)
        delta.update(thoughts(piece.thinking))
        if piece.tool_calls:
            delta["tool_calls"] = self.calls(piece.tool_calls, index)
        choice = {"index": index, "delta": delta, "finish_reason": None}
        return (
            {**choice, "logprobs": {"content": chat_logprobs(piece.logprobs)}} if piece.logprobs else choice
        )

    def calls(self, calls: Iterable[Mapping[str, Any]], index: int) -> list[dict[str, Any]]:
        """Tool calls, their arguments as text."""
        job = f"{self._job_id}_{index}" if index else self._job_id
        return [
            {
                "index": number,
                "id": call_id(call, job, number),
                "type": "function",
                "function": {"name": call["function"]["name"], "arguments": arguments_text(call)},
            }
            for number, call in enumerate(calls)
        ]

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        logprobs = answer.get("logprobs")
        if not self._talk.is_chat:
            choice = {"text": self._echo(index) + answer.text, "index": index}
            said = text_logprobs(logprobs) if logprobs else None
            return {**choice, "logprobs": said, "finish_reason": finish_reason(answer)}
        calls = self.calls(answer.tool_calls, index)
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if calls else "")}
        message.update(thoughts(answer.thinking))
        if calls:
            message["tool_calls"] = [
                {name: v for name, v in call.items() if name != "index"} for call in calls
            ]
        choice = {"index": index, "message": message, "finish_reason": finish_reason(answer)}
        return {**choice, "logprobs": {"content": chat_logprobs(logprobs)}} if logprobs else choice

    def _echo(self, index: int) -> str:
        return self._talk.echo[index] if self._talk.echo else ""


class Choice:
    """Writes one choice of a stream; alone it is the framing of the whole stream."""

    media_type = Completions.media_type
    always_notes = True

    def __init__(self, completions: Completions, index: int) -> None:
        self._all = completions
        self._index = index
        self._is_first = True
        self._offset = 0

    def piece(self, piece: Delta) -> bytes:
        """See Framing."""
        choice = self._all.piece(piece, self._index, is_first=self._is_first, offset=self._offset)
        self._is_first = False
        self._offset += len(piece)
        return event({**self._all.head(self._all.chunk), "choices": [choice]})

    def note(self, note: Note) -> bytes:
        """See Framing."""
        return comment(note)

    def finish(self, answer: Answer) -> bytes:
        """The end of this choice, not of the stream."""
        nothing: dict[str, Any] = {"delta": {}} if self._all.chunk.startswith("chat") else {"text": ""}
        choice = {"index": self._index, **nothing, "finish_reason": finish_reason(answer)}
        head = self._all.head(self._all.chunk)
        return event({**head, "choices": [choice], "_sollol_routing": routing_of(answer)})

    def end(self, answer: Answer) -> bytes:
        """See Framing."""
        return self.finish(answer) + self._all.close([answer])

    def failed(self, refusal: Refusal) -> bytes:
        """See Framing."""
        return event(error_body("/v1/", refusal))


def thoughts(text: str) -> dict[str, str]:
    """Thinking, under both names by which clients look for it."""
    return {"reasoning": text, "reasoning_content": text} if text else {}


def finish_reason(answer: Answer) -> str:
    """Why an answer ended."""
    if answer.tool_calls:
        return "tool_calls"
    return "length" if answer.get("done_reason") == "length" else "stop"


def chat_logprobs(given: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Log probabilities as chats have them."""
    return [
        {**_logprob(token), "top_logprobs": [_logprob(other) for other in token.get("top_logprobs") or ()]}
        for token in given
    ]


def text_logprobs(given: Iterable[Mapping[str, Any]], offset: int = 0) -> dict[str, Any]:
    """Log probabilities as completions have them; `offset` characters came before them."""
    tokens, offsets = list(given), []
    for token in tokens:
        offsets.append(offset)
        offset += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {other["token"]: other["logprob"] for other in token.get("top_logprobs") or ()}
            for token in tokens
        ],
        "text_offset": offsets,
    }


def embed_reply(model: str, answer: Answer, *, in_base64: bool) -> dict[str, Any]:
    """The answer of /v1/embeddings; base64 holds little-endian float32."""
    tokens = _count(answer, "prompt_eval_count")
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "embedding": _base64(vector) if in_base64 else vector, "index": number}
            for number, vector in enumerate(answer.embeddings)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def model_entry(name: str, listed: Mapping[str, Any]) -> dict[str, Any]:
    """A model of /v1/models, from its entry of Ollama's list."""
    made = datetime.fromisoformat(listed["modified_at"])
    return {"id": name, "object": "model", "created": int(made.timestamp()), "owned_by": "library"}


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def _logprob(token: Mapping[str, Any]) -> dict[str, Any]:
    spelled = token.get("bytes")
    return {
        "token": token["token"],
        "logprob": token["logprob"],
        "bytes": list(str(token["token"]).encode()) if spelled is None else spelled,
    }


def _count(answer: Answer, name: str) -> int:
    return int(answer.get(name) or 0)
