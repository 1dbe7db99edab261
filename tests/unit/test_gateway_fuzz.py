"""Whatever JSON comes, it is understood or refused; and no number out of its range gets through."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.errors import InvalidJob
from sollol_client.gateway.asked import Asked, take_wishes
from sollol_client.gateway.body import parsed
from sollol_client.gateway.jobs import job_asked
from sollol_client.gateway.library_rules import named
from sollol_client.gateway.numbers import _RANGES, check_numbers
from sollol_client.gateway.ollama_wire import (
    OllamaLines,
    chat_asked,
    embed_asked,
    embeddings_asked,
    generate_asked,
    is_load,
)
from sollol_client.gateway.refusals import Refused, refusal_of
from sollol_client.request import build_request

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_NAMES = (
    *(
        "model",
        "messages",
        "prompt",
        "input",
        "stream",
        "format",
        "options",
        "keep_alive",
        "tools",
        "think",
        "images",
    ),
    *(
        "context",
        "raw",
        "system",
        "template",
        "suffix",
        "logprobs",
        "top_logprobs",
        "dimensions",
        "truncate",
        "name",
    ),
    *(
        "chat",
        "generate",
        "embed",
        "webhook",
        "priority",
        "app",
        "session",
        "deadline",
        "cache",
        "metadata",
        "requires",
    ),
)
_MESSAGE = st.dictionaries(
    st.sampled_from(("role", "content", "images", "tool_calls", "thinking", "tool_name")), _JSON, max_size=4
)
_BODIES = _JSON | st.dictionaries(st.sampled_from(_NAMES), _JSON | st.lists(_MESSAGE, max_size=3), max_size=8)


def _as_job(body: Any) -> Asked:
    return job_asked(body)[0]


@pytest.mark.parametrize("read", [chat_asked, generate_asked, embed_asked, embeddings_asked, _as_job])
@given(body=_BODIES, begin=st.booleans())
def test_any_body_is_a_job_or_a_refusal(read: Callable[[Any], Asked], body: Any, begin: bool) -> None:
    if begin and isinstance(body, dict):
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "chat": "x", **body}
    try:
        asked = read(parsed(json.dumps(body).encode()))
        wishes, payload = take_wishes({}, asked.payload)
        check_numbers(payload)
        if read in (chat_asked, generate_asked):
            is_load(asked)
        OllamaLines(asked)
        content = payload.pop({"chat": "messages", "generate": "prompt", "embed": "input"}[asked.kind.value])
        kinds: dict[str, Any] = {asked.kind.value: content}
        more = {**wishes.submit, **asked.submit}
        build_request("a", "c", model=asked.model, priority=wishes.priority, backend=payload, **kinds, **more)
    except (InvalidJob, Refused) as error:
        status = refusal_of(error).status
    else:
        status = 200
    assert status in (200, 400, 404, 500), "500 is Ollama's own for options and formats"


@given(body=_BODIES)
def test_any_name_is_a_name_or_a_refusal(body: Any) -> None:
    with contextlib.suppress(Refused):
        named(body if isinstance(body, dict) else {})


@given(data=st.binary(max_size=60))
def test_any_bytes_are_json_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(Refused):
        parsed(data)


@given(
    name=st.sampled_from(sorted(_RANGES)),
    value=st.integers() | st.floats(allow_nan=False),
    inside=st.booleans(),
)
def test_no_number_out_of_its_range_gets_through(name: str, value: float, inside: bool) -> None:
    least, most = _RANGES[name]
    payload = {"options": {name: value}} if inside else {name: value}
    if least <= value <= most:
        check_numbers(payload)
    else:
        with pytest.raises(Refused, match="must be between"):
            check_numbers(payload)


@given(headers=st.dictionaries(
    st.sampled_from([f"x-sollol-{name}" for name in (
        "priority", "app", "session", "deadline", "cache", "timeout", "hedge", "prefer", "idempotency-key", "detach",
        "progress", "wait")] + ["traceparent", "tracestate"]), st.text(max_size=150), max_size=6))  # fmt: skip
def test_any_headers_are_wishes_or_a_refusal(headers: dict[str, str]) -> None:
    with contextlib.suppress(InvalidJob):
        wishes, _ = take_wishes(headers, {})
        build_request(wishes.app or "a", "c", model="m", chat="x", priority=wishes.priority, **wishes.submit)
