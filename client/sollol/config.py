"""How `SOLLOL` brings a gateway up, and how `SOLLOLClient` finds one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Self

from sollol_broker.errors import InvalidJob

from .pool.address import NodeAddress, node_addresses
from .pool.settings import warn_of_replaced
from .unified_dashboard import dashboard_port_of, wants_dashboard

# In the order of the class' last fields.
OLD = ("ray_workers", "dask_workers", "enable_batch_processing", "autobatch_interval")


@dataclass(frozen=True, slots=True, kw_only=True)
class SOLLOLConfig:
    """A gateway and what stands behind it; every field has a default.

    Attributes:
        hosts: the Ollama servers, "gpu-1:11434" or {"host", "port", "priority"}; None = those that are found.
        gateway_host, gateway_port: where it listens; $SOLLOL_PORT, else 8000. Beyond this machine it asks every caller
            for an API key.
        metrics_port: /metrics is served there as well; 0 = only at the gateway's own port.
        dashboard: whether the monitoring page is served, too, on this machine; $SOLLOL_DASHBOARD=1, else no.
        dashboard_port: of that page; $SOLLOL_DASHBOARD_PORT, else 8080; 0 = a free one.
        redis_url: the fabric's Redis; "" = $SOLLOL_REDIS_URL, else a private one with workers of its own.
        app_name: as the fabric shows it.
        base_url: where `SOLLOLClient` finds the gateway; "" = at gateway_port of this machine.
        timeout: seconds for which it waits for an answer.
        default_model, default_priority: for its calls that name none.
        ray_workers, dask_workers, enable_batch_processing, autobatch_interval: of earlier releases, without a meaning;
            each warns once and names what replaces it.

    Raises:
        InvalidJob: a value makes no sense; `field` names it.
    """

    hosts: Sequence[str | Mapping[str, Any]] | None = None
    gateway_host: str = "127.0.0.1"
    gateway_port: int = field(default_factory=lambda: _port(os.environ.get("SOLLOL_PORT") or "8000"))
    metrics_port: int = 9090
    dashboard: bool = field(default_factory=wants_dashboard)
    dashboard_port: int = field(default_factory=lambda: dashboard_port_of(None))
    redis_url: str = ""
    app_name: str = "sollol"
    base_url: str = ""
    timeout: float = 300.0
    default_model: str = "llama3.2"
    default_priority: int = 5
    ray_workers: InitVar[int | None] = None
    dask_workers: InitVar[int | None] = None
    enable_batch_processing: InitVar[bool | None] = None
    autobatch_interval: InitVar[int | None] = None

    def __post_init__(self, *old: int | None) -> None:
        warn_of_replaced(
            {name: value for name, value in zip(OLD, old, strict=True) if value is not None}, "SOLLOLConfig"
        )
        node_addresses(self.hosts or ())
        for name in ("gateway_port", "metrics_port", "dashboard_port"):
            port = getattr(self, name)
            if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
                raise InvalidJob(f"{name}: a port from 0 to 65535 is needed, got {port!r}", field=name)

    @property
    def nodes(self) -> tuple[NodeAddress, ...] | None:
        """`hosts`, read."""
        return None if self.hosts is None else node_addresses(self.hosts)

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        return (self.base_url or f"http://127.0.0.1:{self.gateway_port}").rstrip("/")

    @classmethod
    def auto_discover(cls, **given: Any) -> Self:
        """One with the Ollama servers of OLLAMA_HOST, OLLAMA_NODES and this machine as its hosts.

        Where a Redis is given, its workers know their servers, and nothing is looked for.

        Args:
            given: other fields.
        """
        from .discovery import discover_ollama_nodes

        if given.get("redis_url") or os.environ.get("SOLLOL_REDIS_URL"):
            return cls(**given)
        found = [f"{node['host']}:{node['port']}" for node in discover_ollama_nodes()]
        return cls(**{"hosts": found or None, **given})


def _port(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidJob(f"SOLLOL_PORT: a port is needed, got {text!r}", field="gateway_port") from None
