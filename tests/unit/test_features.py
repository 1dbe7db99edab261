"""What a request tells of itself: tables of requests, and what is made of them."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.errors import InvalidJob
from sollol_broker.features import (
    PICTURE_TOKENS,
    affinity,
    complexity,
    context_needed,
    model_billions,
    needs_gpu,
    output_cap,
    picture_tokens,
    prompt_characters,
    task_type,
)
from sollol_client.request import build_request

LONG = "All the rules of this house, one after another. " * 40


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("Write a poem about the sea", "generation"),
        ("", "generation"),
        ("Classify this ticket: printer on fire", "classification"),
        ("What is the sentiment of 'meh'?", "classification"),
        ("Answer yes or no: is 7 a prime?", "classification"),
        ("Extract each date from the letter", "extraction"),
        ("List all names in this text", "extraction"),
        ("Summarise the following article", "summarization"),
        ("TL;DR please", "summarization"),
        ("Write a summary of the analysis", "summarization"),
        ("Compare Redis with Kafka", "analysis"),
        ("Analyze the summary below", "analysis"),
        ("My analyst asked for a story", "generation"),
    ],
)
def test_the_first_telling_word_decides(text: str, task: str) -> None:
    assert task_type("chat", {"messages": [user(text)]}) == task
    assert task_type("generate", {"prompt": text}) == task


def test_an_embed_job_is_embedding_whatever_it_says() -> None:
    assert task_type("embed", {"input": "Summarize this"}) == "embedding"
    assert task_type("rerank", {"query": "Summarize this", "documents": []}) == "reranking"


def test_the_last_word_of_the_user_counts_then_the_system_prompt_then_the_end() -> None:
    earlier = [user("Summarize this"), assistant("done")]
    assert task_type("chat", {"messages": [*earlier, user("Now compare both")]}) == "analysis"
    assert task_type("chat", {"messages": [*earlier, user("Thanks, and now a joke")]}) == "generation"
    assert task_type("chat", {"messages": [system("You extract dates."), user(LONG)]}) == "extraction"
    assert task_type("generate", {"system": "You classify.", "prompt": LONG}) == "classification"
    assert task_type("chat", {"messages": [user(LONG + "Give me the key points.")]}) == "summarization"
    assert task_type("chat", {"messages": [user(LONG + "Summarize. " + LONG)]}) == "generation"


@pytest.mark.parametrize(
    ("wanted", "task"),
    [
        ("json", "extraction"),
        ("", "generation"),
        ({"type": "object", "properties": {"name": {"type": "string"}}}, "extraction"),
        ({"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}}, "classification"),
        ({"type": "string", "enum": ["a", "b"]}, "classification"),
        ({"properties": {"a": {"enum": []}, "b": {}, "c": {}}}, "extraction"),
    ],
)
def test_a_format_tells_where_no_word_does(wanted: object, task: str) -> None:
    assert task_type("chat", {"messages": [user("Here is a letter.")], "format": wanted}) == task


def test_characters_are_counted_wherever_the_model_reads_them() -> None:
    chat = {"messages": [system("1234"), user("12345"), {"role": "assistant", "content": None}]}
    assert prompt_characters(chat) == 9
    assert prompt_characters({"prompt": "123", "system": "45", "suffix": "6"}) == 6
    assert prompt_characters({"input": ["12", "345"]}) == 5
    assert prompt_characters({"input": "12"}) == 2
    assert prompt_characters({"query": "12", "documents": ["345", "6"]}) == 8
    assert prompt_characters({**chat, "tools": [{"type": "function"}]}) > 9 + len("function")
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look_up"}}]}
    assert prompt_characters({"messages": [called]}) > len("look_up")


def test_numbers_of_the_options() -> None:
    assert output_cap({"num_predict": 7}) == 7
    assert output_cap({"max_tokens": 8}) == 8
    assert [output_cap(each) for each in (None, {}, {"num_predict": -1}, {"num_predict": True})] == [0] * 4
    assert context_needed({"options": {"num_ctx": 8192}}) == 8192
    assert context_needed({}) == 0
    assert picture_tokens([b"png", b"jpg"]) == 2 * PICTURE_TOKENS


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("llama3.1:70b", 70),
        ("qwen2.5:0.5b-instruct-q4", 0.5),
        ("mixtral:8x7b", 56),
        ("qwen3:30b-a3b", 30),
        ("smollm2:135m", 0),
        ("llama3.2", 0),
        ("deepseek-r1-distill-qwen-14b", 14),
    ],
)
def test_a_models_size_is_read_from_its_name(model: str, billions: float) -> None:
    assert model_billions(model) == billions


def test_need_of_a_gpu_and_complexity() -> None:
    assert needs_gpu("llama3.1:8b", "generation", 10)
    assert not needs_gpu("llama3.2:1b", "generation", 300)
    assert needs_gpu("llama3.2:1b", "generation", 8_000)
    assert not needs_gpu("all-minilm", "embedding", 8_000)
    assert [complexity(tokens) for tokens in (500, 501, 2_000, 2_001)] == [
        "simple",
        "medium",
        "medium",
        "complex",
    ]


def test_a_conversation_keeps_its_affinity_as_it_grows() -> None:
    turns = [system("Be brief."), user("Hi"), assistant("Hello"), user("And?")]
    key = affinity("app", None, {"messages": turns})
    assert len(key) == 8
    assert set(key) <= set(string.hexdigits.lower())
    assert affinity("app", None, {"messages": [*turns, assistant("So."), user("Then?")]}) == key
    others = [
        affinity("other", None, {"messages": turns}),
        affinity("app", None, {"messages": [system("Be long."), *turns[1:]]}),
        affinity("app", "conversation-1", {"messages": turns}),
    ]
    assert len({key, *others}) == 4


def test_a_session_decides_whatever_the_text() -> None:
    assert affinity("app", "s", {"prompt": "a"}) == affinity("app", "s", {"messages": [user("b")]})


def test_short_beginnings_have_no_affinity_and_long_ones_do() -> None:
    assert affinity("app", None, {"messages": [user("Hi")]}) == ""
    assert affinity("app", None, {"prompt": "Hi", "system": "Be brief."}) == ""
    assert affinity("app", None, {"messages": []}) == ""
    assert affinity("app", None, {"messages": [system(LONG), user("Hi")]})
    long = affinity("app", None, {"prompt": LONG + "first question"})
    assert long
    assert long == affinity("app", None, {"prompt": LONG + "second question"})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    ),
    st.sampled_from(["messages", "prompt", "input", "system", "format", "tools", "options"]),
)
def test_no_shape_of_a_payload_is_an_error(value: Any, name: str) -> None:
    payload = {name: value}
    assert task_type("chat", payload) in (
        "generation",
        "extraction",
        "classification",
        "summarization",
        "analysis",
    )
    assert prompt_characters(payload) >= 0
    assert context_needed(payload) >= 0
    assert len(affinity("app", None, payload)) in (0, 8)


def test_a_request_carries_its_features() -> None:
    submission = build_request(
        "app",
        "inbox",
        model="m",
        chat=[{"role": "user", "content": "Summarize", "images": [b"picture"]}],
        session="s",
        hedge=True,
        options={"num_predict": 50, "num_ctx": 4096},
    ).submission
    assert submission.prompt_chars == len("Summarize")
    assert submission.extra_tokens == PICTURE_TOKENS
    assert submission.output_cap == 50
    assert submission.context_tokens == 4096
    assert submission.task == "summarization"
    assert submission.affinity == affinity("app", "s", {})
    assert submission.hedge == 1


def test_hedging_is_asked_for_left_to_the_policy_or_refused() -> None:
    def hedge(value: Any) -> int:
        return build_request("app", "inbox", model="m", chat="hi", hedge=value).submission.hedge

    assert [hedge(value) for value in (True, None, False)] == [1, 0, -1]
    with pytest.raises(InvalidJob, match="hedge"):
        hedge("yes")


def test_an_embed_job_has_no_answer_to_cap_and_no_way_back() -> None:
    submission = build_request("app", "i", model="m", embed=[LONG], session="s").submission
    assert (submission.task, submission.output_cap, submission.affinity) == ("embedding", 0, "")


def test_the_tokens_of_a_continued_generate_job_count() -> None:
    submission = build_request("app", "i", model="m", generate="go on", context=[1, 2, 3]).submission
    assert submission.extra_tokens == 3
