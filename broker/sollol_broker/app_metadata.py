"""What an application shows beside its name: plain data, bounded where it is written and where it is read.

Whoever looks at the applications reads that of all of them, so no single one may be too large, or break what shows it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from .errors import InvalidJob
from .told import plain

# Each sign of life carries it, and each look at the applications.
_MOST_BYTES = 16 * 1024
_MOST_DEPTH = 8


def metadata_text(metadata: Mapping[Any, Any]) -> str:
    """As it lies in Redis. What is no plain data is told as text.

    Raises:
        InvalidJob: it is too long.
    """
    text = json.dumps(_bounded(metadata, _MOST_DEPTH))
    if len(text) > _MOST_BYTES:
        raise InvalidJob(
            f"metadata: {len(text):,} bytes as JSON, at most {_MOST_BYTES:,}: every look at the applications shows it",
            field="metadata",
        )
    return text


def metadata_of(text: str) -> dict[str, Any]:
    """What lies in Redis, whoever has written it; nothing of what makes no sense or is too long."""
    found = (
        plain(text) if len(text) <= 2 * _MOST_BYTES else None
    )  # a release without a bound may have written it
    return _bounded(found, _MOST_DEPTH) if isinstance(found, dict) else {}


def _bounded(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping) and depth:
        return {str(name): _bounded(each, depth - 1) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth:
        return [_bounded(each, depth - 1) for each in value]
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return "…"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    return value if value is None or isinstance(value, str | int | float) else str(value)
