"""Facts of a fabric that is well, for tests that make it ill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from sollol.cli.doctor_facts import Access, Facts, Finding, Functions, Severity
from sollol_broker.registry import NodeView, QueueView, WorkerView

OK, NOTE, WARN, ERROR = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.ERROR
EVERYWHERE = "0.0.0.0"  # noqa: S104  # what is to be found
GIB = 2**30
UP = {
    **{"kind": "ollama", "url": "http://127.0.0.1:11434", "version": "0.33.0", "open": []},
    **{"slots": 4, "busy": 1, "down": ""},
}
DOWN = {**UP, "url": "http://127.0.0.1:8080", "down": "connection refused"}
MODELS: dict[str, dict[str, Any]] = {"llama3.2": {"kinds": ["chat"], "loaded": True}}


def worker(**changes: Any) -> WorkerView:
    usual = WorkerView(
        *("n1.ab", "n1", "up", "1.0", 4, 1, 500.0),
        models=MODELS,
        backends=(UP,),
        functions="abc",
        clock_ahead_seconds=0.02,
    )
    return replace(usual, **changes)


def nodes(*workers: WorkerView, **hardware: Any) -> tuple[NodeView, ...]:
    """Each worker on its own node."""
    return tuple(NodeView(each.node, f"{each.node}.lan", "Linux", hardware, (each,)) for each in workers)


HEALTHY = Facts(
    url="redis://:***@db:6379/0",
    is_loopback=False,
    is_protected=True,
    is_encrypted=True,
    host="here",
    version="1.0",
    info={
        **{"redis_version": "8.10.1", "used_memory": str(GIB), "total_system_memory": str(16 * GIB)},
        **{"connected_clients": "4", "maxclients": "10000"},
    },
    config={
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "bind": "* -::*",
        "port": "6379",
        "protected-mode": "yes",
        "slowlog-log-slower-than": "10000",
        "slowlog-max-len": "0",
    },
    access=Access("doctor", default_is_open=False),
    slow_calls=0,
    listeners=(),
    functions=Functions("sollol_abc", "present"),
    clock_ahead_seconds=0.01,
    latency_ms=0.4,
    nodes=nodes(worker()),
    dead=0,
    queues=(QueueView("llama3.2", 2, 1, 3.0, 1),),
)


def config(**changes: str) -> dict[str, str]:
    return {**(HEALTHY.config or {}), **{name.replace("_", "-"): value for name, value in changes.items()}}


def info(**changes: str) -> dict[str, str]:
    return {**(HEALTHY.info or {}), **changes}


def look(check: Callable[[Facts], Iterator[Finding]], **changes: Any) -> list[Finding]:
    return list(check(replace(HEALTHY, **changes)))


def only(check: Callable[[Facts], Iterator[Finding]], **changes: Any) -> Finding:
    (finding,) = look(check, **changes)
    return finding
