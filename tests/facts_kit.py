"""Facts for tests, made by hand: a node, a queue, a running job with what matters to the test."""

from __future__ import annotations

from typing import Any

from sollol_broker.controls import Controls
from sollol_broker.facts import Facts
from sollol_broker.registry import JobView, NodeView, QueueView, WorkerView
from sollol_broker.words import JobState

NOW = 1_000_000.0


def node(name: str = "gpu1", *, controls: Controls | None = None, **more: Any) -> NodeView:
    """A machine with one worker of two slots that has the model "m"; `more` is of the worker."""
    hardware = more.pop("hardware", {})
    fields: dict[str, Any] = {
        "id": f"{name}.1",
        "node": name,
        "state": "up",
        "version": "1",
        "slots": 2,
        "busy": 0,
        "seen_ms_ago": 500.0,
        "models": {"m": {"kinds": ["chat"], "loaded": True, "size_bytes": 7}},
    }
    worker = WorkerView(**(fields | more))
    return NodeView(name, f"{name}.lan", "Linux", hardware, (worker,), controls=controls or Controls())


def queue(model: str = "m", **more: Any) -> QueueView:
    """Three jobs that wait, the first for five seconds, of one worker's model."""
    fields: dict[str, Any] = {"waiting": 3, "running": 0, "oldest_seconds": 5.0, "workers": 1}
    return QueueView(model, **(fields | more))


def running(job_id: str = "j1", **more: Any) -> JobView:
    """A job that runs on gpu1 since ten seconds."""
    fields: dict[str, Any] = {
        **{"model": "m", "app": "tests", "priority": 5, "attempt": 1, "node": "gpu1", "worker": "gpu1.1"},
        **{"submitted": NOW - 12, "claimed": NOW - 10, "first_token": NOW - 9, "ended": 0.0},
        **{"crashes": 0, "errors": 0, "releases": 0, "stream": True},
    }
    return JobView(job_id, JobState.RUNNING, **(fields | more))


def facts(**more: Any) -> Facts:
    """A moment."""
    return Facts(now=NOW, **more)
