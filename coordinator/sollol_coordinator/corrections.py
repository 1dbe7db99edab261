"""What loads teach: by how much a model's memory was estimated wrongly. Kept in Redis, for the next plan."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.model_facts import ModelFacts
from sollol_broker.names import key_part

from .estimate import NO_CORRECTION, Correction, Load, cache_bytes, compute_bytes

_MIB = 1024 * 1024
_TTL_MS = 30 * 24 * 3600 * 1000
# Beyond that the report is not of what was estimated.
_LEAST, _MOST = 0.25, 4.0


def learned(facts: ModelFacts, load: Load, result: Mapping[str, Any]) -> Correction:
    """From what a llama-server reported: its compute buffers to ours, and what lay beyond all that was estimated.

    Args:
        result: `report` (MiB by "NODE kind") and `places` (of the plan), as `form_group` gives them.
    """
    report = {str(name): float(mib) for name, mib in result.get("report", {}).items()}
    used = len(result.get("places", ()))
    computed = [mib for name, mib in report.items() if name.endswith(" compute")]
    ours = compute_bytes(facts, load) / _MIB
    if not computed or not used or ours <= 0:
        return NO_CORRECTION
    # Every device has a buffer of its own; the largest is what has to fit.
    factor = min(_MOST, max(_LEAST, max(computed) / ours))
    cached = sum(mib for name, mib in report.items() if name.endswith(" KV"))
    beyond = max(0.0, cached - sum(cache_bytes(facts, load)) / _MIB) / used
    return Correction(round(factor, 3), round(beyond, 1))


async def read_correction(broker: Broker, model: str) -> Correction:
    """What was learned of a model; nothing yet = no correction."""
    compute, beyond = await broker.link.call(
        "HMGET", broker.keys.estimate(key_part(model)), "compute", "beyond_mib"
    )
    if compute is None or beyond is None:
        return NO_CORRECTION
    return Correction(float(compute), float(beyond))


async def write_correction(broker: Broker, model: str, correction: Correction) -> None:
    """Keep it."""
    key = broker.keys.estimate(key_part(model))
    fields = ("compute", str(correction.compute), "beyond_mib", str(correction.beyond_mib))
    # Sent as one: a coordinator that stops in between would leave a key that lives for ever.
    await asyncio.gather(broker.link.call("HSET", key, *fields), broker.link.call("PEXPIRE", key, _TTL_MS))
