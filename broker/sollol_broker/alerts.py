"""What somebody should look at now, from the facts of one moment. Pure; the page and `sollol top` show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from .facts import Facts
from .groups import GroupState
from .history import span

# Jobs that nobody can take are told of at once; others when they have waited for longer than a person would.
QUEUE_SECONDS = 120.0
# Adverts come every 4 s, and a worker counts as gone after 14 s.
SILENT_SECONDS = 10.0
# `_admit.lua` refuses new jobs from FULL_SHARE of maxmemory on.
_MEMORY_SHARE = 0.8
FULL_SHARE = 0.85
_MIB = 1024**2


class Level(StrEnum):
    """How much it matters."""

    ERROR = "error"  # jobs suffer now
    WARNING = "warning"  # they may
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Alert:
    """Something to look at.

    Attributes:
        code: the kind, which stays from release to release. subject: the node, model or group, where there is one.
        text: what is the matter. hint: what to do.
        since: seconds since the epoch; 0 = not known.
    """

    code: str
    level: Level
    text: str
    hint: str
    subject: str = ""
    since: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "level": self.level.value}


def alerts(facts: Facts, *, queue_seconds: float = QUEUE_SECONDS) -> list[Alert]:
    """What should be looked at, the worst first.

    Args:
        queue_seconds: a queue whose head has waited for longer is told of.
    """
    found = [
        *_server(facts),
        *_nodes(facts),
        *_queues(facts, queue_seconds),
        *_dead(facts),
        *_groups(facts),
    ]
    order = list(Level)
    return sorted(found, key=lambda alert: (order.index(alert.level), -alert.since))


def _server(facts: Facts) -> Iterator[Alert]:
    server = facts.server
    if server.write_failed:
        yield Alert(
            "redis.write",
            Level.ERROR,
            "Redis could not write its data to disk",
            "Look at its disk and log; until then a restart loses what came since",
        )
    if server.persistent is False:
        yield Alert(
            "redis.persistence",
            Level.WARNING,
            "Redis keeps no append-only file: a restart of it may lose jobs",
            "CONFIG SET appendonly yes, and the same in redis.conf",
        )
    if server.most_bytes and server.used_bytes > _MEMORY_SHARE * server.most_bytes:
        share = server.used_bytes / server.most_bytes
        yield Alert(
            "redis.memory",
            Level.ERROR if share >= FULL_SHARE else Level.WARNING,
            f"Redis uses {share:.0%} of its {server.most_bytes / _MIB:,.0f} MiB; "
            f"from {FULL_SHARE:.0%} on new jobs are refused",
            "Raise maxmemory, or set limits: `sollol limits set --max-queue-bytes N`",
        )


def _nodes(facts: Facts) -> Iterator[Alert]:
    for gone in facts.vanished:
        yield Alert(
            "worker.gone",
            Level.ERROR,
            f"Node {gone.node} vanished {span(1000 * (facts.now - gone.since))} ago without a word",
            "Is the machine on, does it reach Redis, does sollol-worker run there? Its jobs go to other nodes",
            gone.node,
            gone.since,
        )
    for node in facts.nodes:
        if node.silent_seconds > SILENT_SECONDS:
            yield Alert(
                "worker.silent",
                Level.ERROR,
                f"Node {node.name} gives no sign of life for {span(1000 * node.silent_seconds)}",
                "If none comes within seconds, its jobs go to other nodes",
                node.name,
                facts.now - node.silent_seconds,
            )
        for worker in node.workers:
            for backend in worker.backends:
                if backend.get("down"):
                    yield Alert(
                        "backend.down",
                        Level.ERROR,
                        f"The LLM server on {node.name} ({backend.get('kind', '')}) is down: {backend['down']}",
                        "Its worker tries it again by itself; is the server started, and is the address right?",
                        node.name,
                    )


def _queues(facts: Facts, queue_seconds: float) -> Iterator[Alert]:
    forming = {group.model for group in facts.groups if group.state is not GroupState.BROKEN}
    for queue in facts.queues:
        if not queue.waiting:
            continue
        since = facts.now - queue.oldest_seconds
        jobs = f"{queue.waiting:,} job{'' if queue.waiting == 1 else 's'} for {queue.model}"
        if not queue.workers and queue.model not in forming:
            yield Alert(
                "queue.unserved",
                Level.ERROR,
                f"{jobs}, and no live node takes them",
                "Start a worker that has the model, or uncordon its node",
                queue.model,
                since,
            )
        elif queue.oldest_seconds > queue_seconds:
            yield Alert(
                "queue.old",
                Level.WARNING,
                f"{jobs}, the first for {span(1000 * queue.oldest_seconds)}",
                "More nodes with this model would help; what an urgent job waits for: open it",
                queue.model,
                since,
            )


def _dead(facts: Facts) -> Iterator[Alert]:
    if facts.dead_lately:
        some = f"{facts.dead_lately:,} job{'' if facts.dead_lately == 1 else 's'}"
        yield Alert(
            "jobs.dead",
            Level.ERROR,
            f"{some} took every worker down that tried, within the last hour",
            "They are kept for 7 days: see why, then try again or drop them",
        )
    elif facts.dead:
        yield Alert(
            "jobs.dead",
            Level.NOTE,
            f"{facts.dead:,} dead letter{'' if facts.dead == 1 else 's'} of earlier days",
            "They are kept for 7 days: try again, or drop them",
        )


def _groups(facts: Facts) -> Iterator[Alert]:
    for group in facts.groups:
        if group.state is GroupState.BROKEN:
            yield Alert(
                "group.broken",
                Level.WARNING,
                f"The group for {group.model} broke: {group.why or 'a member was lost'}",
                "It is formed again while jobs need it; `sollol doctor` looks at its nodes",
                group.id,
                group.since,
            )
    if not facts.leader and any(queue.waiting and not queue.workers for queue in facts.queues):
        yield Alert(
            "leader.none",
            Level.NOTE,
            "No coordinator leads, so no group of nodes can be formed for large models",
            "Start sollol-coordinator, if a model fits no single node",
        )
