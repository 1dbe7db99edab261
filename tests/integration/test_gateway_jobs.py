"""Jobs over HTTP: handed in, asked for, followed from another gateway, cancelled; places in line; webhooks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from fabric import CHAT_MODEL, EMBED_MODEL, let_tokens_flow, worker
from gateway_kit import gateway, lines_of, listener
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

LONG = DoubleModel("tiny", answer=" ".join(f"word{number}" for number in range(40)))
JOB: dict[str, Any] = {"model": "tiny", "chat": "hello", "options": {"num_predict": 40}}


def events_of(text: str) -> list[tuple[str, str, Any]]:
    """(id, event, data) of each server-sent event; comments are left out."""
    found = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if line and not line.startswith(":")]
        fields = {name: value for name, _, value in lines}
        if fields:
            found.append((fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"])))
    return found


async def test_a_job_is_handed_in_asked_for_and_followed_by_another_gateway(redis_url: str) -> None:
    async with (
        OllamaDouble([LONG]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as one,
        gateway(redis_url) as two,
    ):
        ollama.tokens_may_flow.clear()
        told = await one.post("/api/jobs", json={**JOB, "metadata": {"a": 1}})
        assert told.status_code == 202
        where = told.headers["location"]
        await wait_until(lambda: ollama.seen.generating, timeout=5, what="the job to run")
        record = (await two.get(where)).json()
        assert (record["state"], record["app"], record["model"]) == ("running", "gateway", "tiny")
        await let_tokens_flow(ollama, 5)
        ollama.tokens_may_flow.set()
        events = events_of((await two.get(f"{where}/stream")).text)
        assert "".join(data["text"] for _, event, data in events if not event) == LONG.answer
        assert events[-1][1] == "end"
        record = (await one.get(where)).json()
        assert record["state"] == "done"
        assert record["answer"]["message"]["content"] == LONG.answer
        for cut in range(0, len(events) - 1, 3):
            entry = events[cut][0]
            rest = events_of((await one.get(f"{where}/stream", headers={"Last-Event-ID": entry})).text)
            shown = [data["text"] for _, event, data in events[: cut + 1] if not event]
            shown += [data["text"] for _, event, data in rest if not event]
            assert "".join(shown) == LONG.answer


async def test_a_chat_that_was_left_goes_on_and_is_picked_up_by_its_last_line(redis_url: str) -> None:
    async with (
        OllamaDouble([LONG]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as one,
        gateway(redis_url) as two,
    ):
        ollama.tokens_may_flow.clear()
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "options": {"num_predict": 40},
        }
        shown, last = "", ""
        headers = {"X-Sollol-Detach": "true"}
        flowing = asyncio.create_task(let_tokens_flow(ollama, 3))
        async with one.stream("POST", "/api/chat", json=body, headers=headers) as answer:
            async for line in answer.aiter_lines():
                piece = json.loads(line)
                shown, last = shown + piece["message"]["content"], piece["_sollol_entry"]
                break
            job_id = answer.headers["x-sollol-job"]
        await flowing
        ollama.tokens_may_flow.set()
        again = await two.post("/api/chat", json=body, headers={"Last-Event-ID": f"{job_id}/{last}"})
        rest = lines_of(again)
    assert shown + "".join(line["message"]["content"] for line in rest) == LONG.answer
    assert rest[-1]["done"] is True
    assert len(ollama.seen.requests) == 1


async def test_a_job_is_cancelled_and_its_slot_freed(redis_url: str) -> None:
    async with OllamaDouble([LONG]) as ollama, worker(redis_url, ollama.url), gateway(redis_url) as http:
        ollama.tokens_may_flow.clear()
        where = (await http.post("/api/jobs", json=JOB)).headers["location"]
        await wait_until(lambda: ollama.seen.generating, timeout=5, what="the job to run")
        assert (await http.delete(where)).json()["state"] == "cancelled"
        await wait_until(lambda: not ollama.seen.generating, timeout=1, what="the backend to stop within 1 s")
        assert (await http.delete(where)).status_code == 200  # as before: it is cancelled
        assert (await http.get(where)).json()["state"] == "cancelled"
        assert (await http.get(f"{where}/stream")).status_code == 499


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/jobs/nope", 404),
        ("DELETE", "/api/jobs/nope", 404),
        ("GET", "/api/jobs/nope/stream", 404),
        ("GET", "/api/jobs/a:b", 404),
        ("GET", "/api/jobs?limit=-1", 400),
        ("GET", "/api/jobs?limit=²", 400),
        ("GET", "/api/jobs/nope?wait=nan", 400),
    ],
)
async def test_what_is_not_there_or_makes_no_sense(
    redis_url: str, method: str, path: str, status: int
) -> None:
    async with gateway(redis_url) as http:
        assert (await http.request(method, path)).status_code == status


@pytest.mark.parametrize(
    "body",
    [[], {}, {"model": "m"}, {"model": 1, "chat": "x"}, {"model": "m", "chat": "x", "generate": "y"},
     {"model": "m", "chat": "x", "priority": "high"}, {"model": "m", "chat": "x", "requires": 5},
     {"model": "m", "chat": "x", "webhook": "http://127.0.0.1/"}, {"model": "m", "chat": "x", "webhook": 7}],
)  # fmt: skip
async def test_a_job_that_makes_no_sense_is_refused(redis_url: str, body: Any) -> None:
    async with gateway(redis_url) as http:
        answer = await http.post("/api/jobs", json=body)
        assert answer.status_code == 400, answer.text


async def test_who_waits_is_told_of_its_place_if_it_asks(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url, slots=1),
        gateway(redis_url, note_seconds=0.05) as http,
    ):
        ollama.tokens_may_flow.clear()
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "options": {"num_predict": 3},
        }
        first = asyncio.create_task(http.post("/api/chat", json=body))
        await wait_until(lambda: ollama.seen.generating, timeout=5, what="the first to run")
        lines: list[dict[str, Any]] = []
        async with http.stream(
            "POST", "/api/chat", json=body, headers={"X-Sollol-Progress": "true"}
        ) as answer:
            async for line in answer.aiter_lines():
                lines.append(json.loads(line))
                if "position" in lines[-1].get("_sollol_progress", {}):
                    ollama.tokens_may_flow.set()
        assert (await first).status_code == 200
    notes = [line["_sollol_progress"] for line in lines if "_sollol_progress" in line]
    assert notes[0]["position"] == 0
    text = "".join(line["message"]["content"] for line in lines)
    assert (text, lines[-1]["done"]) == ("the quick brown", True)


async def test_a_webhook_is_told_of_the_end(redis_url: str) -> None:
    async with (
        OllamaDouble([EMBED_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        listener() as (url, heard),
        gateway(redis_url, webhook_hosts=("127.0.0.1",)) as http,
    ):
        told = await http.post("/api/jobs", json={"model": "tiny-embed", "embed": ["a"], "webhook": url})
        assert told.status_code == 202
        await wait_until(lambda: heard, timeout=5, what="the webhook")
    (call,) = heard
    said = json.loads(call.body)
    assert said["id"] == call.headers["webhook-id"] == told.json()["id"]
    assert said["state"] == "done"
    assert len(said["answer"]["embeddings"]) == 1
    assert "webhook-signature" not in call.headers, "there is no secret to sign with"


def test_events_are_read_by_this_test_s_reader() -> None:
    assert events_of(': c\n\nid: 1-0\ndata: {"a": 1}\n\n') == [("1-0", "", {"a": 1})]
    assert isinstance(httpx.Response(200).text, str)
