"""How one answer of the double is generated, and what can be made to go wrong with it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from sollol_worker_agent.doubles.http_server import Reply
from sollol_worker_agent.doubles.ollama_scheduler import DoubleModel
from sollol_worker_agent.doubles.ollama_shapes import answer_line, logprob, options_of, tokens_of


@dataclass(slots=True)
class Faults:
    """What the double is told to do wrong, or differently; all of it can be changed at any time.

    Attributes:
        die_after_tokens: break off after so many tokens; None never does.
        die_by: "error_line" says so in the stream, "cut" closes the connection.
        answer_status: refuse every inference with this status; 0 does not.
        answer_text: the error text to go with it.
        text_on_last_line: the last token comes with `done` true.
        tool_calls_on_last_line: tool calls come with `done` true, as from a jinja template.
        logprob_only_lines: log probabilities come on lines of their own, without text.
        no_sizes: /api/ps reads 0 bytes, as on a machine without a GPU.
    """

    die_after_tokens: int | None = None
    die_by: Literal["error_line", "cut"] = "error_line"
    answer_status: int = 0
    answer_text: str = "told to fail"
    text_on_last_line: bool = False
    tool_calls_on_last_line: bool = False
    logprob_only_lines: bool = False
    no_sizes: bool = False


@dataclass(slots=True)
class Seen:
    """What the double has seen.

    Attributes:
        requests: path and body of each inference, in order of arrival.
        headers: headers of each of them.
        generating: how many answers are being generated now.
        most_generating: the highest that `generating` has been.
        abandoned: how many answers were stopped because the client left.
        tokens: how many tokens were sent.
    """

    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    generating: int = 0
    most_generating: int = 0
    abandoned: int = 0
    tokens: int = 0


class Answer:
    """One answer while it is generated; the times are perf_counter_ns."""

    def __init__(
        self,
        model: DoubleModel,
        asked: Mapping[str, Any],
        *,
        is_chat: bool,
        began_at: int,
        loaded_at: int,
        faults: Faults,
        seen: Seen,
        tokens_may_flow: asyncio.Event,
        tool_calls: list[tuple[str, dict[str, Any]]] | None,
    ) -> None:
        self._faults = faults
        self._seen = seen
        self._tokens_may_flow = tokens_may_flow
        self._tool_calls = tool_calls
        self._model = model
        self._asked = asked
        self._name = str(asked["model"])
        self._is_chat = is_chat
        self._began_at = began_at
        self._loaded_at = loaded_at
        self._lines: list[dict[str, Any]] = []
        self._streams = asked.get("stream") is not False

    async def send(self, reply: Reply) -> None:
        """Generate and send it, token by token, unless told to die."""
        seen, faults = self._seen, self._faults
        async with Working(seen):
            slot_at = time.perf_counter_ns()
            tokens, done_reason = self._tokens()
            for at, fields in enumerate(tokens):
                await self._tokens_may_flow.wait()
                await asyncio.sleep(self._model.token_seconds)
                if faults.die_after_tokens is not None and at >= faults.die_after_tokens:
                    await self._die(reply)
                    return
                seen.tokens += 1
                if at + 1 == len(tokens) and (
                    faults.text_on_last_line or ("tool_calls" in fields and faults.tool_calls_on_last_line)
                ):
                    break
                await self._say(reply, fields)
            else:
                fields = {}
            await self._say(reply, {**fields, **self._closing(slot_at, len(tokens), done_reason)})
            if self._streams:
                await reply.end()
            else:
                await reply.json(200, self._joined())

    async def _say(self, reply: Reply, fields: Mapping[str, Any]) -> None:
        split = self._faults.logprob_only_lines and "logprobs" in fields
        if split:
            await self._put(reply, {"logprobs": fields["logprobs"]})
        await self._put(
            reply, {name: value for name, value in fields.items() if not (split and name == "logprobs")}
        )

    async def _put(self, reply: Reply, fields: Mapping[str, Any]) -> None:
        line = answer_line(self._name, self._is_chat, **fields)
        self._lines.append(line)
        if self._streams:
            await reply.line(line)

    async def _die(self, reply: Reply) -> None:
        if self._faults.die_by == "cut":
            return await reply.cut()
        text = {"error": "an error was encountered while running the model: unexpected EOF"}
        if not self._streams or not reply.is_streaming:
            return await reply.json(500, text)
        await reply.line(text)
        return await reply.end()

    def _tokens(self) -> tuple[list[dict[str, Any]], str]:
        tokens: list[dict[str, Any]] = []
        if (
            self._model.thinking
            and self._asked.get("think") is not False
            and "thinking" in self._model.capabilities
        ):
            tokens += [{"thinking": token} for token in tokens_of(self._model.thinking)]
        if self._asked.get("tools"):
            tokens.append({"tool_calls": self._calls()})
        else:
            tokens += [{"text": token} for token in tokens_of(self._rest())]
        if self._asked.get("logprobs"):
            top = self._asked.get("top_logprobs") or 0
            tokens = [
                {**token, "logprobs": [logprob(str(next(iter(token.values()))), top)]} for token in tokens
            ]
        limit = options_of(self._asked).get("num_predict")
        if isinstance(limit, int) and 0 <= limit < len(tokens):
            return tokens[:limit], "length"
        return tokens, "stop"

    def _rest(self) -> str:
        """What is left of the answer behind the beginning that the request gives."""
        messages, answer = self._asked.get("messages") or (), self._model.answer
        if self._asked.get("raw"):
            prompt = str(self._asked.get("prompt"))
            begun = next((size for size in range(len(answer), 0, -1) if prompt.endswith(answer[:size])), 0)
            return answer[begun:]
        if messages and messages[-1].get("role") == "assistant" and self._model.open_ended:
            return answer.removeprefix(str(messages[-1].get("content")))
        return answer

    def _calls(self) -> list[dict[str, Any]]:
        wanted = self._tool_calls
        if wanted is None:
            wanted = [((self._asked["tools"][0].get("function") or {}).get("name", ""), {})]
        return [
            {"id": f"call_{at:08x}", "function": {"index": at, "name": name, "arguments": arguments}}
            for at, (name, arguments) in enumerate(wanted)
        ]

    def _closing(self, slot_at: int, tokens: int, done_reason: str) -> dict[str, Any]:
        now = time.perf_counter_ns()
        prompt = json.dumps(self._asked.get("messages") or self._asked.get("prompt"))
        prompt_tokens = len(prompt.split()) + 1
        # A tenth of the work goes to the prompt, so that the parts never add up to more than the whole.
        prompt_ns = (now - slot_at) // 10
        closing = {
            "done_reason": done_reason,
            "total_duration": now - self._began_at,
            "load_duration": self._loaded_at - self._began_at,
            "prompt_eval_count": prompt_tokens,
            "prompt_eval_duration": prompt_ns,
            "eval_count": tokens,
            "eval_duration": now - slot_at - prompt_ns,
        }
        if not self._is_chat and not self._asked.get("raw"):
            closing["context"] = list(range(prompt_tokens + tokens))
        return closing

    def _joined(self) -> dict[str, Any]:
        last = dict(self._lines[-1])
        logprobs = [entry for line in self._lines for entry in line.get("logprobs", ())]
        if logprobs:
            last["logprobs"] = logprobs
        if not self._is_chat:
            last["response"] = "".join(line["response"] for line in self._lines)
            return last
        messages = [line["message"] for line in self._lines]
        joined: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(said["content"] for said in messages),
        }
        if thinking := "".join(said.get("thinking", "") for said in messages):
            joined["thinking"] = thinking
        if calls := [call for said in messages for call in said.get("tool_calls", ())]:
            joined["tool_calls"] = calls
        last["message"] = joined
        return last


class Working:
    """Counts an answer as being generated."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    async def __aenter__(self) -> None:
        self._seen.generating += 1
        self._seen.most_generating = max(self._seen.most_generating, self._seen.generating)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seen.generating -= 1
        if kind is not None and issubclass(kind, asyncio.CancelledError | ConnectionError):
            self._seen.abandoned += 1
