"""The live log: what each process says there, what is left out, and how it is read."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import CliRunner

from fabric import CHAT_MODEL, worker
from fabric_kit import Fabric, fabric_at
from gateway_kit import gateway
from sollol import AsyncClient, BackendError, NoNodeForModel
from sollol.cli.app import app
from sollol_broker.live_log import LiveLog
from sollol_broker.log_entry import Level, LogEntry, LogFilter
from sollol_broker.log_reader import LogReader
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

_CANARY = "walrus-canary"


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


@asynccontextmanager
async def _speaker(fabric: Fabric, *, sample: float | None = 1.0) -> AsyncIterator[LiveLog]:
    live = LiveLog(fabric.broker, source="worker", process="w1", node="n1", sample=sample)
    live.start()
    try:
        yield live
    finally:
        await live.stop()


async def _lines(fabric: Fabric, is_enough: Callable[[list[LogEntry]], object]) -> list[LogEntry]:
    """The log, once it has what is waited for."""
    reader, found = LogReader(fabric.broker), list[LogEntry]()

    async def has_it() -> object:
        found[:] = await reader.last(10_000)
        return is_enough(found)

    await wait_until(has_it, timeout=20, what="lines in the live log")
    return found


def _of_jobs(lines: list[LogEntry]) -> list[LogEntry]:
    """Without what a busy machine makes a worker say besides."""
    return [line for line in lines if "job" in line.fields]


async def test_how_jobs_end_is_told_but_not_what_was_asked(redis_url: str, fabric: Fabric) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url, node="n7", log_sample=1.0, most_errors=2),
        AsyncClient(redis_url, app="web") as client,
    ):
        answered = client.submit(chat=_CANARY, model="tiny")
        await answered
        # The double quotes the request in its error, as servers do.
        ollama.faults.answer_status, ollama.faults.answer_text = 500, f"cannot make sense of {_CANARY}"
        failed = client.submit(chat=_CANARY, model="tiny")
        with pytest.raises(BackendError):
            await failed
        lines = await _lines(fabric, lambda lines: len(_of_jobs(lines)) == 3)
    good, again, bad = _of_jobs(lines)
    assert (good.level, good.source, good.node, good.app) == ("info", "worker", "n7", "web")
    assert (good.event, good.fields["job"], good.fields["model"]) == ("job answered", answered.id, "tiny")
    assert good.fields["output_tokens"] > 0
    assert (again.level, again.fields["attempt"], bad.level) == ("warning", 1, "error")
    assert (bad.event, bad.app, bad.fields["job"]) == ("job failed for good", "web", failed.id)
    assert (bad.fields["error"], bad.fields["status"]) == ("BackendError", "500")
    now = await fabric.now_ms() / 1000
    assert now - 60 < good.at <= again.at <= bad.at <= now
    assert _CANARY not in str(lines)


async def test_one_answered_job_in_ten_is_told(redis_url: str, fabric: Fabric) -> None:
    async with worker(redis_url, "echo://?slots=8"), AsyncClient(redis_url) as client:
        await asyncio.gather(*(client.submit(chat=f"{n}", model="echo", cache=False) for n in range(100)))
    lines = await LogReader(fabric.broker).last(1000)
    told = [line for line in lines if line.event == "job answered"]
    assert len(told) == 10
    assert sum(line.left_out for line in told) == 81


async def test_off_is_off(redis_url: str, fabric: Fabric) -> None:
    async with (
        worker(redis_url, "echo://", log_sample=None),
        AsyncClient(redis_url) as client,
        _speaker(fabric, sample=None) as live,
    ):
        live.capture()
        live.note(Level.ERROR, "something")
        await client.submit(chat="hi", model="echo")
    assert await fabric.call("EXISTS", fabric.keys.log) == 0


async def test_a_line_is_never_waited_for_and_what_is_too_much_is_counted(fabric: Fabric) -> None:
    live = LiveLog(fabric.broker, source="worker", process="w1", sample=1.0)
    for number in range(5_000):  # it is not even started: nothing may wait, nothing may grow
        live.note(Level.INFO, f"info {number}")
        live.note(Level.ERROR, f"error {number}")
    live.start()
    lines = await _lines(fabric, lambda lines: any("missing" in line.event for line in lines))
    await live.stop()
    lines = await LogReader(fabric.broker).last(10_000)
    errors = [line.event for line in lines if line.event.startswith("error ")]
    infos = [line.event for line in lines if line.event.startswith("info ")]
    assert errors[0] == "error 0"
    assert (len(infos) + len(errors), len(infos)) == (1_000, 100)
    (lost,) = [line for line in lines if "missing" in line.event]
    assert (lost.level, lost.fields["lines"], live.dropped) == ("warning", 9_000, 9_000)


async def test_a_redis_that_is_away_costs_lines_not_time(fabric: Fabric) -> None:
    async with _speaker(fabric) as live:
        await fabric.broker.link.drop()
        live.note(Level.INFO, "while it was away")
        assert fabric.broker.link.ready() is None, "the log does not make connections"
        await fabric.call("PING")
        (line,) = await _lines(fabric, bool)
    assert line.event == "while it was away"


async def test_the_log_is_bounded(fabric: Fabric) -> None:
    wire = await fabric.broker.link.open()
    await asyncio.gather(*(wire.send("XADD", fabric.keys.log, "*", "event", "old") for _ in range(11_000)))
    async with _speaker(fabric) as live:
        live.note(Level.ERROR, "new")
        await _lines(fabric, lambda lines: lines[-1].event == "new")
    assert 10_000 <= await fabric.call("XLEN", fabric.keys.log) < 10_200


async def test_a_user_without_the_right_goes_on_without_a_log(fabric: Fabric) -> None:
    async with _speaker(fabric) as live:
        await fabric.call("SET", fabric.keys.log, "no stream: as good as no right")
        live.note(Level.ERROR, "lost")
        await wait_until(lambda: live.dropped == 1, timeout=20, what="the line to be given up")
        await fabric.call("DEL", fabric.keys.log)
        live.note(Level.ERROR, "found")
        lines = await _lines(fabric, bool)
    assert [line.event for line in lines if "missing" not in line.event] == ["found"]


async def test_what_our_modules_log_is_taken_without_the_words_of_foreign_errors(fabric: Fabric) -> None:
    log = logging.getLogger("sollol_worker_agent.some_module")
    async with _speaker(fabric, sample=0.0) as live:
        live.capture()
        log.info("nobody asked for %s", "info")
        log.warning("backend %s is down", "http://me:pass-canary@host:1")
        try:
            raise KeyError(_CANARY)
        except KeyError:
            log.exception("a mistake of ours")
        lines = await _lines(fabric, lambda lines: len(lines) >= 2)
        assert live.dropped == 0
    assert [(line.level, line.event) for line in lines] == [
        ("warning", "backend http://***@host:1 is down"),
        ("error", "a mistake of ours"),
    ]
    assert lines[1].fields["error"] == "KeyError"
    assert lines[1].fields["where"].rpartition(":")[0].endswith("test_live_log")
    assert _CANARY not in str(lines)
    log.warning("nobody listens any more")
    assert len(await LogReader(fabric.broker).last(10)) == 2


async def test_a_client_tells_of_refusals_if_it_is_asked_to(redis_url: str, fabric: Fabric) -> None:
    async with (
        AsyncClient(redis_url, app="quiet") as client,
        AsyncClient(redis_url, app="loud", live_log=0.1) as loud,
    ):
        for each in (client, loud):
            with pytest.raises(NoNodeForModel):
                await each.submit(chat=_CANARY, model="nowhere")
        (line,) = await _lines(fabric, bool)
    assert (line.source, line.app, line.level, line.event) == ("client", "loud", "warning", "job refused")
    assert (line.fields["model"], line.fields["error"]) == ("nowhere", "NoNodeForModel")


async def test_the_gateway_tells_how_requests_end(redis_url: str, fabric: Fabric) -> None:
    async with worker(redis_url, "echo://", log_sample=None), gateway(redis_url, log_sample=1.0) as http:
        body = {"model": "echo", "messages": [{"role": "user", "content": _CANARY}]}
        assert (await http.post("/api/chat", json=body)).status_code == 200
        assert (await http.get(f"/{_CANARY}")).status_code == 404
        await http.get("/livez")
        lines = await _lines(fabric, lambda lines: len(lines) == 2)
    assert [line.source for line in lines] == ["gateway"] * 2
    assert [line.fields["status"] for line in lines] == [200, 404]
    assert lines[0].fields["path"] == "/api/chat"
    assert _CANARY not in str(lines)


async def test_whoever_follows_gets_what_is_wanted_as_it_comes(redis_url: str, fabric: Fabric) -> None:
    reader = LogReader(fabric.broker)
    got: list[LogEntry] = []

    async def follow() -> None:
        async for line in reader.follow(LogFilter(Level.WARNING, app="web")):
            got.append(line)

    async with _speaker(fabric) as live:
        live.note(Level.ERROR, "before", app="web")
        await _lines(fabric, bool)
        following = asyncio.create_task(follow())

        def has_begun() -> bool:
            live.note(Level.ERROR, "begun", app="web")
            return bool(got)

        await wait_until(has_begun, timeout=20, what="the first line")
        live.note(Level.INFO, "info", app="web")
        live.note(Level.ERROR, "of another", app="other")
        live.note(Level.WARNING, "first", app="web")
        await wait_until(lambda: got[-1].event == "first", timeout=20, what="the warning")
        # Redis throws everybody out: it goes on behind what it has read.
        await fabric.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await fabric.call("PING")
        live.note(Level.ERROR, "second", app="web")
        await wait_until(lambda: got[-1].event == "second", timeout=20, what="the line after that")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert [line.event for line in got if line.event != "begun"] == ["first", "second"]
    assert [line.event for line in await reader.last(2, LogFilter(app="web"))] == ["first", "second"]


def _run(url: str, *args: str) -> Any:
    return CliRunner().invoke(app, ["logs", *args, "--redis", url])


def test_the_command_shows_what_was_said(redis_url: str) -> None:
    said = _run(redis_url)
    assert (said.exit_code, said.stdout) == (0, "")
    assert "Nothing has been said yet" in said.stderr

    async def speak() -> None:
        async with fabric_at(redis_url) as fabric, _speaker(fabric) as live:
            live.note(Level.INFO, "job answered", app="web", job="j1", run_ms=12)
            live.note(Level.ERROR, "job \x1b[31mfailed", app="batch", job="j2")
            await _lines(fabric, lambda lines: len(lines) == 2)

    asyncio.run(speak())
    first, second = _run(redis_url).stdout.splitlines()
    assert first.split()[1:] == ["info", "worker", "n1", "job", "answered", "app=web", "job=j1", "run_ms=12"]
    assert "error    worker n1  job [31mfailed  app=batch job=j2" in second
    (plain,) = map(json.loads, _run(redis_url, "--json", "--app", "web").stdout.splitlines())
    assert (plain["event"], plain["fields"]) == ("job answered", {"job": "j1", "run_ms": 12})
    assert _run(redis_url, "--level", "error").stdout == second + "\n"
    assert _run(redis_url, "--node", "n2").stdout == ""
    assert "No line of the log is like that" in _run(redis_url, "--node", "n2").stderr
    assert _run(redis_url, "--limit", "1").stdout == second + "\n"
    assert _run(redis_url, "--level", "loud").exit_code == 2


async def test_the_command_follows(redis_url: str, fabric: Fabric) -> None:
    async with _speaker(fabric) as live:
        live.note(Level.INFO, "before")
        await _lines(fabric, bool)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sollol.cli", "logs", "-f", "--json", "--redis", redis_url),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            for event in ("before", "meanwhile", "after that"):
                async with asyncio.timeout(30):
                    assert json.loads(await process.stdout.readline())["event"] == event
                live.note(Level.INFO, "meanwhile" if event == "before" else "after that")
        finally:
            process.terminate()
            await process.wait()
