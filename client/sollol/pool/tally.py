"""What a pool counts of its own requests."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class _Host:
    requests: int = 0
    milliseconds: float = 0.0


@dataclass(slots=True)
class Tally:
    """Counts requests, by the node that answered. Any thread may call any method."""

    under_way: int = 0
    _answered: int = 0
    _failed: int = 0
    _milliseconds: float = 0.0
    _hosts: dict[str, _Host] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def began(self) -> None:
        """One more is under way."""
        with self._lock:
            self.under_way += 1

    def answered(self, host: str, milliseconds: float) -> None:
        """One has its answer."""
        with self._lock:
            self.under_way -= 1
            self._answered += 1
            self._milliseconds += milliseconds
            at = self._hosts.setdefault(host, _Host())
            at.requests += 1
            at.milliseconds += milliseconds

    def failed(self) -> None:
        """One has ended without an answer."""
        with self._lock:
            self.under_way -= 1
            self._failed += 1

    def as_dict(self) -> dict[str, Any]:
        """Totals and, by node, how many it answered and how long that took from call to answer."""
        with self._lock:
            ended = self._answered + self._failed
            return {
                "total_requests": ended + self.under_way,
                "successful_requests": self._answered,
                "failed_requests": self._failed,
                "success_rate": round(self._answered / ended, 4) if ended else 1.0,
                "avg_latency_ms": _mean(self._milliseconds, self._answered),
                "hosts": {
                    host: {"requests": at.requests, "latency_ms": _mean(at.milliseconds, at.requests)}
                    for host, at in self._hosts.items()
                },
            }


def _mean(total: float, count: int) -> float:
    return round(total / count, 2) if count else 0.0
