"""The name that applications import: `from sollol import Client, AsyncClient, OllamaPool, Priority`.

The rooms are imported when a name is first used, so that `import sollol` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sollol_broker.errors import (
        BackendError,
        BackendTimeout,
        BrokerOutdated,
        BrokerUnavailable,
        ClientClosed,
        DeadlineExceeded,
        InvalidJob,
        JobCancelled,
        JobDead,
        JobFailed,
        JobLost,
        KeyMissing,
        NoNodeForModel,
        NotAllowed,
        QueueFull,
        QuotaExceeded,
        SollolError,
        StreamGap,
    )
    from sollol_broker.version import VERSION as __version__
    from sollol_broker.words import BatchState, JobState, Priority
    from sollol_client import Answer, AsyncBatch, AsyncClient, AsyncJob, Batch, BatchItem, Client, Delta, Job

    from .config import SOLLOLConfig
    from .dashboard_client import DashboardClient
    from .docker_ip_resolver import is_docker_ip, resolve_docker_ip
    from .http_client import SOLLOLClient
    from .hybrid_router import HybridRouter
    from .pool import OllamaPool
    from .service import SOLLOL
    from .unified_dashboard import run_unified_dashboard

__all__ = [
    "SOLLOL",
    "Answer",
    "AsyncBatch",
    "AsyncClient",
    "AsyncJob",
    "BackendError",
    "BackendTimeout",
    "Batch",
    "BatchItem",
    "BatchState",
    "BrokerOutdated",
    "BrokerUnavailable",
    "Client",
    "ClientClosed",
    "DashboardClient",
    "DeadlineExceeded",
    "Delta",
    "HybridRouter",
    "InvalidJob",
    "Job",
    "JobCancelled",
    "JobDead",
    "JobFailed",
    "JobLost",
    "JobState",
    "KeyMissing",
    "NoNodeForModel",
    "NotAllowed",
    "OllamaPool",
    "Priority",
    "QueueFull",
    "QuotaExceeded",
    "SOLLOLClient",
    "SOLLOLConfig",
    "SollolError",
    "StreamGap",
    "__version__",
    "is_docker_ip",
    "resolve_docker_ip",
    "run_unified_dashboard",
]

# Names that do not lie in the errors' module, and where they lie.
_HOMES = {
    "Answer": "sollol_client",
    "AsyncBatch": "sollol_client",
    "AsyncClient": "sollol_client",
    "AsyncJob": "sollol_client",
    "Batch": "sollol_client",
    "BatchItem": "sollol_client",
    "BatchState": "sollol_broker.words",
    "Client": "sollol_client",
    "DashboardClient": "sollol.dashboard_client",
    "Delta": "sollol_client",
    "HybridRouter": "sollol.hybrid_router",
    "Job": "sollol_client",
    "JobState": "sollol_broker.words",
    "OllamaPool": "sollol.pool",
    "Priority": "sollol_broker.words",
    "SOLLOL": "sollol.service",
    "SOLLOLClient": "sollol.http_client",
    "SOLLOLConfig": "sollol.config",
    "run_unified_dashboard": "sollol.unified_dashboard",
    "is_docker_ip": "sollol.docker_ip_resolver",
    "resolve_docker_ip": "sollol.docker_ip_resolver",
    "__version__": "sollol_broker.version",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'sollol' has no attribute {name!r}")
    home = import_module(_HOMES.get(name, "sollol_broker.errors"))
    value: object = getattr(home, "VERSION" if name == "__version__" else name)
    globals()[name] = value  # the next look-up finds it without us
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
