"""A list of rpc-servers that somebody keeps by hand, with how they are."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sollol_worker_agent.rpc.wire import RpcReport, RpcState

from .rpc_discovery import DEFAULT_PORT, ask_all, endpoint

# A question takes a place in the backlog of a server that serves somebody else; so not too often.
_HEARTBEAT_SECONDS = 30.0


@dataclass(slots=True)
class RPCBackend:
    """An rpc-server, `backend["host"]` and `backend.host` alike.

    Attributes:
        name: as it was added; "HOST:PORT" otherwise.
        report: what it said last; None = it has not been asked.
        is_in_use: a `LlamaCppCoordinator` has it: it is taken for healthy and not asked.
    """

    host: str
    port: int = DEFAULT_PORT
    name: str = ""
    report: RpcReport | None = None
    is_in_use: bool = False

    def __post_init__(self) -> None:
        self.name = self.name or self.address

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    @property
    def is_healthy(self) -> bool:
        """Whether it answered when it was asked last, or is in use."""
        return self.is_in_use or (self.report is not None and self.report.state is RpcState.IDLE)

    @property
    def free_mib(self) -> int:
        """Of all its devices; 0 = not known."""
        return sum(device.free_mib for device in self.report.devices) if self.report is not None else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data: host, port, name, is_healthy, state, in_use, free_mib, latency_ms, version."""
        report = self.report
        return {
            "host": self.host,
            "port": self.port,
            "name": self.name,
            "is_healthy": self.is_healthy,
            "state": "in use" if self.is_in_use else report.state.value if report else "not asked",
            "in_use": self.is_in_use,
            "free_mib": self.free_mib,
            "latency_ms": report.trip_ms if report else None,
            "version": ".".join(map(str, report.version or ())) if report else "",
        }

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    @classmethod
    def of(cls, given: RPCBackend | Mapping[str, Any] | str) -> RPCBackend:
        """From {"host", "port"}, "HOST:PORT", "grpc://HOST:PORT", or one of these objects.

        Raises:
            InvalidJob: it is none of these.
        """
        if isinstance(given, RPCBackend):
            return given
        if isinstance(given, str):
            return cls(*endpoint(given))
        host, port = endpoint(str(given.get("host", "")), int(given.get("port") or DEFAULT_PORT))
        return cls(host, port, str(given.get("name") or ""))


class RPCBackendRegistry:
    """Rpc-servers by host and port. Safe to share between threads.

    A fabric needs no registry: its nodes advertise themselves, and `sollol groups` shows who serves what.

    Args:
        enable_heartbeat: ask all of them every 30 s, in a thread of its own, from the first one on.
    """

    def __init__(self, enable_heartbeat: bool = True) -> None:
        self._backends: dict[tuple[str, int], RPCBackend] = {}
        self._lock = threading.Lock()
        self._beats = enable_heartbeat
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def add_backend(self, host: str, port: int | str = DEFAULT_PORT) -> RPCBackend:
        """Add one: `add_backend("10.0.0.5", 50052)`, or by a name: `add_backend("rpc_1", "grpc://10.0.0.5:50052")`.

        Raises:
            InvalidJob: that is no address.
        """
        if isinstance(port, str) and not port.isdigit():
            backend = RPCBackend(*endpoint(port), name=host)
        else:
            backend = RPCBackend(*endpoint(host, int(port)))
        with self._lock:
            known = self._backends.setdefault((backend.host, backend.port), backend)
            if self._beats and self._thread is None and not self._stopped.is_set():
                self._thread = threading.Thread(target=self._beat, name="sollol-rpc-registry", daemon=True)
                self._thread.start()
        return known

    def load_from_config(self, rpc_backends: Sequence[Mapping[str, Any] | str]) -> None:
        """Add many: [{"host", "port"}, …]. Raises InvalidJob as `add_backend` does."""
        for each in rpc_backends:
            backend = RPCBackend.of(each)
            with self._lock:
                self._backends.setdefault((backend.host, backend.port), backend)

    def remove_backend(self, host: str, port: int = DEFAULT_PORT) -> bool:
        """Forget one, by host and port or by its name; False = it was not there."""
        with self._lock:
            for key, backend in self._backends.items():
                if key == (host, port) or backend.name == host:
                    del self._backends[key]
                    return True
        return False

    def get_all_backends(self) -> list[RPCBackend]:
        """All of them, in the order in which they were added."""
        with self._lock:
            return list(self._backends.values())

    def get_healthy_backends(self) -> list[RPCBackend]:
        """Those that answer; whoever has not been asked yet is asked now."""
        self._ask([each for each in self.get_all_backends() if each.report is None], 1.0)
        return [each for each in self.get_all_backends() if each.is_healthy]

    def get_best_backend(self) -> RPCBackend | None:
        """The one that is free and has most memory, then the nearest; None = there is none."""
        free = [each for each in self.get_healthy_backends() if not each.is_in_use]
        return max(
            free,
            key=lambda each: (each.free_mib, -(each.report.trip_ms if each.report else 0.0)),
            default=None,
        )

    def health_check_all(self, timeout: float = 1.0) -> dict[str, bool]:
        """Ask all of them now; "HOST:PORT" → whether it answers."""
        self._ask(self.get_all_backends(), timeout)
        return {each.address: each.is_healthy for each in self.get_all_backends()}

    def get_stats(self) -> dict[str, Any]:
        """{"total_backends", "healthy_backends", "backends": [see `RPCBackend.to_dict`]}."""
        backends = self.get_all_backends()
        return {
            "total_backends": len(backends),
            "healthy_backends": sum(each.is_healthy for each in backends),
            "backends": [each.to_dict() for each in backends],
        }

    def stop_heartbeat(self) -> None:
        """Ask by itself no more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_heartbeat()

    def _ask(self, backends: Sequence[RPCBackend], timeout: float) -> None:
        asked = [each for each in backends if not each.is_in_use]
        reports = ask_all([(each.host, each.port) for each in asked], timeout)
        for backend, report in zip(asked, reports, strict=True):
            backend.report = report

    def _beat(self) -> None:
        while not self._stopped.wait(_HEARTBEAT_SECONDS):
            self._ask(self.get_all_backends(), 1.0)
