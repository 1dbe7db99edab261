"""What Prometheus reads from a real worker and a real gateway equals what the clients got."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fabric import CHAT_MODEL, worker, worker_process
from gateway_kit import gateway
from sollol import AsyncClient
from sollol_broker.child import free_port
from sollol_coordinator.page.config import PageConfig
from sollol_coordinator.page.server import Page
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def _scrape(http: httpx.AsyncClient, url: str) -> Figures:
    try:
        text = (await http.get(url)).raise_for_status().text
    except httpx.TransportError:
        return {}  # it is not up yet
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _of(figures: Figures, name: str, **labels: str) -> float:
    return figures.get((name, frozenset(labels.items())), 0.0)


async def test_the_figures_equal_what_the_clients_got(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker_process(
            redis_url,
            tmp_path / "log",
            *("--backend", ollama.url, "--metrics-port", str(port)),
        ),
        gateway(redis_url, fabric_metrics=True) as http,
    ):

        async def served() -> bool:
            return bool((await http.get("/api/tags")).json()["models"])

        await wait_until(served, timeout=30, what="the worker to advertise")
        asked = {"model": "tiny", "messages": [{"role": "user", "content": "hello there"}], "stream": False}
        answers = await asyncio.gather(*(http.post("/api/chat", json=asked) for _ in range(5)))
        bodies = [answer.raise_for_status().json() for answer in answers]
        node = bodies[0]["_sollol_routing"]["node"]
        at = {"host": node, "model": "tiny"}
        fabric, worker = "/metrics", f"http://127.0.0.1:{port}/metrics"

        async def counted() -> bool:
            told = [await _scrape(http, url) for url in (fabric, worker)]
            return all(_of(figures, "sollol_requests_total", **at) == 5 for figures in told)

        await wait_until(counted, timeout=30, what="both to tell of five answers")
        for url in (fabric, worker):
            figures = await _scrape(http, url)
            assert _of(figures, "sollol_output_tokens_total", **at) == sum(b["eval_count"] for b in bodies)
            assert _of(figures, "sollol_prompt_tokens_total", **at) == sum(
                b["prompt_eval_count"] for b in bodies
            )
            assert _of(figures, "sollol_errors_total", **at) == 0
            assert _of(figures, "sollol_success_rate", host=node) == 1
            for name in ("sollol_ttft_seconds", "sollol_queue_wait_seconds", "sollol_duration_seconds"):
                assert _of(figures, f"{name}_count", model="tiny") == 5, name
            assert _of(figures, "sollol_latency_seconds_count", host=node) == 5
            gaps = _of(figures, "sollol_token_gap_seconds_count", model="tiny")
            assert gaps == sum(b["eval_count"] for b in bodies) - 5
        figures = await _scrape(http, fabric)
        assert _of(figures, "sollol_jobs_ended_total", state="done") == 5
        assert _of(figures, "sollol_slots", host=node) == 1
        assert _of(figures, "sollol_redis_up") == 1
        chats = _of(figures, "sollol_gateway_requests_total", path="/api/chat", method="POST", status="200")
        assert chats == 5


async def test_the_page_tells_of_the_fabric_on_a_port_of_its_own(redis_url: str) -> None:
    port = free_port()
    page = Page(redis_url, PageConfig(port=0, login=True, metrics_port=port))
    await asyncio.to_thread(page.start)
    try:
        async with (
            worker(redis_url, "echo://?slots=3", node="a"),
            AsyncClient(redis_url, app="tests") as client,
            httpx.AsyncClient(trust_env=False, timeout=20) as http,
        ):
            assert (await client.submit(chat="hi", model="echo")).text == "hi"
            where = f"http://127.0.0.1:{port}/metrics"

            async def counted() -> bool:
                figures = await _scrape(http, where)
                return _of(figures, "sollol_requests_total", host="a", model="echo") == 1

            await wait_until(counted, timeout=30, what="the page to tell of one answer")
            figures = await _scrape(http, where)
            assert _of(figures, "sollol_slots", host="a") == 3
            assert _of(figures, "sollol_nodes") == 1
            assert _of(figures, "sollol_redis_up") == 1
    finally:
        await asyncio.to_thread(page.stop)
