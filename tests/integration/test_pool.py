"""OllamaPool: its calls, its answers, and what it starts and ends in the background."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil
import pytest

from fabric import worker
from pool_kit import HI, MODELS, SAID, address, name, ollamas
from sollol import AsyncClient, Client, NoNodeForModel, OllamaPool, Priority, QueueFull
from sollol_broker.errors import ClientClosed, InvalidJob
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in (
        "SOLLOL_REDIS_URL",
        "SOLLOL_APP_NAME",
        "OLLAMA_HOST",
        "OLLAMA_NODES",
        "OLLAMA_NUM_PARALLEL",
    ):
        monkeypatch.delenv(setting, raising=False)


async def _all_idle(servers: list[OllamaDouble]) -> None:
    await wait_until(
        lambda: not any(each.seen.generating for each in servers), timeout=10, what="the slot to be free"
    )


@pytest.fixture
def two() -> Iterator[list[OllamaDouble]]:
    with ollamas(2) as servers:
        yield servers


@pytest.fixture
def pool(two: list[OllamaDouble]) -> Iterator[OllamaPool]:
    with OllamaPool(nodes=[address(each) for each in two], app_name="tests") as pool:
        yield pool


def test_plain_calls_answer_as_ollama_does(pool: OllamaPool, two: list[OllamaDouble]) -> None:
    chat = pool.chat("tiny", HI, priority=Priority.HIGH, timeout=60)
    generated = pool.generate("tiny", "hi", options={"num_predict": 3})
    embedded = pool.embed("embedder", ["a", "b"])

    assert isinstance(chat, dict)
    assert chat["message"] == {"role": "assistant", "content": SAID}
    assert (chat["done"], chat["done_reason"]) == (True, "stop")
    assert chat["_sollol_routing"]["host"] in map(name, two)
    assert chat["_sollol_routing"]["task_type"] == "generation"
    assert generated["response"] == "the quick brown"
    assert len(embedded["embeddings"]) == 2
    assert len(pool.embed("embedder", "a")["embeddings"]) == 1
    assert [each["embeddings"][0] for each in pool.embed_batch("embedder", ["a", "b"])] == embedded[
        "embeddings"
    ]


def test_many_texts_are_few_calls(pool: OllamaPool, two: list[OllamaDouble]) -> None:
    texts = [f"text {n}" for n in range(250)]
    many = pool.embed_batch("embedder", texts)
    calls = sum(path == "/api/embed" for each in two for path, _ in each.seen.requests)
    assert 0 < calls < len(texts)
    assert [each["embeddings"][0] for each in many] == pool.embed("embedder", texts)["embeddings"]
    assert {each["_sollol_routing"]["host"] for each in many} <= set(map(name, two))
    stats = pool.get_stats()
    assert (stats["total_requests"], stats["failed_requests"]) == (251, 0)
    with pytest.raises(NoNodeForModel):
        pool.embed_batch("nope", texts)
    assert pool.get_stats()["total_requests"] == 251, "nothing was begun"


def test_a_plain_stream_gives_ollamas_chunks(pool: OllamaPool) -> None:
    *pieces, last = pool.chat("tiny", HI, stream=True)

    assert "".join(each["message"]["content"] for each in pieces) == SAID
    assert all(each["done"] is False and each["model"] == "tiny" for each in pieces)
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
    assert last["eval_count"] == len(SAID.split())
    assert last["_sollol_routing"]["attempt"] == 1
    assert "".join(each["response"] for each in pool.generate("tiny", "hi", stream=True)) == SAID


def test_whoever_stops_reading_frees_the_slot(pool: OllamaPool, two: list[OllamaDouble]) -> None:
    for chunk in pool.chat("endless", HI, stream=True):
        assert chunk["message"]["content"]
        break

    asyncio.run(_all_idle(two))
    assert pool.get_stats()["failed_requests"] == 1


async def test_the_same_calls_awaited_and_iterated(two: list[OllamaDouble]) -> None:
    async with OllamaPool(nodes=[address(each) for each in two]) as pool:
        several = await asyncio.gather(*(pool.chat("tiny", HI) for _ in range(20)))
        assert {each["message"]["content"] for each in several} == {SAID}
        assert (await pool.chat_async("tiny", HI))["message"]["content"] == SAID
        assert (await pool.generate_async("tiny", "hi"))["response"] == SAID
        assert (await pool.embed_async("embedder", "a"))["embeddings"]
        chunks = [chunk["message"]["content"] async for chunk in pool.chat("tiny", HI, stream=True)]
        assert "".join(chunks) == SAID
        stream = await pool.generate_async("tiny", "hi", stream=True)
        assert "".join([chunk["response"] async for chunk in stream]) == SAID
        assert len(await pool.embed_batch("embedder", ["a", "b", "c"])) == 3


async def test_a_plain_call_inside_a_running_loop_waits(two: list[OllamaDouble]) -> None:
    pool = OllamaPool(nodes=[address(two[0])])
    try:
        assert pool.chat("tiny", HI)["message"]["content"] == SAID
        assert "".join(each["response"] for each in pool.generate("tiny", "hi", stream=True)) == SAID
    finally:
        pool.stop()


async def test_a_cancelled_task_cancels_its_job(two: list[OllamaDouble]) -> None:
    async with OllamaPool(nodes=[address(two[0])]) as pool:
        task = asyncio.create_task(pool.chat_async("endless", HI))
        await wait_until(lambda: two[0].seen.generating, timeout=10, what="the job to run")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await _all_idle(two)


@pytest.mark.parametrize("awaited", [False, True])
def test_auto_configure_finds_what_the_environment_names(
    two: list[OllamaDouble], monkeypatch: pytest.MonkeyPatch, awaited: bool
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", name(two[0]))
    monkeypatch.setenv("OLLAMA_NODES", f"{two[1].url}, 127.0.0.1:1")
    settings: dict[str, Any] = {
        "app_name": "auto",
        "enable_cache": True,
        "cache_max_size": 10,
        "cache_ttl": 60,
    }

    async def configured() -> OllamaPool:
        return await OllamaPool.auto_configure(**settings)

    with asyncio.run(configured()) if awaited else OllamaPool.auto_configure(**settings) as pool:
        assert {name(each) for each in two} <= set(pool.get_stats()["hosts"])
        assert "127.0.0.1:1" not in pool.get_stats()["hosts"]
        assert pool.chat("tiny", HI)["message"]["content"] == SAID


def test_statistics_tell_totals_and_hosts(pool: OllamaPool, two: list[OllamaDouble]) -> None:
    for _ in range(3):
        pool.chat("tiny", HI)
    with pytest.raises(NoNodeForModel, match="it does not have the model"):
        pool.chat("no-such-model", HI)

    stats = pool.get_stats()
    assert (stats["total_requests"], stats["successful_requests"], stats["failed_requests"]) == (4, 3, 1)
    assert stats["success_rate"] == 0.75
    assert stats["avg_latency_ms"] > 0
    assert set(stats["hosts"]) == {name(each) for each in two}
    assert sum(host["requests"] for host in stats["hosts"].values()) == 3
    assert all(host["success_rate"] == 1.0 for host in stats["hosts"].values())
    assert max(host["latency_ms"] for host in stats["hosts"].values()) > 0


def test_equal_requests_share_an_answer_and_the_cache_moves(
    pool: OllamaPool, two: list[OllamaDouble]
) -> None:
    first = pool.embed("embedder", "a")
    again = pool.embed("embedder", "a")
    assert again["embeddings"] == first["embeddings"]
    assert again["_sollol_routing"]["cached"] == "local"
    stats = pool.get_cache_stats()
    assert (stats["hit_rate"], stats["size"]) == (0.5, 1)

    exported = pool.export_cache()
    assert pool.invalidate_cache_by_model("embedder") == 1
    pool.clear_cache()
    assert pool.get_cache_stats()["size"] == 0
    with OllamaPool(nodes=[address(two[0])], app_name="tests") as other:
        assert other.import_cache(exported) == 1
        assert other.embed("embedder", "a")["_sollol_routing"]["cached"] == "local"


def test_nodes_come_and_go(two: list[OllamaDouble]) -> None:
    first, second = two
    with OllamaPool(nodes=[address(first)]) as pool:
        pool.add_node(str(address(second)["host"]), int(address(second)["port"]), priority=7)
        assert set(pool.get_stats()["hosts"]) == {name(first), name(second)}
        assert [node["priority"] for node in pool.nodes] == [5, 7]
        pool.remove_node(str(address(first)["host"]), int(address(first)["port"]))
        pool.remove_node("127.0.0.1", 1)
        assert pool.chat("tiny", HI)["_sollol_routing"]["host"] == name(second)
        assert pool.count_unique_physical_hosts() == 1
        assert not pool.should_use_parallel_execution(10)


def test_a_nodes_priority_holds_in_the_fabric(two: list[OllamaDouble]) -> None:
    nodes = [{**address(two[0]), "priority": 2}, address(two[1])]
    with OllamaPool(nodes=nodes) as pool, Client(pool.url) as client:
        assert {node.name: node.controls.priority for node in client.nodes()} == {
            name(two[0]): 2,
            name(two[1]): 5,
        }


def test_two_pools_with_the_same_nodes_share_a_fabric(two: list[OllamaDouble]) -> None:
    nodes = [address(each) for each in two]
    with (
        OllamaPool(nodes=nodes, app_name="one") as one,
        OllamaPool(nodes=nodes[::-1], app_name="two") as other,
    ):
        assert one.url == other.url
        one.stop()
        assert other.chat("tiny", HI)["message"]["content"] == SAID
        with pytest.raises(ClientClosed):
            one.chat("tiny", HI)


def test_threads_share_a_pool(pool: OllamaPool) -> None:
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(pool.chat("tiny", HI)["message"]["content"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [SAID] * 8


async def test_more_than_max_queue_size_is_refused(two: list[OllamaDouble]) -> None:
    async with OllamaPool(nodes=[address(two[0])], max_queue_size=1) as pool:
        first = pool.chat("endless", HI, stream=True)
        with pytest.raises(QueueFull, match="max_queue_size"):
            pool.chat("tiny", HI)
        first.close()
        assert (await pool.chat("tiny", HI))["message"]["content"] == SAID


def test_a_node_that_nobody_answers_for_is_named(two: list[OllamaDouble]) -> None:
    with (
        OllamaPool(nodes=["127.0.0.1:1"]) as pool,
        pytest.raises(NoNodeForModel, match="its backend is down"),
    ):
        pool.chat("tiny", HI)


def test_the_private_redis_is_started_again(pool: OllamaPool) -> None:
    socket = unquote(urlsplit(pool.url).path)
    (server,) = (
        each
        for each in psutil.Process().children()
        if any(str(held.laddr) == socket for held in each.net_connections("unix"))
    )
    server.send_signal(signal.SIGKILL)
    assert pool.chat("tiny", HI)["message"]["content"] == SAID


async def test_a_real_llama_server(toy_llama_server: str, toy_embed_server: str) -> None:
    async with OllamaPool(nodes=[toy_llama_server, {"url": toy_embed_server}]) as pool:
        chunks = [
            chunk["message"]["content"]
            async for chunk in pool.chat("toy", HI, stream=True, options={"num_predict": 5, "temperature": 0})
        ]
        answer = await pool.chat("toy", HI, options={"num_predict": 5, "temperature": 0})
        assert "".join(chunks) == answer["message"]["content"]
        assert answer["_sollol_routing"]["backend"] == "llama-server"
        assert len((await pool.embed("toy-embed", "hello"))["embeddings"][0]) == 64


async def test_with_a_redis_the_fabrics_workers_answer(
    redis_url: str, two: list[OllamaDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLLOL_REDIS_URL", redis_url)
    monkeypatch.setenv("SOLLOL_APP_NAME", "mine")
    async with worker(redis_url, two[0].url, node="gpu-1"), OllamaPool() as pool:
        answer = await pool.chat("tiny", HI)
        assert answer["_sollol_routing"]["host"] == "gpu-1"
        assert (pool.url, pool.app_name) == (redis_url, "mine")
        assert [node["host"] for node in pool.nodes] == ["gpu-1"]
        with pytest.raises(InvalidJob, match="workers of its own"):
            pool.add_node("gpu-2")


def test_nodes_beside_a_redis_are_told_to_be_left_out(redis_url: str) -> None:
    with pytest.warns(DeprecationWarning, match="nodes= is left out"):
        OllamaPool(nodes=["gpu-1"], redis_url=redis_url).stop()


@pytest.mark.parametrize("end", ["pool.stop()", "pass", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_nothing_is_left_however_it_ends(two: list[OllamaDouble], tmp_path: Path, end: str) -> None:
    script = (
        "import os, signal, psutil\nfrom sollol import OllamaPool\n"
        f"pool = OllamaPool(nodes=[{name(two[0])!r}])\nassert pool.chat('tiny', 'hi')['done']\n"
        f"print(*(each.pid for each in psutil.Process().children()), pool.url, flush=True)\n{end}\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode in (0, -9), run.stderr
    *pids, url = run.stdout.split()
    assert len(pids) == 2, run.stderr
    assert run.stderr == ""

    async def is_gone() -> None:
        await wait_until(
            lambda: not any(psutil.pid_exists(int(pid)) for pid in pids),
            timeout=10,
            what="the children to end",
        )
        await wait_until(
            lambda: not Path(url.removeprefix("unix://")).exists(), timeout=10, what="the socket to go"
        )

    asyncio.run(is_gone())


async def test_a_worker_of_a_server_elsewhere_tells_nothing_of_this_machine(
    redis_url: str, two: list[OllamaDouble]
) -> None:
    async with worker(redis_url, two[0].url, elsewhere="gpu-9"), AsyncClient(redis_url) as client:
        (node,) = await client.nodes()
        assert (node.host, node.hardware) == ("gpu-9", {})
        assert (await client.submit(chat="hi", model="tiny")).text == SAID


async def test_a_job_of_the_sync_client_is_awaited_and_read_by_coroutines(
    redis_url: str, two: list[OllamaDouble]
) -> None:
    async with worker(redis_url, two[0].url):
        client = await asyncio.to_thread(Client, redis_url)
        assert (await client.submit(chat="hi", model="tiny")).text == SAID
        job = client.submit(chat="hi", model="tiny", stream=True)
        assert "".join([piece async for piece in job]) == SAID
        with pytest.raises(NoNodeForModel):
            await client.submit(chat="hi", model="none")
        await asyncio.to_thread(client.close)


def test_connections_to_a_server_are_used_again(pool: OllamaPool, two: list[OllamaDouble]) -> None:
    for _ in range(20):
        pool.chat("tiny", HI)

    asyncio.run(wait_until(lambda: _http(pool)["requests"] >= 20, timeout=15, what="the adverts to tell"))
    assert 0 < _http(pool)["connections"] < _http(pool)["requests"]
    assert sum(each.connections for each in two) >= _http(pool)["connections"]
    assert pool.get_stats()["http2_enabled"] is False


def _http(pool: OllamaPool) -> dict[str, int]:
    told = [host["http"] for host in pool.get_stats()["hosts"].values()]
    return {name: sum(each[name] for each in told) for name in ("requests", "connections")}


async def test_an_urgent_request_overtakes_those_that_wait(two: list[OllamaDouble]) -> None:
    order: list[int] = []

    async def ask(pool: OllamaPool, priority: int) -> None:
        await pool.chat_async("tiny", HI, priority=priority)
        order.append(priority)

    async with OllamaPool(nodes=[address(two[0])]) as pool, AsyncClient(pool.url) as client:

        async def in_line() -> int:
            return sum(queue.waiting for queue in await client.queues())

        async def are_in_line(count: int) -> None:
            async def are() -> bool:
                return await in_line() == count

            await wait_until(are, timeout=10, what=f"{count} requests in line")

        blocking = pool.chat("endless", HI, stream=True)
        await wait_until(lambda: two[0].seen.generating, timeout=10, what="the node to be busy")
        asked = [asyncio.create_task(ask(pool, Priority.BATCH)) for _ in range(10)]
        await are_in_line(10)
        asked.append(asyncio.create_task(ask(pool, Priority.CRITICAL)))
        await are_in_line(11)
        blocking.close()
        await asyncio.gather(*asked)
    assert order[0] == Priority.CRITICAL


async def test_a_node_that_dies_loses_no_request() -> None:
    with ollamas(1) as (lasting,):
        async with (
            OllamaDouble(models=MODELS) as dying,
            OllamaPool(nodes=[address(lasting), address(dying)]) as pool,
        ):
            dying.tokens_may_flow.clear()
            calls = [asyncio.ensure_future(pool.chat("tiny", HI)) for _ in range(40)]
            await wait_until(lambda: dying.seen.generating, timeout=10, what="a job on the node that dies")
            await dying.stop()
            answers = await asyncio.gather(*calls)
            assert {each["message"]["content"] for each in answers} == {SAID}
            assert {each["_sollol_routing"]["host"] for each in answers} == {name(lasting)}
            assert pool.get_stats()["failed_requests"] == 0


async def test_whoever_still_waits_when_the_pool_stops_is_told(two: list[OllamaDouble]) -> None:
    pool = await OllamaPool(nodes=[address(two[0])])
    call = asyncio.ensure_future(pool.chat("endless", HI))
    await wait_until(lambda: two[0].seen.generating, timeout=10, what="the job to run")
    await asyncio.to_thread(pool.stop)
    with pytest.raises(ClientClosed):
        await call
    await _all_idle(two)


def test_a_forked_child_asks_and_leaves_the_fabric_to_its_parent(two: list[OllamaDouble]) -> None:
    script = (
        "import os, sys\nfrom sollol import OllamaPool\n"
        f"pool = OllamaPool(nodes=[{name(two[0])!r}])\n"
        "child = os.fork()\n"
        "if not child:\n    print(pool.chat('tiny', 'hi')['done'], flush=True)\n    pool.stop()\n    sys.exit()\n"
        "print(os.waitpid(child, 0)[1], pool.chat('tiny', 'hi')['done'])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.stdout.split(), run.stderr) == (["True", "0", "True"], "")


def test_a_node_that_hangs_does_not_keep_the_others_waiting(two: list[OllamaDouble]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung:  # takes connections, and never says a word
        silent = f"127.0.0.1:{hung.getsockname()[1]}"
        with OllamaPool(nodes=[silent, address(two[0])]) as pool:
            assert pool.chat("tiny", HI)["message"]["content"] == SAID
            assert silent not in pool.get_stats()["hosts"]
            assert len(pool.nodes) == 2
            pool.remove_node(*silent.split(":"))  # type: ignore[arg-type]  # a port may be text
            assert [node["port"] for node in pool.nodes] == [address(two[0])["port"]]


@pytest.mark.parametrize("told_by", ["nodes", "OLLAMA_NUM_PARALLEL"])
async def test_a_node_gets_as_many_requests_at_once_as_it_has_slots(
    told_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told_by != "nodes":
        monkeypatch.setenv(told_by, "3")
    with ollamas(parallel=5) as [server]:
        node = {**address(server), **({"slots": 3} if told_by == "nodes" else {})}
        async with OllamaPool(nodes=[node]) as pool:
            asked = [asyncio.create_task(pool.chat_async("endless", HI)) for _ in range(5)]
            await wait_until(
                lambda: server.seen.generating == 3, timeout=30, what="three of them to be worked on"
            )
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
    assert server.seen.most_generating == 3
