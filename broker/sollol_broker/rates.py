"""How fast the fabric is at this moment, and what the last hour came to, from its series. Pure."""

from __future__ import annotations

from .series import Count, History, Time

HOUR_SECONDS = 3600.0
# What "now" means for rates, and for durations, of which there are fewer.
_RATE_SECONDS, DURATION_SECONDS = 60.0, 300.0

_RATES: dict[str, Count] = {"requests": "requests", "tokens": "tokens_out", "errors": "errors"}
_DURATIONS: tuple[Time, ...] = ("ttft", "latency")
_QUANTILES = (("p50", 0.5), ("p95", 0.95))


def rates(now: History, hour: History) -> dict[str, float | None]:
    """`requests`, `tokens` and `errors` per second in the last minute; `ttft_p50`, `latency_p95`, … in seconds in the
    last five (None = there were none); `requests_hour` and `errors_hour`.

    Args:
        now: the last DURATION_SECONDS. hour: the last HOUR_SECONDS.
    """
    points = max(1, round(_RATE_SECONDS / now.step))
    return {
        **{name: _mean(now.rates(count)[-points:]) for name, count in _RATES.items()},
        **{f"{name}_{word}": now.quantile(name, q) for name in _DURATIONS for word, q in _QUANTILES},
        "requests_hour": hour.total("requests"),
        "errors_hour": hour.total("errors"),
    }


def quantiles_over_time(span: History) -> dict[str, list[float | None]]:
    """`ttft_p50`, `ttft_p95`, `latency_p50` and `latency_p95` point by point, in seconds; None = there were none."""
    return {f"{name}_{word}": span.quantiles(name, q) for name in _DURATIONS for word, q in _QUANTILES}


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0
