"""The command line as a newcomer types it: a process of its own, against a real Redis and a worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sollol_broker.broker import Broker
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.url import parse
from sollol_client import AsyncClient
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import connect
from sollol_worker_agent.config import WorkerConfig
from waiting import wait_until

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout as JSON: that, and nothing else, may be there."""
        return json.loads(self.out)


async def start(url: str, *args: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    environ = {**os.environ, "SOLLOL_REDIS_URL": url}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sollol.cli", *args, stdin=pipe, stdout=pipe, stderr=pipe, env=environ
    )


async def end(process: asyncio.subprocess.Process, stdin: str = "") -> Said:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        out, err = await process.communicate(stdin.encode())
    return Said(process.returncode or 0, out.decode(), err.decode())


async def sollol(url: str, *args: str, stdin: str = "") -> Said:
    return await end(await start(url, *args), stdin)


@asynccontextmanager
async def serving(url: str, backend: str, *, node: str = "n1") -> AsyncIterator[Agent]:
    agent = Agent(parse(url), WorkerConfig(node=node), [await connect(backend)])
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop(drain_seconds=0)


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[str]:
    """The URL of a fabric with one node."""
    async with serving(redis_url, "echo://?slots=4&models=echo,echo-embed"):
        yield redis_url


async def test_chat_shows_the_answer_and_where_it_came_from(fabric: str) -> None:
    said = await sollol(fabric, "chat", "Why is the sky blue?")
    assert said.code == 0
    assert said.out == "Why is the sky blue?\n"
    model, routing = said.err.splitlines()
    assert model == "model echo"
    parts = routing.split(" · ")
    assert parts[0] == "n1"
    assert parts[1].startswith("n1.")
    assert parts[-1] == "attempt 1"


async def test_chat_reads_stdin_and_streams_nothing_when_told_so(fabric: str) -> None:
    said = await sollol(
        fabric, "chat", "-", "-m", "echo", "--system", "Be brief.", "--no-stream", stdin="from a pipe"
    )
    assert (said.code, said.out) == (0, "from a pipe\n")


async def test_chat_as_json(fabric: str) -> None:
    answer = (await sollol(fabric, "chat", "Hi", "--json", "--option", "temperature=0")).json
    assert answer["message"] == {"role": "assistant", "content": "Hi"}
    assert answer["text"] == "Hi"
    assert answer["done"] is True
    assert answer["routing"]["node"] == "n1"
    assert (await sollol(fabric, "jobs", answer["job"], "--json")).json["state"] == "done"


async def test_submit_returns_at_once_and_attach_shows_the_answer(fabric: str) -> None:
    submitted = await sollol(fabric, "submit", "-m", "echo", "--chat", "Hello")
    job_id = submitted.out.strip()
    assert submitted.code == 0
    attached = await sollol(fabric, "attach", job_id)
    assert (attached.code, attached.out) == (0, "Hello\n")
    assert (await sollol(fabric, "attach", job_id, "--json")).json["text"] == "Hello"


async def test_submit_waits_when_told_so(fabric: str) -> None:
    said = await sollol(fabric, "submit", "-m", "echo", "--generate", "Once", "--wait")
    assert (said.code, said.out) == (0, "Once\n")
    said = await sollol(fabric, "submit", "-m", "echo-embed", "--embed", "a", "--embed", "b", "--wait")
    assert [len(json.loads(line)) for line in said.out.splitlines()] == [8, 8]
    said = await sollol(fabric, "submit", "-m", "echo-embed", "--embed", "a", "--wait", "--json")
    assert len(said.json["embeddings"]) == 1


async def test_the_same_idempotency_key_is_the_same_job(fabric: str) -> None:
    args = ("submit", "-m", "echo", "--chat", "Hello", "--idempotency-key", "order-17", "--json")
    first, second = (await sollol(fabric, *args)).json, (await sollol(fabric, *args)).json
    assert first == second
    assert len((await sollol(fabric, "jobs", "--json")).json) == 1


async def test_what_is_there(fabric: str) -> None:
    await sollol(fabric, "chat", "Hi", "-m", "echo")
    expected = {
        "nodes": ("NODE", "n1", "echo*, echo-embed*", "0/4"),
        "models": ("MODEL", "echo-embed", "embed", "n1"),
        "queues": ("WAITING", "echo"),
        "jobs": ("STATE", "done", "echo", "n1"),
        "stats": ("submitted", "1 done", "100.00%", "n1"),
    }
    for command, words in expected.items():
        said = await sollol(fabric, command)
        assert said.code == 0, said.err
        for word in words:
            assert word in said.out, f"{command} does not show {word!r}:\n{said.out}"


async def test_what_is_there_as_json(fabric: str) -> None:
    await sollol(fabric, "chat", "Hi", "-m", "echo")
    (node,) = (await sollol(fabric, "nodes", "--json")).json
    assert node["name"] == "n1"
    assert node["workers"][0]["slots"] == 4
    assert node["hardware"]["ram_total_mib"] > 0
    assert node["finished"] == {"done": 1}
    models = (await sollol(fabric, "models", "--json")).json
    assert [model["name"] for model in models] == ["echo", "echo-embed"]
    assert {queue["model"] for queue in (await sollol(fabric, "queues", "--json")).json} >= {"echo"}
    (job,) = (await sollol(fabric, "jobs", "--json")).json
    assert (job["state"], job["model"], job["app"]) == ("done", "echo", "sollol-cli")
    assert (await sollol(fabric, "stats", "--json")).json["jobs"]["done"] == 1


async def test_an_empty_fabric_says_what_to_do_next(redis_url: str) -> None:
    for command, advice in {
        "nodes": "sollol-worker --redis URL",
        "models": "sollol up",
        "queues": "sollol up",
        "jobs": "sollol chat",
        "stats": "sollol chat",
    }.items():
        said = await sollol(redis_url, command)
        assert said.code == 0
        assert advice in said.out
    for command in ("nodes", "models", "queues", "jobs"):
        assert (await sollol(redis_url, command, "--json")).json == []


async def test_a_model_that_nobody_serves(fabric: str, redis_url: str) -> None:
    for args in (("chat", "Hi", "-m", "nope"), ("submit", "-m", "nope", "--chat", "Hi")):
        said = await sollol(fabric, *args)
        assert said.code == 4
        assert said.out == ""
        assert said.err.startswith("error: no node serves nope (n1: ")
    said = await sollol(fabric, "chat", "Hi", "-m", "nope", "--json")
    assert said.code == 4
    assert said.json["error"] == "NoNodeForModel"
    assert "n1" in said.json["reasons"]


async def test_chat_without_any_worker(redis_url: str) -> None:
    said = await sollol(redis_url, "chat", "Hi")
    assert said.code == 4
    assert "`sollol up`" in said.err


async def test_a_job_that_is_not_known(fabric: str) -> None:
    for command in ("attach", "jobs", "cancel"):
        said = await sollol(fabric, command, "0123456789ab")
        assert said.code == 5, command
        assert said.err.startswith("error: job 0123456789ab is not known here")


@pytest.mark.parametrize("is_json", [False, True])
async def test_ctrl_c_leaves_the_job_running_and_tells_its_id(redis_url: str, is_json: bool) -> None:
    async with (
        serving(redis_url, "echo://?tokens=1000&token_ms=50&models=slow"),
        AsyncClient(redis_url, app="test") as client,
    ):
        process = await start(redis_url, "chat", "never ends", "-m", "slow", *(["--json"] if is_json else []))
        await wait_until(lambda: _running(client), timeout=_PATIENCE_SECONDS, what="the job to run")
        (job_id,) = await _running(client)
        if not is_json:
            assert process.stdout is not None
            assert await process.stdout.readexactly(6) == b"never "
        process.send_signal(signal.SIGINT)
        said = await end(process)
        assert said.code == 130
        assert "Traceback" not in said.err
        for command in ("attach", "jobs", "cancel"):
            assert f"sollol {command} {job_id}" in said.err
        if is_json:
            assert said.json["error"] == "Interrupted"
            assert said.json["job"] == job_id
        assert await _running(client) == [job_id]
        assert await client.cancel(job_id)


async def test_a_running_job_can_be_followed_and_cancelled(redis_url: str) -> None:
    async with serving(redis_url, "echo://?tokens=1000&token_ms=50&models=slow"):
        job_id = (await sollol(redis_url, "submit", "-m", "slow", "--chat", "never ends")).out.strip()
        shown = await sollol(redis_url, "jobs", job_id)
        assert "running" in shown.out
        attached = await start(redis_url, "attach", job_id)
        assert attached.stdout is not None
        assert await attached.stdout.readexactly(6) == b"never "
        cancelled = await sollol(redis_url, "cancel", job_id, "--json")
        assert cancelled.json == {"job": job_id, "cancelled": True, "state": "cancelled"}
        assert (await end(attached)).code == 5
        again = await sollol(redis_url, "cancel", job_id)
        assert (again.code, again.out) == (0, f"job {job_id} is cancelled\n")


async def test_a_job_that_has_ended_is_not_cancelled(fabric: str) -> None:
    job_id = (await sollol(fabric, "chat", "Hi", "--json")).json["job"]
    said = await sollol(fabric, "cancel", job_id)
    assert (said.code, said.out) == (0, f"job {job_id} had already ended: it is done\n")


async def test_a_deadline_that_passes(redis_url: str) -> None:
    async with serving(redis_url, "echo://?tokens=1000&token_ms=50&models=slow"):
        said = await sollol(redis_url, "chat", "too slow", "-m", "slow", "--no-stream", "--deadline", "0.3")
        assert said.code == 7
        assert "deadline" in said.err


async def test_doctor_of_a_fabric_that_works(fabric: str) -> None:
    said = await sollol(fabric, "doctor")
    # The server of the tests writes nothing to disk, and the doctor says so.
    assert said.code == 1
    assert "nothing is written to disk: when Redis restarts, every job and answer is lost" in said.out
    assert "0 errors, 1 warning" in said.out
    found = (await sollol(fabric, "doctor", "--json")).json
    assert found["worst"] == "warning"
    severities = {finding["id"]: finding["severity"] for finding in found["findings"]}
    assert severities.pop("persistence.mode") == "warning"
    # What else listens on the machine that runs the tests is not ours.
    severities.pop("listeners.open")
    assert set(severities.values()) == {"ok"}
    assert {"redis.release", "access.open", "functions.usable", "workers.connected", "backends.up", "clock.workers",
            "gpus.readable", "slowlog.prompts", "queues.waiting"} <= set(severities)  # fmt: skip


async def test_doctor_of_a_durable_fabric_is_content(tmp_path: Path) -> None:
    broker = EmbeddedBroker(directory=tmp_path)
    await asyncio.to_thread(broker.start)
    try:
        async with serving(broker.url, "echo://"):
            said = await sollol(broker.url, "doctor", "--json")
    finally:
        await asyncio.to_thread(broker.stop)
    others = {each["id"] for each in said.json["findings"] if each["severity"] not in ("ok", "note")}
    assert others <= {"listeners.open"}


async def test_doctor_tells_of_workers_that_vanished_a_moment_ago_and_not_of_older_ones(
    redis_url: str,
) -> None:
    broker = Broker(parse(redis_url), name="test")
    await broker.open()
    now_ms = 1000 * int((await broker.link.call("TIME"))[0])
    await broker.link.call("ZADD", broker.keys.workers, now_ms - 5_000, "w1", now_ms - 600_000, "w2")
    await broker.close()
    said = await sollol(redis_url, "doctor")
    assert "1 worker went within the last minute without taking leave" in said.out


async def test_doctor_without_a_worker(redis_url: str) -> None:
    said = await sollol(redis_url, "doctor")
    assert said.code == 2
    assert "none is connected" in said.out
    assert "sollol up" in said.out


async def test_doctor_of_a_user_who_may_not_look(fabric: str) -> None:
    async with AsyncClient(fabric, app="test") as client:
        rights = ("on", ">pw", "~*", "&*", "+@all", "-info", "-config", "-function", "-acl", "-slowlog")
        await client.session.broker.link.call("ACL", "SETUSER", "guest", *rights)
        try:
            said = await sollol(fabric.replace("unix://", "unix://guest:pw@"), "doctor")
        finally:
            await client.session.broker.link.call("ACL", "DELUSER", "guest")
    assert said.code == 1
    assert "not seen: INFO, CONFIG, ACL WHOAMI, SLOWLOG, FUNCTION (not allowed to look)" in said.out
    assert "1 worker on 1 node, 4 slots" in said.out
    assert "pw@" not in said.out


async def test_doctor_sees_a_prompt_in_the_slow_log_and_a_library_of_old(fabric: str) -> None:
    async with AsyncClient(fabric, app="test") as client:
        call = client.session.broker.link.call
        await call("CONFIG", "SET", "slowlog-log-slower-than", "0", "slowlog-max-len", "64")
        await call(
            "FUNCTION", "LOAD", "#!lua name=sollol_0123456789ab\nredis.register_function('f', function() end)"
        )
        try:
            await client.submit(chat="the canary", model="echo")
            found = (await sollol(fabric, "doctor", "--json")).json["findings"]
        finally:
            await call("CONFIG", "SET", "slowlog-log-slower-than", "-1", "slowlog-max-len", "0")
            await call("SLOWLOG", "RESET")
            await call("FUNCTION", "DELETE", "sollol_0123456789ab")
    severities = {finding["id"]: (finding["severity"], finding["found"]) for finding in found}
    assert severities["slowlog.prompts"][0] == "warning"
    assert "the canary" not in json.dumps(found)
    assert severities["functions.others"][0] == "note"
    assert "sollol_0123456789ab" in severities["functions.others"][1]


async def _running(client: AsyncClient) -> list[str]:
    return [job.id for job in await client.jobs() if job.state == "running"]


# --- what was asked, written down and played again


async def test_a_recorded_log_can_be_replayed(fabric: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for text in ("one", "two words"):
        await sollol(fabric, "chat", text, "-m", "echo")
    await sollol(fabric, "submit", "-m", "echo-embed", "--embed", "a", "--wait")
    said = await sollol(fabric, "bench", "record", str(log))
    assert (said.code, said.out) == (0, f"3 jobs added to {log}, which has 3 jobs now\n")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    views = {view["id"]: view for view in (await sollol(fabric, "jobs", "--json")).json}
    assert [row["id"] for row in rows] == sorted(views, key=lambda job: views[job]["submitted"])
    assert all(row["prompt_tokens"] == views[row["id"]]["prompt_tokens"] > 0 for row in rows)
    assert [row["model"] for row in rows] == ["echo", "echo", "echo-embed"]
    assert [row["output_tokens"] > 0 for row in rows] == [True, True, False]
    assert "words" not in log.read_text()

    assert (await sollol(fabric, "bench", "record", str(log), "--json")).json["written"] == 0
    replayed = await sollol(fabric, "bench", "replay", str(log), "--json")
    assert replayed.json["jobs"] == 3


async def test_what_comes_later_is_recorded_until_it_is_interrupted(fabric: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    recording = await start(fabric, "bench", "record", str(log), "--follow")
    await wait_until(log.exists, timeout=_PATIENCE_SECONDS, what="the file")
    await sollol(fabric, "chat", "one", "-m", "echo")
    await wait_until(lambda: log.stat().st_size > 0, timeout=_PATIENCE_SECONDS, what="a line")
    recording.send_signal(signal.SIGINT)
    assert (await end(recording)).code == 130
    assert len(log.read_text().splitlines()) == 1
