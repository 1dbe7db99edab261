"""An operator closes, empties and prefers nodes: inside Redis at once, and in the workers that are told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fabric import CHAT_MODEL, Town, town, until, worker
from fabric_kit import Fabric, fabric_at, ids, node_of
from sollol import AsyncClient, Client, NoNodeForModel
from sollol_broker.broker import LaneOffer, ModelOffer
from sollol_broker.claim_rule import share_of
from sollol_broker.codec import pack
from sollol_broker.controls import CORDON, UNCORDON, Controls, changes, draining
from sollol_broker.operations import Operations
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


@pytest.fixture
def operations(fabric: Fabric) -> Operations:
    return Operations(fabric.broker)


# --- inside Redis


async def test_a_cordoned_node_gets_nothing_from_that_moment(fabric: Fabric, operations: Operations) -> None:
    await fabric.worker("w1")
    await fabric.worker("w2")
    await fabric.submit("j1")
    done = await operations.control(node_of("w1"), CORDON)
    assert (done.controls, done.workers) == (Controls(cordoned=True), 1)
    assert await fabric.claim("w1") == []
    assert ids(await fabric.claim("w2")) == ["j1"]
    await operations.control(node_of("w1"), UNCORDON)
    await fabric.submit("j2")
    assert ids(await fabric.claim("w1")) == ["j2"]


async def test_it_leaves_the_line_and_its_bell_goes_to_another(
    fabric: Fabric, operations: Operations
) -> None:
    for name, cost in (("w1", 1.0), ("w2", 50.0)):
        await fabric.worker(name)
        await fabric.claim(name, output_ms=cost)
    await fabric.submit("j1")
    assert (await fabric.bells("w1"), await fabric.bells("w2")) == (1, 0)
    await operations.control(node_of("w1"), CORDON)
    assert await fabric.bells("w2") == 1
    for key in (fabric.keys.serves("m"), fabric.keys.idle("m"), fabric.keys.armed("m")):
        assert "w1" not in await fabric.members(key)
    assert await fabric.call("HEXISTS", fabric.keys.shares("m"), "w1") == 0


async def test_nobody_waits_for_a_fast_node_that_is_cordoned(fabric: Fabric, operations: Operations) -> None:
    fast, slow = (share_of(load_ms=0, prompt_ms=1, output_ms=ms) for ms in (1, 100))
    await fabric.worker("fast", models={"m": fast})
    await fabric.worker("slow", models={"m": slow})
    await fabric.submit("j1")
    assert await fabric.claim("slow", output_ms=100.0) == []
    await operations.control(node_of("fast"), CORDON)
    assert ids(await fabric.claim("slow", output_ms=100.0)) == ["j1"]


async def test_what_is_predicted_is_free_of_the_price(fabric: Fabric) -> None:
    await fabric.worker("w1")
    await fabric.submit("j1")
    claimed = await fabric.claim_one("w1", price=2.0)
    assert claimed.predicted_ms == pytest.approx(1_108 / 2, rel=0.01)
    assert float((await fabric.job("j1"))["predicted"]) == pytest.approx(claimed.predicted_ms)


async def test_what_is_predicted_is_free_of_the_price_of_failures(fabric: Fabric) -> None:
    await fabric.worker("w1")
    await fabric.submit("j1")
    twice = LaneOffer(1, (ModelOffer("m", 0.0, 2.0, 20.0, price=2.0),))
    claimed = await fabric.claim_one("w1", lanes=(twice,))
    assert claimed.predicted_ms == pytest.approx(1_108, rel=0.01)


async def test_all_workers_of_the_node_are_told_and_no_others(fabric: Fabric, operations: Operations) -> None:
    for name in ("w1", "w2"):
        await fabric.worker(name, node="big")
    await fabric.worker("w3")
    assert (await operations.control("big", changes(priority=7))).workers == 2
    told = [
        name
        for name in ("w1", "w2", "w3")
        if {"t": "control"} in await fabric.entries(fabric.keys.inbox(name))
    ]
    assert told == ["w1", "w2"]
    assert await fabric.call("HGET", fabric.keys.worker("w1"), "cordoned") == b"0"


async def test_settings_add_up_and_defaults_take_them_away(fabric: Fabric, operations: Operations) -> None:
    await operations.control("n1", changes(priority=8, labels=["eu"]))
    await operations.control("n1", draining(3))
    done = await operations.control("n1", changes(deny=["llama*"]))
    expected = Controls(True, True, 3.0, priority=8, labels=("eu",), deny=("llama*",))
    assert done.controls == expected
    await operations.control("n1", UNCORDON)
    assert (await operations.control("n1", changes(labels=[], deny=[]))).controls == Controls(priority=8)
    assert (await operations.control("n1", changes(priority=5))).controls == Controls()
    assert await fabric.call("EXISTS", fabric.keys.controls) == 0


async def test_they_outlive_the_worker(fabric: Fabric, operations: Operations) -> None:
    await operations.control(node_of("w1"), CORDON)
    await fabric.worker("w1")
    await fabric.submit("j1", without_node=True)
    assert await fabric.claim("w1") == []


@pytest.mark.parametrize("junk", [b"\xc1", pack(["a", "list"]), pack(7)])
async def test_junk_in_their_place_is_no_hindrance(
    fabric: Fabric, operations: Operations, junk: bytes
) -> None:
    await fabric.call("HSET", fabric.keys.controls, node_of("w1"), junk)
    await fabric.worker("w1")
    await fabric.submit("j1")
    assert ids(await fabric.claim("w1")) == ["j1"]
    assert (await operations.control(node_of("w1"), changes(priority=6))).controls == Controls(priority=6)


# --- real workers


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaDouble]:
    async with OllamaDouble([CHAT_MODEL], parallel=2) as double:
        yield double


async def test_a_worker_follows_at_once_and_comes_back(redis_url: str, ollama: OllamaDouble) -> None:
    # It would advertise by itself only after a minute.
    async with (
        worker(redis_url, ollama.url, advertise_seconds=60.0) as agent,
        AsyncClient(redis_url) as client,
    ):
        assert (await client.submit(chat="Hi", model="tiny")).text
        assert (await client.cordon("n1")).workers == 1
        await _state(client, "cordoned")
        assert agent.worker not in await _serving(client)
        for wanted in (None, {"node": "n1"}):
            with pytest.raises(NoNodeForModel, match="n1: it is cordoned"):
                await client.submit(chat="Hi", model="tiny", requires=wanted)
        job = client.submit(chat="Hi", model="tiny", wait_for_node=True)
        await wait_until(lambda: _queued(client, job.id), timeout=10, what="the job in its queue")
        await client.uncordon("n1")
        assert (await job).text
        await _state(client, "up")


async def test_it_stays_cordoned_when_it_starts_anew(redis_url: str, ollama: OllamaDouble) -> None:
    async with AsyncClient(redis_url) as client:
        await client.cordon("n1")
        async with worker(redis_url, ollama.url):
            (node,) = await client.nodes()
            assert node.workers[0].state == "cordoned"
            assert node.controls.cordoned
            assert await _serving(client) == []


async def test_labels_patterns_and_priority_reach_the_worker(redis_url: str, ollama: OllamaDouble) -> None:
    async with (
        worker(redis_url, ollama.url, labels=("own",), advertise_seconds=60.0),
        AsyncClient(redis_url) as client,
    ):
        with pytest.raises(NoNodeForModel):
            await client.submit(chat="Hi", model="tiny", requires={"labels": ["eu", "own"]})
        before = await client.session.broker.link.call("HVALS", client.session.broker.keys.shares("tiny"))
        await client.set_node("n1", labels=["eu"], priority=0)
        await wait_until(lambda: _has_label(client, "eu"), timeout=10, what="the label in the advert")
        after = await client.session.broker.link.call("HVALS", client.session.broker.keys.shares("tiny"))
        slower = [int(new) / int(old) for new, old in zip(_pace(after[0]), _pace(before[0]), strict=True)]
        assert slower == pytest.approx([1.2**5] * 2, rel=0.01)
        assert (await client.submit(chat="Hi", model="tiny", requires={"labels": ["eu", "own"]})).text

        await client.set_node("n1", deny=["tin*"])
        await wait_until(lambda: _serves_nothing(client), timeout=10, what="an advert without the model")
        with pytest.raises(NoNodeForModel, match=r"an operator keeps the model from it: tin\* is denied"):
            await client.submit(chat="Hi", model="tiny")
        await client.set_node("n1", deny=[])
        await wait_until(lambda: _serving(client), timeout=10, what="the model again")
        assert (await client.submit(chat="Hi", model="tiny")).text


def test_a_drain_lets_jobs_end_then_hands_them_to_others(redis_url: str) -> None:
    with town(redis_url, node="n1", parallel=2) as first, Client(redis_url) as client:
        first.hold()
        job = client.submit(chat="Hello", model="tiny")
        until(lambda: first.asked == 1, "the request at the backend")
        client.drain("n1", seconds=60)
        until(lambda: _is(client, "n1", "draining"), "the node that drains")
        first.go()
        assert job.result(20).routing.attempt == 1
        client.uncordon("n1")
        until(lambda: _is(client, "n1", "up"), "the node again")

        first.hold()
        moved = client.submit(chat="Hello again", model="tiny")
        until(lambda: first.asked == 2, "the request at the backend")
        with town(redis_url, node="n2", parallel=1):
            client.drain("n1", seconds=0)
            routing = moved.result(20).routing
        assert (routing.node, routing.attempt) == ("n2", 2)
        record = client.job(moved.id)
        assert record is not None
        assert (record.releases, record.errors, record.crashes) == (1, 0, 0)
        until(lambda: not _busy(first), "an empty worker")


def test_a_drain_that_is_called_off_hands_nothing_back(redis_url: str) -> None:
    with town(redis_url, node="n1", parallel=1) as there, Client(redis_url) as client:
        there.hold()
        job = client.submit(chat="Hello", model="tiny")
        until(lambda: there.asked == 1, "the request at the backend")
        client.drain("n1", seconds=60)
        until(lambda: _is(client, "n1", "draining"), "the node that drains")
        client.uncordon("n1")
        until(lambda: _is(client, "n1", "up"), "the node again")
        there.go()
        assert job.result(20).routing.attempt == 1


async def _state(client: AsyncClient, state: str) -> None:
    async def has() -> bool:
        return [worker.state for node in await client.nodes() for worker in node.workers] == [state]

    await wait_until(has, timeout=10, what=f"a worker that is {state}")


async def _serving(client: AsyncClient) -> list[str]:
    broker = client.session.broker
    return [each.decode() for each in await broker.link.call("ZRANGE", broker.keys.serves("tiny"), 0, -1)]


async def _serves_nothing(client: AsyncClient) -> bool:
    return not await _serving(client) and not await client.models()


async def _queued(client: AsyncClient, job_id: str) -> bool:
    return await client.position(job_id) == 0


async def _has_label(client: AsyncClient, label: str) -> bool:
    return all(label in worker.labels for node in await client.nodes() for worker in node.workers)


def _pace(share: bytes) -> list[bytes]:
    return share.split(b"|")[3:5]


def _is(client: Client, node: str, state: str) -> bool:
    return any(
        worker.state == state for each in client.nodes() if each.name == node for worker in each.workers
    )


def _busy(there: Town) -> int:
    return sum(lane.busy for lane in there.agent.lanes)
