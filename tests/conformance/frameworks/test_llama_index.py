"""LlamaIndex's model for Ollama against the gateway, over a real llama-server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.ollama import Ollama
from ollama import ResponseError
from pydantic import BaseModel

from conformance_kit import Door
from waiting import wait_until

HELLO = [ChatMessage(role="user", content="Say hello.")]


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


def model(door: Door, **more: Any) -> Any:
    options = {"num_predict": 12, **more.pop("options", {})}
    fields = {"model": "smollm2", "temperature": 0, "request_timeout": 30.0, "context_window": 2048, **more}
    return Ollama(base_url=door.url, additional_kwargs=options, **fields)


async def test_a_chat_and_a_completion(ours: Door) -> None:
    assert (await model(ours).achat(HELLO)).message.content
    assert (await model(ours).acomplete("Once upon a time")).text


async def test_a_streamed_chat_is_the_whole_one_in_pieces(ours: Door) -> None:
    whole = await model(ours).achat(HELLO)
    stream = await model(ours).astream_chat(HELLO)
    pieces = [piece.delta async for piece in stream]
    assert "".join(piece or "" for piece in pieces) == whole.message.content


async def test_a_tool_is_called(ours: Door) -> None:
    history: list[ChatMessage] = []
    for city in ("Rome", "Oslo"):
        call = {"function": {"name": "get_weather", "arguments": {"city": city}}}
        history.append(ChatMessage(role="user", content=f"Weather in {city}?"))
        history.append(ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [call]}))
    asked = model(ours, options={"num_predict": 60})
    answer = await asked.achat_with_tools(
        [FunctionTool.from_defaults(get_weather)], user_msg="Weather in Paris?", chat_history=history
    )
    [call] = asked.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Paris"})


async def test_an_unknown_model_is_not_found(ours: Door) -> None:
    with pytest.raises(ResponseError) as refused:
        await model(ours, model="nope").achat(HELLO)
    assert refused.value.status_code == 404


async def test_a_bad_request_says_what_is_bad(ours: Door) -> None:
    with pytest.raises(ResponseError, match="top_p") as refused:
        await model(ours, options={"top_p": 7}).achat(HELLO)
    assert refused.value.status_code == 400


async def test_an_answer_in_the_form_of_a_class(ours: Door) -> None:
    asked = model(ours, options={"num_predict": 60})
    assert isinstance(await asked.astructured_predict(Person, PromptTemplate("Ann is 30 years old.")), Person)


async def test_a_caller_that_leaves_frees_the_server(
    ours: Door, is_idle: Callable[[], Awaitable[bool]]
) -> None:
    stream = await model(ours, options={"num_predict": 4000}).astream_chat(HELLO)
    await anext(stream)
    await stream.aclose()
    await wait_until(is_idle, timeout=20, what="the server's slot to be free")
