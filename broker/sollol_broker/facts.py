"""What is known of the fabric at one moment, as plain values; facts_reader.py reads them, overview.py tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .groups import GroupView
from .registry import JobView, NodeView, QueueView


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker whose adverts stopped without a word; `since` in seconds since the epoch."""

    worker: str
    node: str
    since: float


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What Redis tells of itself.

    Attributes:
        version: such as "8.1.0". persistent: whether the append-only file is on; None = it does not tell.
        write_failed: its last write to disk has failed.
        used_bytes, most_bytes: memory; most 0 = no limit.
    """

    version: str = ""
    persistent: bool | None = None
    write_failed: bool = False
    used_bytes: int = 0
    most_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """The fabric at one moment.

    Attributes:
        now: seconds since the epoch, by Redis' clock.
        nodes: those with a live worker, by name. gone: workers that vanished within the last hour, latest first.
        queues: models that are served, or have jobs; the longest first.
        running: some of the `running_total` jobs that run, those first whose lease ends first.
        delayed: jobs that wait out a backoff. dead: dead letters; dead_lately: of the last hour.
        counters: of the fabric since it began, by name: submitted, done, failed, …
        leader: name of the coordinator that leads; "" = none does.
    """

    now: float
    nodes: tuple[NodeView, ...] = ()
    gone: tuple[Gone, ...] = ()
    queues: tuple[QueueView, ...] = ()
    running: tuple[JobView, ...] = ()
    running_total: int = 0
    delayed: int = 0
    dead: int = 0
    dead_lately: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    apps: tuple[str, ...] = ()
    apps_in_all: int = 0
    groups: tuple[GroupView, ...] = ()
    leader: str = ""
    server: ServerFacts = field(default_factory=ServerFacts)

    @property
    def vanished(self) -> tuple[Gone, ...]:
        """Nodes that have vanished: the last worker of each that has no live one, the latest first."""
        live = {node.name for node in self.nodes}
        last: dict[str, Gone] = {}
        for each in sorted(self.gone, key=lambda gone: -gone.since):
            if each.node not in live:
                last.setdefault(each.node, each)
        return tuple(last.values())
