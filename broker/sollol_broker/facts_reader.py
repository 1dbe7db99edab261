"""Reads the facts of one moment from Redis: a few commands, and some per node and per model with something to tell."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from .apps import read_app_names
from .broker import Broker
from .errors import SollolError
from .facts import Facts, Gone, ServerFacts
from .groups import read_groups
from .registry import JobView, NodeView, QueueView, Registry
from .told import number, text, texts, whole

_GONE_SECONDS = 3600.0
_MOST_GONE = 100
_MOST_APPS = 500
# Jobs that run are told of one by one up to so many; beyond that how many of each model.
_MOST_RUNNING, _MOST_COUNTED = 200, 10_000
# What a running job's record tells changes little: a new attempt, its first token.
_JOB_KEPT_SECONDS = 4.0
# What changes slowly is read again after so long.
_SLOW_SECONDS = 10.0
# Of the models that nobody serves and nobody waits for, so many are looked at each time, in turn.
_SLEEPERS_AT_ONCE = 10


class FactsReader:
    """Reads one fabric again and again, and keeps what need not be read again.

    Args:
        broker: its user needs no more rights than the role `dashboard` has.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._registry = Registry(broker)
        self._jobs: dict[str, tuple[float, JobView]] = {}
        self._node_of: dict[str, str] = {}
        # Of the jobs that run.
        self._model_of: dict[str, str] = {}
        self._waiting: set[str] = set()
        self._turn = 0
        self._slow: tuple[float, dict[str, Any]] = (0.0, {})

    async def read(self) -> Facts:
        """The facts now.

        Raises:
            BrokerUnavailable, NotAllowed
        """
        keys, now = self._broker.keys, await self._now()
        nodes, gone, running, in_all, delayed, stats, dead, lately = await asyncio.gather(
            self._registry.nodes(),
            self._call("ZRANGE", keys.workers, f"({1000 * now:.3f}", f"{1000 * (now - _GONE_SECONDS):.0f}",
                       "BYSCORE", "REV", "LIMIT", 0, _MOST_GONE, "WITHSCORES"),
            self._running(now),
            self._call("ZCARD", keys.leases),
            self._call("ZCARD", keys.delayed),
            self._call("HGETALL", keys.stats),
            self._call("ZCARD", keys.dead),
            self._call("ZCOUNT", keys.dead, f"{1000 * (now - 3600):.0f}", "+inf"),
        )  # fmt: skip
        slow = await self._slowly(now)
        vanished = [(text(each), float(at)) for each, at in _pairs(gone)]
        self._note_nodes(nodes, [worker for worker, _ in vanished])
        return Facts(
            now=now,
            nodes=tuple(nodes),
            gone=tuple(self._gone(*each) for each in vanished),
            queues=tuple(await self._queues(nodes, now)),
            running=tuple(running),
            running_total=in_all,
            delayed=delayed,
            dead=dead,
            dead_lately=lately,
            counters={name: whole(value) for name, value in texts(stats).items()},
            **slow,
        )

    async def _queues(self, nodes: list[NodeView], now: float) -> list[QueueView]:
        keys = self._broker.keys
        known = texts(await self._call("HGETALL", keys.models))
        serving: dict[str, int] = {}
        for node in nodes:
            for worker in node.workers:
                if worker.state == "up" and not node.controls.is_closed:
                    for model in worker.models:
                        serving[model] = serving.get(model, 0) + 1
        runs: dict[str, int] = {}
        for model in self._model_of.values():
            runs[model] = runs.get(model, 0) + 1
        awake = {
            key for key, name in known.items() if name in serving or name in runs or key in self._waiting
        }
        chosen = [*awake, *self._some_of(sorted(known.keys() - awake))]
        rows = await self._registry.lines(chosen)
        self._waiting = {key for key, (waiting, _) in zip(chosen, rows, strict=True) if waiting}
        found = []
        for key, (waiting, since) in zip(chosen, rows, strict=True):
            name = known[key]
            if waiting or name in serving or name in runs:
                oldest = max(0.0, now - since) if waiting and since else 0.0
                found.append(
                    QueueView(name, waiting, runs.get(name, 0), round(oldest, 3), serving.get(name, 0))
                )
        return sorted(found, key=lambda queue: (-queue.waiting, -queue.running, queue.model))

    def _some_of(self, sleepers: list[str]) -> list[str]:
        if not sleepers:
            return []
        start = self._turn % len(sleepers)
        self._turn = start + _SLEEPERS_AT_ONCE
        return (sleepers[start:] + sleepers[:start])[:_SLEEPERS_AT_ONCE]

    async def _running(self, now: float) -> list[JobView]:
        """Some of the jobs that run; notes the models of all."""
        keys = self._broker.keys
        all_ids = [
            text(each)
            for each in await self._call("ZRANGE", keys.leases, 0, _MOST_COUNTED - 1)
            if not each.endswith(b"|h")
        ]
        ids, more = all_ids[:_MOST_RUNNING], all_ids[_MOST_RUNNING:]
        kept = {
            each: found
            for each in ids
            if (found := self._jobs.get(each)) and found[0] > now - _JOB_KEPT_SECONDS
        }
        for job in await self._registry.jobs_of([each for each in ids if each not in kept]):
            kept[job.id] = (now, job)
        self._jobs = kept
        jobs = [kept[each][1] for each in ids if each in kept and not kept[each][1].state.is_terminal]
        models = {each: self._model_of[each] for each in more if each in self._model_of}
        new = [each for each in more if each not in models]
        named = await self._broker.link.calls([("HGET", keys.job(each), "model") for each in new])
        models |= {each: text(model) for each, model in zip(new, named, strict=True) if model is not None}
        self._model_of = models | {job.id: job.model for job in jobs}
        return jobs

    def _note_nodes(self, nodes: list[NodeView], vanished: list[str]) -> None:
        """A worker's name begins with its node's, but not with one that had to be hashed."""
        live = {worker.id: node.name for node in nodes for worker in node.workers}
        self._node_of = live | {each: self._node_of[each] for each in vanished if each in self._node_of}

    def _gone(self, worker: str, until_ms: float) -> Gone:
        node = self._node_of.get(worker) or worker.rpartition(".")[0] or worker
        return Gone(worker, node, round(until_ms / 1000, 3))

    async def _slowly(self, now: float) -> dict[str, Any]:
        at, known = self._slow
        if known and now - at < _SLOW_SECONDS:
            return known
        apps, groups, leader, server = await asyncio.gather(
            read_app_names(self._broker, most=_MOST_APPS),
            read_groups(self._broker),
            self._call("HMGET", self._broker.keys.leader, "id", "until"),
            self._server(),
        )
        leads = leader[0] is not None and number(leader[1]) > 1000 * now
        known = {
            "apps": apps[0],
            "apps_in_all": apps[1],
            "groups": tuple(groups),
            "leader": text(leader[0]) if leads else "",
            "server": server,
        }
        self._slow = now, known
        return known

    async def _server(self) -> ServerFacts:
        try:
            info = text(await self._call("INFO"))
        except SollolError:
            return ServerFacts()  # a user without INFO
        return server_facts(dict(line.split(":", 1) for line in info.splitlines() if ":" in line))

    async def _now(self) -> float:
        seconds, micros = await self._call("TIME")
        return int(seconds) + int(micros) / 1e6

    async def _call(self, *command: object) -> Any:
        return await self._broker.link.call(*command)


def server_facts(info: Mapping[str, str]) -> ServerFacts:
    """What INFO tells."""
    bad = [
        name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(name, "ok") != "ok"
    ]
    return ServerFacts(
        version=info.get("valkey_version") or info.get("redis_version", ""),
        persistent=info["aof_enabled"] == "1" if "aof_enabled" in info else None,
        write_failed=bool(bad),
        used_bytes=whole(info.get("used_memory")),
        most_bytes=whole(info.get("maxmemory")),
    )


def _pairs(flat: list[bytes]) -> zip[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
