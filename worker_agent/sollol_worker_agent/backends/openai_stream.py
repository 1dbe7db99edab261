"""Readers for the server-sent events of OpenAI-compatible servers and of llama-server's own /completion.

Each turns lines into Ollama-shaped pieces. No HTTP here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sollol_broker.errors import BackendError
from sollol_worker_agent.backends.protocol import End, Piece
from sollol_worker_agent.backends.refusals import is_retryable, message_of

Clock = Callable[[], int]


class EventReader:
    """What the readers share: the framing, errors in the stream, and the closing fields.

    Args:
        who: the server in words, for error texts.
        top_logprobs: how many alternatives per token the user asked for.
        clock: nanoseconds that only go forward; starts to count here.
    """

    def __init__(self, who: str, *, top_logprobs: int = 0, clock: Clock = time.perf_counter_ns) -> None:
        self._who = who
        self._top_logprobs = top_logprobs
        self._clock = clock
        self._began_at = clock()
        self._first_piece_at = 0
        self._done_reason = "stop"
        self._timings: Mapping[str, Any] = {}
        self._usage: Mapping[str, Any] = {}
        self._counted = 0

    def feed(self, line: bytes) -> Sequence[Piece | End]:
        """One line; only `data:` and `error:` say something, `event:` and `id:` do not."""
        if line.startswith(b"data:"):
            data = line[5:].strip()
            return self._done() if data == b"[DONE]" else self._read(self._parsed(data))
        if line.startswith(b"error:"):
            raise self._failed(self._parsed(line[6:].strip()))
        if line.startswith(b"{"):
            raise self._failed(self._parsed(line))
        return ()

    def _read(self, event: Mapping[str, Any]) -> Sequence[Piece | End]:
        raise NotImplementedError

    def _done(self) -> Sequence[Piece | End]:
        raise NotImplementedError

    def _parsed(self, data: bytes) -> Mapping[str, Any]:
        try:
            event = json.loads(data)
        except ValueError as error:
            raise BackendError(
                f"{self._who} sent a line that is not JSON; the answer is truncated", retryable=True
            ) from error
        if not isinstance(event, dict):
            raise BackendError(f"{self._who} sent a line that is not an event", retryable=True)
        if event.get("error") or event.get("object") == "error":
            raise self._failed(event)
        return event

    def _failed(self, event: Mapping[str, Any]) -> BackendError:
        error = event.get("error")
        code = error.get("code") if isinstance(error, Mapping) else event.get("code")
        status = code if isinstance(code, int) else None
        text = message_of(event) or "no reason given"
        return BackendError(
            f"{self._who} failed while it answered: {text}",
            status=status,
            retryable=is_retryable(status or 500, text),
        )

    def _note(self, event: Mapping[str, Any]) -> None:
        if event.get("timings"):
            self._timings = event["timings"]
        if event.get("usage"):
            self._usage = event["usage"]

    def _new_tokens(self, event: Mapping[str, Any]) -> int:
        """How many tokens this event brings, where the server counts them; else 1."""
        counts = (event.get("timings") or {}).get("predicted_n"), event.get("tokens_predicted")
        told = next(
            (each for each in (*counts, (event.get("usage") or {}).get("completion_tokens")) if each), None
        )
        if told is None:
            return 1
        new, self._counted = told - self._counted, told
        return int(max(0, new))

    def _spoke(self) -> None:
        self._first_piece_at = self._first_piece_at or self._clock()

    def _end(self) -> End:
        now = self._clock()
        return End(
            {
                "done_reason": self._done_reason,
                "total_duration": now - self._began_at,
                **metrics(self._timings, self._usage, self._began_at, self._first_piece_at or now, now),
            }
        )


class ChatReader(EventReader):
    """Reads /v1/chat/completions; success is `[DONE]`.

    Tool calls come in fragments and are handed on whole, in one piece before the end.
    """

    def __init__(self, who: str, *, top_logprobs: int = 0, clock: Clock = time.perf_counter_ns) -> None:
        super().__init__(who, top_logprobs=top_logprobs, clock=clock)
        self._calls: list[_Call] = []

    def _read(self, event: Mapping[str, Any]) -> Sequence[Piece | End]:
        self._note(event)
        choices = event.get("choices")
        if not choices:
            return ()
        choice = choices[0]
        if choice.get("finish_reason"):
            self._done_reason = "length" if choice["finish_reason"] == "length" else "stop"
        delta = choice.get("delta") or {}
        for fragment in delta.get("tool_calls") or ():
            self._spoke()
            self._collect(fragment)
        text = delta.get("content") or ""
        thoughts = delta.get("reasoning_content") or delta.get("reasoning") or ""
        probabilities = choice.get("logprobs")
        if not (text or thoughts or probabilities):
            return ()
        self._spoke()
        return (Piece(text, thoughts, (), self._logprobs(probabilities), self._new_tokens(event)),)

    def _done(self) -> Sequence[Piece | End]:
        if not self._calls:
            return (self._end(),)
        calls = tuple(call.whole(at, self._who, self._done_reason) for at, call in enumerate(self._calls))
        return (Piece(tool_calls=calls), self._end())

    def _collect(self, fragment: Mapping[str, Any]) -> None:
        index = fragment.get("index")
        call = next((call for call in self._calls if call.index == index), None)
        if call is None or (index is None and fragment.get("id")):
            call = _Call(index)
            self._calls.append(call)
        call.add(fragment)

    def _logprobs(self, probabilities: Mapping[str, Any] | None) -> tuple[dict[str, Any], ...]:
        entries = (probabilities or {}).get("content") or ()
        return tuple(logprob(entry, self._top_logprobs) for entry in entries)


class CompletionReader(EventReader):
    """Reads /v1/completions; success is `[DONE]`."""

    def _read(self, event: Mapping[str, Any]) -> Sequence[Piece | End]:
        self._note(event)
        choices = event.get("choices")
        if not choices:
            return ()
        choice = choices[0]
        if choice.get("finish_reason"):
            self._done_reason = "length" if choice["finish_reason"] == "length" else "stop"
        text, probabilities = choice.get("text") or "", choice.get("logprobs")
        if not (text or probabilities):
            return ()
        self._spoke()
        entries = legacy_logprobs(probabilities or {}, self._top_logprobs)
        return (Piece(text, logprobs=entries, tokens=self._new_tokens(event)),)

    def _done(self) -> Sequence[Piece | End]:
        return (self._end(),)


class LlamaCompletionReader(EventReader):
    """Reads llama-server's /completion and /infill; success is an event with `stop` true."""

    def _read(self, event: Mapping[str, Any]) -> Sequence[Piece | End]:
        self._note(event)
        probabilities = event.get("completion_probabilities")
        text = event.get("content") or ""
        said: list[Piece | End] = []
        if text or probabilities:
            self._spoke()
            entries = tuple(logprob(entry, self._top_logprobs) for entry in probabilities or ())
            ids = tuple(event.get("tokens") or ())
            said.append(Piece(text, logprobs=entries, tokens=self._new_tokens(event), ids=ids))
        if event.get("stop"):
            self._done_reason = "length" if event.get("stop_type") == "limit" else "stop"
            said.append(self._end())
        return said

    def _done(self) -> Sequence[Piece | End]:
        return ()


@dataclass(slots=True)
class _Call:
    """One tool call while its fragments come in."""

    index: object
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    whole_arguments: Mapping[str, Any] | None = None

    def add(self, fragment: Mapping[str, Any]) -> None:
        function = fragment.get("function") or {}
        self.id = self.id or fragment.get("id") or ""
        # Some servers repeat the name on every fragment, so it is not joined.
        self.name = self.name or function.get("name") or ""
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            self.whole_arguments = arguments
        elif arguments:
            self.arguments.append(arguments)

    def whole(self, at: int, who: str, done_reason: str) -> dict[str, Any]:
        """The call in Ollama's shape, with its arguments as an object."""
        arguments: object = self.whole_arguments
        if arguments is None:
            try:
                arguments = json.loads("".join(self.arguments) or "{}")
            except ValueError as error:
                cut = done_reason == "length"
                raise BackendError(
                    f"{who} sent a tool call whose arguments are not JSON"
                    + ("; num_predict cut it short, raise it" if cut else ""),
                    retryable=not cut,
                ) from error
        function = {"index": at, "name": self.name, "arguments": arguments}
        return {"id": self.id or f"call_{at}", "function": function}


def logprob(entry: Mapping[str, Any], top: int) -> dict[str, Any]:
    """One token's log probability in Ollama's shape, with at most `top` alternatives."""
    said: dict[str, Any] = {"token": entry["token"], "logprob": entry["logprob"]}
    if entry.get("bytes") is not None:
        said["bytes"] = entry["bytes"]
    if top > 0 and entry.get("top_logprobs"):
        said["top_logprobs"] = [logprob(other, 0) for other in entry["top_logprobs"][:top]]
    return said


def legacy_logprobs(probabilities: Mapping[str, Any], top: int) -> tuple[dict[str, Any], ...]:
    """The parallel lists of /v1/completions as one entry per token."""
    tokens = probabilities.get("tokens")
    if not tokens:  # newer servers send the chat shape here, too
        return tuple(logprob(entry, top) for entry in probabilities.get("content") or ())
    values = probabilities.get("token_logprobs") or [0.0] * len(tokens)
    others = probabilities.get("top_logprobs") or [None] * len(tokens)
    return tuple(
        logprob(
            {
                "token": token,
                "logprob": value,
                "bytes": list(str(token).encode()),
                "top_logprobs": [
                    {"token": name, "logprob": chance, "bytes": list(str(name).encode())}
                    for name, chance in (alternatives or {}).items()
                ],
            },
            top,
        )
        for token, value, alternatives in zip(tokens, values, others, strict=False)
    )


def metrics(
    timings: Mapping[str, Any], usage: Mapping[str, Any], began_at: int, first_at: int, ended_at: int
) -> dict[str, int]:
    """Ollama's counts and durations (ns).

    1. llama-server tells its own timings.
    2. Others tell token counts; the durations are then what passed here, waiting included.
    3. Without either only the durations are known.
    """
    if timings:  # 1
        return {
            "load_duration": 0,
            "prompt_eval_count": int(timings.get("cache_n", 0)) + int(timings.get("prompt_n", 0)),
            "prompt_eval_duration": int(timings.get("prompt_ms", 0.0) * 1e6),
            "eval_count": int(timings.get("predicted_n", 0)),
            "eval_duration": int(timings.get("predicted_ms", 0.0) * 1e6),
        }
    durations = {
        "load_duration": 0,
        "prompt_eval_duration": first_at - began_at,
        "eval_duration": ended_at - first_at,
    }
    if usage:  # 2
        return {
            **durations,
            "prompt_eval_count": int(usage.get("prompt_tokens") or 0),
            "eval_count": int(usage.get("completion_tokens") or 0),
        }
    return durations  # 3
