"""`sollol-worker` as a process: signals, kill -9, what it finds and starts by itself, and what it keeps secret."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import redis

from fabric import CHAT_MODEL, WorkerProcess, worker, worker_process
from sollol import AsyncClient
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.keys import Keys
from sollol_broker.words import JobState
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

FOX = "the quick brown fox jumps over the lazy dog"
SHORT = {"num_predict": 3, "temperature": 0}


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaDouble]:
    async with OllamaDouble([CHAT_MODEL]) as double:
        yield double
        double.tokens_may_flow.set()


async def test_sigterm_lets_the_running_job_end_and_claims_nothing_more(
    redis_url: str, tmp_path: Path, ollama: OllamaDouble
) -> None:
    ollama.tokens_may_flow.clear()
    async with (
        AsyncClient(redis_url) as client,
        worker_process(redis_url, tmp_path / "log", "--backend", ollama.url) as process,
    ):
        job = client.submit(chat="hi", model="tiny", wait_for_node=True)
        await wait_until(lambda: ollama.seen.generating == 1, timeout=10, what="the job to run")
        process.process.terminate()
        await wait_until(lambda: "draining" in process.said(), timeout=5, what="the drain")
        late = client.submit(chat="hi", model="tiny", wait_for_node=True)
        ollama.tokens_may_flow.set()
        assert (await job.result(timeout=60)).routing.attempt == 1
        assert await process.exit_status() == 0
        assert await client.nodes() == []
        view = await client.job(late.id)
        assert view is not None
        assert view.state is JobState.QUEUED
        assert len(ollama.seen.requests) == 1
        await late.cancel()


async def test_a_second_sigterm_hands_the_job_to_another_worker_at_once(
    redis_url: str, tmp_path: Path, ollama: OllamaDouble
) -> None:
    ollama.tokens_may_flow.clear()
    async with (
        AsyncClient(redis_url) as client,
        worker_process(redis_url, tmp_path / "log", "--backend", ollama.url) as process,
    ):
        job = client.submit(chat="hi", model="tiny", wait_for_node=True)
        await wait_until(lambda: ollama.seen.generating == 1, timeout=10, what="the job to run")
        async with OllamaDouble([CHAT_MODEL]) as other, worker(redis_url, other.url, node="n2"):
            process.process.terminate()
            await wait_until(lambda: "draining" in process.said(), timeout=5, what="the drain")
            process.process.terminate()
            answer = await job.result(timeout=60)
            assert (answer.routing.node, answer.routing.attempt) == ("n2", 2)
            assert await process.exit_status() == 0
        view = await client.job(job.id)
    assert view is not None
    assert (view.releases, view.crashes, view.errors) == (1, 0, 0)
    assert ollama.seen.abandoned == 1


async def test_kill_9_in_mid_job_another_worker_answers_once(
    redis_url: str, tmp_path: Path, ollama: OllamaDouble
) -> None:
    ollama.tokens_may_flow.clear()
    async with (
        AsyncClient(redis_url) as client,
        worker_process(redis_url, tmp_path / "log", "--backend", ollama.url) as process,
    ):
        job = client.submit(chat="hi", model="tiny", wait_for_node=True, stream=True)
        await wait_until(lambda: ollama.seen.generating == 1, timeout=10, what="the job to run")
        async with OllamaDouble([CHAT_MODEL]) as other, worker(redis_url, other.url, node="n2"):
            process.process.kill()
            assert "".join([piece async for piece in job]) == FOX
            answer = await job
            view = await client.job(job.id)
    assert (answer.routing.node, answer.routing.attempt) == ("n2", 2)
    assert view is not None
    assert (view.releases, view.crashes) == (0, 1)
    with redis.Redis.from_url(redis_url) as raw:
        entries = [entry[b"t"] for _, entry in raw.xrange(Keys().events(job.id))]
    assert entries.count(b"end") == 1
    assert entries.count(b"start") == 2


async def test_it_finds_the_ollama_that_ollama_host_names(
    redis_url: str, tmp_path: Path, ollama: OllamaDouble
) -> None:
    host = urlsplit(ollama.url).netloc
    async with (
        AsyncClient(redis_url) as client,
        worker_process(redis_url, tmp_path / "log", environment={"OLLAMA_HOST": host}) as process,
    ):
        answer = await client.submit(chat="hi", model="tiny", wait_for_node=True).result(timeout=60)
        assert (answer.text, answer.routing.backend) == (FOX, "ollama")
        assert f"found ollama at {ollama.url}" in process.said()


async def test_it_starts_its_own_llama_servers_and_starts_them_again(
    redis_url: str, tmp_path: Path, toy_chat_model: Path, toy_embedding_model: Path
) -> None:
    models = ("--model", f"chatty={toy_chat_model}", "--model", str(toy_embedding_model))
    async with (
        AsyncClient(redis_url) as client,
        worker_process(redis_url, tmp_path / "log", *models, "--slots", "2") as process,
    ):
        chat = client.submit(chat="hi", model="chatty", options=SHORT, wait_for_node=True)
        embed = client.submit(embed=["hi"], model="toy-embed", wait_for_node=True)
        assert (await chat.result(timeout=60))["eval_count"] == 3
        assert len((await embed.result(timeout=60)).embeddings[0]) == 64
        before = _llama_servers(process)
        assert len(before) == 2
        for server in before:
            server.kill()
        again = client.submit(chat="hi", model="chatty", options=SHORT, wait_for_node=True, cache=False)
        assert (await again.result(timeout=60))["eval_count"] == 3
        assert {server.pid for server in _llama_servers(process)}.isdisjoint(each.pid for each in before)
        process.process.send_signal(signal.SIGINT)
        assert await process.exit_status() == 0
    assert not any(server.is_running() for server in before)


@pytest.mark.parametrize("given_by", ["environment", "file", "url option"])
async def test_the_password_of_redis_shows_nowhere(tmp_path: Path, given_by: str) -> None:
    secret = "hunter2-Zwölf"  # noqa: S105  # of this test
    (tmp_path / "secret").write_text(f"{secret}\n", "utf-8")
    with EmbeddedBroker(appendonly=False, password=secret) as broker:
        plain = "unix://" + broker.url.partition("@")[2]
        url, environment = plain, {}
        if given_by == "environment":
            environment = {"SOLLOL_REDIS_PASSWORD": secret}
        elif given_by == "file":
            environment = {"SOLLOL_REDIS_PASSWORD_FILE": str(tmp_path / "secret")}
        else:
            url = f"{plain}?password_file={tmp_path / 'secret'}"
        async with (
            AsyncClient(broker.url) as client,
            worker_process(
                url, tmp_path / "log", "-v", "--backend", "echo://", environment=environment
            ) as process,
        ):
            answer = await client.submit(chat="hi", model="echo", wait_for_node=True).result(timeout=60)
            assert answer.text == "hi"
            command = " ".join(psutil.Process(process.process.pid).cmdline())
            process.process.terminate()
            assert await process.exit_status() == 0
        assert "hunter2" not in command
        assert "has joined" in process.said()
        assert "hunter2" not in process.said()


async def test_a_wrong_command_line_says_what_is_wrong(tmp_path: Path) -> None:
    cases = {
        ("--model", "/nowhere/m.gguf"): (2, "there is no model file /nowhere/m.gguf"),
        ("--backend", "http://127.0.0.1:1"): (2, "--backend http://127.0.0.1:1: "),
        ("--backend", "echo://", "--redis", "redis://:hunter2@127.0.0.1:1"): (3, "redis://:***@127.0.0.1:1"),
    }
    for arguments, (status, said) in cases.items():
        async with worker_process("redis://127.0.0.1:1", tmp_path / "log", *arguments) as process:
            assert await process.exit_status() == status
            assert said in process.said()
            assert "hunter2" not in process.said()
            assert "Traceback" not in process.said()


def _llama_servers(process: WorkerProcess) -> list[psutil.Process]:
    children = psutil.Process(process.process.pid).children(recursive=True)
    return [child for child in children if "llama-server" in child.name()]


async def test_a_redis_on_the_network_without_a_password_is_refused(tmp_path: Path) -> None:
    # 192.0.2.0/24 is nobody's.
    async with worker_process("redis://192.0.2.1", tmp_path / "log") as process:
        assert await process.exit_status() == 3
        assert "whoever reaches it could read every prompt" in process.said()
        assert "--insecure" in process.said()
    async with worker_process("redis://192.0.2.1", tmp_path / "log", "--insecure") as process:
        await wait_until(lambda: "found no LLM server" in process.said(), timeout=20, what="it to go on")
        assert "could read every prompt" not in process.said()
