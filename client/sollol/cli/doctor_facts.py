"""What `sollol doctor` sees, and what it says of it: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from sollol_broker.registry import QueueView, WorkerView


class Severity(StrEnum):
    """How bad a finding is; from harmless to grave."""

    OK = "ok"
    WARN = "warn"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at. found: what it is like. todo: what to do about it; "" = nothing.
    """

    severity: Severity
    check: str
    found: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Functions:
    """The function library of this release.

    Attributes:
        state: it was there; we have just loaded it; or it does not work, and `problem` says why.
    """

    name: str
    state: Literal["present", "loaded", "unusable"]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen. None = it could not be looked at; `refused` says why, by what was asked.

    Attributes:
        url: with its secrets masked.
        is_protected: a password or a client certificate goes with the URL.
        version: of this program.
        unreachable: why Redis cannot be used; "" = it can.
        info, config: as INFO and CONFIG GET tell it.
        clock_ahead_seconds: by how much this machine's clock is ahead of Redis'.
        latency_ms: of a round trip.
        vanished: workers that went in the last seconds without taking leave.
        dead: how many dead letters there are; dead_ids: some of the latest.
    """

    url: str
    is_loopback: bool
    is_protected: bool
    version: str
    unreachable: str = ""
    info: Mapping[str, str] | None = None
    config: Mapping[str, str] | None = None
    functions: Functions | None = None
    clock_ahead_seconds: float | None = None
    latency_ms: float | None = None
    workers: tuple[WorkerView, ...] | None = None
    vanished: int = 0
    queues: tuple[QueueView, ...] | None = None
    dead: int = 0
    dead_ids: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    def setting(self, in_config: str, in_info: str) -> str | None:
        """A setting by its name in CONFIG, else as INFO tells it; None when neither does."""
        if self.config is not None and in_config in self.config:
            return self.config[in_config]
        return self.info.get(in_info) if self.info is not None else None

    def not_known(self, what: str) -> str:
        """ "not known", and why it could not be looked at."""
        reason = dict(self.refused).get(what)
        return f"not known: {reason}" if reason else "not known"


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(Severity.OK, check, found)


def warn(check: str, found: str, todo: str) -> Finding:
    """It works, but should be seen to."""
    return Finding(Severity.WARN, check, found, todo)


def error(check: str, found: str, todo: str) -> Finding:
    """It does not work."""
    return Finding(Severity.ERROR, check, found, todo)
