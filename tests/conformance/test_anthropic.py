"""Anthropic's own Python package against the gateway, and against llama-server itself where that can do it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import MessageParam, ToolParam

from conformance_kit import UNCACHED, Door
from waiting import wait_until

HELLO: list[MessageParam] = [{"role": "user", "content": "Say hello."}]
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def called(city: str, call_id: str) -> list[MessageParam]:
    use: Any = {"type": "tool_use", "id": call_id, "name": "get_weather", "input": {"city": city}}
    return [{"role": "user", "content": f"Weather in {city}?"}, {"role": "assistant", "content": [use]}]


# A small model calls a tool when it has seen calls before.
ASKS_FOR_WEATHER: list[MessageParam] = [
    *called("Rome", "c1"),
    *called("Oslo", "c2"),
    {"role": "user", "content": "Weather in Paris?"},
]


@pytest.fixture
async def client(door: Door) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(
        base_url=door.url, api_key="none", max_retries=0, timeout=30, default_headers=UNCACHED
    ) as made:
        yield made


@pytest.fixture
async def our_client(ours: Door) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(
        base_url=ours.url, api_key="none", max_retries=0, timeout=30, default_headers=UNCACHED
    ) as made:
        yield made


async def test_a_message(client: AsyncAnthropic) -> None:
    answer = await client.messages.create(
        model="smollm2", max_tokens=4, messages=HELLO, system="Be brief.", extra_body={"temperature": 0}
    )
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "max_tokens")
    assert answer.content[0].type == "text"
    assert answer.content[0].text
    assert answer.usage.output_tokens == 4
    assert answer.usage.input_tokens > 0


async def test_a_streamed_message_is_the_whole_one_in_pieces(client: AsyncAnthropic) -> None:
    asked: Any = {"model": "smollm2", "max_tokens": 12, "messages": HELLO, "extra_body": {"temperature": 0}}
    whole = await client.messages.create(**asked)
    kinds = []
    async with client.messages.stream(**asked) as stream:
        async for event in stream:
            kinds.append(event.type)
        last = await stream.get_final_message()
    assert last.content[0].type == "text"
    assert whole.content[0].type == "text"
    assert last.content[0].text == whole.content[0].text
    assert last.stop_reason == "max_tokens"
    assert last.usage.output_tokens == 12
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_used(client: AsyncAnthropic, stream: bool) -> None:
    asked: Any = {
        "model": "smollm2",
        "max_tokens": 60,
        "messages": ASKS_FOR_WEATHER,
        "tools": [WEATHER],
        "extra_body": {"temperature": 0},
    }
    if stream:
        async with client.messages.stream(**asked) as streamed:
            answer = await streamed.get_final_message()
    else:
        answer = await client.messages.create(**asked)
    assert answer.stop_reason == "tool_use"
    [use] = [block for block in answer.content if block.type == "tool_use"]
    assert (use.name, use.input) == ("get_weather", {"city": "Paris"})
    assert use.id


async def test_a_tool_s_result_goes_back(client: AsyncAnthropic) -> None:
    result: Any = {"type": "tool_result", "tool_use_id": "c1", "content": "It rains."}
    answer = await client.messages.create(
        model="smollm2",
        max_tokens=10,
        messages=[*called("Rome", "c1"), {"role": "user", "content": [result]}],
        tools=[WEATHER],
    )
    assert answer.usage.output_tokens > 0


async def test_an_unknown_model_is_not_found(our_client: AsyncAnthropic) -> None:
    # llama-server answers with the model that it has, whatever is asked for.
    with pytest.raises(anthropic.NotFoundError) as refused:
        await our_client.messages.create(model="nope", max_tokens=8, messages=HELLO)
    body: Any = refused.value.body
    assert body["error"] == {"type": "not_found_error", "message": "model 'nope' not found"}
    assert body["request_id"]


async def test_a_bad_request_says_what_is_bad(our_client: AsyncAnthropic) -> None:
    # llama-server takes a request without a limit.
    with pytest.raises(anthropic.BadRequestError) as refused:
        await our_client.messages.create(model="smollm2", max_tokens=0, messages=HELLO)
    assert "max_tokens is required and must be positive" in str(refused.value)


async def test_a_client_that_leaves_frees_the_server(
    client: AsyncAnthropic, is_idle: Callable[[], Awaitable[bool]]
) -> None:
    stream = await client.messages.create(
        model="smollm2", max_tokens=4000, messages=HELLO, stream=True, extra_body={"ignore_eos": True}
    )
    async for event in stream:
        if event.type == "content_block_delta":
            break
    assert not await is_idle()
    await stream.close()
    await wait_until(is_idle, timeout=2, what="the server's slot to be free")
