"""Models in memory before they are asked: `client.warm`, `sollol warm`, `pool.warm_model`."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner

from fabric import worker
from gateway_kit import gateway
from pool_kit import HI, MODELS, address, name, ollamas
from sollol import AsyncClient, InvalidJob, NoNodeForModel, OllamaPool
from sollol.cli.app import app
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until


def _in_memory(server: OllamaDouble) -> set[str]:
    return {runner.model.full_name for runner in server.scheduler.runners.values()}


async def _is_told(client: AsyncClient, model: str, node: str) -> bool:
    return any(node in each.loaded_on for each in await client.models() if each.name == model)


async def test_a_model_is_loaded_where_its_next_job_runs(redis_url: str) -> None:
    async with OllamaDouble(models=MODELS) as one, OllamaDouble(models=MODELS) as other:
        servers = {"n1": one, "n2": other}
        async with (
            worker(redis_url, one.url, node="n1", advertise_seconds=30.0),
            worker(redis_url, other.url, node="n2", advertise_seconds=30.0),
            AsyncClient(redis_url) as client,
        ):
            warmed = await client.warm("tiny", keep_alive="30m", options={"num_ctx": 2048})
            where = warmed.routing.node

            assert (warmed["done_reason"], warmed.text, warmed.routing.task_type) == ("load", "", "warming")
            assert [node for node, server in servers.items() if _in_memory(server)] == [where]
            asked = servers[where].seen.requests[-1][1]
            assert (asked["keep_alive"], asked["options"], asked.get("prompt")) == (
                "30m",
                {"num_ctx": 2048},
                None,
            )
            assert (await client.submit(chat="hi", model="tiny")).routing.node == where
            await wait_until(
                lambda: _is_told(client, "tiny", where),
                timeout=10,
                what="the fabric to know where the model is",
            )


async def test_a_model_is_loaded_on_the_node_that_is_named(redis_url: str) -> None:
    async with (
        OllamaDouble(models=MODELS) as one,
        OllamaDouble(models=MODELS) as other,
        worker(redis_url, one.url, node="n1"),
        worker(redis_url, other.url, node="n2"),
        AsyncClient(redis_url) as client,
    ):
        for node, server in (("n2", other), ("n1", one)):
            assert (await client.warm("embedder", node=node)).routing.node == node
            assert _in_memory(server) == {"embedder:latest"}


async def test_it_ends_when_the_model_is_there_and_can_be_cancelled(redis_url: str) -> None:
    async with OllamaDouble(models=[DoubleModel("tiny")]) as server:
        server.scheduler.loads_may_finish.clear()
        async with worker(redis_url, server.url) as agent, AsyncClient(redis_url) as client:
            job = client.warm("tiny")
            await wait_until(lambda: server.seen.requests, timeout=10, what="the load to begin")
            assert not job.done()
            await job.cancel()
            await wait_until(lambda: not agent.lanes[0].busy, timeout=10, what="the slot to be free")
            server.scheduler.loads_may_finish.set()
            assert (await client.warm("tiny"))["done_reason"] == "load"


async def test_a_model_that_nobody_has_is_told(redis_url: str) -> None:
    async with OllamaDouble() as server, worker(redis_url, server.url), AsyncClient(redis_url) as client:
        with pytest.raises(NoNodeForModel):
            await client.warm("none")
        with pytest.raises(InvalidJob, match="priority"):
            client.warm("tiny", priority=11)


async def test_a_llama_server_has_its_model_in_memory_anyway(redis_url: str, toy_llama_server: str) -> None:
    async with worker(redis_url, toy_llama_server), AsyncClient(redis_url) as client:
        assert (await client.warm("toy"))["done_reason"] == "load"


async def test_the_command_tells_where(redis_url: str) -> None:
    async with OllamaDouble(models=MODELS) as server, worker(redis_url, server.url, node="n1"):
        run = await asyncio.to_thread(
            CliRunner().invoke, app, ["warm", "tiny", "embedder", "--keep-alive", "-1", "--redis", redis_url]
        )
        assert run.exit_code == 0, run.output
        assert [line.rpartition(" (")[0] for line in run.stdout.splitlines()] == [
            "tiny is in memory on n1",
            "embedder is in memory on n1",
        ]
        assert _in_memory(server) == {"tiny:latest", "embedder:latest"}
        assert server.seen.requests[-1][1]["keep_alive"] == -1
        as_json = await asyncio.to_thread(
            CliRunner().invoke, app, ["warm", "tiny", "--json", "--redis", redis_url]
        )
        assert json.loads(as_json.stdout)[0]["routing"]["node"] == "n1"


def test_a_pool_warms_models(caplog: pytest.LogCaptureFixture) -> None:
    with ollamas(2) as (one, other), OllamaPool(nodes=[address(one), address(other)]) as pool:
        assert pool.warm_models(["tiny", "embedder", "none"], parallel=True) == {
            "tiny": True,
            "embedder": True,
            "none": False,
        }
        assert "none is not in memory: " in caplog.text
        assert pool.chat("tiny", HI)["_sollol_routing"]["load_ms"] < 50
        assert pool.warm_model("endless", node=address(other)) is True
        assert "endless:latest" in _in_memory(other)
        assert pool.warm_models(["tiny"], parallel=False) == {"tiny": True}
        assert pool.get_stats()["total_requests"] == 1
        assert name(one) in pool.get_stats()["hosts"]


async def test_the_gateway_loads_without_making_a_model_talk(redis_url: str, toy_llama_server: str) -> None:
    async with (
        OllamaDouble(models=MODELS) as server,
        worker(redis_url, server.url, toy_llama_server),
        gateway(redis_url) as http,
    ):
        for model, path, body in (
            ("toy", "/api/generate", {}),
            ("toy", "/api/chat", {"messages": []}),
            ("tiny", "/api/generate", {"keep_alive": "10m", "options": {"num_ctx": 2048}, "priority": 9}),
        ):
            answer = await http.post(path, json={"model": model, **body})
            assert (answer.json()["done_reason"], answer.headers["x-sollol-node"]) == ("load", "n1")
        assert server.seen.requests[-1][1] == {
            "model": "tiny:latest",
            "stream": False,
            "keep_alive": "10m",
            "options": {"num_ctx": 2048},
        }
        async with AsyncClient(redis_url) as client:
            await wait_until(
                lambda: _is_told(client, "tiny", "n1"), timeout=10, what="the fabric to know of it"
            )
        for model in ("tiny", "toy"):
            answer = await http.post("/api/generate", json={"model": model, "keep_alive": 0})
            assert answer.json()["done_reason"] == "unload"
        assert not server.scheduler.runners
        refused = await http.post("/api/jobs", json={"model": "tiny", "warm": True})
        assert refused.status_code == 400
