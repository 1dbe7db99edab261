"""What the registry tells of the fabric is what lies in Redis."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from fabric_kit import Fabric, fabric_at, node_of
from sollol_broker import JobState, Registry, Requires
from sollol_broker.registry import AppView


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


@pytest.fixture
def registry(fabric: Fabric) -> Registry:
    return Registry(fabric.broker)


def _model(**more: Any) -> dict[str, Any]:
    return {"kinds": ["chat", "generate"], "size_bytes": 2_000, "context_tokens": 8192, **more}


async def _advertise(
    fabric: Fabric,
    worker: str,
    models: dict[str, dict[str, Any]],
    *,
    loaded: tuple[str, ...] = (),
    **more: str,
) -> None:
    backend = {"kind": "ollama", "url": "http://127.0.0.1:11434", "slots": 2, "busy": 1}
    backends = [{**backend, "down": more.pop("down", ""), "models": models, "loaded": list(loaded)}]
    await fabric.worker(
        worker,
        models=list(models),
        fields={
            **{"state": "up", "version": "1.0", "slots": "2", "busy": "1", "labels": '["eu"]'},
            **{"backends": json.dumps(backends), **more},
        },
        node_fields={"host": f"{worker}.lan", "os": "linux", "hardware": '{"vram_total_mib": 24576}'},
    )


async def _commands(fabric: Fabric) -> int:
    info = (await fabric.broker.link.call("INFO", "stats")).decode()
    return int(info.partition("total_commands_processed:")[2].split()[0])


async def test_a_workers_clock_and_functions(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "old", {})
    await _advertise(fabric, "new", {}, functions="abc", clock=f"{(time.time() + 60) * 1000:.0f}")
    new, old = await registry.workers()
    assert (old.functions, old.clock_ahead_seconds) == ("", None)
    assert new.functions == "abc"
    assert new.clock_ahead_seconds == pytest.approx(60, abs=5)


async def test_what_workers_and_applications_tell_of_themselves(redis_url: str) -> None:
    async with fabric_at(f"{redis_url}?durability=local") as fabric:
        await _advertise(fabric, "w1", {})
        told = {"version": "1.2", "host": "laptop"}
        await fabric.broker.attend("c1", "My App", inbox_ttl_ms=60_000, app_fields=told, app_ttl_ms=60_000)
        await fabric.broker.attend("c2", "gone", inbox_ttl_ms=60_000, app_fields=told, app_ttl_ms=60_000)
        await fabric.call("DEL", fabric.keys.app("gone"))
        registry = Registry(fabric.broker)
        (shown,) = await registry.apps()
        wanted = AppView("My App", "laptop", "1.2", fabric.broker.functions.version, "local")
        assert replace(shown, seen=0.0, seen_seconds_ago=0.0) == wanted
        assert [worker.durability for worker in await registry.workers()] == ["local"]


async def test_an_empty_fabric(registry: Registry) -> None:
    assert await registry.workers() == []
    assert await registry.nodes() == []
    assert await registry.models() == []
    assert await registry.queues() == []
    assert await registry.jobs() == []
    assert await registry.job("nosuchjob") is None
    assert await registry.position("nosuchjob") is None
    assert await registry.reasons("m") == {}
    stats = await registry.stats()
    assert (stats["total_requests"], stats["success_rate"], stats["hosts"]) == (0, 1.0, {})


async def test_nodes_and_their_workers(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "w2", {"a": _model()})
    await _advertise(fabric, "w1", {"a": _model(), "b": _model()}, loaded=("b",))
    first, second = await registry.nodes()
    assert (first.name, first.host, first.os) == (node_of("w1"), "w1.lan", "linux")
    assert first.hardware == {"vram_total_mib": 24576}
    assert second.name == node_of("w2")
    (worker,) = first.workers
    assert (worker.id, worker.state, worker.version, worker.slots, worker.busy) == ("w1", "up", "1.0", 2, 1)
    assert worker.labels == ("eu",)
    assert 0 <= worker.seen_ms_ago < 5_000
    assert {name: info["loaded"] for name, info in worker.models.items()} == {"a": False, "b": True}
    assert worker.backends[0]["kind"] == "ollama"


async def test_a_dead_worker_is_not_shown(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "w1", {"a": _model()})
    await fabric.call("ZADD", fabric.keys.workers, 1, "w1")
    assert await registry.nodes() == []
    assert await registry.models() == []


async def test_models_and_where_they_are(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "w1", {"a": _model(), "e": _model(kinds=["embed"])}, loaded=("a",))
    await _advertise(fabric, "w2", {"a": _model(context_tokens=4096)})
    a, e = await registry.models()
    assert (a.name, a.nodes, a.loaded_on) == ("a", (node_of("w1"), node_of("w2")), (node_of("w1"),))
    assert (a.kinds, a.size_bytes, a.context_tokens) == (("chat", "generate"), 2_000, 8192)
    assert (e.name, e.kinds, e.loaded_on) == ("e", ("embed",), ())


async def test_queues_the_longest_first(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "w1", {"a": _model(), "b:7b": _model(), "c": _model()})
    await fabric.submit("a1", model="a")
    await fabric.submit("a2", model="a")
    await fabric.claim_one(models=["a"])
    for number in range(3):
        await fabric.submit(f"b{number}", model="b:7b")
    queues = {queue.model: (queue.waiting, queue.running, queue.workers) for queue in await registry.queues()}
    assert list(queues) == ["b:7b", "a", "c"]
    assert queues == {"b:7b": (3, 0, 1), "a": (1, 1, 1), "c": (0, 0, 1)}
    assert all(0 <= queue.oldest_seconds < 5 for queue in await registry.queues())


async def test_a_job_from_its_coming_to_its_end(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "w1", {"m": _model()})
    await fabric.submit("j1", priority=7, stream=True)
    job = await registry.job("j1")
    assert job is not None
    assert (job.state, job.model, job.app, job.priority, job.stream) == (
        JobState.QUEUED,
        "m",
        "tests",
        7,
        True,
    )
    assert (job.attempt, job.node, job.claimed, job.first_token, job.ended) == (0, "", 0, 0, 0)
    lease = (await fabric.claim_one()).lease
    await fabric.broker.emit(lease, 1, b"x")
    await fabric.broker.finish(lease, b"answer")
    job = await registry.job("j1")
    assert job is not None
    assert (job.state, job.attempt, job.node, job.worker) == (JobState.DONE, 1, node_of("w1"), "w1")
    assert 0 < job.submitted <= job.claimed <= job.first_token <= job.ended
    assert (job.crashes, job.errors, job.releases) == (0, 0, 0)
    assert json.dumps(job.as_dict())


async def test_jobs_running_then_waiting_then_ended(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "w1", {"m": _model()})
    for name in ("done", "running", "waiting1", "waiting2"):
        await fabric.submit(name)
    await fabric.broker.finish((await fabric.claim_one()).lease, b"answer", fabric.request())
    assert [job.id for job in await registry.jobs()] == ["running", "waiting1", "waiting2", "done"]
    assert [job.id for job in await registry.jobs(limit=1)] == ["running", "waiting1", "done"]


async def test_waiting_jobs_of_the_longest_queue_come_first_and_no_more_than_are_asked_for(
    fabric: Fabric, registry: Registry
) -> None:
    await _advertise(fabric, "w1", {"a": _model(), "b:7b": _model(), "c": _model()})
    for name, model in (("a1", "a"), ("c1", "c"), ("b1", "b:7b"), ("b2", "b:7b")):
        await fabric.submit(name, model=model)
    for limit, ids in (
        (1, ["b1"]),
        (2, ["b1", "b2"]),
        (3, ["b1", "b2", "a1"]),
        (9, ["b1", "b2", "a1", "c1"]),
    ):
        assert [job.id for job in await registry.jobs(limit)] == ids


async def test_what_runs_is_told_by_model_for_little(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "w1", {"a": _model(), "b": _model()})
    for number in range(60):
        await fabric.submit(f"j{number}", model="ab"[number % 2])
    await fabric.broker.claim(fabric.request(models=["a", "b"], free=60))
    assert {each.model: (each.waiting, each.running) for each in await registry.queues()} == {
        "a": (0, 30),
        "b": (0, 30),
    }
    before = await _commands(fabric)
    assert len(await registry.jobs(limit=2)) == 2
    assert await _commands(fabric) - before < 20  # not one for each job that runs


async def test_the_position_in_line(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "w1", {"m": _model()})
    for name in ("j0", "j1", "j2"):
        await fabric.submit(name)
    assert [await registry.position(name) for name in ("j0", "j1", "j2")] == [0, 1, 2]
    lease = (await fabric.claim_one()).lease
    assert [await registry.position(name) for name in ("j0", "j1", "j2")] == [None, 0, 1]
    await fabric.broker.release(lease)
    assert await registry.position("j2") == 2


async def test_the_counters(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "w1", {"m": _model()})
    for name in ("done1", "done2", "done3", "failed", "cancelled"):
        await fabric.submit(name)
    for claimed in await fabric.claim(free=3):
        await fabric.broker.finish(claimed.lease, b"answer")
    failing = (await fabric.claim_one()).lease
    await fabric.broker.fail(failing, b"error", retry=False, most_errors=1, backoff_ms=0)
    await fabric.broker.cancel("cancelled")
    stats = await registry.stats()
    assert stats["total_requests"] == 5
    assert stats["jobs"] == {"done": 3, "failed": 1, "cancelled": 1, "expired": 0, "dead": 0}
    assert stats["success_rate"] == 0.75
    host = stats["hosts"][node_of("w1")]
    assert (host["requests"], host["success_rate"]) == (4, 0.75)
    (node,) = await registry.nodes()
    assert node.finished == {"done": 3, "failed": 1}
    assert 0 < node.busy_seconds < 5


async def test_how_far_predictions_were_off(fabric: Fabric, registry: Registry) -> None:
    models = {
        "m": _model() | {"jobs_seen": 30, "pace_error": 0.1},
        "x": _model() | {"jobs_seen": 10, "pace_error": 0.5},
    }
    await _advertise(fabric, "w1", models)
    await _advertise(fabric, "new", {"m": _model() | {"jobs_seen": 0, "pace_error": 0.0}})
    hosts = (await registry.stats())["hosts"]
    assert hosts[node_of("w1")]["prediction_error"] == 0.221  # e ** 0.2 - 1
    assert hosts[node_of("new")]["prediction_error"] is None


async def test_why_nobody_takes_it(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "has", {"m": _model()})
    await _advertise(fabric, "lacks", {"a": _model()})
    await _advertise(fabric, "down", {}, down="connection refused")
    await _advertise(fabric, "drains", {}, state="draining")
    await _advertise(fabric, "empty", {})
    reasons = await registry.reasons("M:latest", Requires(labels=["us"]))
    assert reasons == {
        node_of("has"): "it serves the model, but does not fit what the job requires",
        node_of("lacks"): "it does not have the model; it has a",
        node_of("down"): "its backend is down: connection refused",
        node_of("drains"): "it is draining",
        node_of("empty"): "it does not have the model; it has no model at all",
    }


@pytest.mark.parametrize(
    "requires", [None, Requires(labels=["eu"], vram_gb=24), Requires(node=node_of("has"))]
)
async def test_a_node_that_serves_the_model_by_now_is_not_said_to_be_unfit(
    fabric: Fabric, registry: Registry, requires: Requires | None
) -> None:
    await _advertise(fabric, "has", {"m": _model()})
    assert await registry.reasons("m", requires) == {
        node_of("has"): "it serves the model now, and did not a moment ago: send the job again"
    }


async def test_no_prompt_shows_anywhere(fabric: Fabric, registry: Registry) -> None:
    await _advertise(fabric, "w1", {"m": _model()})
    await fabric.submit("j1", envelope=b"hunter2", blobs=(b"hunter2",))
    seen = [await registry.jobs(), await registry.queues(), await registry.stats(), await registry.nodes()]
    assert "hunter2" not in repr(seen)


async def test_a_name_that_is_no_plain_part_of_a_key(fabric: Fabric, registry: Registry) -> None:
    await fabric.worker("w9", node="Node With:Colon", models=["hf.co/x:q4"])
    await fabric.submit("j1", model="hf.co/x:q4")
    assert await registry.position("j1") == 0
    assert [queue.model for queue in await registry.queues()] == ["hf.co/x:q4"]
    lease = (await fabric.claim_one("w9", node="Node With:Colon", models=["hf.co/x:q4"])).lease
    await fabric.broker.finish(lease, b"answer")
    assert (await registry.nodes())[0].finished == {"done": 1}


async def test_a_model_that_no_worker_has_ever_served_is_seen_when_jobs_wait_for_it(fabric: Fabric) -> None:
    await fabric.submit("j1", model="Not/Yet", without_node=True)
    registry = Registry(fabric.broker)
    assert [(queue.model, queue.waiting, queue.workers) for queue in await registry.queues()] == [
        ("Not/Yet", 1, 0)
    ]
    assert [job.id for job in await registry.jobs()] == ["j1"]
