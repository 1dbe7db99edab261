"""Streams of OpenAI-compatible servers, read as Ollama's pieces."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sollol_broker.errors import BackendError
from sollol_worker_agent.backends.openai_stream import (
    ChatReader,
    CompletionReader,
    EventReader,
    LlamaCompletionReader,
    metrics,
)
from sollol_worker_agent.backends.protocol import End, Piece


def ticking() -> Callable[[], int]:
    """A clock that gains a second whenever it is read."""
    times = iter(range(0, 10**12, 10**9))
    return lambda: next(times)


def data(event: object) -> bytes:
    return b"data: " + json.dumps(event).encode()


def delta(said: dict[str, Any], **choice: Any) -> bytes:
    return data({"choices": [{"index": 0, "delta": said, "finish_reason": None, **choice}]})


def read(reader: EventReader, *lines: bytes) -> list[Piece | End]:
    return [said for line in lines for said in reader.feed(line)]


DONE = b"data: [DONE]"


def test_chat_of_llama_server() -> None:
    # As recorded from llama-server b10068.
    timings = {"cache_n": 19, "prompt_n": 1, "prompt_ms": 0.306, "predicted_n": 2, "predicted_ms": 0.165}
    *pieces, end = read(
        ChatReader("llama-server", clock=ticking()),
        delta({"role": "assistant", "content": None}),
        delta({"content": " tr"}),
        delta({"content": " en"}),
        data({"choices": [{"finish_reason": "length", "index": 0, "delta": {}}], "timings": timings}),
        DONE,
    )
    assert pieces == [Piece(" tr"), Piece(" en")]
    assert isinstance(end, End)
    assert end.fields == {
        "done_reason": "length",
        "total_duration": 2 * 10**9,
        "load_duration": 0,
        "prompt_eval_count": 20,
        "prompt_eval_duration": 306_000,
        "eval_count": 2,
        "eval_duration": 165_000,
    }


def test_usage_comes_after_the_last_choice() -> None:
    *_, end = read(
        ChatReader("vLLM", clock=ticking()),
        delta({"role": "assistant", "content": ""}),
        delta({"content": "hi"}),
        delta({}, finish_reason="stop"),
        data({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}}),
        DONE,
    )
    assert isinstance(end, End)
    assert (end.fields["prompt_eval_count"], end.fields["eval_count"]) == (9, 1)
    assert end.fields["done_reason"] == "stop"


def test_a_finish_reason_is_not_the_end() -> None:
    assert read(ChatReader("x"), delta({}, finish_reason="stop")) == []


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_thinking(name: str) -> None:
    assert read(ChatReader("x"), delta({name: "hm"})) == [Piece(thinking="hm")]


def test_tool_call_fragments_become_whole_calls_in_one_piece() -> None:
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}}
    second = {"index": 1, "id": "b", "function": {"name": "time", "arguments": "{}"}}
    piece, end = read(
        ChatReader("x"),
        delta({"tool_calls": [first]}),
        delta({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}),
        delta({"tool_calls": [second]}),
        delta({"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]}),
        delta({}, finish_reason="tool_calls"),
        DONE,
    )
    assert piece == Piece(
        tool_calls=(
            {"id": "a", "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}},
            {"id": "b", "function": {"index": 1, "name": "time", "arguments": {}}},
        )
    )
    assert isinstance(end, End)
    assert end.fields["done_reason"] == "stop"


def test_a_tool_call_as_llama_server_streams_it() -> None:
    # As recorded from llama-server b10068: a fragment per token.
    first = {
        "index": 0,
        "id": "uSem",
        "type": "function",
        "function": {"name": "get_weather", "arguments": "{"},
    }
    rest = ['"', "city", '":', ' "', "Paris", '"', "}"]
    piece, _ = read(
        ChatReader("llama-server"),
        delta({"role": "assistant", "content": None}),
        delta({"tool_calls": [first]}),
        *(delta({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}) for part in rest),
        delta({}, finish_reason="tool_calls"),
        DONE,
    )
    call = {"id": "uSem", "function": {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}}
    assert piece == Piece(tool_calls=(call,))


def test_tool_calls_without_index_are_told_apart_by_id() -> None:
    calls = [{"id": name, "function": {"name": name, "arguments": {"n": 1}}} for name in ("a", "b")]
    piece, _ = read(ChatReader("x"), delta({"tool_calls": calls}), DONE)
    assert isinstance(piece, Piece)
    assert [call["function"]["name"] for call in piece.tool_calls] == ["a", "b"]


@pytest.mark.parametrize(("finish", "retryable"), [("length", False), ("tool_calls", True)])
def test_broken_tool_arguments_are_a_failure(finish: str, retryable: bool) -> None:
    reader = ChatReader("x")
    fragment = {"index": 0, "function": {"name": "f", "arguments": '{"a'}}
    read(reader, delta({"tool_calls": [fragment]}), delta({}, finish_reason=finish))
    with pytest.raises(BackendError, match="not JSON") as failed:
        reader.feed(DONE)
    assert failed.value.retryable is retryable


def test_logprobs_in_ollamas_shape() -> None:
    entry = {"id": 7, "token": "a", "bytes": [97], "logprob": -0.5}
    probabilities = {"content": [{**entry, "top_logprobs": [entry, {**entry, "token": "b"}]}]}
    plain = {"token": "a", "logprob": -0.5, "bytes": [97]}
    line = delta({"content": "a"}, logprobs=probabilities)
    (without,) = read(ChatReader("x"), line)
    (with_one,) = read(ChatReader("x", top_logprobs=1), line)
    assert without == Piece("a", logprobs=(plain,))
    assert with_one == Piece("a", logprobs=({**plain, "top_logprobs": [plain]},))


@pytest.mark.parametrize(
    ("line", "status", "retryable"),
    [
        (data({"error": {"code": 500, "message": "boom"}}), 500, True),
        (data({"error": {"code": 400, "message": "too long"}}), 400, False),
        (b'error: {"code": 503, "message": "loading"}', 503, True),
        (data({"object": "error", "message": "boom", "code": 500}), 500, True),
        (b'{"error": {"message": "boom"}}', None, True),
        (data({"error": "boom"}), None, True),
    ],
)
def test_an_error_in_the_stream_is_a_failure(line: bytes, status: int | None, retryable: bool) -> None:
    with pytest.raises(BackendError) as failed:
        ChatReader("x").feed(line)
    assert (failed.value.status, failed.value.retryable) == (status, retryable)


@pytest.mark.parametrize("line", [b'data: {"choices": [', b"data: 5"])
def test_a_broken_line_is_a_failure(line: bytes) -> None:
    with pytest.raises(BackendError) as failed:
        ChatReader("x").feed(line)
    assert failed.value.retryable


@pytest.mark.parametrize("line", [b"event: message", b"id: 4", b"retry: 9"])
def test_other_fields_of_an_event_say_nothing(line: bytes) -> None:
    assert read(ChatReader("x"), line) == []


def test_completion_with_the_old_shape_of_logprobs() -> None:
    probabilities = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "b": -1.0}]}
    *pieces, end = read(
        CompletionReader("x", top_logprobs=2),
        data({"choices": [{"text": "a", "index": 0, "logprobs": probabilities, "finish_reason": None}]}),
        data({"choices": [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}]}),
        DONE,
    )
    a = {"token": "a", "logprob": -0.5, "bytes": [97]}
    b = {"token": "b", "logprob": -1.0, "bytes": [98]}
    assert pieces == [Piece("a", logprobs=({**a, "top_logprobs": [a, b]},))]
    assert isinstance(end, End)
    assert end.fields["done_reason"] == "length"


@pytest.mark.parametrize(("stop_type", "reason"), [("limit", "length"), ("eos", "stop"), ("word", "stop")])
def test_llama_completion_ends_with_stop(stop_type: str, reason: str) -> None:
    piece, end = read(
        LlamaCompletionReader("x"),
        data({"content": " when", "stop": False, "tokens_predicted": 1}),
        data({"content": "", "stop": True, "stop_type": stop_type, "timings": {"predicted_n": 1}}),
    )
    assert piece == Piece(" when")
    assert isinstance(end, End)
    assert end.fields["done_reason"] == reason


def test_metrics_without_timings_or_usage_are_durations() -> None:
    assert metrics({}, {}, 10, 30, 60) == {
        "load_duration": 0,
        "prompt_eval_duration": 20,
        "eval_duration": 30,
    }
