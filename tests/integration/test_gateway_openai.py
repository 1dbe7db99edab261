"""OpenAI's and Anthropic's APIs on a fabric that waits, breaks, and goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from fabric import CHAT_MODEL, let_tokens_flow, worker
from gateway_kit import gateway
from sollol_client import AsyncClient
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

FOX = "the quick brown fox jumps over the lazy dog"
OPEN = DoubleModel("tiny", capabilities=("completion", "tools"), answer=FOX, open_ended=True)
CLOSED = DoubleModel("tiny", capabilities=("completion", "tools"), answer=FOX)
HELLO = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": HELLO, "stream": True, "max_tokens": 7},
    "/v1/completions": {"model": "tiny", "prompt": "hello", "stream": True, "max_tokens": 7},
    "/v1/responses": {"model": "tiny", "input": "hello", "stream": True, "max_output_tokens": 7},
    "/v1/messages": {"model": "tiny", "messages": HELLO, "stream": True, "max_tokens": 7},
}
ALL = pytest.mark.parametrize("path", list(BODIES))


def events_of(text: str) -> list[Any]:
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def text_of(events: list[Any]) -> str:
    """What any of the APIs has said."""
    said = []
    for event in events:
        if not isinstance(event, dict):
            continue
        if "choices" in event:
            for choice in event["choices"]:
                said.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
        elif event.get("type") == "response.output_text.delta":
            said.append(event["delta"])
        elif event.get("type") == "content_block_delta":
            said.append(event["delta"]["text"])
    return "".join(said)


@asynccontextmanager
async def streaming(
    http: httpx.AsyncClient, path: str, ollama: OllamaDouble
) -> AsyncIterator[httpx.Response]:
    """An answer of which the server has said four tokens."""
    flowing = asyncio.create_task(let_tokens_flow(ollama, 4))
    async with http.stream("POST", path, json=BODIES[path]) as answer:
        await flowing
        yield answer


def is_normal_end(event: Any) -> bool:
    if event == "[DONE]":
        return True
    if event.get("type") in ("response.completed", "response.incomplete", "message_delta", "message_stop"):
        return True
    return any(choice["finish_reason"] for choice in event.get("choices", ()))


@ALL
async def test_a_node_that_dies_ends_the_stream_with_an_error_and_nothing_normal(
    redis_url: str, path: str
) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        ollama.faults.die_after_tokens = 2
        # With a field that nobody knows, nobody knows how to go on either.
        answer = await http.post(path, json={**BODIES[path], "brand_new": 1})
    assert answer.status_code == 200
    events = events_of(answer.text)
    assert text_of(events).startswith("the quick")
    assert not any(is_normal_end(event) for event in events)
    if path == "/v1/responses":
        assert events[-1]["response"]["error"]["code"] == "backend_error"
    else:
        assert events[-1]["error"]["type"] == "api_error"


@ALL
async def test_a_node_that_dies_is_taken_over_from_in_the_same_stream(redis_url: str, path: str) -> None:
    async with OllamaDouble([CLOSED]) as first, OllamaDouble([OPEN]) as second, gateway(redis_url) as http:
        first.tokens_may_flow.clear()
        async with (
            worker(redis_url, first.url, node="first"),
            streaming(http, path, first) as answer,
        ):
            lines = answer.aiter_lines()
            got: list[str] = []
            async with asyncio.timeout(30):
                while "fox" not in text_of(events_of("\n".join(got))):
                    got.append(await anext(lines))
            async with worker(redis_url, second.url, node="second"):
                await first.stop()
                got += [line async for line in lines]
    events = events_of("\n".join(got))
    assert text_of(events) == "the quick brown fox jumps over the"
    assert is_normal_end(events[-1])


@ALL
async def test_a_waiting_client_reads_its_place_in_comments(redis_url: str, path: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url, slots=1),
        gateway(redis_url, patience_seconds=0.05, note_seconds=0.05) as http,
    ):
        ollama.tokens_may_flow.clear()
        first = asyncio.create_task(http.post("/v1/chat/completions", json=BODIES["/v1/chat/completions"]))
        await wait_until(lambda: ollama.seen.generating, timeout=5, what="the only slot to be taken")
        async with http.stream("POST", path, json=BODIES[path]) as answer:
            lines = answer.aiter_lines()
            async with asyncio.timeout(30):
                async for line in lines:
                    if line.startswith(": queued, position"):
                        break
            ollama.tokens_may_flow.set()
            rest = "\n".join([line async for line in lines])
        assert is_normal_end(events_of(rest)[-1])
        await first


@ALL
async def test_a_client_that_comes_back_misses_nothing(redis_url: str, path: str) -> None:
    headers = {"X-Sollol-Detach": "true"}
    async with (
        OllamaDouble([CLOSED]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as one,
        gateway(redis_url) as two,
    ):
        ollama.tokens_may_flow.clear()
        asking = asyncio.create_task(let_tokens_flow(ollama, 2))
        async with one.stream("POST", path, json=BODIES[path], headers=headers) as answer:
            shown, last = "", ""
            async for line in answer.aiter_lines():
                last = line.removeprefix("id: ") if line.startswith("id: ") else last
                shown += text_of(events_of(line))
                if shown:
                    break
            job_id = answer.headers["x-sollol-job"]
        await asking
        ollama.tokens_may_flow.set()
        again = await two.post(path, json=BODIES[path], headers={"Last-Event-ID": last})
    events = events_of(again.text)
    assert last.startswith(f"{job_id}/")
    assert shown + text_of(events) == "the quick brown fox jumps over the"
    assert is_normal_end(events[-1])
    assert not any(
        isinstance(e, dict) and e.get("type") in ("response.created", "message_start") for e in events
    )
    assert len(ollama.seen.requests) == 1


async def test_a_client_of_two_choices_that_comes_back_misses_nothing(redis_url: str) -> None:
    path, headers = "/v1/chat/completions", {"X-Sollol-Detach": "true"}
    body = {**BODIES[path], "n": 2, "stream_options": {"include_usage": True}}
    async with (
        OllamaDouble([CLOSED], parallel=2) as ollama,
        worker(redis_url, ollama.url, slots=2),
        gateway(redis_url) as one,
        gateway(redis_url) as two,
    ):
        ollama.tokens_may_flow.clear()
        asking = asyncio.create_task(let_tokens_flow(ollama, 4))
        texts, last = {0: "", 1: ""}, ""
        async with one.stream("POST", path, json=body, headers=headers) as answer:
            async for line in answer.aiter_lines():
                last = line.removeprefix("id: ") if line.startswith("id: ") else last
                note_choices(texts, events_of(line))
                if any(texts.values()):
                    break
        await asking
        ollama.tokens_may_flow.set()
        again = await two.post(path, json=body, headers={"Last-Event-ID": last})
        short = await two.post(path, json=body, headers={"Last-Event-ID": last.partition(",")[0]})
    events = events_of(again.text)
    note_choices(texts, events)
    assert list(texts.values()) == ["the quick brown fox jumps over the"] * 2
    assert (events[-2]["usage"]["completion_tokens"], events[-1]) == (14, "[DONE]")
    assert (short.status_code, short.json()["error"]["param"]) == (400, "last-event-id")
    assert len(ollama.seen.requests) == 2


def note_choices(texts: dict[int, str], events: list[Any]) -> None:
    for event in events:
        for choice in event["choices"] if isinstance(event, dict) else ():
            texts[choice["index"]] += choice["delta"].get("content", "")


async def test_the_choices_of_a_stream_come_side_by_side(redis_url: str) -> None:
    body = {**BODIES["/v1/chat/completions"], "n": 3, "stream_options": {"include_usage": True}}
    async with (
        OllamaDouble([CHAT_MODEL], parallel=4) as ollama,
        worker(redis_url, ollama.url, slots=4),
        gateway(redis_url) as http,
    ):
        events = events_of((await http.post("/v1/chat/completions", json=body)).text)
    texts = {0: "", 1: "", 2: ""}
    for event in events[:-1]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert set(texts.values()) == {"the quick brown fox jumps over the"}
    assert len({event["id"] for event in events[:-1]}) == 1
    assert events[-2]["usage"]["completion_tokens"] == 21
    assert events[-1] == "[DONE]"


async def test_under_one_key_each_choice_is_made_once(redis_url: str) -> None:
    body = {**BODIES["/v1/chat/completions"], "n": 2, "stream": False}
    headers = {"X-Sollol-Idempotency-Key": "k1"}
    async with (
        OllamaDouble([CHAT_MODEL], parallel=2) as ollama,
        worker(redis_url, ollama.url, slots=2),
        gateway(redis_url) as http,
    ):
        answers = [await http.post("/v1/chat/completions", json=body, headers=headers) for _ in range(2)]
        assert len(ollama.seen.requests) == 2
    assert all(len(answer.json()["choices"]) == 2 for answer in answers)


@pytest.mark.parametrize("stream", [False, True])
async def test_one_choice_that_fails_ends_them_all(redis_url: str, stream: bool) -> None:
    body = {**BODIES["/v1/chat/completions"], "n": 2, "stream": stream}
    async with (
        OllamaDouble([CHAT_MODEL], parallel=2) as ollama,
        worker(redis_url, ollama.url, slots=2),
        gateway(redis_url) as http,
        AsyncClient(redis_url) as client,
    ):
        ollama.tokens_may_flow.clear()
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        await wait_until(lambda: ollama.seen.generating == 2, timeout=5, what="both to run")
        jobs = await client.jobs()
        await client.cancel(jobs[0].id)
        answer = await asking
        await wait_until(lambda: not ollama.seen.generating, timeout=1, what="the other to be ended, too")
    if stream:
        events = events_of(answer.text)
        assert answer.status_code == 499 or "error" in events[-1]
        assert "[DONE]" not in events
    else:
        assert answer.status_code == 499


async def test_unknown_fields_reach_the_backend_and_those_for_others_do_not(redis_url: str) -> None:
    body = {**BODIES["/v1/chat/completions"], "stream": False, "brand_new": {"a": 1}, "user": "ann"}
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        answer = await http.post("/v1/chat/completions", json={**body, "priority": 9})
        assert answer.status_code == 200, answer.text
        (_, asked) = ollama.seen.requests[-1]
    assert asked["brand_new"] == {"a": 1}
    assert asked["options"] == {"num_predict": 7}
    assert "user" not in asked
    assert "priority" not in asked
    assert answer.headers["x-sollol-node"] == "n1"


async def test_a_quota_that_is_used_up_is_a_rate_limit(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
        AsyncClient(redis_url) as client,
    ):
        await client.set_quota("heavy", concurrency=1)
        ollama.tokens_may_flow.clear()
        headers = {"X-Sollol-App": "heavy"}
        first = asyncio.create_task(http.post("/v1/messages", json=BODIES["/v1/messages"], headers=headers))
        await wait_until(lambda: ollama.seen.generating, timeout=5, what="the first to run")
        refused = {path: await http.post(path, json=BODIES[path], headers=headers) for path in BODIES}
        ollama.tokens_may_flow.set()
        await first
    for answer in refused.values():
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
    assert refused["/v1/responses"].json()["error"]["code"] == "rate_limit_exceeded"


@ALL
async def test_an_unknown_model_is_not_found(redis_url: str, path: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        answer = await http.post(path, json={**BODIES[path], "model": "nope"})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["message"]) == ("not_found_error", "model 'nope' not found")
    if path != "/v1/messages":
        assert (error["code"], error["param"]) == ("model_not_found", "model")


@ALL
async def test_a_body_that_is_no_json_is_refused(redis_url: str, path: str) -> None:
    async with gateway(redis_url) as http:
        answers: list[httpx.Response] = [
            await http.post(path, content=content) for content in (b"{", b"", b"[]", b'{"model": 5}', b"\xff")
        ]
    for answer in answers:
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
