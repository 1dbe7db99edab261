"""What the fabric looks like now: nodes, queues, models, jobs and counters, read from Redis alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from .apps import AppView as AppView
from .apps import read_apps
from .broker import Broker
from .claim_rule import fits
from .controls import Controls
from .envelope import Requires
from .names import canonical_model, key_part
from .stats import stats_of
from .told import like, number, plain, text, texts, whole
from .views import JOB_FIELDS, read_hardware, read_job, read_node, read_worker
from .views import JobView as JobView
from .views import ModelView as ModelView
from .views import NodeView as NodeView
from .views import QueueView as QueueView
from .views import WorkerView as WorkerView
from .words import JobState

_STATES = frozenset(JobState)
_DOES_NOT_FIT = "it serves the model, but does not fit what the job requires"
# It has joined, or is back, since the job was refused.
_SERVES = "it serves the model now, and did not a moment ago: send the job again"
# Jobs that run and are counted by their models: each takes a look at its record.
_MOST_COUNTED = 10_000


class Registry:
    """Reads the fabric's state. One pipelined burst of reads per question."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def workers(self) -> list[WorkerView]:
        """All live workers, by node and id."""
        now = await self._now_ms()
        ids = await self._call("ZRANGEBYSCORE", self._broker.keys.workers, f"{now:.3f}", "+inf")
        hashes = await self._hashes([self._broker.keys.worker(text(each)) for each in ids])
        found = (read_worker(h, now) for h in hashes if h.get("id") and h.get("node"))
        return sorted(found, key=lambda worker: (worker.node, worker.id))

    async def nodes(self) -> list[NodeView]:
        """All machines with a live worker, by name."""
        by_node: dict[str, list[WorkerView]] = {}
        for worker in await self.workers():
            by_node.setdefault(worker.node, []).append(worker)
        keys = self._broker.keys
        hashes = await self._hashes([keys.node(name) for name in by_node])
        tallies = await self._hashes([keys.tally(name) for name in by_node])
        controls = await self._controls(list(by_node))
        return [
            read_node(name, h, tuple(workers), tally=tally, controls=controls[name])
            for (name, workers), h, tally in zip(by_node.items(), hashes, tallies, strict=True)
        ]

    async def apps(self, *, silent: bool = False) -> list[AppView]:
        """All applications with a live client, or a job within the last two minutes, by name.

        Args:
            silent: also those of the last 7 days that are silent now.
        """
        return await read_apps(self._broker, silent=silent)

    async def models(self) -> list[ModelView]:
        """All models that a live worker serves, by name."""
        found: dict[str, list[tuple[WorkerView, dict[str, Any]]]] = {}
        for worker in await self.workers():
            for name, info in worker.models.items():
                found.setdefault(name, []).append((worker, info))
        return [
            ModelView(
                name=name,
                kinds=tuple(sorted({kind for _, info in served for kind in info["kinds"]})),
                nodes=tuple(sorted({worker.node for worker, _ in served})),
                loaded_on=tuple(sorted({worker.node for worker, info in served if info["loaded"]})),
                size_bytes=max(info["size_bytes"] for _, info in served),
                context_tokens=max(info["context_tokens"] for _, info in served),
            )
            for name, served in sorted(found.items())
        ]

    async def queues(self) -> list[QueueView]:
        """All models that have jobs waiting or running, or a live worker; the longest queue first."""
        keys, now = self._broker.keys, await self._now_ms()
        names = texts(await self._call("HGETALL", keys.models))
        running = await self._running_by_model()
        lines = await self.lines(list(names))
        served = await self._each("ZCOUNT", [keys.serves(key) for key in names], f"{now:.3f}", "+inf")
        views = []
        for name, (waiting, since), workers in zip(names.values(), lines, served, strict=True):
            oldest = now / 1000 - since if since else 0.0
            if waiting or workers or name in running:
                views.append(
                    QueueView(name, waiting, running.get(name, 0), round(max(0.0, oldest), 3), workers)
                )
        return sorted(views, key=lambda view: (-view.waiting, view.model))

    async def lines(self, model_keys: list[str]) -> list[tuple[int, float]]:
        """For each model: how many jobs wait for it, and since when the first does, in seconds since the epoch; 0 =
        none does.
        """
        keys = [self._broker.keys.queue(key) for key in model_keys]
        waiting, heads = await asyncio.gather(self._each("ZCARD", keys), self._each("ZRANGE", keys, 0, 0))
        return [(int(many), _waits_since(head)) for many, head in zip(waiting, heads, strict=True)]

    async def jobs(self, limit: int = 50) -> list[JobView]:
        """Running jobs, then waiting ones, then those that ended last; at most `limit` of each."""
        keys = self._broker.keys
        names = texts(await self._call("HGETALL", keys.models))
        lengths = [many for many, _ in await self.lines(list(names))]
        # The longest queue first, as `queues` has them, and no further than it takes.
        longest = sorted(zip(lengths, names, strict=True), key=lambda each: (-each[0], names[each[1]]))
        waiting: list[str] = []
        for many, key in longest:
            if len(waiting) >= limit or not many:
                break
            members = await self._call("ZRANGE", keys.queue(key), 0, limit - len(waiting) - 1)
            waiting += [text(member.split(b"|")[0]) for member in members]
        running, waits = await self._running(limit), await self.jobs_of(waiting)
        ids = [
            text(each)
            for key in (keys.ended, keys.ended_chunks)
            for each in await self._call("LRANGE", key, 0, limit - 1)
        ]
        ended = sorted(await self.jobs_of(ids), key=lambda each: each.ended, reverse=True)
        return [*running, *waits, *ended[:limit]]

    async def job(self, job_id: str) -> JobView | None:
        """One job's record; None when Redis does not know it (any more)."""
        found = await self.jobs_of([job_id])
        return found[0] if found else None

    async def jobs_of(self, ids: list[str]) -> list[JobView]:
        """The records of these jobs, in that order; those that Redis does not know (any more) are left out,
        and so are those in a state that we do not know.
        """
        views = []
        for job_id, reply in zip(
            ids, await self._each("HMGET", [self._broker.keys.job(i) for i in ids], *JOB_FIELDS), strict=True
        ):
            if text(reply[0]) in _STATES:
                views.append(read_job(job_id, dict(zip(JOB_FIELDS, reply, strict=True))))
        return views

    async def states(self, ids: list[str]) -> list[JobState | None]:
        """The state of each job; None for one that Redis does not know (any more)."""
        replies = await self._each("HGET", [self._broker.keys.job(each) for each in ids], "state")
        return [None if reply is None else JobState(text(reply)) for reply in replies]

    async def standings(self, ids: list[str]) -> list[tuple[JobState, int] | None]:
        """The state of each job and the highest fence that it gave out; None for one that Redis does not know."""
        replies = await self._each("HMGET", [self._broker.keys.job(each) for each in ids], "state", "top")
        return [None if state is None else (JobState(text(state)), int(top or 0)) for state, top in replies]

    async def position(self, job_id: str) -> int | None:
        """How many jobs wait before this one for the same model; None when it does not wait."""
        keys = self._broker.keys
        state, queue, member = await self._call("HMGET", keys.job(job_id), "state", "queue", "member")
        if state != b"queued" or queue is None or member is None:
            return None
        rank = await self._call("ZRANK", keys.queue(text(queue)), member)
        return None if rank is None else int(rank)

    async def stats(self) -> dict[str, Any]:
        """Counters since the fabric began: jobs by state, success rate, and per node.

        A node's `prediction_error` tells how far what was predicted of its last jobs was off: 0.2 = a fifth.
        """
        found = texts(await self._call("HGETALL", self._broker.keys.stats))
        return stats_of({name: whole(count) for name, count in found.items()}, await self.nodes())

    async def reasons(self, model: str, requires: Requires | None = None) -> dict[str, str]:
        """Why each live node cannot serve `model`, by node; of one that can by now, that it can.

        Args:
            requires: what the job wants of a node beside the model.
        """
        wanted, reasons = canonical_model(model), {}
        workers = await self.workers()
        controls = await self._controls(sorted({worker.node for worker in workers}))
        for worker in workers:
            down = [backend["down"] for backend in worker.backends if backend["down"]]
            if worker.state != "up" or controls[worker.node].is_closed:
                why = f"it is {controls[worker.node].state if worker.state == 'up' else worker.state}"
            elif worker.kind == "reporter":
                why = "only a reporter runs there, no worker"
            elif wanted in worker.models:
                why = _SERVES if await self._fits(worker, requires) else _DOES_NOT_FIT
            elif denied := controls[worker.node].forbids(wanted):
                why = f"an operator keeps the model from it: {denied}"
            elif short := worker.short_mib(wanted):
                why = f"its memory is {short:,} MiB too small for the model"
            elif down:
                why = f"its backend is down: {down[0]}"
            else:
                has = ", ".join(sorted(worker.models)[:8]) or "no model at all"
                why = f"it does not have the model; it has {has}"
            reasons[worker.node] = why
        return {**reasons, **(await self._group_reasons(wanted))}

    async def _fits(self, worker: WorkerView, requires: Requires | None) -> bool:
        if requires is None:
            return True
        told = await self._call("HGET", self._broker.keys.node(worker.node), "hardware")
        vram = read_hardware(told).get("vram_total_mib", 0)
        return fits(requires, node=worker.node, labels=worker.labels, vram_mib=int(vram))

    async def _group_reasons(self, model: str) -> dict[str, str]:
        """Why the nodes cannot serve it together either, as the coordinator told; {} = it did not look."""
        told = await self._call("HGET", self._broker.keys.formable(key_part(model)), "reasons")
        reasons = like({"": ""}, plain(told)) or {}
        return {node: f"no group of nodes could serve it: {why}" for node, why in reasons.items()}

    async def _controls(self, nodes: list[str]) -> dict[str, Controls]:
        if not nodes:
            return {}
        found = await self._call("HMGET", self._broker.keys.controls, *(key_part(node) for node in nodes))
        return {
            node: Controls.from_bytes(bytes(each or b"")) for node, each in zip(nodes, found, strict=True)
        }

    async def _running(self, limit: int) -> list[JobView]:
        ids = await self._call("ZRANGE", self._broker.keys.leases, 0, limit - 1)
        return await self.jobs_of([text(each) for each in ids])

    async def _running_by_model(self) -> dict[str, int]:
        """How many jobs of each model run, of the first 10,000."""
        ids = await self._call("ZRANGE", self._broker.keys.leases, 0, _MOST_COUNTED - 1)
        # A second copy of a job, ID|h, is not another job.
        keys = [self._broker.keys.job(text(each)) for each in ids if not each.endswith(b"|h")]
        replies = await self._each("HMGET", keys, "state", "model")
        return Counter(text(model) for state, model in replies if text(state) in _STATES)

    async def _now_ms(self) -> float:
        seconds, micros = await self._call("TIME")
        return int(seconds) * 1000 + int(micros) / 1000

    async def _call(self, *command: object) -> Any:
        return await self._broker.link.call(*command)

    async def _each(self, command: str, keys: list[str], *arguments: object) -> list[Any]:
        return await self._broker.link.calls([(command, key, *arguments) for key in keys])

    async def _hashes(self, keys: list[str]) -> list[dict[str, str]]:
        return [texts(flat) for flat in await self._each("HGETALL", keys)]


def _waits_since(head: list[bytes]) -> float:
    """Of a queue's first member, in seconds since the epoch; 0 = there is none."""
    parts = head[0].split(b"|") if head else []
    return number(parts[3]) / 1000 if len(parts) > 3 else 0.0
