"""Ollama's requests in OpenAI's words, and embeddings back."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sollol_broker.errors import BackendError
from sollol_worker_agent.backends.openai_wire import (
    LLAMA_SERVER,
    OPENAI,
    Dialect,
    chat_body,
    completion_body,
    embed_body,
    llama_completion_body,
    messages,
    normalised,
    options,
    response_format,
    short_name,
    templated_generate,
    thinking,
    vectors,
)

PNG = "iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("dialect", "given", "said"),
    [
        (LLAMA_SERVER, None, {}),
        (LLAMA_SERVER, {"num_predict": 5, "temperature": 0}, {"max_tokens": 5, "temperature": 0}),
        (LLAMA_SERVER, {"num_predict": -1, "seed": -1}, {"max_tokens": -1, "seed": -1}),
        (LLAMA_SERVER, {"num_predict": -2}, {"max_tokens": -1}),
        (LLAMA_SERVER, {"num_ctx": 8192, "num_gpu": 99, "num_thread": 4}, {}),
        (LLAMA_SERVER, {"temperature": None}, {}),
        (LLAMA_SERVER, {"num_keep": 4}, {"n_keep": 4}),
        (
            LLAMA_SERVER,
            {"repeat_penalty": 1.1, "repeat_last_n": 64, "top_k": 3, "min_p": 0.1, "typical_p": 0.9},
            {"repeat_penalty": 1.1, "repeat_last_n": 64, "top_k": 3, "min_p": 0.1, "typical_p": 0.9},
        ),
        (LLAMA_SERVER, {"stop": ["a"], "mirostat": 2}, {"stop": ["a"], "mirostat": 2}),
        (OPENAI, {"num_predict": 5, "seed": 7, "stop": "x"}, {"max_tokens": 5, "seed": 7, "stop": "x"}),
        (OPENAI, {"num_predict": -1, "seed": -1}, {}),
        (OPENAI, {"top_k": 3, "repeat_penalty": 1.1}, {"top_k": 3, "repetition_penalty": 1.1}),
        (OPENAI, {"mirostat": 2, "typical_p": 0.9, "num_keep": 4}, {}),
    ],
)
def test_options(dialect: Dialect, given: dict[str, Any] | None, said: dict[str, Any]) -> None:
    assert options(given, dialect) == said


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (None, None),
        ("", None),
        ("json", {"type": "json_object", "schema": {"type": "object"}}),
        (
            SCHEMA,
            {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}},
        ),
    ],
)
def test_format(wanted: object, said: object) -> None:
    assert response_format(wanted, LLAMA_SERVER) == said


def test_format_json_of_plain_openai_has_no_schema() -> None:
    assert response_format("json", OPENAI) == {"type": "json_object"}


def test_another_format_is_refused() -> None:
    with pytest.raises(BackendError, match="invalid format") as refused:
        response_format("xml", OPENAI)
    assert (refused.value.status, refused.value.retryable) == (400, False)


@pytest.mark.parametrize(
    ("request_", "dialect", "said"),
    [
        ({}, LLAMA_SERVER, {}),
        ({"think": True}, LLAMA_SERVER, {"chat_template_kwargs": {"enable_thinking": True}}),
        ({"think": False}, OPENAI, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            {"think": "high"},
            LLAMA_SERVER,
            {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "high"}},
        ),
        (
            {"think": "low"},
            OPENAI,
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": True}},
        ),
        (
            {"think": True, "chat_template_kwargs": {"a": 1}},
            OPENAI,
            {"chat_template_kwargs": {"a": 1, "enable_thinking": True}},
        ),
    ],
)
def test_think(request_: dict[str, Any], dialect: Dialect, said: dict[str, Any]) -> None:
    assert thinking(request_, dialect) == said


def test_chat_body_translates_what_it_knows_and_passes_the_rest() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = chat_body(
        "m",
        {
            "model": "ignored",
            "messages": HELLO,
            "options": {"num_predict": 3},
            "tools": tools,
            "format": "json",
            "keep_alive": "5m",
            "stream": False,
            "truncate": True,
            "logprobs": True,
            "tool_choice": "required",
            "something_new": [1],
        },
        OPENAI,
    )
    assert body == {
        "model": "m",
        "messages": HELLO,
        "stream": True,
        "max_tokens": 3,
        "tools": tools,
        "response_format": {"type": "json_object"},
        "logprobs": True,
        "top_logprobs": 0,
        "tool_choice": "required",
        "something_new": [1],
    }


def test_empty_tools_are_no_tools() -> None:
    assert "tools" not in chat_body("m", {"messages": HELLO, "tools": []}, OPENAI)


def test_images_become_parts_with_their_type() -> None:
    given = [{"role": "user", "content": "what is it?", "images": [PNG, "/9j/abc", "data:image/x;base64,a"]}]
    (said,) = messages(given)
    assert said["content"][0] == {"type": "text", "text": "what is it?"}
    assert [part["image_url"]["url"] for part in said["content"][1:]] == [
        f"data:image/png;base64,{PNG}",
        "data:image/jpeg;base64,/9j/abc",
        "data:image/x;base64,a",
    ]


def test_image_bytes_are_encoded() -> None:
    (said,) = messages([{"role": "user", "content": "", "images": [b"\x89PNG\r\n\x1a\n"]}])
    assert said["content"] == [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}]


def test_an_image_url_is_not_handed_to_the_server() -> None:
    (said,) = messages([{"role": "user", "content": "", "images": ["http://10.0.0.1/secret"]}])
    assert said["content"][0]["image_url"]["url"].startswith("data:")


def test_tool_calls_and_results_are_tied_by_ids() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    other = {"id": "mine", "function": {"name": "time", "arguments": {}}}
    said = messages(
        [
            {"role": "assistant", "content": "", "tool_calls": [call, other]},
            {"role": "tool", "tool_name": "time", "content": "noon"},
            {"role": "tool", "tool_name": "weather", "content": "sunny"},
        ]
    )
    assert said[0]["tool_calls"] == [
        {
            "id": "call_0_0",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
        },
        {"id": "mine", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert said[1:] == [
        {"role": "tool", "content": "noon", "tool_call_id": "mine", "name": "time"},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_0_0", "name": "weather"},
    ]


def test_two_results_of_one_tool_answer_two_calls() -> None:
    calls = [{"function": {"name": "f", "arguments": {"n": n}}} for n in (1, 2)]
    said = messages(
        [
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "tool_name": "f", "content": "1"},
            {"role": "tool", "tool_name": "f", "content": "2"},
        ]
    )
    assert [message["tool_call_id"] for message in said[1:]] == ["call_0_0", "call_0_1"]


def test_thinking_of_earlier_turns_is_kept() -> None:
    (said,) = messages([{"role": "assistant", "content": "4", "thinking": "2+2"}])
    assert said == {"role": "assistant", "content": "4", "reasoning_content": "2+2"}


def test_a_generate_without_raw_is_a_chat() -> None:
    said = templated_generate(
        {"prompt": "hi", "system": "be brief", "images": [PNG], "think": True, "raw": False}
    )
    assert said == {
        "think": True,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi", "images": [PNG]},
        ],
    }


@pytest.mark.parametrize("name", ["template", "context"])
def test_what_only_ollama_understands_is_left_to_ollama(name: str) -> None:
    with pytest.raises(BackendError) as refused:
        templated_generate({"prompt": "hi", name: [1]})
    assert (refused.value.status, refused.value.retryable) == (400, True)


def test_completion_body() -> None:
    request = {"prompt": "a", "suffix": "b", "raw": True, "options": {"num_predict": 2}, "logprobs": True}
    assert completion_body("m", request, OPENAI) == {
        "model": "m",
        "prompt": "a",
        "suffix": "b",
        "max_tokens": 2,
        "logprobs": 0,
        "stream": True,
    }


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"prompt": "a", "raw": True}, {"prompt": "a", "stream": True}),
        ({"prompt": "a", "options": {"num_predict": 2}}, {"prompt": "a", "stream": True, "n_predict": 2}),
        ({"prompt": "a", "format": SCHEMA}, {"prompt": "a", "stream": True, "json_schema": SCHEMA}),
        (
            {"prompt": "a", "format": "json"},
            {"prompt": "a", "stream": True, "json_schema": {"type": "object"}},
        ),
        ({"prompt": "a", "logprobs": True}, {"prompt": "a", "stream": True, "n_probs": 1}),
        ({"prompt": "a", "logprobs": True, "top_logprobs": 3}, {"prompt": "a", "stream": True, "n_probs": 3}),
        ({"prompt": "a", "suffix": "b"}, {"input_prefix": "a", "input_suffix": "b", "stream": True}),
        ({"prompt": "a", "grammar": "root ::= x"}, {"prompt": "a", "stream": True, "grammar": "root ::= x"}),
    ],
)
def test_llama_completion_body(request_: dict[str, Any], said: dict[str, Any]) -> None:
    assert llama_completion_body(request_) == said


@pytest.mark.parametrize(
    "dangerous",
    [
        {"n_discard": -1},
        {"n_discard": "9"},
        {"options": {"n_discard": -5}},
        {"options": {"num_keep": -2}},
        {"id_slot": 0},
        {"n": 2},
        {"chat_parser": "{}"},
        {"options": {"chat_parser": ""}},
    ],
)
def test_a_dangerous_field_is_refused(dangerous: dict[str, Any]) -> None:
    with pytest.raises(BackendError) as in_chat:
        chat_body("m", {"messages": HELLO, **dangerous}, LLAMA_SERVER)
    with pytest.raises(BackendError) as in_generate:
        llama_completion_body({"prompt": "a", **dangerous})
    for refused in (in_chat, in_generate):
        assert (refused.value.status, refused.value.retryable) == (400, False)


def test_embed_body_keeps_to_what_servers_know() -> None:
    request = {"input": ["a"], "dimensions": 4, "truncate": True, "keep_alive": 0, "options": {"num_ctx": 1}}
    assert embed_body("m", request) == {"model": "m", "input": ["a"], "encoding_format": "float"}


def test_vectors_are_put_in_order_cut_and_normalised() -> None:
    answer = {
        "data": [{"index": 1, "embedding": [0.0, 2.0, 9.0]}, {"index": 0, "embedding": [3.0, 4.0, 9.0]}]
    }
    assert vectors(answer, 2) == [[0.6, 0.8], [0.0, 1.0]]
    assert all(math.isclose(math.hypot(*vector), 1.0) for vector in vectors(answer, None))


@pytest.mark.parametrize("vector", [[], [0.0, 0.0], [1.0, 0.0]])
def test_some_vectors_stay_as_they_are(vector: list[float]) -> None:
    assert normalised(vector) == vector


@pytest.mark.parametrize(
    ("server_name", "name"),
    [
        ("toy", "toy"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("/models/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct.q4_1"),
        ("Toy.GGUF", "toy"),
        ("C:\\models\\Toy.gguf", "toy"),
        ("./blobs/sha256-abc", "sha256-abc"),
    ],
)
def test_short_name(server_name: str, name: str) -> None:
    assert short_name(server_name) == name
