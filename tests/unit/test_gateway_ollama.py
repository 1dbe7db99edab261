"""Ollama's API in and out: what a body asks for, what is refused in which words, how lines look."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sollol_broker.outcome import Routing
from sollol_broker.words import JobKind
from sollol_client.answer import Answer, Delta
from sollol_client.gateway.asked import Asked, take_wishes
from sollol_client.gateway.body import parsed
from sollol_client.gateway.numbers import check_numbers
from sollol_client.gateway.ollama_checks import is_unload
from sollol_client.gateway.ollama_wire import (
    OllamaLines,
    chat_asked,
    embed_asked,
    embeddings_asked,
    generate_asked,
    is_load,
)
from sollol_client.gateway.refusals import Refused
from sollol_client.gateway.running import Note

ROUTING = Routing("n1", "n1.a", "ollama", 1, "generation", queue_wait_ms=2.0, run_ms=5.0)
HELLO = [{"role": "user", "content": "hello"}]


def test_a_chat_keeps_unknown_fields_and_leaves_out_what_belongs_to_other_requests() -> None:
    asked = chat_asked({"model": "Tiny", "messages": HELLO, "brand_new": 1, "prompt": "x", "format": None})
    assert asked == Asked(JobKind.CHAT, "Tiny", {"brand_new": 1, "messages": HELLO}, stream=True)


def test_roles_are_lower_case_as_ollama_has_them() -> None:
    asked = chat_asked({"model": "m", "messages": [{"role": "USER", "content": "a"}]})
    assert asked.payload["messages"][0]["role"] == "user"


def test_an_embed_takes_one_text_or_many() -> None:
    assert embed_asked({"model": "m", "input": "a"}).payload == {"input": ["a"]}
    assert embeddings_asked({"model": "m", "prompt": "a"}).payload == {"input": ["a"]}
    assert embeddings_asked({"model": "m"}).payload == {"input": []}


@pytest.mark.parametrize(
    ("body", "loads"),
    [
        ({"model": "m"}, True),
        ({"model": "m", "prompt": ""}, True),
        ({"model": "m", "prompt": "a"}, False),
        ({"model": "m", "suffix": "a"}, False),
    ],
)
def test_an_empty_request_only_loads(body: dict[str, Any], loads: bool) -> None:
    assert is_load(generate_asked(body)) is loads


# Recorded from Ollama 0.33.
@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"messages": HELLO}, 400, "model is required"),
        (
            {"model": "m", "messages": "x"},
            400,
            "json: cannot unmarshal string into Go struct field ChatRequest.messages of type []api.Message",
        ),
        (
            {"model": "m", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
            400,
            "json: cannot unmarshal array into Go struct field Alias.content of type string",
        ),
        (
            {"model": "m", "messages": [{"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
            400,
            "expected JSON object",
        ),
        ({"model": "a/b/c/d/e:::", "messages": HELLO}, 400, "invalid model name"),
        ({"model": "m", "messages": HELLO, "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ({"model": "m", "messages": HELLO, "keep_alive": "abc"}, 400, 'time: invalid duration "abc"'),
        ({"model": "m", "messages": HELLO, "keep_alive": "300"}, 400, 'time: missing unit in duration "300"'),
        (
            {"model": "m", "messages": HELLO, "options": {"temperature": "hot"}},
            500,
            'option "temperature" must be of type float32',
        ),
        (
            {"model": "m", "messages": HELLO, "format": "xml"},
            500,
            'invalid format: "\\"xml\\""; expected "json" or a valid JSON Schema object',
        ),
        (
            {"model": "m", "messages": HELLO, "think": "huge"},
            400,
            'invalid think value: "huge" (must be "high", "medium", "low", "max", true, or false)',
        ),
        (
            {"model": "m", "messages": HELLO, "tools": [[]]},
            400,
            "json: cannot unmarshal array into Go struct field ChatRequest.tools of type api.Tool",
        ),
        (
            {"model": "m", "messages": HELLO, "tools": [{"function": "x"}]},
            400,
            "json: cannot unmarshal string into Go struct field Tool.function of type api.ToolFunction",
        ),
        ([], 400, "json: cannot unmarshal array into Go value of type api.ChatRequest"),
    ],
)
def test_a_bad_chat_is_refused_in_ollama_s_words(body: Any, status: int, text: str) -> None:
    with pytest.raises(Refused) as refused:
        chat_asked(body)
    assert (refused.value.status, str(refused.value)) == (status, text)


@pytest.mark.parametrize(
    ("body", "text"),
    [(b"", "missing request body"), (b'{"model":', "unexpected EOF"), (b'{"a', "unexpected EOF")],
)
def test_a_body_that_is_no_json_is_refused_in_ollama_s_words(body: bytes, text: str) -> None:
    with pytest.raises(Refused, match=f"^{text}$"):
        parsed(body)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a": NaN}', b"\xff\xfe", b"9" * 10_000, b'{"a": 1} x'])
def test_no_body_gets_further_than_a_refusal(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        parsed(body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("keep_alive", "unloads"),
    [
        (0, True),
        (0.0, True),
        ("0", True),
        ("0s", True),
        (-1, False),
        (300, False),
        ("-1m", False),
        ("1h30m", False),
    ],
)
def test_keep_alive_of_0_unloads(keep_alive: object, unloads: bool) -> None:
    assert is_unload(keep_alive) is unloads


@pytest.mark.parametrize(
    "payload",
    [{"n_discard": -1}, {"options": {"n_discard": -1}}, {"options": {"num_ctx": 1e300}}, {"options": {"min_keep": -3}},
     {"top_k": -2}, {"options": {"seed": 10**30}}, {"options": {"new_one": 10**40}}],
)  # fmt: skip
def test_a_number_that_could_break_a_backend_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="must be between") as refused:
        check_numbers(payload)
    assert refused.value.status == 400


def test_lines_are_ollama_s() -> None:
    lines = OllamaLines(Asked(JobKind.CHAT, "Tiny", {"messages": HELLO}, True))
    piece = json.loads(lines.piece(Delta.of({"text": "a", "thinking": "b"})))
    assert list(piece) == ["model", "created_at", "message", "done"]
    assert piece["model"] == "Tiny"
    assert piece["message"] == {"role": "assistant", "content": "a", "thinking": "b"}
    answer = Answer({"message": {"content": "a"}, "done_reason": "stop", "total_duration": 1}, ROUTING)
    end = json.loads(lines.end(answer))
    assert end["message"] == {"role": "assistant", "content": ""}
    assert (end["done"], end["done_reason"], end["total_duration"]) == (True, "stop", 2_000_001)
    note = json.loads(lines.note(Note("loading", 2, 1.5)))
    assert note["_sollol_progress"] == {"note": "loading", "position": 2, "eta_seconds": 1.5}
    assert note["done"] is False


def test_wishes_come_by_header_or_by_field_and_the_field_counts() -> None:
    headers = {
        "x-sollol-priority": "9",
        "x-sollol-session": "s",
        "x-sollol-detach": "true",
        "x-sollol-app": "a",
    }
    wishes, payload = take_wishes(headers, {"priority": 3, "messages": [], "deadline": 5.0})
    assert (wishes.priority, wishes.app, wishes.detach) == (3, "a", True)
    assert wishes.submit == {"session": "s", "deadline": 5.0}
    assert payload == {"messages": []}
