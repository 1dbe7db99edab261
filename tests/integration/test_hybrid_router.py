"""`HybridRouter` as its users write it: on a fabric that is there, and with one of its own that forms a real group."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from fabric import worker
from sollol import HybridRouter, NoNodeForModel, OllamaPool
from sollol.either_way import Pending
from sollol.sync_wrapper import HybridRouter as SyncHybridRouter
from sollol_broker.errors import InvalidJob

_MESSAGES = [{"role": "user", "content": "Name a fruit."}]
_OPTIONS = {"temperature": 0, "num_predict": 12}
# SmolLM2 with 4,096 tokens of context needs about 250 MiB: three of these have it together, one does not.
_MEMORY_MIB = 130


@pytest.fixture
async def fabric(
    redis_url: str, toy_llama_server: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """A fabric whose one node serves "toy"; SOLLOL_REDIS_URL names it."""
    monkeypatch.setenv("SOLLOL_REDIS_URL", redis_url)
    async with worker(redis_url, toy_llama_server):
        yield redis_url


@pytest.fixture
def bare(tmp_path: Path, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No fabric, no Ollama store; a folder with SmolLM2 in it."""
    monkeypatch.delenv("SOLLOL_REDIS_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "none"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models/big.gguf").symlink_to(smollm2_path)
    return tmp_path / "models"


async def test_on_a_fabric_it_submits(fabric: str) -> None:
    with HybridRouter() as router:
        answer = await router.route_request(model="toy", messages=_MESSAGES, options=_OPTIONS, priority=8)
        plain = await asyncio.to_thread(router.route_request, "toy", _MESSAGES, options=_OPTIONS)
        stats = await asyncio.to_thread(router.get_stats)
        is_grouped = await asyncio.to_thread(router.should_use_distributed, "toy")

    assert answer["message"]["content"] == plain["message"]["content"] != ""
    routed = answer["_sollol_routing"]
    assert (routed["host"], routed["mode"], routed["task_type"]) == ("n1", "fabric", "generation")
    assert (stats["total_requests"], stats["distributed_requests"], stats["nodes"]) == (2, 0, ["n1"])
    assert not is_grouped


def test_a_pools_own_fabric_is_used_with_a_coordinator_beside_it(bare: Path, toy_llama_server: str) -> None:
    pool = OllamaPool(nodes=[toy_llama_server.removeprefix("http://")])
    try:
        with HybridRouter(pool, enable_distributed=True, auto_setup_rpc=True, num_rpc_backends=1) as router:
            answer = router.route_request(model="toy", messages=_MESSAGES, options=_OPTIONS)
            nodes = router.get_stats()["nodes"]
        again = pool.chat("toy", _MESSAGES, options=_OPTIONS)
    finally:
        pool.stop()

    assert answer["message"]["content"] == again["message"]["content"] != ""
    assert answer["_sollol_routing"]["host"] == again["_sollol_routing"]["host"]
    assert len(nodes) == 2


async def test_what_nobody_serves_is_refused(fabric: str) -> None:
    with HybridRouter() as router:
        with pytest.raises(NoNodeForModel):
            await router.route_request(model="nothing", messages=_MESSAGES)
        with pytest.raises(InvalidJob, match="whole answers"):
            router.route_request(model="toy", messages=_MESSAGES, stream=True)


async def test_arguments_without_a_meaning_warn_and_name_what_replaces_them(fabric: str) -> None:
    with pytest.warns(DeprecationWarning, match=r"coordinator_port=….*free port"):
        HybridRouter(coordinator_port=18081).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HybridRouter(None, None, "127.0.0.1", 18081).close()
    with pytest.raises(InvalidJob):
        HybridRouter(num_rpc_backends=0)


def test_without_a_fabric_it_starts_one_and_a_group_answers(bare: Path) -> None:
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    router = SyncHybridRouter(
        ollama_pool=None,
        enable_distributed=True,
        auto_setup_rpc=True,
        num_rpc_backends=3,
        memory_mib=_MEMORY_MIB,
        models_dir=bare,
    )
    try:
        answer = router.route_request(model="big", messages=_MESSAGES, options=_OPTIONS)
        assert router.should_use_distributed("big")
        stats = router.get_stats()
        started = {each.pid for each in psutil.Process().children(recursive=True)} - before
    finally:
        router.close()

    assert answer["message"]["content"]
    assert answer["_sollol_routing"]["mode"] == "rpc"
    assert (stats["total_requests"], stats["distributed_requests"]) == (1, 1)
    assert len(stats["groups"]) == 1, stats["groups"]
    assert len(stats["nodes"]) == 4
    assert started
    left = {each.pid for each in psutil.Process().children(recursive=True)} & started
    assert not left, "nothing of it is left"


async def test_gpus_stay_with_one_worker(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sollol.hybrid_router._has_gpus", lambda: True)
    router = HybridRouter(auto_setup_rpc=True, num_rpc_backends=3)
    try:
        stats = await asyncio.to_thread(router.get_stats)
    finally:
        await asyncio.to_thread(router.close)

    assert len(stats["nodes"]) == 1


async def test_it_starts_in_the_background(bare: Path) -> None:
    router = HybridRouter(enable_distributed=False)
    try:
        # Neither the constructor nor the call has waited for the fabric.
        waiting = router.route_request(model="nothing", messages=_MESSAGES)
        assert isinstance(waiting, Pending)
        with pytest.raises(NoNodeForModel):
            await waiting
    finally:
        await asyncio.to_thread(router.close)
