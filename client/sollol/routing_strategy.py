"""The names of SOLLOL's routing strategies."""

from __future__ import annotations

from enum import StrEnum


class RoutingStrategy(StrEnum):
    """Accepted wherever they were; each worker compares itself with the others, whatever is named here."""

    ROUND_ROBIN = "round_robin"
    LATENCY_FIRST = "latency_first"
    LEAST_LOADED = "least_loaded"
    FAIRNESS = "fairness"
    INTELLIGENT = "intelligent"
