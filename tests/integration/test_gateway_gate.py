"""The gateway's gate and what it says of itself, over a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from fabric import CHAT_MODEL, EMBED_MODEL, worker
from gateway_kit import gateway
from sollol_broker.api_keys import KeyRole
from sollol_broker.key_store import KeyStore
from sollol_client import AsyncClient
from sollol_client.gateway import GatewayConfig, build
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": False}


async def key(redis_url: str, role: KeyRole = KeyRole.APP, **more: Any) -> dict[str, str]:
    async with AsyncClient(redis_url) as client:
        secret, _ = await KeyStore(client.session.broker).add("tests", role, **more)
    return {"Authorization": f"Bearer {secret}"}


async def test_it_says_who_it_is_on_every_answer(redis_url: str) -> None:
    async with gateway(redis_url) as http:
        health = await http.get("/api/health")
        assert health.json()["service"] == "SOLLOL"
        assert health.json()["status"] == "healthy"
        for path in ("/", "/nope", "/api/tags", "/api/chat", "/metrics"):
            assert (await http.get(path)).headers["x-powered-by"] == "SOLLOL"
        assert (await http.get("/", headers={"Host": "evil.com"})).headers["x-powered-by"] == "SOLLOL"
        assert (await http.get("/")).text == "Ollama is running"
        assert (await http.head("/")).status_code == 200
        assert (await http.get("/nope")).text == "404 page not found"
        assert (await http.get("/api/chat")).text == "405 method not allowed"
        dashboard = await http.get("/api/dashboard")
        assert (dashboard.status_code, dashboard.headers["location"]) == (307, "http://127.0.0.1:8080/")


async def test_lists_are_those_of_all_nodes(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as one,
        OllamaDouble([CHAT_MODEL, EMBED_MODEL]) as two,
        worker(redis_url, one.url, node="n1"),
        worker(redis_url, two.url, node="n2"),
        gateway(redis_url) as http,
    ):
        models = {each["name"]: each for each in (await http.get("/api/tags")).json()["models"]}
        assert models["tiny:latest"]["_sollol"]["nodes"] == ["n1", "n2"]
        assert models["tiny-embed:latest"]["_sollol"]["nodes"] == ["n2"]
        assert models["tiny:latest"]["digest"] == one.models["tiny:latest"].digest
        assert models["tiny:latest"]["capabilities"] == ["completion", "tools", "vision"]
        assert (await http.get("/api/ps")).json() == {"models": []}
        await http.post("/api/chat", json=CHAT)
        await wait_until(lambda: _in_memory(http), timeout=5, what="the model to be seen in memory")
        (entry,) = (await http.get("/api/ps")).json()["models"]
        assert entry["name"] == "tiny:latest"
        assert len(entry["_sollol"]["nodes"]) == 1
        stats = (await http.get("/api/stats")).json()
        assert stats["total_requests"] == 1
        assert (
            'sollol_gateway_requests_total{method="POST",path="/api/chat",status="200"} 1.0'
            in (await http.get("/metrics")).text
        )


async def test_each_path_refuses_a_page_of_another_site_whatever_the_method(redis_url: str) -> None:
    app = build(GatewayConfig(), AsyncClient(redis_url))
    paths = [str(getattr(route, "path", "")).replace("{id}", "x") for route in app.routes]
    assert len(paths) > 10
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url) as http,
    ):
        for path in paths:
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                for headers in ({"Origin": "https://evil.com"}, {"Sec-Fetch-Site": "cross-site"}):
                    answer = await http.request(method, path, headers=headers, json=CHAT)
                    assert (answer.status_code, answer.content) == (403, b""), (method, path)
        assert not ollama.seen.requests


async def test_keys_come_before_everything_else(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url, keys=True) as http,
    ):
        for headers in ({}, {"Authorization": "Bearer sollol_wrong"}, {"Authorization": "Bearer x"}):
            answer = await http.post("/api/chat", content=b"{", headers=headers)
            assert answer.status_code == 401, "a key is checked before the body is read"
            assert answer.headers["www-authenticate"] == "Bearer"
            answer = await http.post("/v1/chat/completions", content=b"{", headers=headers)
            assert answer.json()["error"]["type"] == "authentication_error"
        assert (await http.get("/livez")).status_code == 200
        good = await key(redis_url, models=("tiny",), app="billing", most_priority=4)
        answer = await http.post("/api/chat", json={**CHAT, "priority": 9, "app": "else"}, headers=good)
        assert answer.status_code == 200
        async with AsyncClient(redis_url) as client:
            job = await client.job(answer.headers["x-sollol-job"])
        assert job is not None
        assert (job.app, job.priority) == ("billing", 4)
        hidden = await http.post("/api/chat", json={**CHAT, "model": "secret"}, headers=good)
        unknown = await http.post("/api/chat", json={**CHAT, "model": "tiny2"}, headers=good)
        assert hidden.status_code == unknown.status_code == 404
        assert hidden.json()["error"].replace("secret", "tiny2") == unknown.json()["error"]
        for path in ("/api/pull", "/api/delete", "/api/create", "/api/copy", "/api/push", "/api/blobs/x"):
            assert (await http.post(path, json={}, headers=good)).status_code == 403
        viewer = await key(redis_url, KeyRole.VIEWER)
        assert (await http.get("/api/tags", headers=viewer)).status_code == 200
        assert (await http.post("/api/chat", json=CHAT, headers=viewer)).status_code == 403


async def test_a_key_sees_its_models_only(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL, EMBED_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url, keys=True) as http,
    ):
        headers = await key(redis_url, models=("tiny-e*",))
        models = (await http.get("/api/tags", headers=headers)).json()["models"]
        assert [each["name"] for each in models] == ["tiny-embed:latest"]


async def test_fifty_at_once_against_a_quota_of_twenty(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL], parallel=4) as ollama,
        worker(redis_url, ollama.url, slots=4),
        gateway(redis_url, keys=True) as http,
    ):
        headers = await key(redis_url, app="heavy")
        async with AsyncClient(redis_url) as client:
            await client.set_quota("heavy", concurrency=20)
        ollama.tokens_may_flow.clear()
        asking = [asyncio.create_task(http.post("/api/chat", json=CHAT, headers=headers)) for _ in range(50)]
        await wait_until(
            lambda: sum(task.done() for task in asking) == 30, timeout=10, what="30 of them to be refused"
        )
        ollama.tokens_may_flow.set()
        answers = [await task for task in asking]
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 30
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["ratelimit-limit"] == "20"
    assert refused.headers["ratelimit-remaining"] == refused.headers["x-ratelimit-remaining-requests"] == "0"


async def test_each_answer_tells_what_is_left_of_a_key_s_quota(redis_url: str) -> None:
    async with (
        worker(redis_url, "echo://"),
        gateway(redis_url, keys=True) as http,
        AsyncClient(redis_url) as client,
    ):
        headers = await key(redis_url, app="heavy")
        chat = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
        free = await http.post("/v1/chat/completions", json=chat, headers=headers)
        await client.set_quota("heavy", requests_per_minute=6, tokens_per_minute=100_000)
        told = [
            await http.post("/v1/chat/completions", json={**chat, **more}, headers=headers)
            for more in ({}, {"stream": True}, {"n": 3})
        ]
    assert not [name for name in free.headers if "ratelimit" in name]
    assert [answer.status_code for answer in told] == [200, 200, 200]
    assert [answer.headers["x-ratelimit-limit-requests"] for answer in told] == ["6"] * 3
    assert told[0].headers["x-ratelimit-remaining-requests"] == "5"
    assert 0 < int(told[0].headers["x-ratelimit-remaining-tokens"]) < 100_000
    assert told[0].headers["ratelimit-remaining"] == "5"
    assert told[0].headers["x-ratelimit-reset-requests"] == "10.000s"


async def test_too_much_and_too_many_are_refused(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url),
        gateway(redis_url, max_body_bytes=1000, max_requests=2) as http,
    ):
        told = await http.post("/api/chat", content=b"x" * 2000)
        assert told.status_code == 413

        async def without_end() -> Any:
            for _ in range(100):
                yield b"x" * 100

        assert (await http.post("/api/chat", content=without_end())).status_code == 413
        ollama.tokens_may_flow.clear()
        asking = [asyncio.create_task(http.post("/api/chat", json=CHAT)) for _ in range(2)]
        await wait_until(lambda: ollama.seen.generating, timeout=5, what="a job to run")
        busy = await http.get("/api/tags")
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
        assert (await http.get("/livez")).status_code == 200
        ollama.tokens_may_flow.set()
        assert [(await task).status_code for task in asking] == [200, 200]


@pytest.mark.parametrize("path", ["/readyz", "/api/health"])
async def test_it_is_not_ready_when_redis_takes_no_writes(redis_url: str, path: str) -> None:
    async with gateway(redis_url) as http, AsyncClient(redis_url) as client:
        assert (await http.get("/readyz")).text == "ok"
        await client.session.broker.link.call("CONFIG", "SET", "min-replicas-to-write", "1")
        try:
            answer = await http.get(path)
        finally:
            await client.session.broker.link.call("CONFIG", "SET", "min-replicas-to-write", "0")
        assert answer.status_code == 503 or answer.json()["status"] == "degraded"


async def test_only_allowed_sites_may_read(redis_url: str) -> None:
    site = "https://chat.example.org"
    async with gateway(redis_url, origins=(site,)) as http:
        asked = {"Origin": site, "Access-Control-Request-Method": "POST"}
        before = await http.options("/api/chat", headers=asked)
        assert (before.status_code, before.headers["access-control-allow-origin"]) == (204, site)
        assert (await http.get("/api/tags", headers={"Origin": site})).headers[
            "access-control-allow-origin"
        ] == site
        assert "access-control-allow-origin" not in (await http.get("/api/tags")).headers
        refused = await http.options("/api/chat", headers={**asked, "Origin": "https://evil.com"})
        assert refused.status_code == 403


async def _in_memory(http: httpx.AsyncClient) -> bool:
    return bool((await http.get("/api/ps")).json()["models"])
