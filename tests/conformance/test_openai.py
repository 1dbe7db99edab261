"""OpenAI's own Python package against the gateway, and against llama-server itself where that can do it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from conformance_kit import UNCACHED, Door
from waiting import wait_until

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
# Responses have no stop texts of their own; without one the small model does not come to an end.
A_WORD = {"stop": [" "]}


class Person(BaseModel):
    name: str
    age: int


def called(city: str, call_id: str) -> list[ChatCompletionMessageParam]:
    return [
        {"role": "user", "content": f"Weather in {city}?"},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": json.dumps({"city": city})},
                }
            ],
        },
    ]


# A small model calls a tool when it has seen calls before.
ASKS_FOR_WEATHER: list[ChatCompletionMessageParam] = [
    *called("Rome", "c1"),
    *called("Oslo", "c2"),
    {"role": "user", "content": "Weather in Paris?"},
]


@pytest.fixture
async def client(door: Door) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{door.url}/v1", api_key="none", max_retries=0, timeout=30, default_headers=UNCACHED
    ) as made:
        yield made


@pytest.fixture
async def our_client(ours: Door) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{ours.url}/v1", api_key="none", max_retries=0, timeout=30, default_headers=UNCACHED
    ) as made:
        yield made


async def test_a_chat(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="smollm2", messages=HELLO, max_tokens=8, temperature=0
    )
    assert answer.object == "chat.completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


async def test_both_names_of_the_limit_count(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="smollm2", messages=HELLO, max_completion_tokens=3, temperature=0
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


async def test_a_seed_gives_the_same_text_again(client: AsyncOpenAI) -> None:
    texts = [
        (
            await client.chat.completions.create(
                model="smollm2", messages=HELLO, max_tokens=8, seed=5, temperature=0.9
            )
        )
        .choices[0]
        .message.content
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


async def test_a_stop_text_ends_the_answer(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(
        model="smollm2", messages=HELLO, max_tokens=20, temperature=0
    )
    text = whole.choices[0].message.content or ""
    word = text.split()[2]
    cut = await client.chat.completions.create(
        model="smollm2", messages=HELLO, max_tokens=20, temperature=0, stop=[word]
    )
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == text[: text.index(word)]


async def test_a_streamed_chat_is_the_whole_one_in_pieces(client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "smollm2", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) == {None}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


async def test_several_choices(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="smollm2", messages=HELLO, max_tokens=4, n=2, temperature=1, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.content for choice in answer.choices)


async def test_log_probabilities(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="smollm2", messages=HELLO, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 3
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in logprobs.content)


async def test_a_tool_is_called(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="smollm2", messages=ASKS_FOR_WEATHER, tools=[WEATHER], max_tokens=60, temperature=0
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.id
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


async def test_a_tool_is_called_in_a_stream(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="smollm2",
        messages=ASKS_FOR_WEATHER,
        tools=[WEATHER],
        max_tokens=60,
        temperature=0,
        stream=True,
    )
    name, arguments, reason = "", "", None
    async for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.index == 0
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    assert (name, json.loads(arguments), reason) == ("get_weather", {"city": "Paris"}, "tool_calls")


async def test_a_tool_s_result_goes_back(client: AsyncOpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        *called("Rome", "c1"),
        {"role": "tool", "tool_call_id": "c1", "content": "It rains."},
    ]
    answer = await client.chat.completions.create(
        model="smollm2", messages=messages, tools=[WEATHER], max_tokens=10
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


async def test_no_tool_is_called_when_none_may_be(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="smollm2",
        messages=ASKS_FOR_WEATHER,
        tools=[WEATHER],
        tool_choice="none",
        max_tokens=40,
        temperature=0,
    )
    assert not answer.choices[0].message.tool_calls


async def test_an_answer_in_the_form_of_a_class(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model="smollm2",
        messages=[{"role": "user", "content": "Ann is 30 years old."}],
        response_format=Person,
        max_tokens=60,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


async def test_an_answer_that_is_some_json_object(our_client: AsyncOpenAI) -> None:
    # llama-server itself takes this format and binds the answer to nothing.
    answer = await our_client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "A person as a JSON object with a name:"}],
        response_format={"type": "json_object"},
        max_tokens=80,
        temperature=0,
        stop=["}"],
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


async def test_a_text_is_continued(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="smollm2", prompt="Once upon a time", max_tokens=6, temperature=0
    )
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"
    stream = await client.completions.create(
        model="smollm2", prompt="Once upon a time", max_tokens=6, temperature=0, stream=True
    )
    text = "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])
    assert text == answer.choices[0].text


async def test_several_prompts_are_continued(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="smollm2", prompt=["One, two,", "Red, green,"], max_tokens=4, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1]


async def test_vectors(door: Door) -> None:
    async with AsyncOpenAI(base_url=f"{door.embed_url}/v1", api_key="none", max_retries=0) as client:
        # The package asks for base64 unless told otherwise.
        packed = await client.embeddings.create(model="toy-embed", input=["one", "two"])
        plain = await client.embeddings.create(
            model="toy-embed", input=["one", "two"], encoding_format="float"
        )
    assert [entry.index for entry in plain.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert len(one.embedding) == 64
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert plain.usage.prompt_tokens > 0


async def test_vectors_are_cut_to_a_size(our_client: AsyncOpenAI) -> None:
    answer = await our_client.embeddings.create(model="toy-embed", input="one", dimensions=8)
    assert len(answer.data[0].embedding) == 8


async def test_the_models_are_listed(client: AsyncOpenAI) -> None:
    names = {model.id.removesuffix(":latest") async for model in client.models.list()}
    assert "smollm2" in names


async def test_one_model_is_looked_up(our_client: AsyncOpenAI) -> None:
    # llama-server has no such path.
    assert (await our_client.models.retrieve("smollm2")).id == "smollm2"
    with pytest.raises(openai.NotFoundError):
        await our_client.models.retrieve("nope")


async def test_a_response(client: AsyncOpenAI) -> None:
    answer = await client.responses.create(
        model="smollm2", input="Say hello.", temperature=0, extra_body=A_WORD
    )
    assert answer.status == "completed"
    assert answer.output_text
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0


async def test_the_events_of_a_response(client: AsyncOpenAI) -> None:
    stream = await client.responses.create(
        model="smollm2", input="Say hello.", temperature=0, stream=True, extra_body=A_WORD
    )
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == text


async def test_the_events_of_a_response_are_numbered(our_client: AsyncOpenAI) -> None:
    # llama-server does not number its.
    async with our_client.responses.stream(
        model="smollm2", input="Say hello.", max_output_tokens=4, temperature=0
    ) as stream:
        events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.incomplete"


async def test_a_response_calls_a_tool(client: AsyncOpenAI) -> None:
    items: list[Any] = []
    for city in ("Rome", "Oslo"):
        items.append({"role": "user", "content": f"Weather in {city}?"})
        items.append(
            {
                "type": "function_call",
                "call_id": city,
                "name": "get_weather",
                "arguments": json.dumps({"city": city}),
            }
        )
    answer = await client.responses.create(
        model="smollm2",
        input=[*items, {"role": "user", "content": "Weather in Paris?"}],
        tools=[{"type": "function", "strict": False, **WEATHER["function"]}],
        max_output_tokens=60,
        temperature=0,
    )
    [call] = [item for item in answer.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})


async def test_an_unknown_model_is_not_found(our_client: AsyncOpenAI) -> None:
    # llama-server answers with the model that it has, whatever is asked for.
    with pytest.raises(openai.NotFoundError) as chat:
        await our_client.chat.completions.create(model="nope", messages=HELLO)
    assert chat.value.code == "model_not_found"
    assert chat.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        await our_client.embeddings.create(model="nope", input="a")
    with pytest.raises(openai.NotFoundError):
        await our_client.chat.completions.create(model="nope", messages=HELLO, stream=True)


async def test_a_bad_request_says_what_is_bad(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="smollm2", messages=HELLO, temperature="hot")
    assert "temperature" in str(refused.value)
    assert refused.value.type == "invalid_request_error"


async def test_a_client_that_leaves_frees_the_server(
    client: AsyncOpenAI, is_idle: Callable[[], Awaitable[bool]]
) -> None:
    stream = await client.chat.completions.create(
        model="smollm2", messages=HELLO, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        assert not await is_idle()
        break
    await stream.close()
    await wait_until(is_idle, timeout=2, what="the server's slot to be free")


async def test_a_client_that_stops_waiting_frees_the_server(
    our_client: AsyncOpenAI, is_idle: Callable[[], Awaitable[bool]]
) -> None:
    # llama-server itself goes on for seconds.
    asking = asyncio.create_task(
        our_client.chat.completions.create(
            model="smollm2", messages=HELLO, max_tokens=4000, n=2, extra_body={"ignore_eos": True}
        )
    )

    async def works() -> bool:
        return not await is_idle()

    await wait_until(works, timeout=10, what="the server to work")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await wait_until(is_idle, timeout=2, what="the server's slots to be free")
