"""Anthropic's API in and out: what a body asks for, and the events in their order."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from sollol_broker.outcome import Routing
from sollol_client.answer import Answer, Delta
from sollol_client.gateway.anthropic_translate import message_asked
from sollol_client.gateway.anthropic_wire import MessageEvents
from sollol_client.gateway.refusals import Refusal, Refused

ROUTING = Routing("n1", "n1.a", "ollama", 1, "generation", queue_wait_ms=2.0, run_ms=5.0)
PIXEL = base64.b64encode(b"\x89PNG").decode()
CALL = {"id": "call_x", "function": {"index": 0, "name": "weather", "arguments": {"city": "Köln"}}}
WEATHER = {"name": "weather", "description": "w", "input_schema": {"type": "object"}}
AS_FUNCTION = {
    "type": "function",
    "function": {"name": "weather", "description": "w", "parameters": {"type": "object"}},
}


def payload(**fields: Any) -> dict[str, Any]:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}], **fields}
    return dict(message_asked(body).payload)


@pytest.mark.parametrize(
    ("fields", "becomes"),
    [
        ({}, {}),
        ({"temperature": 0.5, "top_k": 3}, {"options": {"temperature": 0.5, "top_k": 3, "num_predict": 9}}),
        ({"stop_sequences": ["a"]}, {"options": {"num_predict": 9, "stop": ["a"]}}),
        ({"tools": [WEATHER]}, {"tools": [AS_FUNCTION]}),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, {}),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "any"}},
            {"tools": [AS_FUNCTION], "tool_choice": "required"},
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}},
            {"tools": [AS_FUNCTION], "tool_choice": "required"},
        ),
        ({"tools": [WEATHER], "tool_choice": {"type": "none"}}, {}),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            {"tools": [AS_FUNCTION], "parallel_tool_calls": False},
        ),
        ({"thinking": {"type": "disabled"}}, {"think": False}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {}),
        (
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
            {"think": "high"},
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"a": 1}}}},
            {"format": {"a": 1}},
        ),
        ({"metadata": {"user_id": "u"}, "service_tier": "auto"}, {}),
        ({"brand_new": 1}, {"brand_new": 1}),
    ],
)
def test_each_field_becomes_ollama_s(fields: dict[str, Any], becomes: dict[str, Any]) -> None:
    got = payload(**fields)
    assert got.pop("messages") == [{"role": "user", "content": "hello"}]
    assert got == {"options": {"num_predict": 9}, **becomes}


def test_blocks_become_messages() -> None:
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "weather?", "cache_control": {"type": "ephemeral"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Köln"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]
    assert payload(messages=messages, system=system)["messages"] == [
        {"role": "system", "content": "be\nbrief"},
        {"role": "user", "content": "weather?", "images": [PIXEL]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": {"city": "Köln"}}}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "tool_name": "weather"},
        {"role": "user", "content": "so?"},
    ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0]"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "url", "url": "http://a"}}],
                    }
                ]
            },
            "messages[0].content[0]",
        ),
        ({"tools": ["a"]}, "tools[0]"),
        ({"tools": [{"input_schema": {}}]}, "tools[0]"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "no"}}, "tool_choice"),
        ({"model": ""}, "model"),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_field_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as refused:
        payload(**fields)
    assert (refused.value.status, refused.value.field) == (400, field)


def answer(**fields: Any) -> Answer:
    message = {"role": "assistant", "content": "Hello", **fields.pop("message", {})}
    told = {"message": message, "done_reason": "stop", "prompt_eval_count": 10, "eval_count": 2, **fields}
    return Answer(told, ROUTING)


def written(pieces: list[Delta], end: Answer | Refusal) -> list[dict[str, Any]]:
    """The events; each has its name twice."""
    events = MessageEvents("m", "job1")
    sent = b"".join(events.piece(piece) for piece in pieces)
    sent += events.end(end) if isinstance(end, Answer) else events.failed(end)
    blocks = [block.split("\n") for block in sent.decode().split("\n\n") if block]
    read = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name.removeprefix("event: ") for name, _ in blocks] == [event["type"] for event in read]
    return read


def test_the_events_of_a_text_come_in_their_order() -> None:
    read = written([Delta.of({"text": "Hel"}), Delta.of({"text": "lo"})], answer())
    assert [event["type"] for event in read] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert read[2]["delta"] == {"type": "text_delta", "text": "Hel"}
    assert read[5]["delta"]["stop_reason"] == "end_turn"
    assert read[5]["usage"] == {"input_tokens": 10, "output_tokens": 2}


def test_thinking_text_and_calls_are_blocks_of_their_own() -> None:
    pieces = [Delta.of({"thinking": "hm"}), Delta.of({"text": "Hello"}), Delta.of({"tool_calls": [CALL]})]
    end = answer(message={"thinking": "hm", "tool_calls": [CALL]})
    read = written(pieces, end)
    starts = [event for event in read if event["type"] == "content_block_start"]
    assert [event["content_block"]["type"] for event in starts] == ["thinking", "text", "tool_use"]
    assert [event["index"] for event in starts] == [0, 1, 2]
    [arguments] = [
        event["delta"] for event in read if event.get("delta", {}).get("type") == "input_json_delta"
    ]
    assert json.loads(arguments["partial_json"]) == {"city": "Köln"}
    assert read[-2]["delta"]["stop_reason"] == "tool_use"
    whole = MessageEvents("m", "job1").whole(end)
    assert whole["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "Hello"},
        {"type": "tool_use", "id": "call_x", "name": "weather", "input": {"city": "Köln"}},
    ]


def test_an_answer_that_breaks_off_ends_with_an_error_and_nothing_normal() -> None:
    read = written([Delta.of({"text": "Hel"})], Refusal(503, "gone"))
    assert read[-1]["type"] == "error"
    assert read[-1]["error"] == {"type": "overloaded_error", "message": "gone"}
    assert read[-1]["request_id"].startswith("req_")
    assert not any(event["type"] in ("message_delta", "message_stop") for event in read)
