"""What an operator has set for a node: a plain value and what follows from it. Pure.

It lies in Redis as msgpack, written by `control.lua` alone; whatever else is found there counts as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

from .codec import unpack
from .errors import InvalidJob
from .names import check_name

USUAL_PRIORITY = 5
MOST_PRIORITY = 10
# One step makes a node look a fifth slower or faster: 10 is 2.5 times as attractive as 5, and 0 as little.
_STEP = 1.2
_MOST_BYTES = 64 * 1024
_MOST_WORDS = 100
MOST_DRAIN_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Controls:
    """An operator's settings of one node.

    Attributes:
        cordoned: it takes no new jobs. draining: and those that run may end within `drain_seconds` (None = as
            the worker was started), then they are handed back.
        priority: 0-10; a node of 10 gets jobs that others would do a little sooner, one of 0 the reverse.
        labels: beside those that its workers were started with.
        allow: patterns of the models that it may serve, such as "llama*"; empty = all.
        deny: patterns of those that it may not; they win over `allow`.
    """

    cordoned: bool = False
    draining: bool = False
    drain_seconds: float | None = None
    priority: int = USUAL_PRIORITY
    labels: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    @classmethod
    def from_bytes(cls, data: bytes) -> Controls:
        """Read what lies in Redis; nothing, or nonsense, sets nothing."""
        try:
            fields = unpack(data, max_bytes=_MOST_BYTES) if data else {}
        except InvalidJob:
            fields = {}
        if not isinstance(fields, dict):
            return cls()
        seconds, priority = fields.get("drain_seconds"), fields.get("priority")
        return cls(
            cordoned=fields.get("cordoned") is True,
            draining=fields.get("draining") is True,
            drain_seconds=float(seconds) if _is_number(seconds) and seconds >= 0 else None,
            priority=min(MOST_PRIORITY, max(0, round(priority))) if _is_number(priority) else USUAL_PRIORITY,
            labels=_words(fields.get("labels")),
            allow=_words(fields.get("allow")),
            deny=_words(fields.get("deny")),
        )

    @property
    def is_closed(self) -> bool:
        """Whether the node takes no new jobs."""
        return self.cordoned or self.draining

    @property
    def state(self) -> str:
        """In a word."""
        return "draining" if self.draining else "cordoned" if self.cordoned else "up"

    @property
    def price(self) -> float:
        """How many times as slow as it is the node looks to whoever compares nodes."""
        return float(_STEP ** (USUAL_PRIORITY - self.priority))

    def allows(self, model: str) -> bool:
        """Whether the node may serve a model."""
        return not self.forbids(model)

    def forbids(self, model: str) -> str:
        """Why the node may not serve a model; "" = it may."""
        for pattern in self.deny:
            if fnmatchcase(model, pattern):
                return f"{pattern} is denied there"
        if self.allow and not any(fnmatchcase(model, pattern) for pattern in self.allow):
            return f"only {', '.join(self.allow)} allowed there"
        return ""


def changes(
    *,
    priority: int | None = None,
    labels: Sequence[str] | None = None,
    allow: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Settings as `control.lua` takes them; None = leave as it is, an empty list takes all away.

    Raises:
        InvalidJob: a value makes no sense; `field` names it.
    """
    found: dict[str, Any] = {}
    if priority is not None:
        if not isinstance(priority, int) or not 0 <= priority <= MOST_PRIORITY:
            raise InvalidJob(f"priority: a whole number from 0 to 10, got {priority!r}", field="priority")
        found["priority"] = int(priority)
    if labels is not None:
        found["labels"] = _checked(labels, "labels")
    if allow is not None:
        found["allow"] = [_pattern(each) for each in _checked(allow, "allow")]
    if deny is not None:
        found["deny"] = [_pattern(each) for each in _checked(deny, "deny")]
    return found


def draining(seconds: float | None) -> dict[str, Any]:
    """The changes that drain a node; `seconds` None = as its workers were started.

    Raises:
        InvalidJob: not from 0 to a week.
    """
    if seconds is not None and not 0 <= seconds <= MOST_DRAIN_SECONDS:
        raise InvalidJob(f"seconds: from 0 to {MOST_DRAIN_SECONDS:.0f}, got {seconds}", field="seconds")
    return {"cordoned": True, "draining": True, "drain_seconds": False if seconds is None else float(seconds)}


CORDON: Mapping[str, Any] = {"cordoned": True}
UNCORDON: Mapping[str, Any] = {"cordoned": False, "draining": False, "drain_seconds": False}


def _checked(words: Sequence[str], field: str) -> list[str]:
    if isinstance(words, str) or len(words) > _MOST_WORDS:
        raise InvalidJob(f"{field}: a list of at most {_MOST_WORDS} words is needed", field=field)
    return list(dict.fromkeys(check_name(each, field) for each in words))


def _pattern(text: str) -> str:
    """Spelt as models' names are compared."""
    return text.lower().removesuffix(":latest")


def _words(value: object) -> tuple[str, ...]:
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
