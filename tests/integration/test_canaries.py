"""A prompt and some secrets are put in, and then looked for wherever they must not be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from fabric import WorkerProcess, worker, worker_process
from fabric_kit import fabric_at
from sollol import AsyncClient, SollolError
from sollol_broker.child import without_secrets
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.operations import Operations
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

PROMPT = "xylophone-canary"
# A password of Redis, a backend's API key, a payload key, a secret of the system's own.
SECRETS = {
    "SOLLOL_REDIS_PASSWORD": "hunter2-canary",
    "SOLLOL_BACKEND_API_KEY": "sk-backend-canary",
    "SOLLOL_PAYLOAD_KEY_FILE": "",
}
PAYLOAD_KEY = "c0ffee" * 10 + "cafe"


@pytest.fixture
def locked() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(appendonly=False, port=0, password=SECRETS["SOLLOL_REDIS_PASSWORD"]) as server:
        yield server


@pytest.fixture
async def process(
    locked: EmbeddedBroker, toy_chat_model: Path, tmp_path: Path
) -> AsyncIterator[WorkerProcess]:
    """A worker that says all it can, with a llama-server of its own; everything of it lies under tmp_path."""
    (tmp_path / "payload.key").write_text(PAYLOAD_KEY)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {
        **SECRETS,
        "SOLLOL_PAYLOAD_KEY_FILE": str(tmp_path / "payload.key"),
        "TMPDIR": str(scratch),
    }
    url = f"redis://127.0.0.1:{locked.port}/0"
    model = f"toy={toy_chat_model}"
    async with worker_process(
        url, tmp_path / "log", "-v", "--model", model, environment=environment
    ) as started:
        yield started


def _tells(text: str | bytes) -> list[str]:
    """Which of the canaries a text holds."""
    text = text if isinstance(text, str) else text.decode(errors="replace")
    return [each for each in (PROMPT, PAYLOAD_KEY, *filter(None, SECRETS.values())) if each in text]


async def test_logs_commands_and_redis_tell_neither_prompts_nor_secrets(
    locked: EmbeddedBroker, process: WorkerProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with AsyncClient(f"{locked.url}?payload_key_file={tmp_path / 'payload.key'}", app="keys") as client:
        await wait_until(client.models, timeout=60, what="the model")
        job = client.submit(chat=PROMPT, model="toy", stream=True, options={"num_predict": 200})
        pieces = [piece async for piece in job]
        assert len(pieces) > 1
        with pytest.raises(SollolError) as refused:
            await client.submit(chat=f"{PROMPT} " * 4000, model="toy")  # more than its context takes
        assert _tells(str(refused.value)) == []
        told = await _command(
            locked, tmp_path, "chat", "-", "--model", "toy", "--option", "num_predict=50", stdin=PROMPT
        )
        told += await _command(locked, tmp_path, "jobs", job.id)
        told += await _command(locked, tmp_path, "explain", job.id)
        told += await _command(locked, tmp_path, "doctor")
        told += await _command(locked, tmp_path, "nodes", "--redis", "redis://:wrong@127.0.0.1:1")
        assert _tells(told) == []
        seen = set()
        for each in _parts(process, locked):
            with contextlib.suppress(psutil.NoSuchProcess):  # some only look at the hardware
                assert _tells(" ".join(each.cmdline())) == [], each.name()
                if each.pid != process.process.pid:
                    assert _tells(" ".join(each.environ().values())) == [], each.name()
                seen.add(each.name())
        assert seen >= {"llama-server", "valkey-server"}
    with redis.Redis.from_url(locked.url) as raw:
        assert _tells(str(raw.client_list())) == []
        assert raw.slowlog_get() == []
    assert any("llama" in path.name for path in (tmp_path / "scratch").rglob("*.log"))
    assert _files_that_tell(tmp_path, locked.log) == {}
    process.process.terminate()
    assert await process.exit_status() == 0
    assert _files_that_tell(tmp_path, locked.log) == {}
    assert "has joined" in process.said()
    assert [record for record in caplog.records if _tells(str(vars(record)) + record.getMessage())] == []


def _parts(process: WorkerProcess, server: EmbeddedBroker) -> list[psutil.Process]:
    """The worker, its children, and Redis."""
    agent = psutil.Process(process.process.pid)
    return [agent, psutil.Process(server.pid or 0), *agent.children(recursive=True)]


def _files_that_tell(folder: Path, *more: Path) -> dict[Path, list[str]]:
    """Logs and whatever else was left, with the canaries in it."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "payload.key"]
    found = {path: _tells(path.read_bytes()) for path in (*files, *more)}
    return {path: tells for path, tells in found.items() if tells}


async def _command(locked: EmbeddedBroker, tmp_path: Path, *arguments: str, stdin: str = "") -> str:
    """All that `sollol …` says, with debugging on."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sollol.cli", *arguments),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env={
            **os.environ,
            **SECRETS,
            "SOLLOL_PAYLOAD_KEY_FILE": str(tmp_path / "payload.key"),
            "SOLLOL_REDIS_URL": f"redis://127.0.0.1:{locked.port}/0",
            "SOLLOL_DEBUG": "1",
        },
    )
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), timeout=120)
    return (out + err).decode()


async def test_what_we_start_listens_on_loopback_only(locked: EmbeddedBroker, process: WorkerProcess) -> None:
    async with AsyncClient(locked.url) as client:
        await wait_until(client.models, timeout=60, what="the model")
    listening = set()
    for part in _parts(process, locked):
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = part.net_connections("inet")
            listening |= {
                (part.name(), each.laddr.ip) for each in connections if each.status == psutil.CONN_LISTEN
            }
    assert {name for name, _ in listening} >= {"llama-server", "valkey-server"}
    assert {address for _, address in listening} <= {"127.0.0.1", "::1"}


def test_servers_do_not_inherit_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLLOL_REDIS_PASSWORD", "hunter2")
    assert "PATH" in without_secrets()
    assert not [name for name in without_secrets() if name.startswith("SOLLOL_")]


# --- what lies in Redis, and for how long


def _left(url: str) -> dict[str, list[str]]:
    """Keys that hold a canary, by key; whole values, in whatever type."""
    with redis.Redis.from_url(url) as raw:
        keys = [bytes(key) for key in raw.scan_iter(count=1000)]
        found = {key.decode(): _tells((raw.dump(key) or b"") + key) for key in keys}
    return {key: tells for key, tells in found.items() if tells}


async def test_nothing_is_left_when_the_results_have_run_out(redis_url: str) -> None:
    """Not even in the inbox of a client that goes on."""
    async with (
        OllamaDouble([DoubleModel("tiny", answer=f"{PROMPT} sings")]) as ollama,
        worker(redis_url, ollama.url),
        AsyncClient(redis_url, app="keys") as client,
    ):
        with redis.Redis.from_url(redis_url) as raw:
            raw.config_set("rdbcompression", "no")  # DUMP shows text as it is
        jobs = [
            client.submit(chat=PROMPT, model="tiny", result_ttl=1.0, stream=stream, cache=True)
            for stream in (True, False)
        ]
        await asyncio.gather(*jobs)
        assert _left(redis_url), "the search finds nothing while there is something"
        await wait_until(lambda: not _left(redis_url), timeout=15, what="all of it to be gone")


async def test_a_dead_letter_is_gone_when_it_is_dropped(redis_url: str) -> None:
    async with fabric_at(redis_url) as fabric:
        with redis.Redis.from_url(redis_url) as raw:
            raw.config_set("rdbcompression", "no")
        await fabric.worker()
        await fabric.submit("j1", envelope=PROMPT.encode(), blobs=(PROMPT.encode(),))
        for _ in range(3):
            await fabric.claim_one()
            await fabric.expire_lease("j1")
            await fabric.reap()
        assert list(_left(redis_url)) == [fabric.keys.blob("j1")]
        assert await Operations(fabric.broker).drop(["j1"]) == {"j1": "dropped"}
        assert _left(redis_url) == {}
