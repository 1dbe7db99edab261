"""When an answer may be gone on with, and how its two parts become one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from sollol_broker.words import JobKind
from sollol_worker_agent.backends.probe import Probes
from sollol_worker_agent.backends.protocol import CannotContinue, End, Piece, Said
from sollol_worker_agent.backends.resuming import (
    before_blanks,
    behind,
    for_the_rest,
    refusal,
    refusal_of,
    repeated,
    stopped,
    stops_of,
    tokens_left,
    whole_fields,
)


def said(*texts: str) -> Said:
    return Said(tuple(Piece(text) for text in texts))


async def told(*events: Piece | End | str) -> AsyncGenerator[Piece | End, None]:
    for event in events:
        yield Piece(event) if isinstance(event, str) else event


async def read(events: AsyncGenerator[Piece | End, None]) -> tuple[str, dict[str, Any]]:
    text, fields = "", {}
    async for event in events:
        if isinstance(event, End):
            fields = dict(event.fields)
        else:
            text += event.text
    return text, fields


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": [{"role": "user", "content": "hi"}], "options": {"temperature": 0.8, "stop": ["x"]}},
        {"prompt": "hi", "raw": True, "stream": True, "keep_alive": "5m", "think": False},
        {"messages": [], "tools": [], "format": "", "suffix": None},
    ],
)
def test_plain_text_may_be_gone_on_with(request_: dict[str, Any]) -> None:
    kind = JobKind.GENERATE if "prompt" in request_ else JobKind.CHAT
    assert refusal(kind, request_) == ""


@pytest.mark.parametrize(
    "request_",
    [
        {"tools": [{"type": "function"}]},
        {"format": "json"},
        {"format": {"type": "object"}},
        {"suffix": "}"},
        {"template": "{{ .Prompt }}"},
        {"context": [1, 2]},
        {"grammar": "root ::= 'a'"},
        {"response_format": {"type": "json_object"}},
        {"guided_regex": "a*"},
        {"a_field_of_next_year": 1},
        {"options": {"grammar": "root ::= 'a'"}},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well,"}]},
    ],
)
def test_what_binds_the_form_of_an_answer_or_is_not_known_may_not(request_: dict[str, Any]) -> None:
    assert refusal(JobKind.CHAT, {"messages": [{"role": "user", "content": "hi"}], **request_})


def test_embeddings_may_not() -> None:
    assert refusal(JobKind.EMBED, {"input": "a"})


def test_tools_that_were_called_thoughts_and_log_probabilities_that_do_not_fit() -> None:
    assert refusal_of(said("a", "b")) == ""
    assert refusal_of(Said((Piece(tool_calls=({"function": {}},)),)))
    assert refusal_of(Said((Piece(thinking="hm"), Piece("a"))))
    fits = Piece("ab", logprobs=({"token": "a"}, {"token": "b"}))
    assert refusal_of(Said((fits,))) == ""
    assert refusal_of(Said((fits, Piece("c"))))


@pytest.mark.parametrize(("most", "left"), [(None, None), (-1, None), (-2, None), (5, 3), (2, 0), (1, 0)])
def test_the_rest_may_be_as_long_as_num_predict_leaves(most: int | None, left: int | None) -> None:
    request = {"prompt": "a", "options": {"num_predict": most, "seed": 1}}
    assert tokens_left(request, said("a", "b")) == left
    options = for_the_rest(request, said("a", "b"))["options"]
    assert options == {"num_predict": most if left is None else left, "seed": 1}


@pytest.mark.parametrize(
    ("pieces", "begun", "blanks"),
    [(["a", " b"], "a b", ""), (["a", ".\n", "\n"], "a", ".\n\n"), (["\n"], "", "\n"), (["a", ""], "a", "")],
)
def test_blanks_at_the_end_are_left_to_be_said_again(pieces: list[str], begun: str, blanks: str) -> None:
    whole = said(*pieces)
    assert before_blanks(whole).text == begun
    assert whole.text == begun + blanks


async def test_what_is_said_again_behind_the_blanks_counts_once() -> None:
    whole = said("a", "\n", "\n")
    rest = behind(told("\n\n", "b", End({"eval_count": 3})), whole, before_blanks(whole))
    assert await read(rest) == ("b", {"eval_count": 1})


@pytest.mark.parametrize("again", [("ab", "cd"), ("a", "b", "c", "d"), ("abcd",), ("abc", "", "d")])
async def test_what_is_said_again_is_passed_over(again: tuple[str, ...]) -> None:
    assert await read(repeated(told(*again, End({"n": 1})), "ab")) == ("cd", {"n": 1})


async def test_what_is_said_differently_is_refused_before_anything_is_said() -> None:
    for again in (("ax",), ("a",), (), ("a", "x")):
        with pytest.raises(CannotContinue):
            await anext(repeated(told(*again, End()), "ab"))


@pytest.mark.parametrize(
    ("before", "after", "text", "reason"),
    [
        ("one ST", ("OP", " two"), "", "stop"),
        ("one S", ("T", "O", "P"), "", "stop"),
        ("one S", ("TOP two",), "", "stop"),
        ("one ST", ("ART",), "ART", "length"),
        ("one ST", ("O", "VE"), "OVE", "length"),
        ("one ST", ("O",), "O", "length"),
        ("one", ("STOP",), "STOP", "length"),  # the server's own business
    ],
)
async def test_a_stop_sequence_across_the_seam(
    before: str, after: tuple[str, ...], text: str, reason: str
) -> None:
    stops = stops_of({"options": {"stop": ["STOP"]}})
    got, fields = await read(stopped(told(*after, End({"done_reason": "length"})), before, stops))
    assert (got, fields["done_reason"]) == (text, reason)


def test_the_tokens_of_both_parts_count_as_one_answer() -> None:
    rest = {
        "done_reason": "stop",
        "prompt_eval_count": 12,
        "eval_count": 5,
        "context": [1],
        "eval_duration": 9,
    }
    assert whole_fields(rest, said("a", "b")) == {
        "done_reason": "stop",
        "prompt_eval_count": 10,
        "eval_count": 7,
        "eval_duration": 9,
    }


class Server:
    """Answers the probe's question; what comes back for a beginning is the test's choice."""

    def __init__(self, answer: list[str], rest: list[str] | None) -> None:
        self.answer, self.rest, self.asked = answer, rest, 0

    async def ask(self, begun: str, tokens: int) -> list[Piece]:
        self.asked += 1
        whole = "".join(self.answer)
        if begun and self.rest is None:
            return [Piece(whole[len(begun) :])]
        return [Piece(text) for text in (self.rest if begun and self.rest is not None else self.answer)]


@pytest.mark.parametrize(
    ("answer", "rest", "goes_on"),
    [
        (["one", " two", " three", " four"], None, True),
        (["one", " two", " three", " four"], ["one", " two", " three", " four"], False),
        (["one", " two", " three", " four"], [" two", " three", " four"], False),
        (["la", "la", "la", "la"], None, False),
        (["one"], None, False),
        ([], None, False),
    ],
)
async def test_a_server_goes_on_if_exactly_the_rest_comes_back(
    answer: list[str], rest: list[str] | None, goes_on: bool
) -> None:
    probes, server = Probes(), Server(answer, rest)
    assert probes.known("m") is None
    assert await probes.goes_on("m", None, server.ask) is goes_on
    asked = server.asked
    assert await probes.goes_on("m", None, server.ask) is goes_on
    assert (server.asked, probes.known("m")) == (asked, goes_on)


async def test_a_model_that_was_replaced_is_tried_again() -> None:
    probes, server = Probes(), Server(["one", " two", " three"], None)
    probes.note_version("m", "v1")
    assert await probes.goes_on("m", None, server.ask)
    probes.note_version("m", "v1")
    assert probes.known("m") is True
    probes.note_version("m", "v2")
    assert probes.known("m") is None
