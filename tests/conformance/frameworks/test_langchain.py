"""LangChain's models for OpenAI and for Ollama against the gateway; where it can be, against llama-server itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from ollama import ResponseError
from pydantic import BaseModel

from conformance_kit import UNCACHED, Door
from waiting import wait_until

Make = Callable[..., Any]
# The package keeps connections by address and timeout, longer than the event loop lives that they belong to.
_timeouts = itertools.count(60)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


def openai_chat(url: str, tokens: int = 12, **more: Any) -> Any:
    arguments = {"model": "smollm2", "temperature": 0, "max_retries": 0, "api_key": "none", **more}
    arguments["timeout"] = next(_timeouts)
    return ChatOpenAI(base_url=f"{url}/v1", max_tokens=tokens, default_headers=UNCACHED, **arguments)


def ollama_chat(url: str, tokens: int = 12, **more: Any) -> Any:
    arguments = {"model": "smollm2", "temperature": 0, **more}
    return ChatOllama(base_url=url, num_predict=tokens, client_kwargs={"headers": UNCACHED}, **arguments)


@pytest.fixture(params=[openai_chat, ollama_chat], ids=["openai", "ollama"])
def ours_of(request: pytest.FixtureRequest, ours: Door) -> Make:
    """Makes a chat model of either package before the gateway; the limit of tokens has a name of its own in each."""
    return partial(request.param, ours.url)


@pytest.fixture(params=["openai", "ollama", "openai, llama-server itself"])
def make(request: pytest.FixtureRequest, smollm2_server: str) -> Make:
    """The same, and one before llama-server."""
    if request.param.endswith("itself"):
        return partial(openai_chat, smollm2_server)
    ours: Door = request.getfixturevalue("ours")
    return partial(openai_chat if request.param == "openai" else ollama_chat, ours.url)


def called(city: str) -> list[Any]:
    call = {"name": "get_weather", "args": {"city": city}, "id": f"call_{city}"}
    return [HumanMessage(f"Weather in {city}?"), AIMessage("", tool_calls=[call])]


async def test_a_chat(make: Make) -> None:
    answer = await make().ainvoke("Say hello.")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] == 12


async def test_a_streamed_chat_is_the_whole_one_in_pieces(make: Make) -> None:
    whole = await make().ainvoke("Say hello.")
    pieces = [piece.content async for piece in make().astream("Say hello.")]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == whole.content


async def test_a_tool_is_called_and_its_result_goes_back(make: Make) -> None:
    chat = make(60).bind_tools([get_weather])
    answer = await chat.ainvoke([*called("Rome"), *called("Oslo"), HumanMessage("Weather in Paris?")])
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    again = await chat.ainvoke([*called("Rome"), ToolMessage("rain", tool_call_id="call_Rome")])
    assert again.usage_metadata["output_tokens"] > 0


async def test_an_answer_in_the_form_of_a_class(make: Make) -> None:
    chat = make(60).with_structured_output(Person, method="json_schema")
    assert isinstance(await chat.ainvoke("Ann is 30 years old."), Person)


async def test_an_unknown_model_is_not_found(ours_of: Make) -> None:
    with pytest.raises((openai.NotFoundError, ResponseError)) as refused:
        await ours_of(model="nope").ainvoke("hello")
    assert refused.value.status_code == 404


async def test_a_bad_request_says_what_is_bad(ours_of: Make) -> None:
    with pytest.raises((openai.BadRequestError, ResponseError), match="top_p") as refused:
        await ours_of(top_p=7).ainvoke("hello")
    assert refused.value.status_code == 400


async def test_a_caller_that_leaves_frees_the_server(
    ours_of: Make, is_idle: Callable[[], Awaitable[bool]]
) -> None:
    stream = ours_of(4000).astream("Count without end: 1, 2, 3,")
    await anext(stream)
    await stream.aclose()
    await wait_until(is_idle, timeout=3, what="the server's slot to be free")


async def test_vectors(ours: Door) -> None:
    # Without this it sends tokens of OpenAI's own.
    of_openai = OpenAIEmbeddings(
        model="toy-embed", base_url=f"{ours.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    of_ollama = OllamaEmbeddings(model="toy-embed", base_url=ours.url)
    one, other = await asyncio.gather(
        of_openai.aembed_documents(["one", "two"]), of_ollama.aembed_documents(["one", "two"])
    )
    assert len(one) == 2
    assert one[0] == pytest.approx(other[0], abs=1e-6)
