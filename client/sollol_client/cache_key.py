"""Which requests may share one answer. Pure rules."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sollol_broker.codec import pack
from sollol_broker.errors import InvalidJob
from sollol_broker.names import key_part
from sollol_broker.words import JobKind

# In hex, of a SHA-256.
KEY_DIGITS = 40
# What says how long a model stays in memory, and not what it answers.
_NOT_ASKED = frozenset({"keep_alive"})


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """How a client shares and keeps answers.

    Attributes:
        enabled: whether requests share answers without being told to.
        scope: "app": with the same application's requests only; "shared": with everybody's.
        max_size: answers kept in this process; 0 = none. max_bytes: of all of them together.
        ttl_seconds: for which one is kept in this process.

    Raises:
        InvalidJob: names the argument at fault.
    """

    enabled: bool = True
    scope: str = "app"
    max_size: int = 1000
    max_bytes: int = 64 * 1024 * 1024
    ttl_seconds: float = 3600.0

    def __post_init__(self) -> None:
        if not isinstance(self.enabled, bool):
            raise InvalidJob(f"cache: True or False is needed, got {self.enabled!r}", field="cache")
        if self.scope not in ("app", "shared"):
            raise InvalidJob(
                f"cache_scope: 'app' or 'shared' is needed, got {self.scope!r}", field="cache_scope"
            )
        for name in ("max_size", "max_bytes", "ttl_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
                raise InvalidJob(
                    f"cache_{name}: a number of 0 or more is needed, got {value!r}", field=f"cache_{name}"
                )


def is_cacheable(kind: str, payload: Mapping[str, Any], asked: bool | None, *, enabled: bool) -> bool:
    """Whether a request may share its answer.

    1. The caller's word decides.
    2. Otherwise only what a model answers the same way each time: embeddings, rankings, and text at temperature 0.
    """
    if asked is not None:  # 1
        return asked
    if not enabled or kind in (JobKind.EMBED, JobKind.RERANK):  # 2
        return enabled
    options = payload.get("options")
    temperature = options.get("temperature") if isinstance(options, Mapping) else None
    return isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0


def cache_key(
    app: str,
    kind: str,
    model: str,
    payload: Mapping[str, Any],
    blobs: Sequence[bytes],
    scope: str,
    needs: bytes = b"",
) -> str:
    """40 hex digits that equal requests share, whatever the order of their fields.

    Pictures, tools, format and options count, and so does what a node must have (`needs`): an answer from
    elsewhere would break it. keep_alive does not, nor does anything beside the payload.
    """
    asked = {name: value for name, value in payload.items() if name not in _NOT_ASKED}
    pictures = [hashlib.sha256(blob).digest() for blob in blobs]
    whole = (app if scope == "app" else "", scope, str(kind), model, _ordered(asked), pictures, needs)
    return hashlib.sha256(pack(whole)).hexdigest()[:KEY_DIGITS]


def scope_field(app: str, scope: str) -> str:
    """The field of `Keys.caches` whose generation `clear_cache` raises; no model's field has a colon."""
    return f"app:{key_part(app)}" if scope == "app" else "shared:"


def _ordered(value: Any) -> Any:
    """The same value with the fields of each map in order."""
    if isinstance(value, Mapping):
        return {name: _ordered(value[name]) for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [_ordered(each) for each in value]
    return value
