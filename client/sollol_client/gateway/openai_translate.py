"""From the bodies of OpenAI's API to what is asked of the fabric. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sollol_broker.words import JobKind

from .asked import Asked
from .openai_fields import (
    INTEGER,
    LIST,
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
from .openai_messages import messages_of
from .refusals import Refused

# Each choice is a job of its own.
MOST_CHOICES = 128

_COMMON = {
    **SAME_OPTIONS,
    "model": TEXT,
    "stream": YES_NO,
    "stream_options": OBJECT,
    "n": INTEGER,
    "max_tokens": INTEGER,
    "options": OBJECT,
    "user": TEXT,
}
# What the fields of each body have to be; others may be anything.
CHAT_FIELDS = {
    **_COMMON,
    "messages": LIST,
    "max_completion_tokens": INTEGER,
    "tools": LIST,
    "parallel_tool_calls": YES_NO,
    "logprobs": YES_NO,
    "top_logprobs": INTEGER,
    "reasoning": OBJECT,
}
COMPLETION_FIELDS = {
    **_COMMON,
    "suffix": TEXT,
    "echo": YES_NO,
    "logprobs": INTEGER,
    "best_of": INTEGER,
    "raw": YES_NO,
}
EMBED_FIELDS = {
    "model": TEXT,
    "dimensions": INTEGER,
    "encoding_format": TEXT,
    "user": TEXT,
    "options": OBJECT,
}

# What these ask for is done here, or is nothing to a server: it would only stand in the way of another that has
# to go on with the answer.
_NOT_FOR_SERVERS = frozenset(
    {"stop", "stream_options", "n", "best_of", "echo", "response_format", "tool_choice", "reasoning_effort",
     "encoding_format", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
     "modalities"}
)  # fmt: skip
_TRANSLATED = frozenset({*CHAT_FIELDS, *COMPLETION_FIELDS, *_NOT_FOR_SERVERS, "prompt", "input"}) - {"raw"}


@dataclass(frozen=True, slots=True)
class Talk:
    """What a chat or a completion asks for.

    Attributes:
        asked: one request per choice, in their order.
        prompts: how many prompts they answer; the choices of one stand together.
        echo: texts to show before each choice's own; empty = none.
        include_usage: a stream tells at its end how many tokens there were.
    """

    asked: tuple[Asked, ...]
    prompts: int = 1
    echo: tuple[str, ...] = ()
    include_usage: bool = False

    @property
    def model(self) -> str:
        """As the caller wrote it."""
        return self.asked[0].model

    @property
    def stream(self) -> bool:
        """Whether the text is wanted as it is made."""
        return self.asked[0].stream

    @property
    def is_chat(self) -> bool:
        """Whether it is a chat."""
        return self.asked[0].kind is JobKind.CHAT


def chat_talk(body: object) -> Talk:
    """From the body of /v1/chat/completions.

    Raises:
        Refused: 400, it makes no sense.
    """
    given = fields_of(body, CHAT_FIELDS)
    model = model_of(given)
    _refuse_old(given)
    payload = {**_others(given), "messages": messages_of(given.get("messages") or [])}
    tools = [_tool(tool, number) for number, tool in enumerate(given.get("tools") or ())]
    parallel = given.get("parallel_tool_calls")
    payload.update(chosen_tools(tools, given.get("tool_choice"), parallel=parallel))
    if given.get("logprobs"):
        payload.update(logprobs=True, top_logprobs=given.get("top_logprobs", 0))
    effort = given.get("reasoning_effort") or (given.get("reasoning") or {}).get("effort")
    most = given.get("max_completion_tokens", given.get("max_tokens"))
    return _talk(JobKind.CHAT, given, model, [payload], most, effort)


def completion_talk(body: object) -> Talk:
    """From the body of /v1/completions: the model goes on with the prompt as it is, without a chat template.

    Raises:
        Refused: 400, it makes no sense.
    """
    given = fields_of(body, COMPLETION_FIELDS)
    model = model_of(given)
    payload = _others(given)
    if given.get("suffix"):
        payload["suffix"] = given["suffix"]
    elif given.get("raw", True):
        payload["raw"] = True
    if given.get("logprobs") is not None:
        payload.update(logprobs=True, top_logprobs=given["logprobs"])
    if given.get("best_of", 1) not in (1, given.get("n", 1)):
        raise Refused(400, "best_of: leave it out, or let it be n", field="best_of")
    prompts = texts_of(given.get("prompt", ""), "prompt")
    talk = _talk(
        JobKind.GENERATE, given, model, [{**payload, "prompt": p} for p in prompts], given.get("max_tokens")
    )
    if not given.get("echo"):
        return talk
    shown = tuple(str(asked.payload["prompt"]) for asked in talk.asked)
    return Talk(talk.asked, talk.prompts, shown, talk.include_usage)


def embed_asked(body: object) -> tuple[Asked, bool]:
    """From the body of /v1/embeddings; and whether the vectors are wanted in base64.

    Raises:
        Refused: 400, it makes no sense.
    """
    given = fields_of(body, EMBED_FIELDS)
    model = model_of(given)
    if not given.get("input"):
        raise Refused(400, "invalid input", field="input")
    payload = {
        name: value for name, value in given.items() if name not in ("model", "encoding_format", "user")
    }
    payload["input"] = texts_of(given["input"], "input")
    encoding = given.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise Refused(400, "encoding_format: float or base64 is needed", field="encoding_format")
    return Asked(JobKind.EMBED, model, payload), encoding == "base64"


def texts_of(given: object, field: str) -> list[str]:
    """One text or several, as a list.

    Raises:
        Refused: 400, it is something else. Tokens mean another text to each model, so they are not taken.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise Refused(400, f"{field}: a text or a list of texts is needed, not tokens", field=field)
    return texts


def _talk(
    kind: JobKind,
    given: Mapping[str, Any],
    model: str,
    payloads: Sequence[dict[str, Any]],
    most_tokens: object,
    effort: object = None,
) -> Talk:
    settings = settings_of(
        given,
        most_tokens=most_tokens,
        stop=given.get("stop"),
        form=(given.get("response_format"), "response_format"),
        effort=(effort, "reasoning_effort"),
    )
    choices, stream = given.get("n", 1), bool(given.get("stream"))
    if not 1 <= choices * len(payloads) <= MOST_CHOICES:
        raise Refused(400, f"n: from 1 to {MOST_CHOICES} choices can be had at once", field="n")
    asked = [
        Asked(kind, model, {**payload, **_sown(settings, number)}, stream)
        for payload in payloads
        for number in range(choices)
    ]
    usage = (given.get("stream_options") or {}).get("include_usage")
    return Talk(tuple(asked), len(payloads), include_usage=bool(usage))


def _sown(settings: dict[str, Any], number: int) -> dict[str, Any]:
    """The settings of one of several choices: the same seed would give the same text."""
    options = settings.get("options") or {}
    seed = options.get("seed")
    if not number or not isinstance(seed, int):
        return settings
    return {**settings, "options": {**options, "seed": seed + number}}


def _others(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in _TRANSLATED}


def _tool(tool: object, number: int) -> dict[str, Any]:
    field = f"tools[{number}]"
    if not isinstance(tool, dict) or tool.get("type", "function") != "function":
        raise Refused(400, f"{field}: tools of type function can be passed on, others not", field=field)
    return function_tool(tool.get("function"), field)


def _refuse_old(given: Mapping[str, Any]) -> None:
    for name, instead in (("functions", "tools"), ("function_call", "tool_choice")):
        if name in given:
            raise Refused(400, f"{name}: use {instead}", field=name)
    modalities = given.get("modalities")
    if "audio" in given or (isinstance(modalities, list) and "audio" in modalities):
        raise Refused(400, "modalities: answers are text", field="modalities")
