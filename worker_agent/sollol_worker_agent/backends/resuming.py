"""When an answer may be gone on with, and what is asked for then. Pure rules, the same for every make of server.

Going on must be the same as never having stopped. What is not known to be so here is not done.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from sollol_broker.words import JobKind
from sollol_worker_agent.backends.protocol import CannotContinue, End, Piece, Said

# Fields that leave an answer plain text. All others, and those that only some servers know, may bind its form.
_PLAIN_FIELDS = frozenset(
    {"model", "messages", "prompt", "system", "images", "raw", "options", "stream", "keep_alive", "think",
     "truncate", "shift", "logprobs", "top_logprobs"}
)  # fmt: skip
_PLAIN_OPTIONS = frozenset(
    {"num_predict", "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "presence_penalty",
     "frequency_penalty", "repeat_penalty", "repeat_last_n", "num_keep", "mirostat", "mirostat_eta",
     "mirostat_tau", "penalize_newline", "ignore_eos", "cache_prompt", "num_ctx", "num_batch", "num_gpu",
     "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "numa"}
)  # fmt: skip
_WHY_FIELDS = {
    "tools": "tool calls cannot be continued",
    "format": "an answer of a given format cannot be continued",
}


def refusal(kind: JobKind, request: Mapping[str, Any]) -> str:
    """Why no server could go on with an answer to this request; "" = one may be able to."""
    if kind is JobKind.EMBED:
        return "embeddings come all at once"
    if kind is JobKind.RERANK:
        return "a ranking comes all at once"
    if kind is JobKind.WARM:
        return "nothing is said"
    for name, value in request.items():
        if name not in _PLAIN_FIELDS and value not in (None, "", [], {}, False):
            return _WHY_FIELDS.get(name, f"it is not known what {name!r} would do to a continued answer")
    for name, value in (request.get("options") or {}).items():
        if name not in _PLAIN_OPTIONS and value is not None:
            return f"it is not known what the option {name!r} would do to a continued answer"
    messages = request.get("messages") or ()
    if messages and messages[-1].get("role") == "assistant":
        return "the conversation ends with words of the assistant itself"
    return ""


def refusal_of(said: Said) -> str:
    """Why an answer that has said this cannot be gone on with; "" = it may be."""
    if any(piece.tool_calls for piece in said.pieces):
        return "it has called tools"
    if any(piece.thinking for piece in said.pieces):
        return "a model's thinking cannot be continued"
    told = "".join(str(each.get("token", "")) for piece in said.pieces for each in piece.logprobs)
    if told and told != said.text:
        return "the log probabilities so far are not those of the text so far"
    return ""


def tokens_left(request: Mapping[str, Any], said: Said) -> int | None:
    """How many tokens `num_predict` leaves; None = it sets no limit."""
    most = (request.get("options") or {}).get("num_predict")
    return max(0, most - said.tokens) if isinstance(most, int) and most >= 0 else None


def for_the_rest(request: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """The request with `num_predict` lowered by what has been said."""
    left = tokens_left(request, said)
    if left is None:
        return dict(request)
    return {**request, "options": {**request["options"], "num_predict": left}}


def before_blanks(said: Said) -> Said:
    """What has been said up to its last piece that does not end in white space: many templates trim a message."""
    kept = len(said.pieces)
    while kept and (not (text := said.pieces[kept - 1].text) or text[-1].isspace()):
        kept -= 1
    return Said(said.pieces[:kept])


async def repeated(events: AsyncIterator[Piece | End], text: str) -> AsyncGenerator[Piece | End, None]:
    """What comes behind `text` in an answer that begins with it.

    Raises:
        CannotContinue: it says something else; before the first piece.
    """
    left = text
    async with aclosing(events) as told:  # type: ignore[type-var]  # generators have aclose
        async for event in told:
            if isinstance(event, End):
                if left:
                    raise CannotContinue("the answer was a shorter one this time")
                yield event
                return
            if not left:
                yield event
                continue
            known = min(len(event.text), len(left))
            if event.text[:known] != left[:known]:
                raise CannotContinue("the model answered differently this time")
            left, rest = left[known:], event.text[known:]
            if rest:
                if event.logprobs:
                    raise CannotContinue("the model used other tokens this time")
                yield replace(event, text=rest, thinking="", ids=())


async def behind(
    events: AsyncIterator[Piece | End], said: Said, begun: Said
) -> AsyncGenerator[Piece | End, None]:
    """What comes behind `said` in an answer that goes on behind its beginning `begun`; its tokens count once.

    Raises:
        CannotContinue: it goes on with something else; before the first piece.
    """
    async with aclosing(repeated(events, said.text[len(begun.text) :])) as told:
        async for event in told:
            if isinstance(event, End):
                again = said.tokens - begun.tokens
                count = max(0, (event.fields.get("eval_count") or 0) - again)
                yield End({**event.fields, "eval_count": count})
            else:
                yield event


async def stopped(
    events: AsyncIterator[Piece | End], said: str, stops: Sequence[str]
) -> AsyncGenerator[Piece | End, None]:
    """Ends an answer at a stop sequence that began in what was said before and is completed now.

    Servers look for stop sequences only in what they themselves say. What was shown of one stays.
    """
    endings = {
        stop[size:] for stop in stops for size in range(1, len(stop)) if stop and said.endswith(stop[:size])
    }
    held: list[Piece] = []
    async with aclosing(events) as told:  # type: ignore[type-var]  # generators have aclose
        async for event in told:
            if isinstance(event, Piece) and endings:
                held.append(event)
                begun = "".join(piece.text for piece in held)
                if any(begun.startswith(ending) for ending in endings):
                    yield End({"done_reason": "stop", "eval_count": sum(piece.tokens for piece in held)})
                    return
                endings = {ending for ending in endings if ending.startswith(begun)}
                if endings:
                    continue
                event = held.pop()
            for piece in held:
                yield piece
            held = []
            yield event


def stops_of(request: Mapping[str, Any]) -> tuple[str, ...]:
    """The request's stop sequences."""
    given = (request.get("options") or {}).get("stop") or ()
    return (given,) if isinstance(given, str) else tuple(each for each in given if isinstance(each, str))


def whole_fields(fields: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """A continuation's closing fields as those of the whole answer: tokens said before belong to the answer.

    Durations stay those of the continuation. `context` is that of another request, and goes.
    """
    whole = {name: value for name, value in fields.items() if name != "context"}
    if "prompt_eval_count" in whole:
        whole["prompt_eval_count"] = max(0, whole["prompt_eval_count"] - said.tokens)
    whole["eval_count"] = (whole.get("eval_count") or 0) + said.tokens
    return whole
