"""What others told of a machine's hardware, read back: adverts, and what SOLLOL 0.9's reporters wrote. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sollol_worker_agent.hardware.readings import Gpu, Hardware

# Those reporters wrote every 5 s. Their clock and Redis' may differ by some seconds besides.
FRESH_SECONDS = 30.0
_MOST_BYTES = 64 * 1024


def from_advert(told: Mapping[str, Any]) -> Hardware | None:
    """What `Hardware.as_dict` gave; None = it is not that, or nothing."""
    try:
        gpus = tuple(Gpu(**_known(Gpu, each)) for each in told.get("gpus", ()))
        return Hardware(**{**_known(Hardware, told), "gpus": gpus}) if told else None
    except (AttributeError, TypeError, ValueError):
        return None


def from_old_report(text: bytes, *, now_seconds: float) -> Hardware | None:
    """What lies at sollol:gpu:HOST:PORT; None = it is too old, too new, or makes no sense.

    {"vendor", "gpus": [{"index", "name", "memory_total_mb", "memory_free_mb", "utilization_percent", "temperature_c"}],
    "timestamp"}, with the reporter's clock in seconds. Of CPU and RAM it says nothing.
    """
    if len(text) > _MOST_BYTES:
        return None
    try:
        told = json.loads(text)
        age = now_seconds - float(told["timestamp"])
        if not -FRESH_SECONDS <= age <= FRESH_SECONDS:
            return None
        gpus = tuple(_old_gpu(each, str(told.get("vendor") or "unknown")) for each in told["gpus"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return Hardware(gpus, "unknown", 1, 0.0, 0.0, 0, 0, is_estimate=False) if gpus else None


def _old_gpu(told: Mapping[str, Any], vendor: str) -> Gpu:
    total = max(0, int(told["memory_total_mb"]))
    free = min(total, max(0, int(told["memory_free_mb"])))
    utilisation, temperature = told.get("utilization_percent"), told.get("temperature_c")
    return Gpu(
        index=int(told.get("index", 0)),
        vendor=vendor.lower()[:20],
        name=str(told.get("name") or "unknown")[:80],
        uuid="",
        memory_total_mib=total,
        memory_used_mib=total - free,
        memory_free_mib=free,
        utilisation_percent=None if utilisation is None else int(utilisation),
        temperature_c=None if temperature is None else int(temperature),
        power_w=None,
        source="reporter",
        is_estimate=False,
    )


def _known(kind: type[Gpu] | type[Hardware], told: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in told.items() if name in names}
