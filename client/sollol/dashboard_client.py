"""Applications that show themselves in the fabric."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from sollol_broker.errors import SollolError
from sollol_client import Client

from .pool.settings import warn_of_replaced


class DashboardClient:
    """Shows an application in the fabric, with its router, version and metadata, for as long as it lives.

    Every `Client` and `OllamaPool` does so by itself; this is for programs that have neither.

    Args:
        app_name: as it is shown. router_type, version, metadata: shown beside it.
        dashboard_url: kept as `dashboard_url`, for links; the application shows itself in Redis, not to the page.
        redis_url: the fabric's Redis; None = $SOLLOL_REDIS_URL, else redis://127.0.0.1:6379/0.
        auto_register: begin at once; a Redis that is away is no error then.
    """

    def __init__(
        self,
        app_name: str,
        router_type: str = "unknown",
        version: str = "unknown",
        dashboard_url: str = "http://localhost:8080",
        metadata: Mapping[str, Any] | None = None,
        auto_register: bool = True,
        *,
        redis_url: str | None = None,
        **old: Any,
    ) -> None:
        warn_of_replaced(old, "DashboardClient")
        self.app_name = app_name
        self.dashboard_url = dashboard_url
        self.metadata = {"router_type": router_type, "version": version, **(metadata or {})}
        self._redis_url = redis_url
        self._client: Client | None = None
        self._lock = threading.Lock()
        if auto_register:
            self.register()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_registered(self) -> bool:
        """Whether it shows itself."""
        return self._client is not None

    def register(self) -> bool:
        """Begin to show the application, and go on every few seconds; False: Redis cannot be reached."""
        return self.heartbeat()

    def heartbeat(self, metadata: Mapping[str, Any] | None = None) -> bool:
        """Say now that it lives, and what has changed; False: Redis cannot be reached."""
        with self._lock:
            self.metadata.update(metadata or {})
            client = self._client or Client(self._redis_url, app=self.app_name, metadata=self.metadata)
            try:
                client.attend(self.metadata)
            except SollolError:
                if self._client is None:
                    client.close()
                return False
            self._client = client
            return True

    def update_metadata(self, metadata: Mapping[str, Any]) -> bool:
        """Add to what is shown, and show it; False: Redis cannot be reached."""
        return self.heartbeat(metadata)

    def unregister(self) -> None:
        """Stop; the fabric forgets the application when its last sign of life is old. It may be called again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    deregister = unregister
    close = unregister
