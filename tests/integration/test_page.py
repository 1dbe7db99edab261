"""The page over a real Redis: what it shows is what lies there, live, and what operators do from it happens."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import ANY

import httpx
import pytest

from fabric_kit import Fabric, fabric_at, node_of
from page_kit import Site, site
from sollol_broker import Envelope, acl
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.log_entry import LogEntry, LogFilter, to_flat
from sollol_broker.registry import Registry
from sollol_coordinator.page.actions import Actions
from sollol_coordinator.page.log_tail import LogTail
from sollol_coordinator.rq_prefix import prefix
from waiting import wait_until


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


@pytest.fixture
async def page(redis_url: str) -> AsyncIterator[Site]:
    async with site(redis_url) as page:
        yield page


async def test_the_numbers_are_those_in_redis(fabric: Fabric, page: Site) -> None:
    await fabric.worker("w1", fields={"state": "up", "slots": "2", "busy": "1"})
    for number in range(5):
        await fabric.submit(f"j{number}")
    claimed = await fabric.claim_one("w1")
    told = await page.look("overview")
    queue = next(each for each in await Registry(fabric.broker).queues() if each.model == "m")
    shown = next(each for each in told["queues"] if each["model"] == "m")
    assert (shown["waiting"], shown["running"]) == (queue.waiting, queue.running) == (4, 1)
    assert (told["totals"]["waiting"], told["totals"]["running"], told["totals"]["submitted"]) == (4, 1, 5)
    assert [node["name"] for node in told["nodes"]] == [node_of("w1")]
    jobs = (await page.look("jobs"))["jobs"]
    assert sorted(job["id"] for job in jobs) == sorted(fabric.submitted)
    assert {job["id"] for job in jobs if job["state"] == "running"} == {"j0"}
    await fabric.broker.finish(claimed.lease, b"", used=fabric.used())
    ended = (await page.look("jobs", state="ended"))["jobs"]
    assert [(job["id"], job["state"]) for job in ended] == [("j0", "done")]


async def test_a_job_is_watched_live_from_queue_to_done(fabric: Fabric, page: Site) -> None:
    await fabric.worker("w1")
    await fabric.submit("j1")
    states: list[str] = []
    async with asyncio.timeout(60):
        async for kind, told in page.events("job", id="j1"):
            assert kind == "look"
            if told["state"] in states:
                continue
            states.append(told["state"])
            if told["state"] == "queued":
                assert told["nodes"][0]["node"] == node_of("w1")
                claimed = await fabric.claim_one("w1")
            elif told["state"] == "running":
                await fabric.broker.finish(claimed.lease, b"", used=fabric.used())
            else:
                break
    assert states == ["queued", "running", "done"]
    assert told["timeline"][0]["what"] == "handed in by tests"
    assert told["output_tokens"] == 100


async def test_a_list_of_many_jobs_comes_page_by_page(fabric: Fabric, page: Site) -> None:
    await fabric.worker("w1", models=("m", "n"))
    for number in range(70):
        await fabric.submit(f"j{number:02}", model="n" if number % 7 == 0 else "m")
    seen: list[str] = []
    offset: int | None = 0
    while offset is not None:
        told = await page.look("jobs", state="waiting", offset=str(offset))
        assert told["length"] == 70
        seen += [job["id"] for job in told["jobs"]]
        offset = told["next_offset"]
    assert sorted(seen) == sorted(fabric.submitted)
    only = await page.look("jobs", model="n")
    assert {job["model"] for job in only["jobs"]} == {"n"}
    assert len(only["jobs"]) == 10
    assert await page.look("jobs", model="N:latest") == only | {"at": ANY}
    assert (await page.look("jobs", app="nobody"))["jobs"] == []


async def test_what_operators_do_happens(fabric: Fabric, page: Site) -> None:
    await fabric.worker("w1")
    await fabric.submit("j1")
    await fabric.submit("j2")
    node = node_of("w1")
    assert (await page.do("priority", job="j2", priority="9")).json() == {"said": "priority 9 from now on"}
    assert await fabric.queue() == ["j2", "j1"]
    assert (await page.do("cancel", job="j2")).json() == {"said": "cancelled"}
    assert await fabric.state("j2") == "cancelled"
    assert (await page.do("cordon", node=node)).json() == {"said": f"{node} takes no new jobs"}
    assert await fabric.claim("w1") == []
    assert "once a worker of that name is there" in (await page.do("cordon", node="typo")).json()["said"]
    assert (await page.do("uncordon", node="typo")).status_code == 200
    assert (await page.do("drain", node=node)).status_code == 200
    assert (await page.do("uncordon", node=node)).status_code == 200
    claimed = await fabric.claim_one("w1")
    assert claimed.lease.job_id == "j1"
    await fabric.expire_lease("j1")
    await fabric.reap(most_crashes=1)
    assert [each["id"] for each in (await page.look("jobs", state="dead"))["jobs"]] == ["j1"]
    assert (await page.do("retry", job="j1")).json() == {"said": "back in line"}
    assert await fabric.state("j1") == "queued"
    for verb, given in (
        ("cancel", {"job": "nobody"}),
        ("cancel", {}),
        ("retry", {"job": "j1", "more": "x"}),
        ("drop", {"job": "j1"}),
        ("priority", {"job": "j1", "priority": "11"}),
        ("priority", {"job": "j1", "priority": "x"}),
        ("cordon", {"node": "x" * 300}),
        ("dissolve", {"group": "none"}),
        ("explode", {}),
    ):
        answer = await page.do(verb, **given)
        is_done = (verb, answer.status_code) == ("retry", 200)  # it is back in line already
        assert is_done or answer.status_code in (400, 409), (verb, given)
        assert is_done or answer.json()["error"]


async def test_a_page_that_may_only_look_says_so(fabric: Fabric, redis_url: str) -> None:
    await fabric.worker("w1")
    await fabric.submit("j1")
    await fabric.call("SADD", f"{prefix()}:queues", "groups")
    await fabric.call("EXPIRE", f"{prefix()}:queues", 60)
    user = acl.user(acl.Role.DASHBOARD)
    await fabric.call("ACL", "SETUSER", user.name, "on", ">secret", *user.rules)
    try:
        async with site(redis_url.replace("unix://", f"unix://{user.name}:secret@")) as page:
            for look in ("overview", "nodes", "jobs", "groups", "batches", "apps", "log", "control"):
                assert await page.look(look)
            token = await page.token()
            given = {"job": "j1", "node": node_of("w1"), "priority": "9", "group": "g"}
            for verb in Actions.VERBS:
                answer = await page.do(verb, token=token, **given)
                assert answer.status_code == 403, verb
                assert answer.json()["error"].startswith("this page may only look"), verb
    finally:
        await fabric.call("ACL", "DELUSER", user.name)
    assert await fabric.state("j1") == "queued"


async def test_of_many_applications_the_latest_are_told(
    fabric: Fabric, page: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sollol_coordinator.page.looks._MOST_APPS", 2)
    now = await fabric.now_ms()
    for number, name in enumerate(("c", "a", "b")):
        await fabric.call("ZADD", fabric.keys.apps, now + number, name)
        await fabric.call("HSET", fabric.keys.usage(name), "submitted", "1")
        await fabric.call("PEXPIRE", fabric.keys.usage(name), 60_000)
    told = await page.look("apps")
    assert [app["name"] for app in told["apps"]] == ["a", "b"]
    assert told["apps_in_all"] == 3


async def test_a_prompt_is_shown_only_where_that_was_allowed(fabric: Fabric, redis_url: str) -> None:
    envelope = Envelope(
        kind="chat", model="m", app="a", payload={"messages": [{"role": "user", "content": "canary"}]}
    )
    await fabric.worker("w1")
    await fabric.submit("j1", envelope=envelope.to_bytes())
    async with site(redis_url) as silent, site(redis_url, show_prompts=True) as open_:
        for page, shown in ((silent, False), (open_, True)):
            for path in ("/api/job?id=j1", "/api/jobs", "/api/overview", "/api/log"):
                assert "canary" not in (await page.http.get(path)).text
            answer = await page.http.get("/prompt", params={"id": "j1"})
            assert ((answer.status_code, answer.json()) == (200, {"text": "user: canary"})) is shown
        assert (await open_.http.get("/prompt", params={"id": "nobody"})).status_code == 409


async def test_every_verb_is_tried_here() -> None:
    tried = {"cancel", "priority", "retry", "drop", "cordon", "uncordon", "drain", "dissolve"}
    assert set(Actions.VERBS) == tried


async def test_the_log_is_filtered_and_what_went_wrong_comes_first(fabric: Fabric, page: Site) -> None:
    for level, node, event in (("info", "a", "job answered"), ("error", "b", "the backend <b>broke</b>")):
        entry = LogEntry("", 0.0, level, "worker", f"{node}.1", node, "app", event)
        await fabric.call("XADD", fabric.keys.log, "*", *to_flat(entry, ago_ms=0))
    assert [line["node"] for line in (await page.look("log"))["lines"]] == ["b", "a"]
    assert [line["node"] for line in (await page.look("log", level="error"))["lines"]] == ["b"]
    assert [line["node"] for line in (await page.look("log", q="ANSWERED"))["lines"]] == ["a"]
    assert (await page.look("log", node="nobody"))["lines"] == []
    assert [line["event"] for line in (await page.look("overview"))["troubles"]] == [
        "the backend <b>broke</b>"
    ]
    assert (await page.http.get("/api/log", params={"level": "loud"})).status_code == 400


async def test_of_a_flood_the_latest_lines_are_shown_and_an_older_copy_of_the_log_too(fabric: Fabric) -> None:
    async def write(*ids: str) -> None:
        for each in ids:
            await fabric.call("XADD", fabric.keys.log, each, "event", each)

    tail = LogTail(fabric.broker)
    everything = LogFilter()
    await write("7000-1")
    await tail.read()
    await write(*(f"8000-{number}" for number in range(1500)))
    await tail.read()
    assert [line.id for line in tail.last(everything)[0][:2]] == ["8000-1499", "8000-1498"]
    await fabric.broker.link.drop()
    await tail.read()
    assert tail.last(everything)[1] == 1001, "the same log again, over another connection"
    await fabric.call("DEL", fabric.keys.log)
    await fabric.broker.link.drop()
    await write("6000-1")
    await tail.read()
    assert [line.id for line in tail.last(everything)[0]] == ["6000-1"]
    await write("6000-2")
    await tail.read()
    assert [line.id for line in tail.last(everything)[0]] == ["6000-2", "6000-1"]


async def test_control_jobs_are_read_from_rqs_keys_and_never_unpickled(fabric: Fabric, page: Site) -> None:
    rq = prefix()
    await fabric.call("SADD", f"{rq}:queues", f"{rq}:queue:groups")
    await fabric.call("ZADD", f"{rq}:failed:groups", 1, "job-1")
    fields = {
        "status": "failed",
        "description": "form group g1",
        "origin": "groups",
        "data": b"\x80\x04never read.",
    }
    fields |= {"created_at": "2026-01-02T03:04:05Z", "exc_info": "Traceback\nCannotForm: no memory"}
    await fabric.call("HSET", f"{rq}:job:job-1", *(part for pair in fields.items() for part in pair))
    for key in (f"{rq}:queues", f"{rq}:failed:groups", f"{rq}:job:job-1"):
        await fabric.call("EXPIRE", key, 60)
    [queue] = (await page.look("control"))["queues"]
    assert queue["counts"]["failed"] == 1
    [job] = queue["jobs"]
    assert (job["description"], job["status"], job["error"]) == (
        "form group g1",
        "failed",
        "CannotForm: no memory",
    )


async def test_of_many_control_jobs_the_latest_are_shown_and_all_are_counted(
    fabric: Fabric, page: Site
) -> None:
    rq = prefix()
    lists = {word: f"{rq}:{word}:groups" for word in ("finished", "failed")}
    await fabric.call("SADD", f"{rq}:queues", f"{rq}:queue:groups")
    for number in range(60):
        await fabric.call("RPUSH", f"{rq}:queue:groups", f"queued-{number}")
        for word, key in lists.items():
            await fabric.call("ZADD", key, number, f"{word}-{number}")
    created = ("created_at", "2026-01-02T03:04:05Z")
    await fabric.call("HSET", f"{rq}:job:failed-59", "status", "failed", *created)
    for key in (f"{rq}:queues", f"{rq}:queue:groups", *lists.values(), f"{rq}:job:failed-59"):
        await fabric.call("EXPIRE", key, 60)
    [queue] = (await page.look("control"))["queues"]
    assert {word: queue["counts"][word] for word in ("queued", *lists)} == dict.fromkeys(
        ("queued", *lists), 60
    )
    assert [job["id"] for job in queue["jobs"]] == ["failed-59"]


async def test_all_looks_answer_in_an_empty_fabric(page: Site) -> None:
    for name in ("overview", "nodes", "jobs", "groups", "batches", "apps", "log", "control"):
        await page.look(name)
    assert "sollol_nodes 0.0" in (await page.http.get("/metrics")).text
    assert (await page.look("job", id="nobody"))["missing"]
    assert (await page.look("node", name="nobody"))["missing"]
    for path in (
        "/api/nothing",
        "/live/nothing",
        "/api/jobs?state=odd",
        "/api/nodes?page=x",
        f"/api/node?name={'x' * 300}",
    ):
        answer = await page.http.get(path)
        assert answer.status_code == 400, path
        assert answer.json()["error"]


async def test_a_redis_that_goes_away_and_comes_back_is_told(tmp_path: Path) -> None:
    with EmbeddedBroker(directory=tmp_path / "redis", socket=tmp_path / "s") as server:
        async with site(server.url) as page, asyncio.timeout(90):
            kinds = []
            async for kind, told in page.events("overview"):
                if kind not in kinds:
                    kinds.append(kind)
                    if kind == "look":
                        await asyncio.to_thread(server.stop)
                    else:
                        assert "Redis" in told["error"]
                        await asyncio.to_thread(server.start)
                elif kind == "look" and len(kinds) == 2:
                    break
            assert kinds == ["look", "trouble"]
            assert (await page.http.get("/readyz")).status_code == 200


async def test_more_browsers_than_there_is_room_for_ask_now_and_then(redis_url: str) -> None:
    async with site(redis_url, most_browsers=2) as page:
        streams = [page.events("overview") for _ in range(2)]
        for stream in streams:
            assert (await anext(stream))[0] == "look"
        refused = await page.http.get("/live/overview")
        assert (refused.status_code, "now and then" in refused.json()["error"]) == (503, True)
        await page.look("overview")
        for stream in streams:
            await stream.aclose()


async def test_the_command_ends_in_order_while_somebody_looks(redis_url: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sollol_coordinator.page.cli", "--port", "0"),
            env={**os.environ, "SOLLOL_REDIS_URL": redis_url},
            stdout=sink,
            stderr=sink,
        )
    try:
        said = tmp_path / "log"
        await wait_until(
            lambda: "the page is at http" in said.read_text(), timeout=30, what="the page to start"
        )
        url = said.read_text().partition("the page is at ")[2].split(",")[0]
        async with (
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http,
            http.stream("GET", "/live/overview") as answer,
        ):
            async for _ in answer.aiter_lines():
                break
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                assert await process.wait() == 0
        assert "Traceback" not in said.read_text()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
