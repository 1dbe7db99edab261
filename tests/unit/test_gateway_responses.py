"""OpenAI's responses in and out: what a body asks for, and the events in their order."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sollol_broker.outcome import Routing
from sollol_client.answer import Answer, Delta
from sollol_client.gateway.refusals import Refusal, Refused
from sollol_client.gateway.responses_translate import response_asked
from sollol_client.gateway.responses_wire import ResponseEvents

ROUTING = Routing("n1", "n1.a", "ollama", 1, "generation", queue_wait_ms=2.0, run_ms=5.0)
CALL = {"id": "call_x", "function": {"index": 0, "name": "weather", "arguments": {"city": "Köln"}}}
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


def payload(**fields: Any) -> dict[str, Any]:
    return dict(response_asked({"model": "m", "input": "hello", **fields}).payload)


@pytest.mark.parametrize(
    ("fields", "becomes"),
    [
        ({}, {}),
        ({"max_output_tokens": 5, "temperature": 0}, {"options": {"num_predict": 5, "temperature": 0}}),
        ({"text": {"format": {"type": "json_object"}}}, {"format": "json"}),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"a": 1}}}},
            {"format": {"a": 1}},
        ),
        ({"reasoning": {"effort": "low"}}, {"think": "low"}),
        ({"tools": [{"type": "web_search"}]}, {}),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "weather", "parameters": {"type": "object"}, "strict": True},
                    }
                ],
                "tool_choice": "required",
            },
        ),
        ({"store": True, "include": [], "truncation": "auto", "metadata": {"a": "b"}}, {}),
        ({"brand_new": 1}, {"brand_new": 1}),
    ],
)
def test_each_field_becomes_ollama_s(fields: dict[str, Any], becomes: dict[str, Any]) -> None:
    got = payload(**fields)
    assert got.pop("messages") == [{"role": "user", "content": "hello"}]
    assert got == becomes


def test_items_become_messages() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wait"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Köln"}'},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]
    assert payload(input=items, instructions="be brief")["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "wait",
            "thinking": "hm",
            "tool_calls": [
                {"id": "c1", "function": {"name": "weather", "arguments": {"city": "Köln"}}},
                {"id": "c2", "function": {"name": "weather", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "tool_name": "weather"},
    ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"content": "a"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "a"}]}, "input[0]"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"reasoning": {"effort": "zzz"}}, "reasoning.effort"),
        ({"model": None}, "model"),
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
    """The events; each has its number, and its name twice."""
    events = ResponseEvents({"model": "m", "instructions": "be brief"}, "job1")
    sent = b"".join(events.piece(piece) for piece in pieces)
    sent += events.end(end) if isinstance(end, Answer) else events.failed(end)
    blocks = [block.split("\n") for block in sent.decode().split("\n\n") if block]
    read = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name.removeprefix("event: ") for name, _ in blocks] == [event["type"] for event in read]
    assert [event["sequence_number"] for event in read] == list(range(len(read)))
    return read


def test_the_events_of_a_text_come_in_their_order() -> None:
    read = written([Delta.of({"text": "Hel"}), Delta.of({"text": "lo"})], answer())
    assert [event["type"] for event in read] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert read[0]["response"]["status"] == "in_progress"
    assert read[0]["response"]["instructions"] == "be brief"
    assert read[6]["text"] == "Hello"
    response = read[-1]["response"]
    assert response["output"] == [
        {
            "id": "msg_job1_0",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
        }
    ]
    assert response["usage"]["total_tokens"] == 12


def test_thinking_text_and_calls_are_items_of_their_own() -> None:
    pieces = [Delta.of({"thinking": "hm"}), Delta.of({"text": "Hello"}), Delta.of({"tool_calls": [CALL]})]
    end = answer(message={"thinking": "hm", "tool_calls": [CALL]})
    read = written(pieces, end)
    output = read[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
    assert output[2]["arguments"] == '{"city":"Köln"}'
    added = [event for event in read if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1, 2]
    whole = ResponseEvents({"model": "m"}, "job1").whole(end)
    assert whole["output"] == output


def test_an_answer_that_was_cut_is_incomplete() -> None:
    read = written([Delta.of({"text": "Hel"})], answer(done_reason="length"))
    assert read[-1]["type"] == "response.incomplete"
    assert read[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_an_empty_answer_still_has_its_message() -> None:
    read = written([], answer(message={"content": ""}))
    assert read[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_an_answer_that_breaks_off_has_failed_and_is_never_completed() -> None:
    read = written([Delta.of({"text": "Hel"})], Refusal(502, "gone", code="backend_error"))
    assert [event["type"] for event in read[-2:]] == ["error", "response.failed"]
    assert read[-1]["response"]["error"] == {"code": "backend_error", "message": "gone"}
    assert read[-1]["response"]["status"] == "failed"
