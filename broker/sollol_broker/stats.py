"""Sums over the fabric and its nodes, of what they have counted. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .views import NodeView
from .words import JobState


def stats_of(counters: Mapping[str, int], nodes: list[NodeView]) -> dict[str, Any]:
    """What `Registry.stats` tells.

    Args:
        counters: of the fabric since it began, by name.
    """
    ended = sum(counters.get(state, 0) for state in (JobState.DONE, JobState.FAILED, JobState.DEAD))
    return {
        "total_requests": counters.get("submitted", 0),
        "jobs": {str(state): counters.get(state, 0) for state in JobState if state.is_terminal},
        "requeued": counters.get("requeued", 0),
        "success_rate": round(counters.get("done", 0) / ended, 4) if ended else 1.0,
        "avg_latency_ms": _mean_ms(nodes),
        "hosts": {node.name: _host_stats(node) for node in nodes},
    }


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
