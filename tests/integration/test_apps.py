"""Applications: they show themselves, and what became of their jobs is counted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner

from fabric import CHAT_MODEL, worker
from fabric_kit import fabric_at
from gateway_kit import gateway
from sollol import AsyncClient, BackendError, JobCancelled
from sollol.cli.app import app
from sollol_broker.apps import AppView, _per_minute
from sollol_broker.facts_reader import FactsReader
from sollol_broker.keys import Keys
from sollol_coordinator.page.config import PageConfig
from sollol_coordinator.page.looks import PageLooks
from sollol_worker_agent.doubles import OllamaDouble


async def test_what_became_of_an_applications_jobs_is_counted(redis_url: str) -> None:
    async with (
        OllamaDouble([CHAT_MODEL]) as ollama,
        worker(redis_url, ollama.url, most_errors=1),
        AsyncClient(redis_url, app="web", metadata={"version": "1.2"}) as client,
        AsyncClient(redis_url, app="other") as other,
    ):
        answers = [await client.submit(chat=f"{number}", model="tiny") for number in range(3)]
        ollama.tokens_may_flow.clear()
        job = client.submit(chat="never", model="tiny")
        await job.cancel()
        with pytest.raises(JobCancelled):
            await job
        ollama.tokens_may_flow.set()
        ollama.faults.answer_status, ollama.faults.answer_text = 500, "out of order"
        failed = client.submit(chat="fails", model="tiny")
        with pytest.raises(BackendError):
            await failed
        ollama.faults.answer_status = 0
        await client.retry(failed.id)
        await client.attach(failed.id)
        shown = {view.name: view for view in await other.apps()}
    web = shown["web"]
    assert (web.submitted, web.done, web.failed, web.cancelled) == (6, 4, 1, 1)
    assert web.error_rate == 0.2
    assert (web.is_live, web.own_version) == (True, "1.2")
    assert web.tokens_in >= sum(answer["prompt_eval_count"] for answer in answers) > 0
    assert web.tokens_out >= sum(answer["eval_count"] for answer in answers) > 0
    assert 0 < web.per_minute <= 6
    assert web.seen_seconds_ago < 60
    assert (shown["other"].submitted, shown["other"].error_rate) == (0, 0.0)


async def test_who_asks_through_a_gateway_is_an_application_too(redis_url: str) -> None:
    async with worker(redis_url, "echo://"), gateway(redis_url) as http, AsyncClient(redis_url) as client:
        body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
        answer = await http.post("/api/chat", json=body, headers={"X-Sollol-App": "chat-ui"})
        assert answer.status_code == 200
        shown = {view.name: view for view in await client.apps()}
        assert (shown["chat-ui"].submitted, shown["chat-ui"].is_live, shown["gateway"].is_live) == (
            1,
            False,
            True,
        )


async def test_who_is_silent_is_forgotten_but_its_counts_stay_for_a_week(redis_url: str) -> None:
    keys = Keys()
    async with fabric_at(redis_url) as fabric, worker(redis_url, "echo://"):
        async with AsyncClient(redis_url, app="batch") as client:
            await client.submit(chat="hi", model="echo")
            assert await fabric.call("PTTL", keys.app("batch")) > 60_000
        assert 0 < await fabric.call("PTTL", keys.app("batch")) <= 25_000
        assert 6 * 24 * 3600 < await fabric.call("TTL", keys.usage("batch")) <= 7 * 24 * 3600
        await fabric.call("DEL", keys.app("batch"))
        await fabric.call("ZADD", keys.apps, await fabric.now_ms() - 3_600_000, "batch")
        async with AsyncClient(redis_url, app="looks") as client:
            assert [view.name for view in await client.apps()] == ["looks"]
            silent = (await client.apps(silent=True))[0]
        assert (silent.name, silent.is_live, silent.done) == ("batch", False, 1)
        assert 3_500 < silent.seen_seconds_ago < 3_700


async def test_whatever_an_application_shows_is_read(redis_url: str) -> None:
    async with fabric_at(redis_url) as fabric, AsyncClient(redis_url, app="a") as client:
        for metadata in ("", "no json", "[1]", '"text"'):
            await fabric.call("HSET", fabric.keys.app("a"), "metadata", metadata)
            (view,) = await client.apps()
            assert view.metadata == {}
        assert AppView("x", metadata={"version": None}).own_version == ""


async def test_however_many_name_themselves_the_page_reads_few_of_them(redis_url: str) -> None:
    """Callers of a gateway name themselves as they like."""
    async with fabric_at(redis_url) as fabric, AsyncClient(redis_url, app="last") as client:
        now = await fabric.now_ms()
        many = [part for at in range(1000) for part in (now - 1000 - at, f"app{at}")]
        await fabric.call("ZADD", fabric.keys.apps, *many, now - 200_000, "silent")
        looks = PageLooks(fabric.broker, PageConfig())
        for look, most in ((looks.overview, 100), (looks.apps, 650)):
            before = looks.spent()
            told = await look({})
            assert looks.spent() - before < most
        facts = await FactsReader(fabric.broker).read()
        assert (facts.apps_in_all, len(facts.apps), "last" in facts.apps) == (1001, 500, True)
        assert told["apps_in_all"] == 1002
        assert [app["name"] for app in told["apps"]] == ["last"]  # the others have nothing to tell
        assert [view.name for view in await client.apps()] == ["last"]


@pytest.mark.parametrize(
    ("now", "rate"),
    [(600_000, 30), (615_000, 25), (659_999, 10), (660_000, 10), (690_000, 5), (720_000, 0), (9e12, 0)],
)
def test_the_rate_slides_over_the_minute(now: float, rate: float) -> None:
    counts = {"minute": "10", "this": "10", "last": "20"}
    assert _per_minute(counts, now) == pytest.approx(rate, abs=0.1)
    assert _per_minute({}, now) == 0


def _run(url: str, *args: str) -> Any:
    return CliRunner().invoke(app, ["apps", *args, "--redis", url])


def test_the_command(redis_url: str) -> None:
    async def ask() -> None:
        async with worker(redis_url, "echo://"), AsyncClient(redis_url, app="web") as client:
            await client.submit(chat="hi", model="echo")

    asyncio.run(ask())
    said = _run(redis_url)
    row = next(line for line in said.stdout.splitlines() if line.startswith("web"))
    assert row.split()[0] == "web"
    assert "0.0%" in row
    plain = {each["name"]: each for each in json.loads(_run(redis_url, "--json").stdout)}
    assert (plain["web"]["submitted"], plain["web"]["done"]) == (1, 1)
    assert "web" in _run(redis_url, "--all").stdout
