"""SOLLOL's own names, called as its README and its release 0.9.66 call them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
import redis

import sollol
from fabric import until
from pool_kit import HI, SAID, address, name, ollamas
from sollol import (
    SOLLOL,
    BackendError,
    InvalidJob,
    OllamaPool,
    SOLLOLClient,
    SOLLOLConfig,
    SollolError,
)
from sollol.dashboard_client import DashboardClient
from sollol.discovery import discover_ollama_nodes
from sollol.either_way import warn_once
from sollol.priority_helpers import Priority, get_priority_for_role
from sollol.routing_strategy import RoutingStrategy
from sollol.sync_wrapper import OllamaPool as SyncPool
from sollol_broker.names import key_part
from sollol_worker_agent.doubles import OllamaDouble


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    warn_once.cache_clear()
    for setting in ("SOLLOL_REDIS_URL", "SOLLOL_APP_NAME", "SOLLOL_PORT", "OLLAMA_HOST", "OLLAMA_NODES"):
        monkeypatch.delenv(setting, raising=False)


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaDouble]:
    with ollamas(1) as (server,):
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        yield server


@pytest.fixture
def gateway(ollama: OllamaDouble) -> Iterator[SOLLOL]:
    service = SOLLOL(SOLLOLConfig(hosts=[name(ollama)], gateway_port=0, metrics_port=_free_port()))
    service.start(blocking=False)
    yield service
    service.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# --- the README


def test_the_quick_start(ollama: OllamaDouble) -> None:
    pool = OllamaPool.auto_configure(app_name="app", enable_cache=True, cache_max_size=1000, cache_ttl=3600)
    response = pool.chat(model="tiny", messages=HI, priority=Priority.HIGH, timeout=60, stream=False)
    assert response["message"]["content"] == SAID
    routing = response["_sollol_routing"]
    told = ("host", "node", "selected_host", "task_type", "mode", "score", "complexity", "attempt")
    assert [key for key in told if key not in routing] == []
    stats = pool.get_stats()
    assert {"total_requests", "avg_latency_ms", "success_rate", "hosts", "http2_enabled"} <= stats.keys()
    assert {"latency_ms", "success_rate"} <= stats["hosts"][name(ollama)].keys()
    assert {"hit_rate", "size"} <= pool.get_cache_stats().keys()
    assert pool.warm_model("tiny") is True
    assert pool.warm_models(["tiny", "embedder"], parallel=True) == {"tiny": True, "embedder": True}
    pool.stop()


def test_the_quick_start_awaited(ollama: OllamaDouble) -> None:
    async def asked() -> list[Any]:
        pool = await OllamaPool.auto_configure(app_name="app")
        answers: list[Any] = list(
            await asyncio.gather(
                pool.chat_async(model="tiny", messages=HI, priority=7),
                pool.generate_async(model="tiny", prompt="hi"),
                pool.embed_async(model="embedder", input="hi"),
            )
        )
        async for chunk in pool.chat(model="tiny", messages=HI, stream=True):
            answers.append(chunk["message"]["content"])
        await asyncio.to_thread(pool.stop)
        return answers

    chat, generated, embedded, *chunks = asyncio.run(asked())
    assert (chat["message"]["content"], generated["response"]) == (SAID, SAID)
    assert embedded["embeddings"]
    assert "".join(chunks) == SAID


def test_a_pool_by_hand(ollama: OllamaDouble) -> None:
    pool = OllamaPool(
        nodes=[{**address(ollama), "priority": 1}],
        enable_intelligent_routing=True,
        enable_hedging=True,
        max_queue_size=100,
        app_name="by-hand",
    )
    answer = pool.chat("tiny", HI, priority=get_priority_for_role("researcher"))
    assert answer["_sollol_routing"]["host"] == name(ollama)
    pool.stop()


def test_the_sync_wrapper(ollama: OllamaDouble) -> None:
    pool = SyncPool.auto_configure()
    assert pool.generate("tiny", "hi")["response"] == SAID
    pool.stop()


def test_the_arguments_of_0_9_66_warn_and_work(ollama: OllamaDouble) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pool = OllamaPool(
            nodes=[{"host": "127.0.0.1", "port": str(address(ollama)["port"])}],
            enable_intelligent_routing=True,
            routing_strategy=RoutingStrategy.FAIRNESS,
            exclude_localhost=False,
            discover_all_nodes=False,
            app_name=None,
            register_with_dashboard=True,
            enable_ray=False,
            enable_dask=True,
            dask_address=None,
            enable_gpu_redis=True,
            redis_host="localhost",
            redis_port=6379,
            enable_cache=True,
            cache_max_size=1000,
            cache_ttl=3600,
        )
    texts = " ".join(str(each.message) for each in told)
    for argument in ("enable_dask", "dask_address", "enable_gpu_redis", "redis_host", "routing_strategy"):
        assert argument in texts
    assert pool.chat("tiny", HI)["message"]["content"] == SAID
    pool.stop()


def test_discovery(ollama: OllamaDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {key: str(value) for key, value in address(ollama).items()}
    monkeypatch.setenv("OLLAMA_NODES", "nobody.invalid, not an address, 127.0.0.1:1")
    assert here in discover_ollama_nodes(timeout=2.0, auto_resolve_docker=True)
    assert here not in discover_ollama_nodes(timeout=0.5, exclude_localhost=True)


async def test_discovery_inside_a_running_loop(ollama: OllamaDouble) -> None:
    assert str(address(ollama)["port"]) in {node["port"] for node in discover_ollama_nodes(timeout=2.0)}


# --- SOLLOL


def test_a_gateway_comes_up_and_goes(gateway: SOLLOL, ollama: OllamaDouble) -> None:
    url = gateway.config.url
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        health = http.get("/api/health")
        assert (health.headers["x-powered-by"], health.json()["service"]) == ("SOLLOL", "SOLLOL")
        answer = http.post(
            "/api/chat", json={"model": "tiny", "messages": HI, "stream": False, "priority": 7}
        ).json()
        assert answer["message"]["content"] == SAID
        assert answer["_sollol_routing"]["node"] == name(ollama)
    with urllib.request.urlopen(
        f"http://127.0.0.1:{gateway.config.metrics_port}/metrics", timeout=10
    ) as page:
        assert b"sollol_" in page.read()
    assert gateway.get_health()["status"] == "healthy"
    stats = gateway.get_stats()
    assert (stats["total_requests"], stats["success_rate"]) == (1, 1.0)
    assert stats["avg_latency_ms"] > 0
    status = gateway.get_status()
    assert (status["running"], status["gateway"]) == (True, url)
    assert [f"{node['host']}:{node['port']}" for node in status["nodes"]] == [name(ollama)]

    gateway.stop()
    gateway.stop()
    assert gateway.get_health()["status"] == "stopped"
    assert not gateway.get_status()["running"]
    with pytest.raises(SollolError, match="does not run"):
        gateway.get_stats()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/api/health", trust_env=False, timeout=30)


def test_auto_discover_and_the_old_settings(ollama: OllamaDouble) -> None:
    config = SOLLOLConfig.auto_discover(gateway_port=0, metrics_port=0)
    assert name(ollama) in (config.hosts or ())
    with pytest.warns(DeprecationWarning, match="sollol-worker") as told:
        SOLLOLConfig(
            ray_workers=4, dask_workers=2, hosts=["gpu-1:11434"], gateway_port=8000, metrics_port=9090
        )
    assert len(told) == 2
    with pytest.warns(DeprecationWarning, match="SOLLOL: ray_workers"):
        service = SOLLOL(port=1234, ray_workers=2, dask_workers=None, ollama_nodes=[address(ollama)])
    assert (service.config.gateway_port, service.config.url) == (1234, "http://127.0.0.1:1234")
    assert SOLLOL(4321).config.gateway_port == 4321
    with pytest.raises(InvalidJob, match="gateway_port"):
        SOLLOLConfig(gateway_port=70_000)
    with pytest.raises(TypeError, match="magic"):
        SOLLOL(magic=1)


def test_a_port_that_is_taken_is_named(gateway: SOLLOL, ollama: OllamaDouble) -> None:
    second = SOLLOL(SOLLOLConfig(hosts=[name(ollama)], gateway_port=gateway.config.gateway_port))
    with pytest.raises(SollolError, match="cannot be listened on"):
        second.start()
    assert not second.is_running


def test_blocking_returns_when_it_is_stopped(ollama: OllamaDouble) -> None:
    service = SOLLOL(SOLLOLConfig(hosts=[name(ollama)], gateway_port=0, metrics_port=0))
    thread = threading.Thread(target=service.start, kwargs={"blocking": True})
    thread.start()
    while not service.is_running:
        time.sleep(0.01)
    service.stop()
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_sigterm_ends_a_blocking_service_in_order(ollama: OllamaDouble) -> None:
    script = (
        "from sollol import SOLLOL, SOLLOLConfig\n"
        f"service = SOLLOL(SOLLOLConfig(hosts=[{name(ollama)!r}], gateway_port=0, metrics_port=0))\n"
        "service.start(blocking=False); print(service.config.url, flush=True); service.start(blocking=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/api/health", trust_env=False, timeout=30).json()["status"] == "healthy"
        os.kill(process.pid, signal.SIGTERM)
        _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (0, "")


@pytest.mark.parametrize("end", ["pass", "import atexit; atexit.register(service.stop)"])
def test_a_service_that_nobody_stops_leaves_nothing(ollama: OllamaDouble, end: str) -> None:
    script = (
        "import psutil\nfrom sollol import SOLLOL, SOLLOLConfig\n"
        f"service = SOLLOL(SOLLOLConfig(hosts=[{name(ollama)!r}], gateway_port=0, metrics_port=0))\n"
        "service.start()\nprint(*(each.pid for each in psutil.Process().children()))\n" + end
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert len(run.stdout.split()) == 2
    assert not any(psutil.pid_exists(int(pid)) for pid in run.stdout.split())


async def test_the_http_client(gateway: SOLLOL) -> None:
    config = SOLLOLConfig(base_url=gateway.config.url, default_model="tiny", timeout=30)
    with SOLLOLClient(config) as client:
        answer = await client.chat_async(
            "hi", system_prompt="be brief", conversation_history=HI, priority=Priority.HIGH
        )
        assert answer["message"]["content"] == SAID
        assert len(await asyncio.to_thread(client.embed, "a", "embedder")) > 1
        many = await asyncio.to_thread(client.batch_embed, ["a", "b"], "embedder")
        assert len(many["embeddings"]) == 2
        texts = [f"text {n}" for n in range(150)]
        batch = await asyncio.to_thread(client.batch_embed, texts, "embedder")
        assert (len(batch["embeddings"]), batch["errors"]) == (150, [])
        one = await asyncio.to_thread(client.embed, texts[140], "embedder")
        assert batch["embeddings"][140] == pytest.approx(one)
        assert (await asyncio.to_thread(client.health))["service"] == "SOLLOL"
        assert (await asyncio.to_thread(client.stats))["total_requests"] > 3
        assert client.dashboard()["url"].endswith("/api/dashboard")
        with pytest.raises(BackendError, match="refused") as refused:
            await client.chat_async("hi", model="no-such-model")
        assert refused.value.status == 404
    with pytest.raises(BackendError, match="cannot be asked"):
        SOLLOLClient(SOLLOLConfig(base_url="http://127.0.0.1:1")).health()
    with pytest.raises(InvalidJob, match="base_url"):
        SOLLOLClient(SOLLOLConfig(base_url="file:///etc/passwd"))


# --- applications that show themselves


def _shown(url: str, app: str) -> dict[str, str]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        found: Any = client.hgetall(f"{{sollol}}:app:{app}")
        return dict(found)


def test_an_application_shows_itself(redis_url: str) -> None:
    with DashboardClient(
        "my-app", router_type="OllamaPool", version="1.2", metadata={"team": "a"}, redis_url=redis_url
    ) as client:
        assert client.is_registered
        assert '"router_type": "OllamaPool"' in _shown(redis_url, "my-app")["metadata"]
        seen = float(_shown(redis_url, "my-app")["seen"])
        assert client.heartbeat({"load": 3})
        assert client.update_metadata({"team": "b"})
        shown = _shown(redis_url, "my-app")
        assert float(shown["seen"]) > seen
        assert ('"load": 3' in shown["metadata"], '"team": "b"' in shown["metadata"]) == (True, True)
        client.deregister()
        assert _shown(redis_url, "my-app") == {}
        client.unregister()
        assert not client.is_registered
        assert client.register()


def test_it_gives_signs_of_life_by_itself_and_leaves_others_of_its_name_alone(redis_url: str) -> None:
    first = DashboardClient("my-app", redis_url=redis_url, heartbeat_interval=0.05)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()  # forgotten: it has to tell again
    until(lambda: _shown(redis_url, "my-app"), "a heartbeat")
    first.close()
    assert _shown(redis_url, "my-app") == {}
    first, second = (
        DashboardClient("my-app", redis_url=redis_url, heartbeat_interval=60) for _ in ("one", "two")
    )
    first.close()
    assert "inbox" in _shown(redis_url, "my-app")
    second.close()
    assert _shown(redis_url, "my-app") == {}
    with pytest.raises(InvalidJob, match="heartbeat_interval"):
        DashboardClient("my-app", redis_url=redis_url, heartbeat_interval=0)


@pytest.mark.parametrize(
    "given", [({"team": "a"}, False), (10, {"team": "a"}, False), (2.5, {"team": "a"}, False)]
)
def test_its_arguments_may_stand_where_the_manual_or_a_release_had_them(
    redis_url: str, given: tuple[Any, ...]
) -> None:
    client = DashboardClient(
        "My  App", "HybridRouter", "2.0", "http://localhost:8080", *given, redis_url=redis_url
    )
    assert not client.is_registered
    with client:
        assert client.register()
        told = json.loads(_shown(redis_url, key_part("My-App"))["metadata"])
    assert (client.app_name, told) == (
        "My-App",
        {"router_type": "HybridRouter", "version": "2.0", "team": "a"},
    )
    with pytest.raises(TypeError, match="from 1 to 7 values"):
        DashboardClient("a", "b", "c", "d", 10, {}, True, 1)


def test_too_much_metadata_is_refused_and_what_was_shown_stays(redis_url: str) -> None:
    with DashboardClient("my-app", metadata={"team": "a"}, redis_url=redis_url) as client:
        with pytest.raises(InvalidJob, match="metadata"):
            client.update_metadata({"notes": "x" * 20_000})
        assert client.heartbeat({"load": float("nan")})
        assert json.loads(_shown(redis_url, "my-app")["metadata"])["load"] == "nan"
    with pytest.raises(InvalidJob, match="metadata"):
        DashboardClient("my-app", metadata={"notes": "x" * 20_000}, redis_url=redis_url)


def test_a_redis_that_is_away_does_not_disturb_an_application() -> None:
    client = DashboardClient("my-app", heartbeat_interval=0.01, redis_url="redis://127.0.0.1:1/0")
    assert not client.is_registered
    assert client.heartbeat() is False
    client.close()


def test_each_name_of_the_readme_is_there() -> None:
    named = {"OllamaPool", "HybridRouter", "SOLLOL", "SOLLOLConfig", "run_unified_dashboard", "is_docker_ip"}
    assert named | {"resolve_docker_ip", "SOLLOLClient"} <= set(sollol.__all__)


def test_the_same_over_a_real_llama_server(toy_llama_server: str, toy_embed_server: str) -> None:
    short = {"num_predict": 5, "temperature": 0}
    with OllamaPool(nodes=[toy_llama_server, toy_embed_server], app_name="app") as pool:
        answer = pool.chat("toy", HI, priority=Priority.HIGH, timeout=60, options=short)
        chunks = list(pool.chat("toy", HI, stream=True, options=short))
        assert "".join(each["message"]["content"] for each in chunks) == answer["message"]["content"]
        assert chunks[-1]["done_reason"] == "length"
        assert pool.generate("toy", "hi", options=short)["response"]
        assert [len(each) for each in pool.embed("toy-embed", ["a", "b"])["embeddings"]] == [64, 64]
        assert pool.warm_models(["toy", "toy-embed"]) == {"toy": True, "toy-embed": True}
        assert pool.get_stats()["success_rate"] == 1.0
    service = SOLLOL(SOLLOLConfig(hosts=[toy_llama_server], gateway_port=0, metrics_port=0))
    service.start()
    try:
        with SOLLOLClient(SOLLOLConfig(base_url=service.config.url, default_model="toy")) as client:
            assert client.health()["status"] == "healthy"
            body = {"model": "toy", "messages": HI, "stream": False, "options": short}
            told = httpx.post(f"{service.config.url}/api/chat", json=body, trust_env=False, timeout=30).json()
            assert told["message"]["content"] == answer["message"]["content"]
    finally:
        service.stop()
