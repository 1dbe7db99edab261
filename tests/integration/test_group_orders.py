"""Orders to real agents: two nodes serve one model together, over a real rpc-server and llama-server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from sollol_broker.broker import Broker
from sollol_broker.codec import pack
from sollol_broker.inbox import EntryFields, Inbox
from sollol_broker.leader import elect, write_group
from sollol_broker.orders import Order, OrderReply, ReplyKind, Sent, Verb, send_order
from sollol_broker.registry import Registry
from sollol_broker.url import parse
from sollol_client import AsyncClient
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import EchoBackend, LlamaServerBackend
from sollol_worker_agent.config import WorkerConfig
from sollol_worker_agent.model_files import ModelFiles
from sollol_worker_agent.rpc.desk import GroupSettings
from sollol_worker_agent.rpc.identity import Identity, new_identity
from waiting import wait_until

_GROUP = "g1"


@dataclass
class Leader:
    """Gives orders as the coordinator would, and keeps the replies."""

    broker: Broker
    term: int = 0
    replies: dict[str, list[OrderReply]] = field(default_factory=dict)

    def on_entry(self, entry: EntryFields) -> None:
        if entry[b"t"] == b"reply":
            reply = OrderReply.from_entry(entry)
            self.replies.setdefault(reply.order, []).append(reply)

    async def lead(self) -> None:
        self.term = (await elect(self.broker, "leader", 600_000, patience_seconds=5)).term
        await self.keep()

    async def keep(self, ttl_ms: int = 60_000) -> None:
        await write_group(
            self.broker,
            "leader",
            self.term,
            _GROUP,
            ttl_ms=ttl_ms,
            fields={"model": "big", "state": "forming"},
        )

    async def order(
        self, worker: str, verb: Verb, *, group: str = _GROUP, term: int | None = None, **arguments: Any
    ) -> str:
        order = Order(uuid.uuid4().hex, verb, group, term or self.term, "leader", arguments)
        if term is None:
            assert await send_order(self.broker, "leader", worker, order) is Sent.ON_ITS_WAY
        return order.id

    async def done(self, order: str, kind: ReplyKind = ReplyKind.DONE) -> Mapping[str, Any]:
        def ended() -> bool:
            return any(reply.kind is not ReplyKind.PROGRESS for reply in self.replies.get(order, ()))

        await wait_until(ended, timeout=60, what=f"a reply to order {order}")
        reply = next(each for each in self.replies[order] if each.kind is not ReplyKind.PROGRESS)
        assert reply.kind is kind, reply
        return reply.data


@dataclass
class Nodes:
    """Two agents and their leader."""

    leader: Leader
    head: Agent
    member: Agent
    url: str

    async def form(self, *, own: int = 1) -> Mapping[str, Any]:
        """Form the group over `own` layers of the head and the rest at the member; gives the report."""
        lead, reserve = self.leader, Verb.RESERVE
        told = await lead.done(await lead.order(self.head.worker, reserve, drain_seconds=5))
        theirs = await lead.done(await lead.order(self.member.worker, reserve, drain_seconds=5))
        certificate = told["certificate"]
        lent = await lead.done(await lead.order(self.member.worker, Verb.LEND, certificate=certificate))
        member = {
            "node": "member",
            "address": theirs["address"],
            "port": lent["port"],
            "certificate": theirs["certificate"],
            "layers": [3 - own],
        }
        order = await lead.order(
            self.head.worker,
            Verb.LEAD,
            model="big",
            members=[member],
            in_memory=own,
            own=[],
            slots=1,
            context_tokens=512,
        )
        return await lead.done(order)


@pytest.fixture
async def nodes(redis_url: str, toy_chat_model: Path) -> AsyncIterator[Nodes]:
    broker = Broker(parse(redis_url), name="leader")
    await broker.open()
    leader = Leader(broker)
    await broker.advertise("leader", "leader", ttl_ms=600_000, worker_fields={}, node_fields={}, models={})
    inbox = Inbox(broker, "leader", on_entry=leader.on_entry)
    inbox.start()
    agents = [_agent(redis_url, node, toy_chat_model) for node in ("head", "member")]
    try:
        for agent in agents:
            await agent.start()
        await leader.lead()
        await wait_until(
            lambda: _has_file(broker, "head"), timeout=30, what="the head has looked at its files"
        )
        yield Nodes(leader, agents[0], agents[1], redis_url)
    finally:
        for agent in agents:
            await agent.stop(drain_seconds=0)
        await inbox.stop()
        await broker.close()


def _agent(url: str, node: str, model: Path) -> Agent:
    config = WorkerConfig(node=node, lease_seconds=4.0, advertise_seconds=1.0, poll_seconds=0.5)
    files = ModelFiles({"big": model}, stores=())
    # Addresses that differ stand for machines that differ.
    address = {"head": "127.0.0.1", "member": "127.0.0.2"}[node]
    settings = GroupSettings(files=files, address=address, threads=1, record_seconds=0.5)
    return Agent(parse(url), config, [EchoBackend("echo://?models=small")], groups=settings)


async def _has_file(broker: Broker, node: str) -> bool:
    llama = json.loads(await broker.link.call("HGET", broker.keys.node(node), "llama") or "{}")
    return "big" in llama.get("files", {}) and bool(llama["rpc_version"])


def _children() -> list[psutil.Process]:
    """Processes of llama.cpp, and tunnels, that this test's agents have started."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(word in " ".join(each.cmdline()) for word in ("--rpc", "rpc-server", "rpc.relay")):
                found.append(each)
    return found


async def _says(url: str, model: str, words: int = 20) -> str:
    async with AsyncClient(url, app="tests") as client:
        answer = await client.submit(
            chat="the of and", model=model, options={"num_predict": words, "temperature": 0}
        )
        return str(answer.text)


async def test_two_nodes_serve_a_model_together(nodes: Nodes, toy_llama_server: str) -> None:
    report = (await nodes.form())["report"]

    assert report["member model"] > 0
    assert report["head model"] > 0
    alone = _agent_of(nodes.url, "alone", toy_llama_server)
    await alone.start()
    try:
        assert await _says(nodes.url, "big") == await _says(nodes.url, "toy")
    finally:
        await alone.stop(drain_seconds=0)


async def test_a_groups_keys_stay_with_their_processes(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates go through Redis; their keys go nowhere, and neither is in a command line or an environment."""
    made: list[Identity] = []

    def note(name: str) -> Identity:
        made.append(new_identity(name))
        return made[-1]

    monkeypatch.setattr("sollol_worker_agent.rpc.part.new_identity", note)
    await nodes.leader.broker.link.call("CONFIG", "SET", "rdbcompression", "no")  # DUMP shows text as it is
    await nodes.form()
    assert await _says(nodes.url, "big", 3)
    assert len(made) == 2
    with redis.Redis.from_url(nodes.url) as raw:
        lying = b"".join(raw.dump(key) or b"" for key in raw.scan_iter(count=1000))
    # The first line of the body: of a key it holds half of the secret.
    assert all(each.certificate.splitlines()[1].encode() in lying for each in made)
    assert not any(each.key.splitlines()[1].encode() in lying for each in made)
    assert b"PRIVATE KEY" not in lying
    children = _children()
    assert children
    for child in children:
        told = " ".join((*child.cmdline(), *child.environ().values()))
        assert not any(each.key.splitlines()[1] in told for each in made)


async def test_a_reserved_node_runs_nothing_else_until_the_end(nodes: Nodes) -> None:
    await nodes.form()
    async with AsyncClient(nodes.url, app="tests") as client:
        waiting = client.submit(chat="hello", model="small")
        assert await _says(nodes.url, "big", 3)
        assert not waiting.done()

        for agent in (nodes.head, nodes.member):
            await nodes.leader.done(await nodes.leader.order(agent.worker, Verb.END))

        assert (await waiting).text
    await wait_until(lambda: not _children(), timeout=10, what="all processes of the group have ended")


async def test_a_dead_rpc_server_is_noticed_by_its_agent_at_once(nodes: Nodes) -> None:
    await nodes.form()
    _kill("rpc-server", signal.SIGKILL)

    lost = await _lost(nodes.leader, 1)

    assert (lost[0].data["node"], lost[0].data["lost"]) == ("member", _GROUP)
    assert "rpc-server has ended" in lost[0].data["error"]


async def test_a_member_that_dies_in_mid_answer_ends_the_group_on_both_nodes(nodes: Nodes) -> None:
    await nodes.form()
    async with AsyncClient(nodes.url, app="tests") as client:
        job = client.submit(chat="the of", model="big", stream=True, options={"num_predict": 450})
        pieces = aiter(job)
        assert await anext(pieces)
        _kill("rpc-server", signal.SIGKILL)

        lost = await _lost(nodes.leader, 2)

        assert {reply.data["node"] for reply in lost} == {"head", "member"}
        await wait_until(lambda: not _children(), timeout=10, what="all processes of the group have ended")
        registry = Registry(nodes.leader.broker)
        await wait_until(
            lambda: _serves_nothing(registry, "big"), timeout=10, what="nobody serves the model any more"
        )
        await job.cancel()


async def test_a_frozen_rpc_server_is_noticed(nodes: Nodes) -> None:
    await nodes.form()
    frozen = _kill("rpc-server", signal.SIGSTOP)
    try:
        lost = await _lost(nodes.leader, 1)
    finally:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    assert "frozen" in lost[0].data["error"]


async def test_orders_of_an_older_term_are_refused(nodes: Nodes) -> None:
    leader = nodes.leader
    await leader.done(await leader.order(nodes.head.worker, Verb.RESERVE, drain_seconds=1))
    desk = nodes.head._desk  # the order comes by the way round Redis, which would stop it
    assert desk is not None

    for verb in (Verb.RESERVE, Verb.LEND, Verb.LEAD, Verb.END):
        desk.on_entry(_entry(Order(verb.value, verb, _GROUP, leader.term - 1, "leader")))
        failed = await leader.done(verb.value, ReplyKind.FAILED)
        assert "stale" in failed["error"]

    assert desk.group == _GROUP


async def test_a_node_has_one_group_at_a_time(nodes: Nodes) -> None:
    leader = nodes.leader
    await leader.done(await leader.order(nodes.head.worker, Verb.RESERVE, drain_seconds=1))

    other = await leader.order(nodes.head.worker, Verb.RESERVE, group="g2", drain_seconds=1)

    failed = await leader.done(other, ReplyKind.FAILED)
    assert f"belongs to group {_GROUP}" in failed["error"]


async def test_an_order_that_comes_twice_is_carried_out_once(nodes: Nodes) -> None:
    leader = nodes.leader
    order = Order("twice", Verb.RESERVE, _GROUP, leader.term, "leader", {"drain_seconds": 1})
    await send_order(leader.broker, "leader", nodes.head.worker, order)
    first = await leader.done("twice")
    await send_order(leader.broker, "leader", nodes.head.worker, order)

    await wait_until(lambda: len(leader.replies["twice"]) == 2, timeout=10, what="a second reply")

    assert leader.replies["twice"][1].data == first


async def test_a_group_whose_record_runs_out_ends_by_itself(nodes: Nodes) -> None:
    await nodes.form()

    await nodes.leader.keep(ttl_ms=1)

    await wait_until(lambda: not _children(), timeout=20, what="the group has ended by itself")
    assert nodes.head._desk is not None
    assert nodes.head._desk.group == ""


async def test_a_member_with_another_certificate_is_not_used(nodes: Nodes) -> None:
    leader = nodes.leader
    told = await leader.done(await leader.order(nodes.head.worker, Verb.RESERVE, drain_seconds=1))
    await leader.done(await leader.order(nodes.member.worker, Verb.RESERVE, drain_seconds=1))
    lent = await leader.done(
        await leader.order(nodes.member.worker, Verb.LEND, certificate=told["certificate"])
    )
    # The head is told its own certificate instead of the member's.
    member = {"node": "member", "address": "127.0.0.2", "port": lent["port"], "layers": [2]}
    order = await leader.order(
        nodes.head.worker,
        Verb.LEAD,
        model="big",
        members=[{**member, "certificate": told["certificate"]}],
        in_memory=1,
        own=[],
        slots=1,
        context_tokens=512,
    )

    assert "does not answer" in (await leader.done(order, ReplyKind.FAILED))["error"]


def _agent_of(url: str, node: str, server: str) -> Agent:
    config = WorkerConfig(node=node, lease_seconds=4.0, advertise_seconds=1.0, poll_seconds=0.5)
    return Agent(parse(url), config, [LlamaServerBackend(server, model="toy")])


def _entry(order: Order) -> dict[bytes, bytes]:
    data = {
        "verb": order.verb.value,
        "group": order.group,
        "term": order.term,
        "reply_to": order.reply_to,
        "arguments": dict(order.arguments),
    }
    return {b"t": b"order", b"o": order.id.encode(), b"d": pack(data)}


def _kill(word: str, number: signal.Signals) -> list[int]:
    found = [each.pid for each in _children() if word in " ".join(each.cmdline())]
    assert found, f"no process of {word}"
    for pid in found:
        os.kill(pid, number)
    return found


async def _lost(leader: Leader, least: int) -> list[OrderReply]:
    def lost() -> list[OrderReply]:
        return [each for replies in leader.replies.values() for each in replies if "lost" in each.data]

    await wait_until(lambda: len(lost()) >= least, timeout=30, what=f"{least} nodes have said what they lost")
    return lost()


async def _serves_nothing(registry: Registry, model: str) -> bool:
    return not any(model in worker.models for worker in await registry.workers())
