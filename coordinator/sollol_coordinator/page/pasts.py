"""The last hour as the page draws it: short lists of numbers, from the series in Redis."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.series import History
from sollol_broker.series_reader import SeriesReader

_HOUR = 3600.0
# Of one point of a plot: 120 points an hour.
_STEP_SECONDS = 30.0
# What "now" means for rates, and for durations, of which there are fewer.
_RATE_SECONDS, _DURATION_SECONDS = 60.0, 300.0
# Series grow by a point in ten seconds.
_KEPT_SECONDS, _NOW_KEPT_SECONDS = 10.0, 4.0
_MOST_KEPT = 50


class Pasts:
    """Reads series, and keeps each for a few seconds.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, broker: Broker, *, clock: Callable[[], float]) -> None:
        self._series = SeriesReader(broker)
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    async def fabric(self) -> dict[str, Any]:
        """`history`, the last hour of all models; `rates`, the present moment."""
        hour = await self._read("hour", _KEPT_SECONDS, lambda: self._series.fabric(_HOUR))
        now = await self._read("now", _NOW_KEPT_SECONDS, lambda: self._series.fabric(_DURATION_SECONDS))
        return {"history": _fabric(hour), "rates": _rates(now, hour)}

    async def node(self, name: str) -> dict[str, Any]:
        """The last hour of one node."""
        hour = await self._read(f"node {name}", _KEPT_SECONDS, lambda: self._series.node(name, _HOUR))
        past: History = hour.by(_STEP_SECONDS)
        return {
            "start": past.start,
            "step": past.step,
            "tokens": past.rates("tokens_out"),
            "requests": past.rates("requests"),
            "busy": past.values("busy"),
            "vram": past.values("vram_used_mib"),
            "ram": past.values("ram_used_mib"),
            "gpu": past.values("gpu_percent"),
        }

    async def _read(self, key: str, seconds: float, read: Callable[[], Awaitable[History]]) -> History:
        kept = self._kept.get(key)
        if kept is None or self._clock() - kept[0] > seconds:
            kept = (self._clock(), await read())
            self._kept[key] = kept
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        found: History = kept[1]
        return found


def _fabric(hour: History) -> dict[str, Any]:
    past = hour.by(_STEP_SECONDS)
    return {
        "start": past.start,
        "step": past.step,
        "tokens": past.rates("tokens_out"),
        "tokens_total": hour.total("tokens_out"),
        "requests": past.rates("requests"),
        "requests_total": hour.total("requests"),
        "errors": [round(60 * each, 2) for each in past.rates("errors")],
        "errors_total": hour.total("errors"),
        "waiting": past.values("waiting"),
        **{
            f"{name}_{word}": past.quantiles(name, q)
            for name in ("ttft", "latency")
            for word, q in (("p50", 0.5), ("p95", 0.95))
        },
    }


def _rates(now: History, hour: History) -> dict[str, Any]:
    return {
        "requests": _lately(now.rates("requests")),
        "tokens": _lately(now.rates("tokens_out")),
        "ttft_p50": now.quantile("ttft", 0.5),
        "ttft_p95": now.quantile("ttft", 0.95),
        "latency_p50": now.quantile("latency", 0.5),
        "latency_p95": now.quantile("latency", 0.95),
        "requests_hour": hour.total("requests"),
        "errors_hour": hour.total("errors"),
    }


def _lately(rates: Sequence[float]) -> float:
    """The mean of the last minute, in points of a second."""
    last = rates[-int(_RATE_SECONDS) :]
    return round(sum(last) / len(last), 3) if last else 0.0
