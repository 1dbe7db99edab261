"""The coordinator's figures for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_FORMING_BUCKETS = (1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class Metrics:
    """What a coordinator counts; one registry of its own, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.is_leader = Gauge(
            "sollol_coordinator_is_leader", "1 while this coordinator leads", registry=self.registry
        )
        self.formed = Counter("sollol_groups_formed", "Groups that became ready", registry=self.registry)
        self.failed = Counter("sollol_groups_failed", "Tries that formed no group", registry=self.registry)
        self.dissolved = Counter("sollol_groups_dissolved", "Groups that were ended", registry=self.registry)
        self.forming_seconds = Histogram(
            "sollol_group_forming_seconds",
            "From the decision to form a group until it was ready",
            buckets=_FORMING_BUCKETS,
            registry=self.registry,
        )
        self.rescued = Counter(
            "sollol_jobs_rescued", "Jobs given back when their lease had run out", registry=self.registry
        )
        self.turn_errors = Counter(
            "sollol_coordinator_turn_errors", "Turns of the leader that failed", registry=self.registry
        )
