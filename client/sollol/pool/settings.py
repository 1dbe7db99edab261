"""What `OllamaPool` may be told: how it is set up, and what has no meaning any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sollol_broker.errors import InvalidJob

from ..either_way import warn_once
from ..hedging import HedgingStrategy
from ..routing_strategy import RoutingStrategy

_WORKERS = "jobs are run by workers that pull them from Redis; start more with sollol-worker"
_REDIS = "give the fabric's Redis as redis_url= or in SOLLOL_REDIS_URL"

# Arguments of earlier releases, and what has taken their place.
REPLACED: Mapping[str, str] = {
    "enable_ray": _WORKERS,
    "enable_dask": _WORKERS,
    "dask_address": _WORKERS,
    "ray_address": _WORKERS,
    "ray_workers": _WORKERS,
    "dask_workers": _WORKERS,
    "enable_batch_processing": "hand many jobs in at once; the workers take what they have slots for",
    "autobatch_interval": "hand many jobs in at once; the workers take what they have slots for",
    "rpc_backends": "nodes serve a model together by themselves when it fits none of them; see HybridRouter",
    "enable_gpu_redis": "each worker reads and tells its own hardware",
    "setup_local_gpu_monitoring": "each worker reads and tells its own hardware",
    "redis_host": _REDIS,
    "redis_port": _REDIS,
    "ray_dashboard_port": "the page is one: run_unified_dashboard(dashboard_port=…)",
    "dask_dashboard_port": "the page is one: run_unified_dashboard(dashboard_port=…)",
    "register_with_dashboard": "every pool shows itself in Redis under its app_name",
    "enable_http2": "LLM servers speak HTTP/1.1, whose connections are kept and used again",
    "max_workers": "all are handed in at once, and the workers take what they have slots for",
    "use_adaptive": "all are handed in at once, and the workers take what they have slots for",
}


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How a pool behaves.

    Attributes:
        hedge: as for `Client.submit`. max_queue_size: requests under way at most; None = no limit.
    """

    app_name: str
    hedge: bool | None
    max_queue_size: int | None
    routing_strategy: RoutingStrategy

    def __post_init__(self) -> None:
        size = self.max_queue_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise InvalidJob(
                f"max_queue_size: a number from 1 on is needed, or None, got {size!r}", field="max_queue_size"
            )


def app_name_of(name: str) -> str:
    """An application's name as the fabric has it: those of earlier releases may have spaces."""
    return "-".join(name.split()) if isinstance(name, str) else name


def as_hedge(given: bool | HedgingStrategy) -> bool | None:
    """True = a late job may run twice; False leaves it to the fabric's policy."""
    return True if given else None


def as_strategy(given: RoutingStrategy | str, *, intelligent: bool) -> RoutingStrategy:
    """One of the five names; a warning tells that workers choose by themselves.

    Raises:
        InvalidJob: there is no such strategy.
    """
    try:
        strategy = RoutingStrategy(given)
    except ValueError:
        known = ", ".join(RoutingStrategy)
        raise InvalidJob(
            f"routing_strategy: one of {known}, got {given!r}", field="routing_strategy"
        ) from None
    if strategy is not RoutingStrategy.INTELLIGENT or not intelligent:
        warn_once(
            "OllamaPool: routing_strategy and enable_intelligent_routing are taken and change nothing: each worker "
            "compares itself with the others before it takes a job (docs/routing.md); node priorities steer it"
        )
    return strategy


def warn_of_replaced(given: Mapping[str, Any], where: str) -> None:
    """Say once of each argument without a meaning what has taken its place.

    Raises:
        TypeError: an argument that no release had.
    """
    for name in given:
        if name not in REPLACED:
            raise TypeError(f"{where}() got an unexpected keyword argument {name!r}")
    for name in given:
        warn_once(f"{where}: {name} has no meaning any more: {REPLACED[name]}")
