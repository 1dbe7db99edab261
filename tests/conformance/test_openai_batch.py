"""A batch by OpenAI's own Python package, unchanged: upload, create, poll, read both files, list, cancel, delete."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from openai.types.create_embedding_response import CreateEmbeddingResponse

from conformance_kit import Door
from waiting import wait_until

ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture
async def client(ours: Door) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{ours.url}/v1", api_key="none", max_retries=0, timeout=30) as made:
        yield made


def _lines(url: str, bodies: list[dict[str, Any]]) -> bytes:
    lines = [
        {"custom_id": f"request-{n}", "method": "POST", "url": url, "body": body}
        for n, body in enumerate(bodies)
    ]
    return "\n".join(json.dumps(line) for line in lines).encode()


async def _run(client: AsyncOpenAI, endpoint: Any, lines: bytes, **more: Any) -> Any:
    file = await client.files.create(file=("input.jsonl", lines), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )
    assert batch.status in ("validating", "in_progress")

    async def ended() -> bool:
        return (await client.batches.retrieve(batch.id)).status in ENDED

    await wait_until(ended, timeout=60, what="the batch to end")
    return await client.batches.retrieve(batch.id)


async def _told(client: AsyncOpenAI, file_id: str) -> list[dict[str, Any]]:
    content = await client.files.content(file_id)
    return [json.loads(line) for line in content.text.splitlines()]


async def test_chats_with_options_of_their_own_and_one_that_fails(client: AsyncOpenAI) -> None:
    bodies: list[dict[str, Any]] = [
        {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": n,
            "temperature": 0,
        }
        for n in (3, 5)
    ]
    bodies.append({**bodies[0], "n": 2})
    # More than its context takes.
    bodies.append({**bodies[0], "messages": [{"role": "user", "content": "hello " * 20_000}]})
    batch = await _run(
        client, "/v1/chat/completions", _lines("/v1/chat/completions", bodies), metadata={"a": "b"}
    )
    assert batch.status == "completed", batch.errors
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (
        4,
        3,
        1,
    )
    assert batch.metadata == {"a": "b"}
    assert batch.model == "smollm2"
    assert (
        batch.created_at
        <= batch.in_progress_at
        <= batch.finalizing_at
        <= batch.completed_at
        < batch.expires_at
    )
    told = await _told(client, batch.output_file_id)
    assert [line["custom_id"] for line in told] == ["request-0", "request-1", "request-2"]
    assert [line["response"]["status_code"] for line in told] == [200] * 3
    answers = [ChatCompletion.model_validate(line["response"]["body"]) for line in told]
    used = [answer.usage.completion_tokens for answer in answers if answer.usage]
    assert used == [3, 5, 6]
    assert [len(answer.choices) for answer in answers] == [1, 1, 2]
    direct = await client.chat.completions.create(**bodies[1])
    assert answers[1].choices[0].message.content == direct.choices[0].message.content
    (failed,) = await _told(client, batch.error_file_id)
    assert failed["custom_id"] == "request-3"
    assert failed["response"]["status_code"] == 400
    assert "context" in failed["response"]["body"]["error"]["message"]


async def test_embeddings_are_those_of_direct_calls(client: AsyncOpenAI) -> None:
    texts: list[Any] = [["a cat", "a dog"], "a fish", *(f"text {n}" for n in range(60))]
    bodies = [{"model": "toy-embed", "input": each} for each in texts]
    bodies[1]["encoding_format"] = "base64"
    batch = await _run(client, "/v1/embeddings", _lines("/v1/embeddings", bodies))
    assert batch.status == "completed", batch.errors
    assert batch.error_file_id is None
    told = await _told(client, batch.output_file_id)
    assert len(told) == len(bodies)
    assert isinstance(told[1]["response"]["body"]["data"][0]["embedding"], str)
    for number in (0, 20):
        answer = CreateEmbeddingResponse.model_validate(told[number]["response"]["body"])
        direct = await client.embeddings.create(**bodies[number], encoding_format="float")
        assert len(answer.data) == len(direct.data)
        for ours, theirs in zip(answer.data, direct.data, strict=True):
            assert ours.embedding == pytest.approx(theirs.embedding, abs=1e-3)


async def test_completions_go_on_with_their_prompts(client: AsyncOpenAI) -> None:
    body = {"model": "smollm2", "prompt": "One, two,", "max_tokens": 2, "temperature": 0, "echo": True}
    batch = await _run(client, "/v1/completions", _lines("/v1/completions", [body]))
    (told,) = await _told(client, batch.output_file_id)
    assert told["response"]["body"]["choices"][0]["text"].startswith("One, two,")


async def test_lines_at_fault_are_all_told_of_and_nothing_is_run(client: AsyncOpenAI) -> None:
    good = json.loads(_lines("/v1/embeddings", [{"model": "toy-embed", "input": "x"}]))
    lines = [
        good,
        {**good, "url": "/v1/completions", "custom_id": "b"},
        {**good, "custom_id": "c", "body": {}},
        good,
    ]
    text = "\n".join(json.dumps(line) for line in lines).encode() + b"\n{"
    batch = await _run(client, "/v1/embeddings", text)
    assert batch.status == "failed"
    assert [(each.line, each.code) for each in batch.errors.data] == [
        (2, "invalid_url"),
        (3, "invalid_request"),
        (4, "duplicate_custom_id"),
        (5, "invalid_json_line"),
    ]
    assert batch.output_file_id is None


async def test_listed_cancelled_and_deleted(client: AsyncOpenAI) -> None:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 300,
    }
    file = await client.files.create(
        file=("input.jsonl", _lines("/v1/chat/completions", [body] * 50)), purpose="batch"
    )
    assert (await client.files.retrieve(file.id)).filename == "input.jsonl"
    ids = []
    for _ in range(3):
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        ids.append(batch.id)
        assert (await client.batches.cancel(batch.id)).status in ("cancelling", "cancelled")

    async def cancelled() -> bool:
        return all([(await client.batches.retrieve(each)).status == "cancelled" for each in ids])

    await wait_until(cancelled, timeout=60, what="the batches to be cancelled")
    batch = await client.batches.retrieve(ids[0])
    assert batch.request_counts is not None
    told = await _told(client, batch.error_file_id or "")
    assert batch.request_counts.failed == len(told)
    assert {line["error"]["code"] for line in told} == {"batch_cancelled"}
    assert [each.id async for each in client.batches.list(limit=2)] == ids[::-1]
    with pytest.raises(openai.ConflictError):
        await client.batches.cancel(ids[0])
    assert (await client.files.delete(file.id)).deleted
    assert file.id not in [each.id async for each in client.files.list(purpose="batch")]
    with pytest.raises(openai.NotFoundError):
        await client.files.content(file.id)


async def test_what_cannot_be_begun(client: AsyncOpenAI) -> None:
    file = await client.files.create(
        file=("x", _lines("/v1/embeddings", [{"model": "toy-embed", "input": "x"}])), purpose="batch"
    )
    good: dict[str, Any] = {
        "input_file_id": file.id,
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }
    for name, value, error in (
        ("endpoint", "/v1/moderations", openai.BadRequestError),
        ("completion_window", "1h", openai.BadRequestError),
        ("metadata", {"a": "x" * 600}, openai.BadRequestError),
        ("output_expires_after", {"anchor": "created_at", "seconds": 5}, openai.BadRequestError),
        ("input_file_id", "file-nope", openai.NotFoundError),
    ):
        with pytest.raises(error) as refused:
            await client.batches.create(**{**good, name: value})
        assert isinstance(refused.value, openai.APIError)
        assert refused.value.param == name
    with pytest.raises(openai.NotFoundError):
        await client.batches.retrieve("batch_nope")
