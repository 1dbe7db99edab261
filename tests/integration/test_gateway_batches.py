"""Batches over HTTP: handed in, asked for, read, cancelled; each application's its own; gateways that die."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import redis

from fabric import CHAT_MODEL, EMBED_MODEL, worker
from gateway_kit import gateway, gateway_process, listener
from sollol_broker.api_keys import KeyRole
from sollol_broker.errand_store import ErrandStore
from sollol_broker.errors import BackendError
from sollol_broker.key_store import KeyStore
from sollol_broker.keys import Keys
from sollol_client import AsyncClient
from sollol_client.gateway.openai_batch_record import OpenAIBatch
from sollol_worker_agent.backends import EchoBackend
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

ECHO = "echo://?slots=4"
SECRET = "s" * 32


class Picky(EchoBackend):
    """Refuses texts that begin with "bad"; holds all while it may not answer."""

    def __init__(self) -> None:
        super().__init__(ECHO)
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def embed(self, model: str, request: Any, timeouts: Any) -> Any:
        await self.may_answer.wait()
        if any(text.startswith("bad") for text in request["input"]):
            raise BackendError("this text cannot be embedded", status=400)
        return await super().embed(model, request, timeouts)


def _texts(count: int) -> list[str]:
    return [f"text {n}" for n in range(count)]


async def _begun(http: httpx.AsyncClient, texts: list[str], **more: Any) -> dict[str, Any]:
    answer = await http.post("/api/batch/embed", json={"model": "echo-embed", "documents": texts, **more})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    assert set(told) == {"job_id", "status", "total_items", "message"}
    assert told["total_items"] == len(texts)
    return told


def _has(http: httpx.AsyncClient, path: str, state: str, **more: Any) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return bool((await http.get(path, **more)).json()["status"] == state)

    return look


async def _ended(http: httpx.AsyncClient, job_id: str, **more: Any) -> dict[str, Any]:
    path = f"/api/batch/jobs/{job_id}"
    await wait_until(_has(http, path, "completed", **more), timeout=40, what="the batch to end")
    told: dict[str, Any] = (await http.get(path, **more)).json()
    return told


async def test_a_batch_is_handed_in_at_one_gateway_and_read_at_another(redis_url: str) -> None:
    async with worker(redis_url, ECHO), gateway(redis_url) as one, gateway(redis_url) as two:
        texts = _texts(700)
        job_id = (await _begun(one, texts, metadata={"shelf": 3}))["job_id"]
        told = await _ended(two, job_id)
        assert (told["job_type"], told["metadata"], told["duration_seconds"] > 0) == (
            "embed",
            {"shelf": 3},
            True,
        )
        assert told["created_at"] <= told["started_at"] <= told["completed_at"]
        assert told["progress"] == {
            "total_items": 700, "completed_items": 700, "failed_items": 0, "percent": 100.0
        }  # fmt: skip
        whole = (await two.get(f"/api/batch/results/{job_id}")).json()
        direct = (await one.post("/api/embed", json={"model": "echo-embed", "input": texts})).json()
        assert whole["results"] == direct["embeddings"]
        assert (whole["errors"], whole["next_offset"]) == ([], None)
        pages, offset = [], 0
        while offset is not None:
            page = (await two.get(f"/api/batch/results/{job_id}?offset={offset}&limit=300")).json()
            pages += page["results"]
            offset = page["next_offset"]
        assert pages == whole["results"]
        assert [each["job_id"] for each in (await two.get("/api/batch/jobs?limit=5")).json()["jobs"]] == [
            job_id
        ]
        again = (await two.delete(f"/api/batch/jobs/{job_id}")).json()
        assert (again["job_id"], again["cancelled"]) == (job_id, False)


async def test_what_has_no_vector_is_null_and_says_why(redis_url: str) -> None:
    picky = Picky()
    async with worker(redis_url, picky), gateway(redis_url) as http:
        texts = _texts(20)
        texts[3] = "bad text"
        job_id = (await _begun(http, texts))["job_id"]
        told = await _ended(http, job_id)
        assert told["progress"]["failed_items"] == 1
        whole = (await http.get(f"/api/batch/results/{job_id}")).json()
        assert [n for n, vector in enumerate(whole["results"]) if vector is None] == [3]
        (error,) = whole["errors"]
        assert (error["index"], error["error"]) == (3, "this text cannot be embedded")
        picky.may_answer.clear()
        job_id = (await _begun(http, _texts(50)))["job_id"]
        waiting = (await http.get(f"/api/batch/results/{job_id}?limit=2")).json()
        assert (waiting["results"], waiting["errors"], waiting["next_offset"]) == ([None, None], [], 2)
        assert (await http.delete(f"/api/batch/jobs/{job_id}")).json()["cancelled"] is True
        picky.may_answer.set()
        assert (await http.get(f"/api/batch/jobs/{job_id}")).json()["status"] == "cancelled"
        whole = (await http.get(f"/api/batch/results/{job_id}")).json()
        assert whole["results"] == [None] * 50
        assert len(whole["errors"]) == 50


async def test_what_makes_no_sense_is_refused(redis_url: str) -> None:
    async with gateway(redis_url, max_documents=30) as http:
        senseless: tuple[Any, ...] = (None, [], "text", ["a", 1], ["a"] * 31)
        for documents in senseless:
            answer = await http.post("/api/batch/embed", json={"model": "m", "documents": documents})
            assert answer.status_code == 400
            assert answer.json()["error"].startswith("documents: ")
        bodies: tuple[Any, ...] = (
            {"documents": ["a"]},
            {"model": "m", "documents": ["a"], "metadata": 3},
            [],
        )
        for body in bodies:
            assert (await http.post("/api/batch/embed", json=body)).status_code == 400
        assert (
            await http.post("/api/batch/embed", json={"model": "m", "documents": ["a"]})
        ).status_code == 503
        for path in ("jobs/nope", "results/nope", "jobs/a:b"):
            assert (await http.get(f"/api/batch/{path}")).status_code == 404
        assert (await http.delete("/api/batch/jobs/nope")).status_code == 404
        assert (await http.get("/api/batch/jobs?limit=0")).status_code == 400


async def test_one_application_does_not_see_anothers_batches(redis_url: str) -> None:
    keys = []
    async with AsyncClient(redis_url) as client:
        for app, role in (("one", KeyRole.APP), ("two", KeyRole.APP), ("three", KeyRole.VIEWER)):
            secret, _ = await KeyStore(client.session.broker).add(
                app, role, app=app, models=("echo*",), most_priority=0
            )
            keys.append({"Authorization": f"Bearer {secret}"})
    one, two, viewer = keys
    async with worker(redis_url, ECHO), gateway(redis_url, keys=True) as http:
        body: dict[str, Any] = {"model": "echo-embed", "documents": _texts(3), "priority": 9}
        assert (await http.post("/api/batch/embed", json=body)).status_code == 401
        assert (await http.post("/api/batch/embed", json=body, headers=viewer)).status_code == 403
        hidden = await http.post("/api/batch/embed", json={**body, "model": "secret"}, headers=one)
        assert hidden.status_code == 404
        job_id = (await http.post("/api/batch/embed", json=body, headers=one)).json()["job_id"]
        assert (await http.get("/api/batch/jobs", headers=two)).json() == {"jobs": []}
        assert len((await http.get("/api/batch/jobs", headers=one)).json()["jobs"]) == 1
        for method, path in (("GET", "jobs"), ("GET", "results"), ("DELETE", "jobs")):
            assert (await http.request(method, f"/api/batch/{path}/{job_id}", headers=two)).status_code == 404
        async with AsyncClient(redis_url) as client:
            (view,) = await client.batches()
        assert (view.app, view.priority) == ("one", 0)
        sly = {**body, "id": job_id, "app": "one", "keep": False, "max_result_bytes": 1}
        told = (await http.post("/api/batch/embed", json=sly, headers=two)).json()
        assert told["job_id"] != job_id, "a field of the body is the backend's, and names no batch"
        assert (await _ended(http, told["job_id"], headers=two))["progress"]["completed_items"] == 3


async def test_a_webhook_is_told_of_a_batch_and_its_signature_holds(redis_url: str) -> None:
    async with (
        worker(redis_url, ECHO),
        listener() as (url, heard),
        gateway(redis_url, webhook_hosts=("127.0.0.1",), webhook_secret=SECRET) as http,
    ):
        job_id = (await _begun(http, _texts(3), webhook=url))["job_id"]
        await wait_until(lambda: heard, timeout=40, what="the webhook")
        refused = await http.post(
            "/api/batch/embed",
            json={"model": "echo-embed", "documents": ["a"], "webhook": "http://10.0.0.1/"},
        )
        assert refused.status_code == 400
    call = heard[0]
    assert json.loads(call.body)["status"] == "completed"
    assert call.headers["webhook-id"] == job_id
    text = f"{job_id}.{call.headers['webhook-timestamp']}.".encode() + call.body
    expected = base64.b64encode(hmac.digest(SECRET.encode(), text, "sha256")).decode()
    assert call.headers["webhook-signature"] == f"v1,{expected}"


async def test_a_batch_is_over_when_its_window_is(redis_url: str) -> None:
    """And one whose input is deleted fails; neither is tried again for ever."""
    picky = Picky()
    picky.may_answer.clear()
    endpoint, body = "/v1/embeddings", {"model": "echo-embed", "input": "x"}
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
    async with worker(redis_url, picky), gateway(redis_url) as http, AsyncClient(redis_url) as client:
        form = {"file": ("in.jsonl", json.dumps(line))}
        file = (await http.post("/v1/files", data={"purpose": "batch"}, files=form)).json()
        store = ErrandStore(client.session.broker)
        now = await store.now_ms() / 1000
        late = OpenAIBatch("batch_late", "gateway", endpoint, file["id"], "echo-embed", now - 86_400, now)
        await store.put(late.id, late.as_dict(), listed_for="gateway")
        await wait_until(_has(http, f"/v1/batches/{late.id}", "expired"), timeout=40, what="it to expire")
        batch = (await http.get(f"/v1/batches/{late.id}")).json()
        assert (batch["request_counts"]["failed"], batch["output_file_id"]) == (1, None)
        told = json.loads((await http.get(f"/v1/files/{batch['error_file_id']}/content")).text)
        assert (told["error"]["code"], told["response"]) == ("batch_expired", None)
        older = replace(late, id="batch_older", created=now - 2 * 86_401, expires=now - 86_401)
        await store.put(older.id, older.as_dict(), listed_for="gateway")
        odd = {**line, "body": {**body, "prompt": "not for vectors"}}
        form = {"file": ("odd.jsonl", json.dumps(odd))}
        odd_file = (await http.post("/v1/files", data={"purpose": "batch"}, files=form)).json()
        asked = {"input_file_id": odd_file["id"], "endpoint": endpoint, "completion_window": "24h"}
        for failing in (older.id, (await http.post("/v1/batches", json=asked)).json()["id"]):
            await wait_until(_has(http, f"/v1/batches/{failing}", "failed"), timeout=40, what="it to fail")
        asked = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"}
        batch_id = (await http.post("/v1/batches", json=asked)).json()["id"]
        path = f"/v1/batches/{batch_id}"
        await wait_until(_has(http, path, "in_progress"), timeout=40, what="it to run")
        await http.delete(f"/v1/files/{file['id']}")
        picky.may_answer.set()
        await wait_until(_has(http, path, "failed"), timeout=40, what="it to fail")
        assert (await http.get(path)).json()["errors"]["data"][0]["code"] == "input_file_gone"
        with redis.Redis.from_url(redis_url) as raw:
            assert raw.zcard(Keys().errands) == 0


async def test_a_gateway_that_is_killed_leaves_its_batches_to_another(redis_url: str, tmp_path: Path) -> None:
    """Each line is answered once, though the gateway that read the input, and drove the batch, is dead."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n in range(30)
    ]
    async with (
        OllamaDouble([CHAT_MODEL, EMBED_MODEL], parallel=4) as ollama,
        worker(redis_url, ollama.url, slots=4, lease_seconds=20),
        listener() as (url, heard),
    ):
        ollama.tokens_may_flow.clear()
        async with gateway_process(redis_url, tmp_path / "log", "--allow-webhook-host", "127.0.0.1") as (
            dying,
            http,
        ):
            file = await http.post(
                "/v1/files",
                data={"purpose": "batch"},
                files={"file": ("in.jsonl", "\n".join(json.dumps(line) for line in lines))},
            )
            asked = {
                "input_file_id": file.json()["id"],
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }
            batch_id = (await http.post("/v1/batches", json=asked)).json()["id"]
            await wait_until(lambda: ollama.seen.generating, timeout=40, what="the first lines to run")
            told = await http.post(
                "/api/batch/embed", json={"model": "tiny-embed", "documents": _texts(40), "webhook": url}
            )
            job_id = told.json()["job_id"]
            dying.kill()
            await dying.wait()
        with redis.Redis.from_url(redis_url) as client:  # as if it had died a while ago
            for batch in (batch_id, job_id):
                client.zadd(Keys().errands, {batch: 0}, xx=True)
                client.hset(Keys().batch(batch), "until", "0")
        async with gateway(redis_url, webhook_hosts=("127.0.0.1",)) as http:
            ollama.tokens_may_flow.set()
            await wait_until(
                _has(http, f"/v1/batches/{batch_id}", "completed"), timeout=60, what="the batch to end"
            )
            batch = (await http.get(f"/v1/batches/{batch_id}")).json()
            output = (await http.get(f"/v1/files/{batch['output_file_id']}/content")).text
            await http.get(f"/api/batch/results/{job_id}")
            await wait_until(lambda: heard, timeout=40, what="the webhook")
        assert batch["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
        assert [json.loads(line)["custom_id"] for line in output.splitlines()] == [str(n) for n in range(30)]
        assert sum(path == "/api/chat" for path, _ in ollama.seen.requests) == 30, "and each once"
    assert json.loads(heard[0].body)["job_id"] == job_id
