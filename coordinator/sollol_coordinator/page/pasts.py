"""The last hour as the page draws it: short lists of numbers, from the series in Redis."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.rates import DURATION_SECONDS, HOUR_SECONDS, quantiles_over_time, rates
from sollol_broker.series import History
from sollol_broker.series_reader import SeriesReader

# Of one point of a plot: 120 points an hour.
_STEP_SECONDS = 30.0
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
        hour = await self._read("hour", _KEPT_SECONDS, lambda: self._series.fabric(HOUR_SECONDS))
        now = await self._read("now", _NOW_KEPT_SECONDS, lambda: self._series.fabric(DURATION_SECONDS))
        return {"history": _fabric(hour), "rates": rates(now, hour)}

    async def node(self, name: str) -> dict[str, Any]:
        """The last hour of one node."""
        hour = await self._read(f"node {name}", _KEPT_SECONDS, lambda: self._series.node(name, HOUR_SECONDS))
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
        **quantiles_over_time(past),
    }
