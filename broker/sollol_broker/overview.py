"""The fabric in a few sentences and numbers, as JSON can carry it: what the page and `sollol top` show. Pure.

    overview(facts)["nodes"][0]["doing"]   # "answers 2 jobs" - what every machine does
    overview(facts)["queues"][0]["why"]    # "all 4 slots of gpu1 and gpu2 are busy" - what waits, and why

What is as large as the fabric is cut: at most MOST_NODES cards, those first that need a look; where there are more
nodes, SOME_NODES of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .alerts import QUEUE_SECONDS, SILENT_SECONDS, alerts
from .facts import Facts, Gone
from .groups import GroupState, GroupView
from .history import span
from .registry import JobView, NodeView, QueueView, WorkerView
from .version import VERSION
from .words import JobState

# All cards of a small fabric. Of a large one nobody reads so many: a few, and where all of them are.
MOST_NODES, SOME_NODES = 48, 24
MOST_QUEUES = 50
MOST_ALERTS = 30
_MOST_MODELS = 12
_MOST_RUNNING = 6
# In this order nodes are shown: what is wrong first, then what works, which changes too often to be sorted by.
_ORDER = {"gone": 0, "silent": 0, "down": 1, "draining": 2, "cordoned": 3, "busy": 4, "idle": 4}

_TOGETHER = {
    GroupState.FORMING: "is about to load",
    GroupState.LOADING: "loads",
    GroupState.READY: "serves",
    GroupState.BROKEN: "no longer serves",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """A node in its place on the page. Its card is made when it is shown: of a thousand nodes few are."""

    name: str
    state: str
    models: frozenset[str]
    card: Callable[[], dict[str, Any]]


def overview(
    facts: Facts, *, most_nodes: int = MOST_NODES, queue_seconds: float = QUEUE_SECONDS
) -> dict[str, Any]:
    """Everything that the first page tells.

    `cells` names all nodes with their states, those too that have no card.
    """
    all = machines(facts)
    shown = all if len(all) <= most_nodes else all[: min(most_nodes, SOME_NODES)]
    found = alerts(facts, queue_seconds=queue_seconds)
    return {
        "at": round(facts.now, 3),
        "version": VERSION,
        "headline": headline(facts),
        "totals": totals(facts),
        "alerts": [alert.as_dict() for alert in found[:MOST_ALERTS]],
        "alerts_in_all": len(found),
        "queue_seconds": queue_seconds,
        "nodes": [machine.card() for machine in shown],
        "nodes_in_all": len(all),
        "cells": [[each.name, each.state] for each in sorted(all, key=lambda each: each.name)],
        "queues": [queue_row(queue, facts) for queue in facts.queues[:MOST_QUEUES]],
        "queues_in_all": len(facts.queues),
        "leader": facts.leader,
    }


def headline(facts: Facts) -> str:
    """The fabric in a sentence or two."""
    told = totals(facts)
    if not told["nodes"]:
        return "No machine is connected." if not told["nodes_gone"] else "Every machine has vanished."
    busy = sum(1 for node in facts.nodes if any(worker.busy for worker in node.workers))
    nodes = "The only node" if told["nodes"] == 1 else f"{told['nodes']:,} nodes"
    if told["busy"]:
        work = f"{nodes} answer{'s' if told['nodes'] == 1 else ''} {_count(told['busy'], 'job')}"
        if told["nodes"] > 1:
            work = f"{busy:,} of {nodes} answer{'s' if busy == 1 else ''} {_count(told['busy'], 'job')}"
    else:
        work = f"{nodes} {'is' if told['nodes'] == 1 else 'are'} idle"
    if not told["waiting"]:
        return f"{work}; nobody waits."
    waits = "waits" if told["waiting"] == 1 else "wait"
    return f"{work}; {_count(told['waiting'], 'job')} {waits}, the first for {span(1000 * told['oldest_seconds'])}."


def totals(facts: Facts) -> dict[str, Any]:
    """The sums over all nodes and queues."""
    workers = [worker for node in facts.nodes for worker in node.workers]
    hardware = [node.hardware for node in facts.nodes]
    return {
        "nodes": len(facts.nodes),
        "nodes_gone": len(facts.vanished),
        "workers": len(workers),
        "slots": sum(worker.slots for worker in workers),
        "busy": sum(worker.busy for worker in workers),
        "models": len({name for worker in workers for name in worker.models}),
        "waiting": sum(queue.waiting for queue in facts.queues),
        "oldest_seconds": max((queue.oldest_seconds for queue in facts.queues), default=0.0),
        "running": facts.running_total,
        "delayed": facts.delayed,
        "dead": facts.dead,
        "submitted": facts.counters.get("submitted", 0),
        "done": facts.counters.get("done", 0),
        "failed": sum(facts.counters.get(state, 0) for state in ("failed", "dead", "expired")),
        "apps": facts.apps_in_all,
        "groups": len(facts.groups),
        "vram_total_mib": sum(int(each.get("vram_total_mib", 0)) for each in hardware),
        "vram_free_mib": sum(int(each.get("vram_free_mib", 0)) for each in hardware),
        "redis_bytes": facts.server.used_bytes,
        "redis_most_bytes": facts.server.most_bytes,
    }


def machines(facts: Facts) -> list[Machine]:
    """All nodes, those that vanished too; what is wrong first, then what works, then by name."""
    running: dict[str, list[JobView]] = {}
    for job in facts.running:
        running.setdefault(job.node, []).append(job)
    groups = {name: group for group in facts.groups for name, _ in group.parts}

    def live(node: NodeView) -> Machine:
        state, _ = _state(node, sum(worker.busy for worker in node.workers))
        models = frozenset(name for worker in node.workers for name in worker.models)

        def card() -> dict[str, Any]:
            return node_card(node, running.get(node.name, []), groups.get(node.name), facts.now)

        return Machine(node.name, state, models, card)

    def gone(each: Gone) -> Machine:
        return Machine(each.node, "gone", frozenset(), lambda: _gone_card(each, facts.now))

    found = [*(live(node) for node in facts.nodes), *(gone(each) for each in facts.vanished)]
    return sorted(found, key=lambda each: (_ORDER[each.state], each.name))


def node_card(node: NodeView, jobs: Sequence[JobView], group: GroupView | None, now: float) -> dict[str, Any]:
    """What one machine is and does."""
    hardware = node.hardware
    slots, busy = sum(w.slots for w in node.workers), sum(w.busy for w in node.workers)
    models = _models(node.workers)
    state, why = _state(node, busy)
    return {
        "name": node.name,
        "state": state,
        "doing": _doing(state, why, jobs, busy, models, group),
        "why": why,
        "host": node.host,
        "os": node.os,
        "seen_seconds": round(node.silent_seconds, 1),
        "slots": slots,
        "busy": busy,
        "gpus": [_gpu(gpu) for gpu in hardware.get("gpus", [])],
        "ram_total_mib": int(hardware.get("ram_total_mib", 0)),
        "ram_used_mib": max(
            0, int(hardware.get("ram_total_mib", 0)) - int(hardware.get("ram_available_mib", 0))
        ),
        "cpu_percent": round(float(hardware.get("cpu_percent", 0)), 1),
        "cpu_count": int(hardware.get("cpu_count", 0)),
        "cpu_model": str(hardware.get("cpu_model", "")),
        "load_1m": round(float(hardware.get("load_1m", 0)), 2),
        "is_estimate": bool(hardware.get("is_estimate", False)),
        "models": models[:_MOST_MODELS],
        "models_in_all": len(models),
        "workers": len(node.workers),
        "running": [_running(job, now) for job in jobs[:_MOST_RUNNING]],
        "done": node.finished.get(JobState.DONE, 0),
        "failed": node.finished.get(JobState.FAILED, 0),
        "priority": node.controls.priority,
        "labels": sorted({label for worker in node.workers for label in worker.labels}),
        "group": group.model if group is not None else "",
    }


def queue_row(queue: QueueView, facts: Facts) -> dict[str, Any]:
    """A model's queue, and why its jobs wait."""
    return {
        "model": queue.model,
        "waiting": queue.waiting,
        "running": queue.running,
        "oldest_seconds": round(queue.oldest_seconds, 1),
        "workers": queue.workers,
        "why": why_waits(queue, facts),
    }


def why_waits(queue: QueueView, facts: Facts) -> str:
    """Why jobs of a queue wait, in a sentence; "" = none does.

    1. A group of nodes is on its way to serve them. 2. Nobody has the model. 3. Who has it is closed, or down.
    4. All slots are busy. 5. Slots are free: faster nodes are waited for, or the jobs are being taken this moment.
    """
    if not queue.waiting:
        return ""
    for group in facts.groups:
        if group.model == queue.model and group.state in (GroupState.FORMING, GroupState.LOADING):  # 1
            return f"a group of nodes is {group.state.value} for it: {group.progress or 'it takes a moment'}"
    having = [
        (node, worker) for node in facts.nodes for worker in node.workers if queue.model in worker.models
    ]
    if not having:  # 2
        short = [node.name for node in facts.nodes if any(w.short_mib(queue.model) for w in node.workers)]
        if short:
            return f"it is too large for {_named(short)}"
        return "no live node has this model" if facts.nodes else "no worker is connected"
    ready = [
        (node, worker) for node, worker in having if not node.controls.is_closed and worker.state == "up"
    ]
    if not ready:  # 3
        return f"{_named([node.name for node, _ in having])} takes no new jobs"
    names = _named([node.name for node, _ in ready])
    slots, busy = sum(w.slots for _, w in ready), sum(w.busy for _, w in ready)
    if busy >= slots:  # 4
        return f"the only slot of {names} is busy" if slots == 1 else f"all {slots} slots of {names} are busy"
    return f"slots are free on {names}: they are being taken, or left to a faster node for a moment"  # 5


def _state(node: NodeView, busy: int) -> tuple[str, str]:
    """In a word, and where something is wrong, why."""
    if node.silent_seconds > SILENT_SECONDS:
        return "silent", f"no sign of life for {span(1000 * node.silent_seconds)}"
    if node.controls.draining or all(worker.state == "draining" for worker in node.workers):
        return "draining", "an operator empties it" if node.controls.draining else "its worker is stopping"
    if node.controls.cordoned:
        return "cordoned", "an operator keeps new jobs from it"
    for worker in node.workers:
        for backend in worker.backends:
            if backend.get("down"):
                return "down", str(backend["down"])
    return ("busy" if busy else "idle"), ""


def _doing(
    state: str,
    why: str,
    jobs: Sequence[JobView],
    busy: int,
    models: Sequence[Mapping[str, Any]],
    group: GroupView | None,
) -> str:
    work = f"answers {busy} job{'' if busy == 1 else 's'}" if busy else ""
    asked = sorted({job.model for job in jobs})
    if work and asked:
        work += f" with {_named(asked)}"
    if state == "silent":
        return why
    if state == "down":
        return f"its LLM server is down: {why}"
    if state in ("draining", "cordoned"):
        return f"takes no new jobs: {why}" + (f"; still {work}" if work else "")
    if group is not None:
        others = _count(len(group.parts) - 1, "more node")
        work = work or f"{_TOGETHER[group.state]} {group.model} together with {others}"
    if work:
        return work
    loaded = [model["name"] for model in models if model["loaded"]]
    if loaded:
        return f"idle, with {_named(loaded)} in memory"
    return (
        f"idle, {len(models)} model{'' if len(models) == 1 else 's'} on disk"
        if models
        else "idle, without a model"
    )


def _gone_card(gone: Gone, now: float) -> dict[str, Any]:
    return {
        "name": gone.node,
        "state": "gone",
        "doing": f"vanished {span(1000 * (now - gone.since))} ago without a word",
        "why": "",
        "seen_seconds": round(now - gone.since, 1),
        "slots": 0,
        "busy": 0,
        "gpus": [],
        "models": [],
        "models_in_all": 0,
        "running": [],
    }


def _models(workers: Sequence[WorkerView]) -> list[dict[str, Any]]:
    """By name, those in memory first."""
    found: dict[str, dict[str, Any]] = {}
    for worker in workers:
        for name, told in worker.models.items():
            before = found.get(name, {"loaded": False})
            found[name] = {
                "name": name,
                "loaded": bool(told.get("loaded")) or before["loaded"],
                "kinds": list(told.get("kinds", [])),
                "size_bytes": int(told.get("size_bytes", 0)),
            }
    return sorted(found.values(), key=lambda model: (not model["loaded"], model["name"]))


def _gpu(gpu: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        "name",
        "vendor",
        "memory_total_mib",
        "memory_used_mib",
        "utilisation_percent",
        "temperature_c",
        "power_w",
    )
    return {**{name: gpu.get(name) for name in names}, "is_estimate": bool(gpu.get("is_estimate"))}


def _running(job: JobView, now: float) -> dict[str, Any]:
    return {
        "id": job.id,
        "model": job.model,
        "app": job.app,
        "attempt": job.attempt,
        "seconds": round(max(0.0, now - job.claimed), 1),
        "stream": job.stream,
        "has_begun": job.first_token >= job.claimed > 0,
    }


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _named(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and 3 more"."""
    some = list(dict.fromkeys(names))
    if len(some) > 3:
        return f"{some[0]}, {some[1]} and {len(some) - 2} more"
    return " and ".join([", ".join(some[:-1]), some[-1]]) if len(some) > 1 else "".join(some)


__all__ = ["MOST_NODES", "Machine", "machines", "node_card", "overview", "queue_row", "totals", "why_waits"]
