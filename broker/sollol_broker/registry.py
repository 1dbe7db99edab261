"""What the fabric looks like now: nodes, queues, models, jobs and counters, read from Redis alone."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .apps import AppView as AppView
from .apps import read_apps
from .broker import Broker
from .claim_rule import fits
from .controls import Controls
from .envelope import Requires
from .names import canonical_model, key_part
from .told import like, number, plain, text, texts, whole
from .words import JobState

_MODEL = {
    **{"kinds": [""], "size_bytes": 0, "context_tokens": 0, "capabilities": [""], "listing": {}},
    **{"prompt_ms": 0, "output_ms": 0, "load_ms": 0, "success_rate": 0, "pace_error": 0, "jobs_seen": 0},
}
_BACKEND = {
    **{"kind": "", "url": "", "version": "", "down": "", "slots": 0, "busy": 0, "open": [""], "loaded": [""]},
    **{"http": {"": 0}, "health": {"state": ""}, "too_large": {"": 0}, "models": {"": _MODEL}},
}
_GPU = {
    **{"name": "", "vendor": "", "memory_total_mib": 0, "memory_used_mib": 0, "utilisation_percent": 0},
    **{"temperature_c": 0, "power_w": 0, "is_estimate": True, "index": 0, "memory_free_mib": 0},
}
_LLAMA = {"worker": "", "address": "", "lent_to": "", "rpc_version": [0], "files": {}, "fault": {}}
_STATES = frozenset(JobState)
_DOES_NOT_FIT = "it serves the model, but does not fit what the job requires"
# It has joined, or is back, since the job was refused.
_SERVES = "it serves the model now, and did not a moment ago: send the job again"
# Jobs that run and are counted by their models: each takes a look at its record.
_MOST_COUNTED = 10_000
_HARDWARE = {
    **{"gpus": [_GPU], "cpu_model": "", "cpu_count": 0, "cpu_percent": 0, "load_1m": 0, "is_estimate": True},
    **{"ram_total_mib": 0, "ram_available_mib": 0, "vram_total_mib": 0, "vram_free_mib": 0, "unread": ""},
}


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A live worker as it advertised itself.

    Attributes:
        seen_ms_ago: since its last advert.
        models: canonical name → what is known of the model (kinds, size_bytes, context_tokens, loaded, …).
        backends: kind, url, version, slots, busy, http (requests, connections opened for them, again: how many were
            sent a second time), down (why), open (addresses other than loopback, on which it
            listens) and too_large (models that its machine has not the memory for, by MiB) of each LLM server.
        functions: version of its function library. durability: when its answers count as given; "" = not known.
        clock_ahead_seconds: of its machine's clock against Redis', at its last advert; None = it does not tell.
        elsewhere: the host on which its backends stand; "" = beside it. kind: "worker", or "reporter": it takes no jobs
            and only tells of the hardware.
    """

    id: str
    node: str
    state: str
    version: str
    slots: int
    busy: int
    seen_ms_ago: float
    labels: tuple[str, ...] = ()
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    backends: tuple[dict[str, Any], ...] = ()
    functions: str = ""
    durability: str = ""
    clock_ahead_seconds: float | None = None
    elsewhere: str = ""
    kind: str = "worker"

    def short_mib(self, model: str) -> int:
        """By how many MiB its machine's memory is too small for a model that it has on disk; 0 = it is not."""
        return max((each.get("too_large", {}).get(model, 0) for each in self.backends), default=0)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A machine with its live workers.

    Attributes:
        hardware: gpus, vram_total_mib, vram_free_mib, cpu, ram and load, as last read.
        finished: jobs it has ended, by state. busy_seconds: slot time it has spent on them.
        controls: what an operator has set for it.
        llama: what it could bring into a group: build, rpc_version, address, files and lent_to; {} = nothing.
        addresses: under which others reach it.
    """

    name: str
    host: str
    os: str
    hardware: dict[str, Any]
    workers: tuple[WorkerView, ...]
    finished: dict[str, int] = field(default_factory=dict)
    busy_seconds: float = 0.0
    controls: Controls = field(default_factory=Controls)
    llama: dict[str, Any] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()

    @property
    def silent_seconds(self) -> float:
        """Since the last sign of life of any of its workers."""
        return min((worker.seen_ms_ago for worker in self.workers), default=0.0) / 1000

    @property
    def is_watched(self) -> bool:
        """Whether somebody on the machine itself tells of its hardware."""
        return any(not worker.elsewhere for worker in self.workers)


@dataclass(frozen=True, slots=True)
class QueueView:
    """Jobs that wait for one model. `oldest_seconds`: how long the one at the head has waited."""

    model: str
    waiting: int
    running: int
    oldest_seconds: float
    workers: int


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model and the nodes that serve it; `loaded_on`: those that have it in memory."""

    name: str
    kinds: tuple[str, ...]
    nodes: tuple[str, ...]
    loaded_on: tuple[str, ...]
    size_bytes: int = 0
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class JobView:
    """A job's record; no prompt, no answer.

    Times are in seconds since the epoch, by Redis' clock; 0 = not yet.

    Attributes:
        prompt_tokens, output_tokens: as the backend counted them; 0 before the answer, or where it does not.
    """

    id: str
    state: JobState
    model: str
    app: str
    priority: int
    attempt: int
    node: str
    worker: str
    submitted: float
    claimed: float
    first_token: float
    ended: float
    crashes: int
    errors: int
    releases: int
    stream: bool
    prompt_tokens: int = 0
    output_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "state": str(self.state)}


class Registry:
    """Reads the fabric's state. One pipelined burst of reads per question."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def workers(self) -> list[WorkerView]:
        """All live workers, by node and id."""
        now = await self._now_ms()
        ids = await self._call("ZRANGEBYSCORE", self._broker.keys.workers, f"{now:.3f}", "+inf")
        hashes = await self._hashes([self._broker.keys.worker(text(each)) for each in ids])
        found = (_worker(h, now) for h in hashes if h.get("id") and h.get("node"))
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
            NodeView(
                name=name,
                host=h.get("host", ""),
                os=h.get("os", ""),
                hardware=like(_HARDWARE, plain(h.get("hardware"))) or {},
                workers=tuple(workers),
                finished={state: whole(tally[state]) for state in JobState if state in tally},
                busy_seconds=round(number(tally.get("busy_ms")) / 1000, 3),
                controls=controls[name],
                llama=like(_LLAMA, plain(h.get("llama"))) or {},
                addresses=tuple(like([""], plain(h.get("addresses")))),
            )
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
        names = {text(k): text(v) for k, v in _pairs(await self._call("HGETALL", keys.models))}
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
        names = {text(k): text(v) for k, v in _pairs(await self._call("HGETALL", keys.models))}
        lengths = [many for many, _ in await self.lines(list(names))]
        # The longest queue first, as `queues` has them, and no further than it takes.
        longest = sorted(zip(lengths, names, strict=True), key=lambda each: (-each[0], names[each[1]]))
        waiting: list[str] = []
        for many, key in longest:
            if len(waiting) >= limit or not many:
                break
            members = await self._call("ZRANGE", keys.queue(key), 0, limit - len(waiting) - 1)
            waiting += [text(member.split(b"|")[0]) for member in members]
        ended = await self._call("LRANGE", keys.ended, 0, limit - 1)
        return [
            *(await self._running(limit)),
            *(await self.jobs_of(waiting)),
            *(await self.jobs_of([text(each) for each in ended])),
        ]

    async def job(self, job_id: str) -> JobView | None:
        """One job's record; None when Redis does not know it (any more)."""
        found = await self.jobs_of([job_id])
        return found[0] if found else None

    async def jobs_of(self, ids: list[str]) -> list[JobView]:
        """The records of these jobs, in that order; those that Redis does not know (any more) are left out,
        and so are those in a state that we do not know.
        """
        names = (
            *("state", "model", "app", "priority", "stream", "attempt", "node", "worker"),
            *("submitted", "claimed", "first", "ended", "crashes", "errors", "releases", "tokens"),
        )
        views = []
        for job_id, reply in zip(
            ids, await self._each("HMGET", [self._broker.keys.job(i) for i in ids], *names), strict=True
        ):
            if text(reply[0]) in _STATES:
                views.append(_job(job_id, dict(zip(names, reply, strict=True))))
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
        counters = {
            text(k): whole(v) for k, v in _pairs(await self._call("HGETALL", self._broker.keys.stats))
        }
        ended = sum(counters.get(state, 0) for state in (JobState.DONE, JobState.FAILED, JobState.DEAD))
        nodes = await self.nodes()
        return {
            "total_requests": counters.get("submitted", 0),
            "jobs": {str(state): counters.get(state, 0) for state in JobState if state.is_terminal},
            "requeued": counters.get("requeued", 0),
            "success_rate": round(counters.get("done", 0) / ended, 4) if ended else 1.0,
            "avg_latency_ms": _mean_ms(nodes),
            "hosts": {node.name: _host_stats(node) for node in nodes},
        }

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
        vram = (like(_HARDWARE, plain(told)) or {}).get("vram_total_mib", 0)
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


def _pairs(flat: list[bytes]) -> zip[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _worker(h: Mapping[str, str], now_ms: float) -> WorkerView:
    backends = [
        {"down": "", "loaded": [], "models": {}, **each}
        for each in like([_BACKEND], plain(h.get("backends")))
    ]
    models = {
        name: {"kinds": [], "size_bytes": 0, "context_tokens": 0, **info, "loaded": name in backend["loaded"]}
        for backend in backends
        for name, info in backend["models"].items()
    }
    seen = number(h.get("seen"))
    return WorkerView(
        id=h["id"],
        node=h["node"],
        state=h.get("state", ""),
        version=h.get("version", ""),
        slots=whole(h.get("slots")),
        busy=whole(h.get("busy")),
        seen_ms_ago=max(0.0, round(now_ms - seen, 1)),
        labels=tuple(like([""], plain(h.get("labels")))),
        models=models,
        backends=tuple({k: v for k, v in each.items() if k != "models"} for each in backends),
        functions=h.get("functions", ""),
        durability=h.get("durability", ""),
        clock_ahead_seconds=round((number(h["clock"]) - seen) / 1000, 3) if "clock" in h else None,
        elsewhere=h.get("elsewhere", ""),
        kind=h.get("kind", "worker"),
    )


def _job(job_id: str, h: Mapping[str, bytes | None]) -> JobView:
    def seconds(name: str) -> float:
        return round(number(h[name]) / 1000, 3)

    prompt_tokens, _, output_tokens = text(h["tokens"]).partition("|")
    return JobView(
        id=job_id,
        state=JobState(text(h["state"])),
        model=text(h["model"]),
        app=text(h["app"]),
        priority=whole(h["priority"]),
        attempt=whole(h["attempt"]),
        node=text(h["node"]),
        worker=text(h["worker"]),
        submitted=seconds("submitted"),
        claimed=seconds("claimed"),
        first_token=seconds("first"),
        ended=seconds("ended"),
        crashes=whole(h["crashes"]),
        errors=whole(h["errors"]),
        releases=whole(h["releases"]),
        stream=h["stream"] == b"1",
        prompt_tokens=max(0, whole(prompt_tokens)),
        output_tokens=max(0, whole(output_tokens)),
    )


def _mean_ms(nodes: list[NodeView]) -> float:
    """Of what the live nodes have ended, from claim to end."""
    ended = sum(node.finished.get(state, 0) for node in nodes for state in (JobState.DONE, JobState.FAILED))
    return round(sum(node.busy_seconds for node in nodes) * 1000 / ended, 1) if ended else 0.0


def _host_stats(node: NodeView) -> dict[str, Any]:
    done = node.finished.get(JobState.DONE, 0)
    ended = done + node.finished.get(JobState.FAILED, 0)
    return {
        "requests": ended,
        "success_rate": round(done / ended, 4) if ended else 1.0,
        "latency_ms": round(node.busy_seconds * 1000 / ended, 1) if ended else 0.0,
        "http": _http(node),
        "prediction_error": _prediction_error(node),
    }


def _http(node: NodeView) -> dict[str, int]:
    """What its workers have sent to their LLM servers: requests, connections opened for them, and tries again."""
    told = [backend.get("http", {}) for worker in node.workers for backend in worker.backends]
    return {name: sum(each.get(name, 0) for each in told) for name in ("requests", "connections", "again")}


def _prediction_error(node: NodeView) -> float | None:
    """By which share the node's last jobs took longer, or less long, than predicted; None = it has run none."""
    off = jobs = 0.0
    for worker in node.workers:
        for told in worker.models.values():
            off += told.get("jobs_seen", 0) * told.get("pace_error", 0.0)
            jobs += told.get("jobs_seen", 0)
    return round(math.exp(off / jobs) - 1, 3) if jobs else None
