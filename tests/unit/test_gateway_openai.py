"""OpenAI's API in and out: what a body asks for, what is refused, how answers and events look."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from sollol_broker.outcome import Routing
from sollol_broker.words import JobKind
from sollol_client.answer import Answer, Delta
from sollol_client.gateway.openai_translate import chat_talk, completion_talk, embed_asked
from sollol_client.gateway.openai_wire import Completions, comment, embed_reply
from sollol_client.gateway.refusals import Refusal, Refused
from sollol_client.gateway.running import Note

ROUTING = Routing("n1", "n1.a", "ollama", 1, "generation", queue_wait_ms=2.0, run_ms=5.0)
HELLO = [{"role": "user", "content": "hello"}]
PIXEL = base64.b64encode(b"\x89PNG").decode()
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
CALL = {"id": "call_x", "function": {"index": 0, "name": "weather", "arguments": {"city": "Köln"}}}


def payload(**fields: Any) -> dict[str, Any]:
    [asked] = chat_talk({"model": "m", "messages": HELLO, **fields}).asked
    return {name: value for name, value in asked.payload.items() if name != "messages"}


@pytest.mark.parametrize(
    ("fields", "becomes"),
    [
        ({}, {}),
        ({"max_tokens": 5}, {"options": {"num_predict": 5}}),
        ({"max_completion_tokens": 7}, {"options": {"num_predict": 7}}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"options": {"num_predict": 7}}),
        ({"stop": "a"}, {"options": {"stop": ["a"]}}),
        ({"stop": ["a", "b"]}, {"options": {"stop": ["a", "b"]}}),
        (
            {"temperature": 0, "top_p": 0.5, "seed": 3, "top_k": 4, "frequency_penalty": 1},
            {"options": {"temperature": 0, "top_p": 0.5, "seed": 3, "top_k": 4, "frequency_penalty": 1}},
        ),
        ({"options": {"num_ctx": 9, "seed": 1}, "seed": 2}, {"options": {"num_ctx": 9, "seed": 2}}),
        ({"temperature": None}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"format": "json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}}},
            {"format": {"a": 1}},
        ),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
        ({"reasoning_effort": "none"}, {"think": False}),
        ({"reasoning_effort": "minimal"}, {"think": "low"}),
        ({"reasoning": {"effort": "high"}}, {"think": "high"}),
        ({"tools": [WEATHER, TIME]}, {"tools": [WEATHER, TIME]}),
        ({"tools": [WEATHER], "tool_choice": "auto"}, {"tools": [WEATHER]}),
        ({"tools": [WEATHER], "tool_choice": "none"}, {}),
        ({"tools": [WEATHER], "tool_choice": "required"}, {"tools": [WEATHER], "tool_choice": "required"}),
        (
            {"tools": [WEATHER, TIME], "tool_choice": {"type": "function", "function": {"name": "time"}}},
            {"tools": [TIME], "tool_choice": "required"},
        ),
        (
            {
                "tools": [WEATHER, TIME],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "name": "time"}]},
                },
            },
            {"tools": [TIME]},
        ),
        (
            {"tools": [WEATHER], "parallel_tool_calls": False},
            {"tools": [WEATHER], "parallel_tool_calls": False},
        ),
        ({"parallel_tool_calls": True}, {}),
        ({"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}, {}),
        ({"brand_new": {"a": 1}, "logit_bias": {"5": 1}}, {"brand_new": {"a": 1}, "logit_bias": {"5": 1}}),
        ({"keep_alive": 0, "priority": 9}, {"keep_alive": 0, "priority": 9}),
    ],
)
def test_each_field_of_a_chat_becomes_ollama_s(fields: dict[str, Any], becomes: dict[str, Any]) -> None:
    assert payload(**fields) == becomes


@pytest.mark.parametrize(
    ("message", "becomes"),
    [
        ({"role": "developer", "content": "a"}, {"role": "system", "content": "a"}),
        ({"role": "user", "content": None, "refusal": None}, {"role": "user", "content": ""}),
        ({"role": "user", "content": "a", "name": "ann"}, {"role": "user", "content": "a", "name": "ann"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "a\nb"},
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
                ],
            },
            {"role": "user", "content": "what?", "images": [PIXEL]},
        ),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "hm"},
            {"role": "assistant", "content": "a", "thinking": "hm"},
        ),
    ],
)
def test_each_kind_of_message_becomes_ollama_s(message: dict[str, Any], becomes: dict[str, Any]) -> None:
    [asked] = chat_talk({"model": "m", "messages": [message]}).asked
    assert asked.payload["messages"] == [becomes]


def test_a_tool_s_result_names_its_call_and_its_tool() -> None:
    called = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    [asked] = chat_talk({"model": "m", "messages": messages}).asked
    assert asked.payload["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": {"city": "Köln"}}}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "tool_name": "weather"},
    ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b"}}]}
                ]
            },
            "messages[0].content[0]",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "c", "function": {"name": "a", "arguments": "["}}],
                    }
                ]
            },
            "messages[0].tool_calls[0]",
        ),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stop": [1]}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"reasoning_effort": "zzz"}, "reasoning_effort"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"function": {"name": "no"}}}, "tool_choice"),
        ({"functions": []}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_field_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as refused:
        chat_talk({"model": "m", "messages": HELLO, **fields})
    assert (refused.value.status, refused.value.field) == (400, field)


@pytest.mark.parametrize("body", [None, [], "a", 5, {}])
def test_a_body_that_is_no_request_is_refused(body: object) -> None:
    for read in (chat_talk, completion_talk, embed_asked):
        with pytest.raises(Refused):
            read(body)


def test_each_choice_is_a_request_of_its_own_and_a_seed_gives_each_another_text() -> None:
    talk = chat_talk({"model": "m", "messages": HELLO, "n": 3, "seed": 7})
    assert [asked.payload["options"]["seed"] for asked in talk.asked] == [7, 8, 9]


def test_a_completion_goes_on_with_the_prompt_as_it_is() -> None:
    talk = completion_talk({"model": "m", "prompt": ["a", "b"], "n": 2, "logprobs": 3, "echo": True})
    assert [asked.payload["prompt"] for asked in talk.asked] == ["a", "a", "b", "b"]
    assert talk.asked[0].kind is JobKind.GENERATE
    assert talk.asked[0].payload == {"prompt": "a", "raw": True, "logprobs": True, "top_logprobs": 3}
    assert talk.echo == ("a", "a", "b", "b")
    assert talk.prompts == 2


def test_a_completion_with_a_suffix_fills_in() -> None:
    [asked] = completion_talk({"model": "m", "prompt": "a", "suffix": "b"}).asked
    assert asked.payload == {"prompt": "a", "suffix": "b"}


@pytest.mark.parametrize(
    "fields", [{"prompt": [1, 2]}, {"prompt": [[1]]}, {"prompt": []}, {"best_of": 3}, {"logprobs": True}]
)
def test_a_completion_of_tokens_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        completion_talk({"model": "m", "prompt": "a", **fields})


def test_texts_to_embed_and_how_the_vectors_are_written() -> None:
    asked, in_base64 = embed_asked({"model": "m", "input": "a", "dimensions": 2, "encoding_format": "base64"})
    assert (asked.kind, asked.payload, in_base64) == (
        JobKind.EMBED,
        {"input": ["a"], "dimensions": 2},
        True,
    )
    answer = Answer({"embeddings": [[0.5, -1.0]], "prompt_eval_count": 3}, ROUTING)
    assert embed_reply("m", answer, in_base64=False)["data"][0]["embedding"] == [0.5, -1.0]
    packed = embed_reply("m", answer, in_base64=True)
    assert struct.unpack("<2f", base64.b64decode(packed["data"][0]["embedding"])) == (0.5, -1.0)
    assert packed["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize(
    "fields", [{"input": []}, {"input": [1]}, {}, {"input": "a", "encoding_format": "x"}]
)
def test_what_cannot_be_embedded_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        embed_asked({"model": "m", **fields})


def answer(**fields: Any) -> Answer:
    message = {"role": "assistant", "content": "Hello", **fields.pop("message", {})}
    told = {"message": message, "done_reason": "stop", "prompt_eval_count": 10, "eval_count": 2, **fields}
    return Answer(told, ROUTING)


def events(sent: bytes) -> list[Any]:
    lines = [line[6:] for line in sent.decode().splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def written(pieces: list[Delta], end: Answer, **fields: Any) -> list[Any]:
    talk = chat_talk({"model": "m", "messages": HELLO, "stream": True, **fields})
    choice = Completions(talk, "job1").choice(0)
    return events(b"".join(choice.piece(piece) for piece in pieces) + choice.end(end))


def test_a_stream_has_the_role_first_then_text_then_why_it_ended() -> None:
    first, second, last, done = written([Delta.of({"text": "Hel"}), Delta.of({"text": "lo"})], answer())
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": "Hel"}, "finish_reason": None}
    ]
    assert second["choices"] == [{"index": 0, "delta": {"content": "lo"}, "finish_reason": None}]
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert done == "[DONE]"
    assert {chunk["id"] for chunk in (first, second, last)} == {"chatcmpl-job1"}
    assert {chunk["object"] for chunk in (first, second, last)} == {"chat.completion.chunk"}


def test_a_stream_tells_its_usage_when_asked_to() -> None:
    *_, usage, done = written([], answer(), stream_options={"include_usage": True})
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    assert done == "[DONE]"


def test_thinking_tool_calls_and_log_probabilities_have_their_places() -> None:
    logprobs = [{"token": "H", "logprob": -0.5, "top_logprobs": [{"token": "J", "logprob": -2.0}]}]
    pieces = [
        Delta.of({"thinking": "hm"}),
        Delta.of({"text": "H", "logprobs": logprobs}),
        Delta.of({"tool_calls": [CALL]}),
    ]
    thought, said, called, last, _ = written(pieces, answer(message={"tool_calls": [CALL]}))
    assert thought["choices"][0]["delta"] == {
        "role": "assistant",
        "reasoning": "hm",
        "reasoning_content": "hm",
    }
    assert said["choices"][0]["logprobs"]["content"] == [
        {
            "token": "H",
            "logprob": -0.5,
            "bytes": [72],
            "top_logprobs": [{"token": "J", "logprob": -2.0, "bytes": [74]}],
        }
    ]
    assert called["choices"][0]["delta"]["tool_calls"] == [
        {
            "index": 0,
            "id": "call_x",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city":"Köln"}'},
        }
    ]
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_an_answer_that_breaks_off_ends_with_an_error_and_nothing_normal() -> None:
    talk = chat_talk({"model": "m", "messages": HELLO, "stream": True})
    choice = Completions(talk, "job1").choice(0)
    [error] = events(choice.failed(Refusal(502, "gone", code="backend_error")))
    assert error == {
        "error": {"message": "gone", "type": "api_error", "param": None, "code": "backend_error"}
    }


def test_a_whole_answer_has_all_its_choices_and_counts_the_prompt_once() -> None:
    talk = chat_talk({"model": "m", "messages": HELLO, "n": 2})
    whole = Completions(talk, "job1").whole([answer(), answer(done_reason="length")])
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["stop", "length"]
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert whole["usage"] == {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}


def test_a_whole_completion_has_its_log_probabilities_in_lists() -> None:
    talk = completion_talk({"model": "m", "prompt": "a", "logprobs": 1, "echo": True})
    logprobs = [{"token": "Hel", "logprob": -0.5, "top_logprobs": []}, {"token": "lo", "logprob": -1.0}]
    whole = Completions(talk, "job1").whole([Answer({"response": "Hello", "logprobs": logprobs}, ROUTING)])
    assert whole["object"] == "text_completion"
    assert whole["choices"] == [
        {
            "text": "aHello",
            "index": 0,
            "logprobs": {
                "tokens": ["Hel", "lo"],
                "token_logprobs": [-0.5, -1.0],
                "top_logprobs": [{}, {}],
                "text_offset": [0, 3],
            },
            "finish_reason": "stop",
        }
    ]


def test_the_places_of_a_streamed_completion_s_tokens_count_on() -> None:
    talk = completion_talk({"model": "m", "prompt": "a", "logprobs": 1, "stream": True})
    choice = Completions(talk, "job1").choice(0)
    pieces = [
        Delta.of({"text": text, "logprobs": [{"token": text, "logprob": -1.0}]}) for text in ("He", "y")
    ]
    [first, second] = events(b"".join(choice.piece(piece) for piece in pieces))
    assert first["choices"][0]["logprobs"]["text_offset"] == [0]
    assert second["choices"][0]["logprobs"]["text_offset"] == [2]


@pytest.mark.parametrize(
    ("note", "line"),
    [
        (Note("", 3, 12.2), ": queued, position 3, ~12 s\n\n"),
        (Note("loading m", None, None), ": loading m\n\n"),
        (Note(), ": working\n\n"),
    ],
)
def test_a_waiting_client_reads_its_place_in_a_comment(note: Note, line: str) -> None:
    assert comment(note).decode() == line
