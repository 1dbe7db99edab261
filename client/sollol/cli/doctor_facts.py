"""What `sollol doctor` sees, and what it says of it: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from sollol_broker.api_keys import ApiKey
from sollol_broker.listeners import Listener
from sollol_broker.registry import AppView, NodeView, QueueView, WorkerView
from sollol_broker.words import Durability


class Severity(StrEnum):
    """How bad a finding is; from harmless to grave."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        id: which sort of finding, such as "redis.holes"; docs/doctor.md lists them, and they stay.
        found: what it is like. todo: what to do about it; "" = nothing.
    """

    id: str
    severity: Severity
    found: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Functions:
    """The function library of this release.

    Attributes:
        state: it was there; we have just loaded it; or it does not work, and `problem` says why.
        others: libraries of other releases that lie in Redis, too.
    """

    name: str
    state: Literal["present", "loaded", "unusable"]
    problem: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what in Redis.

    Attributes:
        user: as whom we are logged in. default_is_open: whoever comes without a password may come in; None = not
            for us to see.
    """

    user: str
    default_is_open: bool | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen. None = it could not be looked at; `refused` says why, by what was asked.

    Attributes:
        url: with its secrets masked. host: this machine's name.
        mode: how the primary is found, durability: what counts as accepted; see `BrokerUrl`.
        is_protected: a password or a client certificate goes with the URL. is_encrypted: we speak TLS.
        is_sealed: we have a key with which prompts and answers are encrypted before Redis gets them.
        version: of this program.
        unreachable: why Redis cannot be used; "" = it can.
        info, config: as INFO and CONFIG GET tell it.
        slow_calls: entries of the slow log that hold arguments of calls like ours.
        clock_ahead_seconds: by how much this machine's clock is ahead of Redis'.
        latency_ms: of a round trip.
        redis_time: seconds since 1970, by Redis' clock.
        vanished: workers that went within the last minute without taking leave.
        apps: applications with a live client. api_keys: all that there are.
        dead: how many dead letters there are; dead_ids: some of the latest.
        listeners: TCP ports that are open on this machine.
    """

    url: str
    is_loopback: bool
    is_protected: bool
    version: str
    host: str = ""
    mode: str = "single"
    durability: Durability = Durability.LOCAL
    is_encrypted: bool = False
    is_sealed: bool = False
    unreachable: str = ""
    info: Mapping[str, str] | None = None
    config: Mapping[str, str] | None = None
    access: Access | None = None
    slow_calls: int | None = None
    functions: Functions | None = None
    clock_ahead_seconds: float | None = None
    redis_time: float = 0.0
    latency_ms: float | None = None
    nodes: tuple[NodeView, ...] | None = None
    vanished: int = 0
    apps: tuple[AppView, ...] | None = None
    api_keys: tuple[ApiKey, ...] | None = None
    queues: tuple[QueueView, ...] | None = None
    dead: int | None = None
    dead_ids: tuple[str, ...] = ()
    listeners: tuple[Listener, ...] | None = None
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def workers(self) -> tuple[WorkerView, ...]:
        """All live workers; none when they could not be looked at."""
        return tuple(worker for node in self.nodes or () for worker in node.workers)

    def setting(self, in_config: str, in_info: str) -> str | None:
        """A setting by its name in CONFIG, else as INFO tells it; None when neither does."""
        if self.config is not None and in_config in self.config:
            return self.config[in_config]
        return self.info.get(in_info) if self.info is not None else None

    def number(self, in_info: str) -> int:
        """A number of INFO; 0 when it is not known."""
        text = (self.info or {}).get(in_info, "")
        return int(text) if text.isdigit() else 0


def ok(id_: str, found: str) -> Finding:
    """All is well."""
    return Finding(id_, Severity.OK, found)


def note(id_: str, found: str, todo: str = "") -> Finding:
    """Worth knowing; nothing needs to be done."""
    return Finding(id_, Severity.NOTE, found, todo)


def warning(id_: str, found: str, todo: str) -> Finding:
    """It works, but should be seen to."""
    return Finding(id_, Severity.WARNING, found, todo)


def error(id_: str, found: str, todo: str) -> Finding:
    """It does not work, or strangers can take it over."""
    return Finding(id_, Severity.ERROR, found, todo)
