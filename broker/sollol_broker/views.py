"""Nodes, workers, models, queues and jobs as values, and how they are read from what lies in Redis. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .controls import Controls
from .told import like, number, plain, text, whole
from .words import JobState

# What the parts of an advert look like; see told.py.
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
_HARDWARE = {
    **{"gpus": [_GPU], "cpu_model": "", "cpu_count": 0, "cpu_percent": 0, "load_1m": 0, "is_estimate": True},
    **{"ram_total_mib": 0, "ram_available_mib": 0, "vram_total_mib": 0, "vram_free_mib": 0, "unread": ""},
}
# Of a job's record, what its view is made of.
JOB_FIELDS = (
    *("state", "model", "app", "priority", "stream", "attempt", "node", "worker"),
    *("submitted", "claimed", "first", "ended", "crashes", "errors", "releases", "tokens"),
)


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


def read_worker(h: Mapping[str, str], now_ms: float) -> WorkerView:
    """A worker of its advert's fields."""
    backends = [
        {"slots": 0, "busy": 0, "down": "", "loaded": [], "models": {}, **each}
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


def read_job(job_id: str, h: Mapping[str, bytes | None]) -> JobView:
    """A job of its record's JOB_FIELDS."""

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


def read_node(
    name: str,
    h: Mapping[str, str],
    workers: tuple[WorkerView, ...],
    *,
    tally: Mapping[str, str],
    controls: Controls,
) -> NodeView:
    """A node of what its workers tell of it."""
    return NodeView(
        name=name,
        host=h.get("host", ""),
        os=h.get("os", ""),
        hardware=read_hardware(h.get("hardware")),
        workers=workers,
        finished={state: whole(tally[state]) for state in JobState if state in tally},
        busy_seconds=round(number(tally.get("busy_ms")) / 1000, 3),
        controls=controls,
        llama=like(_LLAMA, plain(h.get("llama"))) or {},
        addresses=tuple(like([""], plain(h.get("addresses")))),
    )


def read_hardware(told: bytes | str | None) -> dict[str, Any]:
    """What a node tells of its hardware; {} = nothing."""
    return like(_HARDWARE, plain(told)) or {}
