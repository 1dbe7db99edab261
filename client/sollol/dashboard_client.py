"""Applications that show themselves in the fabric."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from sollol_broker.app_metadata import metadata_text
from sollol_broker.errors import InvalidJob, SollolError
from sollol_client import Client

from .pool.settings import app_name_of, warn_of_replaced

_HEARTBEAT_SECONDS = 5.0


class DashboardClient:
    """Shows an application on the monitoring page, with its router, version and metadata, for as long as it lives.

    Every `Client` and `OllamaPool` does so by itself; this is for programs that have neither, or have more to show. It
    registers in the fabric's Redis, which the page reads: the page need not run for that.

    Args:
        app_name: as it is shown; spaces become dashes. router_type, version, metadata: shown beside it.
        dashboard_url: kept as `dashboard_url`, for links; nothing is sent there.
        given: what follows by its place: metadata and auto_register, as the manual of 0.9 had it, or
            heartbeat_interval, metadata and auto_register, as its releases did.
        redis_url: the fabric's Redis; None = $SOLLOL_REDIS_URL, else redis://127.0.0.1:6379/0.
        auto_register: begin at once; a Redis that is away is no error, it is tried again with each heartbeat.
        heartbeat_interval: seconds between two signs of life, given by itself.

    Raises:
        InvalidJob: a value makes no sense; `field` names it.
    """

    def __init__(
        self,
        app_name: str,
        router_type: str = "unknown",
        version: str = "unknown",
        dashboard_url: str = "http://localhost:8080",
        *given: Any,
        metadata: Mapping[str, Any] | None = None,
        auto_register: bool = True,
        redis_url: str | None = None,
        heartbeat_interval: float = _HEARTBEAT_SECONDS,
        **old: Any,
    ) -> None:
        warn_of_replaced(old, "DashboardClient")
        by_place = _named(given)
        metadata = by_place.get("metadata", metadata)
        auto_register = by_place.get("auto_register", auto_register)
        heartbeat_interval = by_place.get("heartbeat_interval", heartbeat_interval)
        if heartbeat_interval <= 0:
            raise InvalidJob(
                f"heartbeat_interval: more than 0 seconds, got {heartbeat_interval!r}",
                field="heartbeat_interval",
            )
        self.app_name = app_name_of(app_name)
        self.dashboard_url = dashboard_url
        self.metadata = {"router_type": router_type, "version": version, **(metadata or {})}
        metadata_text(self.metadata)
        self._redis_url = redis_url
        self._interval = heartbeat_interval
        self._client: Client | None = None
        self._lock = threading.Lock()
        self._ending: threading.Event | None = None
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
        """Begin to show the application, and go on by itself; False: Redis cannot be reached yet."""
        with self._lock:
            if self._ending is None:
                self._ending = threading.Event()
                threading.Thread(
                    target=self._keep_beating, args=(self._ending,), name="sollol-heartbeat", daemon=True
                ).start()
        return self.heartbeat()

    def heartbeat(self, metadata: Mapping[str, Any] | None = None) -> bool:
        """Say now that it lives, and what has changed; False: Redis cannot be reached.

        Raises:
            InvalidJob: so much metadata cannot be shown; it stays as it was.
        """
        with self._lock:
            metadata_text({**self.metadata, **(metadata or {})})
            self.metadata.update(metadata or {})
            return self._beat()

    def update_metadata(self, metadata: Mapping[str, Any]) -> bool:
        """Add to what is shown, and show it; False: Redis cannot be reached."""
        return self.heartbeat(metadata)

    def unregister(self) -> None:
        """Stop: the fabric forgets the application, unless another process of that name lives. May be called again."""
        with self._lock:
            client, self._client = self._client, None
            ending, self._ending = self._ending, None
            if ending is not None:
                ending.set()
        if client is not None:
            with contextlib.suppress(SollolError):  # its last sign of life grows old by itself
                client.depart()
            client.close()

    deregister = unregister
    close = unregister

    def _beat(self) -> bool:
        client = self._client or Client(self._redis_url, app=self.app_name, metadata=self.metadata)
        try:
            client.attend(self.metadata)
        except SollolError:
            if self._client is None:
                client.close()
            return False
        self._client = client
        return True

    def _keep_beating(self, ending: threading.Event) -> None:
        while not ending.wait(self._interval):
            with self._lock:
                if not ending.is_set():
                    self._beat()


def _named(given: tuple[Any, ...]) -> dict[str, Any]:
    """What was given by its place, by the names that stand there in the release that the caller was written for."""
    names = ["metadata", "auto_register"]
    if given and isinstance(given[0], int | float):
        names.insert(0, "heartbeat_interval")
    if len(given) > len(names):
        raise TypeError(f"DashboardClient() takes from 1 to {4 + len(names)} values by their place")
    return dict(zip(names, given, strict=False))
