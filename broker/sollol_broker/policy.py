"""What may be handed in: limits of the queues, quotas of applications. Values and how they are checked; pure.

`_admit.lua` keeps to them when a job is submitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal, TypeGuard

from .codec import unpack
from .errors import InvalidJob

MOST_HEDGE_FROM = 11
_MOST_BYTES = 4096


class _Keep(Enum):
    KEEP = "keep"


# Says that a limit stays as it is, where None would take it away.
KEEP: Final = _Keep.KEEP
Limit = int | None | Literal[_Keep.KEEP]
Share = float | None | Literal[_Keep.KEEP]


@dataclass(frozen=True, slots=True)
class Quota:
    """What one application may use; None = no limit.

    Attributes:
        weight: its share of a busy queue, beside others of 1.
        concurrency: jobs that wait and run at the same time.
        requests_per_minute, tokens_per_minute: in a burst or evenly. max_queue_size: unfinished jobs per model.
        unfinished: jobs that it has waiting and running, of those that came since it has a quota.
    """

    weight: float = 1.0
    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_queue_size: int | None = None
    unfinished: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the fabric takes in; None = no limit but Redis' memory.

    Attributes:
        max_queue_size: jobs that wait in all. max_queue_bytes: of all unfinished jobs' bodies.
        models: most waiting jobs by model. apps: quotas by application.
        hedge_from: jobs of this priority and above may run twice when they are late; 11 = none, None = the
            fabric's usual.
        hedge_percent: by how much their second copies may add to a model's work; None = 5.
        waiting: jobs in line now. bytes: of the unfinished jobs that came since there is a limit on them.
    """

    max_queue_size: int | None = None
    max_queue_bytes: int | None = None
    hedge_from: int | None = None
    hedge_percent: int | None = None
    models: dict[str, int] = field(default_factory=dict)
    apps: dict[str, Quota] = field(default_factory=dict)
    waiting: int = 0
    bytes: int = 0


# The fields in Redis by the names in Python.
_LIMITS = {
    "max_queue_size": "max_queue",
    "max_queue_bytes": "max_bytes",
    "hedge_from": "hedge_from",
    "hedge_percent": "hedge_percent",
}
_QUOTA = {
    "weight": "weight",
    "concurrency": "concurrency",
    "requests_per_minute": "rpm",
    "tokens_per_minute": "tpm",
    "max_queue_size": "max_queue",
}
_WHOLE = {"max_queue_size", "max_queue_bytes", "hedge_from", "hedge_percent", "concurrency"}


def limit_changes(**limits: Limit) -> dict[str, Any]:
    """Limits as `policy.lua` takes them: only what changes; False = no limit any more.

    Raises:
        InvalidJob: a limit is no whole number, or negative.
    """
    return _changes(_LIMITS, limits)


def quota_changes(**quota: Share) -> dict[str, Any]:
    """A quota as `policy.lua` takes it: only what changes; False = no limit any more.

    Raises:
        InvalidJob: a limit is no number, or negative; a weight is 0.
    """
    return _changes(_QUOTA, quota)


def read(
    fields: Mapping[str, bytes],
    models: Mapping[str, str],
    *,
    unfinished: Mapping[str, int] | None = None,
    waiting: int = 0,
    bytes_now: int = 0,
) -> Limits:
    """The limits that lie in Redis; what is malformed there is no limit.

    Args:
        models: names by model key. unfinished: jobs by name of the application.
    """
    by_model, by_app = {}, {}
    for name, value in fields.items():
        kind, _, key = name.partition(":")
        if kind == "max_queue" and key and value.isdigit():
            by_model[models.get(key, key)] = int(value)
        elif kind == "app":
            app, quota = _quota(key, value, unfinished or {})
            by_app[app] = quota
    plain = {ours: fields.get(theirs, b"") for ours, theirs in _LIMITS.items()}
    known = {ours: int(value) if value.isdigit() else None for ours, value in plain.items()}
    return Limits(
        **known,
        models=dict(sorted(by_model.items())),
        apps=dict(sorted(by_app.items())),
        waiting=waiting,
        bytes=bytes_now,
    )


def app_name(key: str, value: bytes) -> str:
    """The name in the quota that lies under an application's key."""
    return str(_map(value).get("name") or key)


def _quota(key: str, value: bytes, unfinished: Mapping[str, int]) -> tuple[str, Quota]:
    plain = _map(value)
    found = {ours: plain[theirs] for ours, theirs in _QUOTA.items() if _is_number(plain.get(theirs))}
    name = str(plain.get("name") or key)
    return name, Quota(**found, unfinished=unfinished.get(name, 0))


def _map(value: bytes) -> dict[str, Any]:
    try:
        plain = unpack(value, max_bytes=_MOST_BYTES)
    except InvalidJob:
        return {}
    return plain if isinstance(plain, dict) else {}


def _changes(names: Mapping[str, str], given: Mapping[str, Share]) -> dict[str, Any]:
    return {
        names[name]: False if value is None else _checked(name, value)
        for name, value in given.items()
        if value is not KEEP
    }


def _checked(name: str, value: object) -> float:
    if not _is_number(value):
        raise InvalidJob(f"{name}: a number is needed, or None for no limit; got {value!r}", field=name)
    if value < 0 or (name == "weight" and value == 0):
        raise InvalidJob(f"{name}: {value} is too small", field=name)
    if name in _WHOLE and value != int(value):
        raise InvalidJob(f"{name}: a whole number is needed, got {value}", field=name)
    if name == "hedge_from" and value > MOST_HEDGE_FROM:
        raise InvalidJob("hedge_from: a priority from 0 to 10, or 11 for none", field=name)
    if name.endswith("_per_minute") and value == 0:
        raise InvalidJob(f"{name}: 0 would never let a job in; use concurrency=0 to shut it out", field=name)
    return int(value) if name in _WHOLE else float(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
