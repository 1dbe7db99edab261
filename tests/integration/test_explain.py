"""`explain` on real records: what has become of a job, who left it and why, and what each node makes of it now."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from click.testing import CliRunner

from fabric import town, until, worker
from fabric_kit import Fabric, fabric_at, ids, node_of
from sollol import AsyncClient, Client, JobLost, NoNodeForModel
from sollol.cli.app import app
from sollol_broker import LaneOffer, ModelOffer, Registry, Requires
from sollol_broker.claim_rule import Share, share_of
from sollol_broker.controls import CORDON, changes
from sollol_broker.explain import Explanation
from sollol_broker.explain_reader import Explainer
from sollol_broker.operations import Operations
from sollol_broker.outcome import Seam
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

_FAST = share_of(load_ms=0, prompt_ms=1, output_ms=10)
_SLOW = share_of(load_ms=0, prompt_ms=5, output_ms=50)


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


async def _explain(fabric: Fabric, job_id: str = "j1") -> Explanation:
    return await Explainer(fabric.broker, Registry(fabric.broker)).explain(job_id)


async def _start_in(fabric: Fabric, job_id: str) -> float | None:
    return await Explainer(fabric.broker, Registry(fabric.broker)).start_in(job_id)


async def _codes(fabric: Fabric, job_id: str = "j1") -> dict[str, str]:
    return {each.node: each.code for each in (await _explain(fabric, job_id)).nodes}


async def _worker(
    fabric: Fabric,
    name: str,
    *,
    share: Share = _FAST,
    models: tuple[str, ...] = ("m",),
    slots: int = 1,
    busy: int = 0,
    labels: tuple[str, ...] = (),
    vram_mib: int = 0,
    down: str = "",
) -> None:
    """A worker with the advert of a real one, as far as it matters here."""
    known = {"kinds": ["chat"], "size_bytes": 0, "context_tokens": 0}
    backend = {
        "kind": "echo", "url": "echo://", "slots": slots, "busy": busy, "down": down, "loaded": list(models),
        "models": dict.fromkeys(models, known),
    }  # fmt: skip
    fields = {
        "state": "up", "slots": str(slots), "busy": str(busy), "labels": json.dumps(labels),
        "backends": json.dumps([backend]),
    }  # fmt: skip
    await fabric.worker(
        name,
        models=dict.fromkeys(models, share),
        fields=fields,
        node_fields={"hardware": json.dumps({"vram_total_mib": vram_mib})},
    )


# --- while it waits


async def test_what_is_known_of_the_request(fabric: Fabric) -> None:
    await _worker(fabric, "one", models=("m", "big:70b"))
    await fabric.submit("j1", task="summarization", prompt_chars=8_000, output_cap=100)
    told = await _explain(fabric)
    assert (told.task, told.prompt_tokens, told.output_tokens) == ("summarization", 2_008, 100)
    assert (told.size, told.wants_gpu) == ("complex", True)
    await fabric.submit("j2", task="extraction", output_cap=10)
    assert not (await _explain(fabric, "j2")).wants_gpu
    await fabric.submit("j3", model="big:70b", output_cap=10)
    told = await _explain(fabric, "j3")
    assert (told.size, told.wants_gpu) == ("simple", True)
    await fabric.broker.cancel("j1")
    told = await _explain(fabric)
    assert (told.task, told.prompt_tokens) == ("summarization", None)


async def test_the_node_that_a_job_prefers_is_named(fabric: Fabric) -> None:
    await _worker(fabric, "one")
    await _worker(fabric, "two", share=_SLOW)
    await fabric.submit("j1", prefer=(node_of("two"),))
    assert await fabric.claim("one") == []
    assert await _codes(fabric) == {node_of("one"): "preferred", node_of("two"): "ready"}
    (refusal,) = (await _explain(fabric)).refusals
    assert (refusal.node, refusal.text) == (node_of("one"), "left it to a node that it prefers")


async def test_a_model_that_no_memory_could_hold_is_not_served(redis_url: str) -> None:
    models = [DoubleModel("tiny"), DoubleModel("huge", size_bytes=10**15)]
    async with (
        OllamaDouble(models) as ollama,
        worker(redis_url, ollama.url),
        AsyncClient(redis_url) as client,
    ):
        assert [model.name for model in await client.models()] == ["tiny"]
        with pytest.raises(NoNodeForModel, match="MiB too small for the model"):
            await client.submit(chat="hi", model="huge")
        job = client.submit(chat="hi", model="huge", wait_for_node=True)

        async def is_in_line() -> bool:
            return await client.position(job.id) == 0

        await wait_until(is_in_line, timeout=5, what="the job to be in line")
        (reason,) = (await client.explain(job.id)).nodes
        assert (reason.code, reason.number > 10**8) == ("memory", True)
        await job.cancel()


async def test_each_node_has_its_reason(fabric: Fabric) -> None:
    operations = Operations(fabric.broker)
    await _worker(fabric, "small", vram_mib=6144)
    await _worker(fabric, "plain", vram_mib=24576)
    await _worker(fabric, "fits", labels=("eu",), vram_mib=24576)
    await _worker(fabric, "full", labels=("eu",), vram_mib=24576, busy=1)
    await _worker(fabric, "other", models=("x",))
    await _worker(fabric, "ill", models=(), down="connection refused")
    await _worker(fabric, "shut", labels=("eu",), vram_mib=24576)
    await _worker(fabric, "never", labels=("eu",), vram_mib=24576)
    await operations.control(node_of("shut"), CORDON)
    await operations.control(node_of("never"), changes(deny=["m"]))
    await fabric.submit("j1", requires=Requires(vram_gb=8, labels=["eu"]))
    told = await _explain(fabric)
    assert {each.node.removeprefix("node-of-"): each.code for each in told.nodes} == {
        "small": "labels",
        "plain": "labels",
        "fits": "ready",
        "full": "full",
        "other": "absent",
        "ill": "down",
        "shut": "cordoned",
        "never": "denied",
    }
    await fabric.submit("j2", requires=Requires(vram_gb=8))
    small = next(each for each in (await _explain(fabric, "j2")).nodes if each.node == node_of("small"))
    assert (small.code, small.number) == ("vram", 2048)


async def test_the_reason_agrees_with_what_the_claim_does(fabric: Fabric) -> None:
    await _worker(fabric, "fast", share=_FAST, busy=1)
    await _worker(fabric, "slow", share=_SLOW)
    await fabric.submit("j1")
    assert await _codes(fabric) == {node_of("fast"): "full", node_of("slow"): "cheaper"}
    slow = (ModelOffer("m", 0.0, 5.0, 50.0),)
    claims = await fabric.broker.claim(fabric.request("slow", lanes=(LaneOffer(1, slow),)))
    assert claims is not None
    assert claims.jobs == []
    assert claims.look_again_ms is not None
    told = await _explain(fabric)
    left = next(each for each in told.nodes if each.node == node_of("slow"))
    assert left.number == pytest.approx(claims.look_again_ms, abs=2_000)
    assert [(each.node, each.code) for each in told.refusals] == [(node_of("slow"), "cheaper")]
    assert told.refusals[0].number == pytest.approx(left.number, rel=0.2)

    for number in range(40):  # so long a line that it helps
        await fabric.submit(f"more{number}")
    assert (await _codes(fabric))[node_of("slow")] == "ready"
    assert ids(await fabric.claim("slow", lanes=(LaneOffer(1, slow),)))


async def test_position_and_start_come_from_the_work_ahead(fabric: Fabric) -> None:
    await _worker(fabric, "w1", busy=1)
    for number in range(4):
        await fabric.submit(f"j{number}")
    told = await _explain(fabric, "j3")
    # 108 prompt tokens at 1 ms and 100 more at 10 ms each, four times, one after the other.
    assert told.position == 3
    assert told.start_in_seconds == pytest.approx(4 * 1.108, rel=0.01)
    assert told.summary.startswith("3 before it; should start in about 4.4 s")
    assert await _start_in(fabric, "j3") == pytest.approx(told.start_in_seconds)
    assert await _start_in(fabric, "j0") == pytest.approx(1.108, rel=0.01)


async def test_an_idle_worker_means_now(fabric: Fabric) -> None:
    await _worker(fabric, "w1")
    await fabric.claim("w1")
    await fabric.call("XTRIM", fabric.keys.inbox("w1"), "MAXLEN", 0)
    await fabric.submit("j1")
    assert (await _explain(fabric)).start_in_seconds == 0


async def test_without_a_node_there_is_no_start(fabric: Fabric) -> None:
    await fabric.submit("j1", without_node=True)
    told = await _explain(fabric)
    assert (told.nodes, told.start_in_seconds, told.summary) == ((), None, "no worker is connected")
    assert await _start_in(fabric, "j1") is None
    await _worker(fabric, "w1", models=("x",))
    assert (await _explain(fabric)).summary == "no node can take it as things are"


async def test_a_backoff_is_told(fabric: Fabric) -> None:
    await _worker(fabric, "w1")
    await fabric.submit("j1")
    claimed = await fabric.claim_one("w1")
    await fabric.broker.fail(claimed.lease, b"error", retry=True, most_errors=3, backoff_ms=20_000)
    told = await _explain(fabric)
    assert told.summary.startswith("after an error it waits ")
    assert (told.position, told.start_in_seconds) == (None, None)


# --- its way


async def test_the_whole_way_of_a_job(fabric: Fabric) -> None:
    await _worker(fabric, "w1")
    await _worker(fabric, "w2")
    await fabric.submit("j1", stream=True)
    await fabric.claim_one("w1")
    await fabric.expire_lease("j1")
    await fabric.reap()
    claimed = await fabric.claim_one("w2")
    await fabric.broker.fail(claimed.lease, b"error", retry=True, most_errors=3, backoff_ms=20_000)
    assert (await _codes(fabric))[node_of("w2")] == "failed"
    claimed = await fabric.claim_one("w1")
    assert (await _explain(fabric)).summary.startswith("on node-of-w1 for ")
    await fabric.broker.emit(claimed.lease, 1, b"piece")
    await fabric.broker.finish(claimed.lease, b"answer", used=fabric.used())
    told = await _explain(fabric)
    assert [moment.what for moment in told.timeline if "left it" not in moment.what] == [
        "handed in by tests",
        "attempt 1: taken by node-of-w1",
        "attempt 1: node-of-w1 was lost, its lease ran out",
        "attempt 2: taken by node-of-w2",
        "attempt 2: the backend on node-of-w2 failed",
        "attempt 3: taken by node-of-w1 (worker w1)",
        "attempt 3: first piece of the answer",
        "answered",
    ]
    assert [moment.at for moment in told.timeline] == sorted(moment.at for moment in told.timeline)
    assert told.taken is not None
    assert told.taken.own_ms == pytest.approx(1_108, rel=0.01)
    assert told.summary.startswith("answered by node-of-w1 in ")
    assert told.nodes == ()


async def test_a_stream_that_is_taken_over_tells_each_step_with_its_time(fabric: Fabric) -> None:
    """Submitted, left by a slower node, claimed, first token, lease lost, gone on with, done."""
    await _worker(fabric, "slow", share=_SLOW)
    await _worker(fabric, "fast", share=_FAST)
    await fabric.submit("j1", stream=True)
    slow = (ModelOffer("m", 0.0, 5.0, 50.0),)
    assert ids(await fabric.broker.claim(fabric.request("slow", lanes=(LaneOffer(1, slow),)))) == []
    first = await fabric.claim_one("fast")
    await fabric.broker.emit(first.lease, 1, b"piece")
    await fabric.expire_lease("j1")
    await fabric.reap()
    await _worker(fabric, "next", share=_FAST)
    again = await fabric.claim_one("next")
    await fabric.broker.emit(again.lease, 1, b"more", seam=Seam(2, node_of("next"), 5, "continued"))
    await fabric.broker.finish(again.lease, b"answer", used=fabric.used())
    told = await _explain(fabric)
    assert [moment.what for moment in told.timeline] == [
        "handed in by tests",
        "node-of-slow left it to faster nodes, which save it about "
        + told.refusals[0].text.removeprefix("left it to faster nodes, which save it about "),
        "attempt 1: taken by node-of-fast",
        "attempt 1: first piece of the answer",
        "attempt 1: node-of-fast was lost, its lease ran out",
        "attempt 2: taken by node-of-next (worker next)",
        "attempt 2: node-of-next goes on at character 5 (continued)",
        "attempt 2: first piece of the answer",
        "answered",
    ]
    times = [moment.at for moment in told.timeline]
    assert times == sorted(times)
    assert await fabric.now_ms() / 1000 - 60 < times[0]


@pytest.mark.parametrize(
    "junk",
    [
        {"why": b"\xff|x", "past": b"\xff\xfe;;,,,,;"},
        {"no:n1": b"||", "member": b"|||"},
        {"requires": b"\xc1"},
    ],
)
async def test_junk_in_a_record_is_no_hindrance(fabric: Fabric, junk: Mapping[str, bytes]) -> None:
    await _worker(fabric, "w1")
    await fabric.submit("j1")
    real = await fabric.call("HMGET", fabric.keys.job("j1"), *junk)
    for name, value in junk.items():
        await fabric.call("HSET", fabric.keys.job("j1"), name, value)
    assert (await _explain(fabric)).id == "j1"
    for name, value in zip(junk, real, strict=True):
        await fabric.call("HSET", fabric.keys.job("j1"), name, value or b"")


# --- as people ask


async def test_a_job_that_nobody_knows(redis_url: str) -> None:
    async with AsyncClient(redis_url) as client:
        with pytest.raises(JobLost, match="nobody is not known here"):
            await client.explain("nobody")
        assert await client.eta("nobody") is None


def _run(url: str, *args: str) -> Any:
    return CliRunner().invoke(app, [*args, "--redis", url])


def test_the_command_tells_a_newcomer(redis_url: str) -> None:
    with town(redis_url, node="n1", parallel=1) as there, Client(redis_url, app="web") as client:
        there.hold()
        prompt = "a prompt that nobody else may read"
        first = client.submit(chat=prompt, model="tiny")
        until(lambda: there.asked == 1, "the first one at the backend")
        second = client.submit(chat=prompt, model="tiny")
        until(lambda: second.position() == 0, "the second one in line")
        until(lambda: client.nodes()[0].workers[0].busy == 1, "an advert that says so")

        said = _run(redis_url, "explain", second.id)
        assert said.exit_code == 0, said.output
        for words in ("queued: first in line", "tiny, for web, priority 5", "handed in by web"):
            assert words in said.stdout
        assert "n1    all its slots are busy (1 of 1)" in said.stdout
        plain = json.loads(_run(redis_url, "explain", second.id, "--json").stdout)
        assert (plain["state"], plain["position"], plain["nodes"][0]["code"]) == ("queued", 0, "full")
        eta = second.eta()
        assert eta is not None
        assert eta >= 0
        there.go()
        first.result(20)
        second.result(20)
        assert second.eta() is None
        said = _run(redis_url, "explain", first.id)
        assert "done: answered by n1" in said.stdout
        assert "no node was expected to be faster" in said.stdout
        assert prompt not in said.stdout + json.dumps(plain)
    said = _run(redis_url, "explain", "nobody")
    assert (said.exit_code, said.stdout) == (5, "")
