"""Calls that work plainly and awaited, and the dict that they give."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from sollol.either_way import Pending, call_in_thread, plainly_or_awaited, warn_once
from sollol.routing_dict import with_routing
from sollol_broker.outcome import Routing
from sollol_client import Answer


def _answer() -> dict[str, Any]:
    return {"message": {"content": "hello"}}


def test_without_a_loop_the_value_itself_is_given() -> None:
    value = plainly_or_awaited(call_in_thread(_answer, "test"))

    assert value == {"message": {"content": "hello"}}
    assert isinstance(value, dict)


async def test_in_a_loop_it_is_awaited() -> None:
    pending = plainly_or_awaited(call_in_thread(_answer, "test"))

    assert isinstance(pending, Pending)
    assert await pending == _answer()


async def test_in_a_loop_it_may_be_used_plainly_all_the_same() -> None:
    pending = plainly_or_awaited(call_in_thread(_answer, "test"))

    assert pending["message"]["content"] == "hello"
    assert pending.get("nothing") is None
    assert list(pending) == ["message"]
    assert "message" in pending
    assert len(pending) == 1
    assert pending


def test_errors_come_to_the_caller() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        plainly_or_awaited(call_in_thread(fails, "test"))


async def test_errors_come_to_whoever_awaits() -> None:
    def fails() -> None:
        raise ValueError("no")

    pending = plainly_or_awaited(call_in_thread(fails, "test"))

    assert isinstance(pending, Pending)
    with pytest.raises(ValueError, match="no"):
        await pending


def test_what_has_no_meaning_is_told_once() -> None:
    with pytest.warns(DeprecationWarning, match="told once only"):
        warn_once("this is told once only")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_once("this is told once only")


@pytest.mark.parametrize(("tokens", "complexity"), [(10, "simple"), (1000, "medium"), (3000, "complex")])
def test_an_answer_tells_where_it_came_from(tokens: int, complexity: str) -> None:
    routing = Routing("gpu-1", "w", "http://127.0.0.1:1", 1, "generation", 1.0, 2.0)
    answer = Answer({"message": {"content": "hi"}, "prompt_eval_count": tokens}, routing)

    told = with_routing(answer)

    assert told["message"] == {"content": "hi"}
    routed = told["_sollol_routing"]
    assert [routed[name] for name in ("host", "node", "selected_host")] == ["gpu-1"] * 3
    assert routed["task_type"] == "generation"
    assert routed["complexity"] == complexity
