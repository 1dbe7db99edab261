"""What a request asks of the fabric besides the model's work, by header `X-Sollol-*` or a field of its body. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sollol_broker.errors import InvalidJob
from sollol_broker.tracing import trace_of
from sollol_broker.words import JobKind, Priority

# Fields of a body that are ours and not the backend's. What a body says counts more than a header.
FIELDS = ("priority", "app", "session", "deadline", "cache")
_YES, _NO = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True, slots=True)
class Asked:
    """A request in Ollama's words, whatever API it came by.

    Attributes:
        model: as the caller wrote it.
        payload: `messages`, `prompt`, `input` or `documents`, and all that the backend gets, unknown fields, too.
        stream: whether the caller wants the text as it is made.
        submit: arguments for the job itself, where the API has fields for them.
    """

    kind: JobKind
    model: str
    payload: Mapping[str, Any]
    stream: bool = False
    submit: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a request wants to be treated.

    Attributes:
        detach: the job goes on when its caller has left. progress: tell of its place in line while it waits.
        submit: arguments for the job itself.
    """

    priority: int = Priority.NORMAL
    app: str | None = None
    detach: bool = False
    progress: bool = False
    submit: dict[str, Any] = field(default_factory=dict)


def take_wishes(headers: Mapping[str, str], payload: Mapping[str, Any]) -> tuple[Wishes, dict[str, Any]]:
    """The wishes of a request, and its payload without them.

    Args:
        headers: by lower-case name.

    Raises:
        InvalidJob: one makes no sense; `field` names it.
    """
    rest = {name: value for name, value in payload.items() if name not in FIELDS}
    given: dict[str, Any] = {name: payload[name] for name in FIELDS if payload.get(name) is not None}
    for name in (*FIELDS, "timeout", "hedge", "prefer", "idempotency-key", "detach", "progress", "wait"):
        if name not in given and (text := headers.get(f"x-sollol-{name}", "").strip()):
            given[name] = _READERS.get(name, _text)(text, f"X-Sollol-{name.title()}")
    if (trace := trace_of(headers)) is not None:
        given["trace"] = trace
    app = given.pop("app", None)
    if app is not None and not isinstance(app, str):
        raise InvalidJob(f"app: a name is needed, got {type(app).__name__}", field="app")
    priority = given.pop("priority", Priority.NORMAL)
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidJob(
            f"priority: a whole number from 0 to 10 is needed, got {priority!r}", field="priority"
        )
    wishes = Wishes(
        priority, app, bool(given.pop("detach", False)), bool(given.pop("progress", False)), given
    )
    if "idempotency-key" in given:
        given["idempotency_key"] = given.pop("idempotency-key")
    if "wait" in given:
        given["wait_for_node"] = given.pop("wait")
    return wishes, rest


def _text(text: str, name: str) -> str:
    return text


def _whole(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidJob(f"{name}: a whole number is needed, got {text!r}", field=name) from None


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidJob(f"{name}: a number of seconds is needed, got {text!r}", field=name) from None


def _word(text: str, name: str) -> bool:
    if text.lower() in _YES | _NO:
        return text.lower() in _YES
    raise InvalidJob(f"{name}: true or false is needed, got {text!r}", field=name)


def _names(text: str, name: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


_READERS: dict[str, Any] = {
    "priority": _whole,
    "deadline": _number,
    "timeout": _number,
    "cache": _word,
    "hedge": _word,
    "detach": _word,
    "progress": _word,
    "wait": _word,
    "prefer": _names,
}
