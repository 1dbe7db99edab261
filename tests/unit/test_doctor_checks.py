"""What the doctor makes of all facts together."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from doctor_kit import (
    DOWN,
    ERROR,
    HEALTHY,
    NOTE,
    OK,
    UP,
    WARN,
    nodes,
    worker,
)
from sollol.cli import doctor_checks
from sollol.cli.doctor_checks import examine, worst
from sollol.cli.doctor_facts import Access, Finding, Functions, Severity
from sollol_broker.listeners import Listener
from sollol_broker.registry import QueueView

DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"


def test_a_healthy_fabric_has_only_good_findings() -> None:
    findings = examine(HEALTHY)
    assert {finding.severity for finding in findings} == {OK}
    assert {finding.todo for finding in findings} == {""}
    assert {finding.id for finding in findings} == {
        "redis.release", "access.open", "slowlog.prompts", "listeners.open", "persistence.mode", "memory.eviction",
        "memory.room", "redis.clients", "redis.latency", "functions.usable", "clock.here", "clock.workers",
        "workers.connected", "backends.up", "gpus.readable", "persistence.durability", "versions.skew",
        "jobs.dead", "queues.waiting",
    }  # fmt: skip
    assert worst(findings) is OK


# What is wrong in every way that one fabric can be at once.
ILL = replace(
    HEALTHY,
    is_protected=False,
    is_encrypted=False,
    mode="sentinel",
    info={
        **{"redis_version": "7.2.4", "aof_last_write_status": "err", "evicted_clients": "3"},
        **{"maxmemory": "100", "used_memory": "99", "aof_enabled": "0", "maxmemory_policy": "allkeys-lru"},
    },
    config=None,
    access=Access("default", default_is_open=True),
    slow_calls=3,
    functions=Functions("sollol_abc", "unusable", "no permission", ("sollol_old",)),
    clock_ahead_seconds=60.0,
    latency_ms=300.0,
    nodes=nodes(
        worker(backends=(DOWN,), version="0.9", seen_ms_ago=12_000.0, clock_ahead_seconds=-9.0),
        worker(node="n2", backends=(), models={}),
        worker(node="n3", models={}, backends=({**UP, "version": "0.12.0", "open": ["::"]},)),
        unread="NVML Shared Library Not Found",
    ),
    vanished=1,
    queues=(QueueView("m", 1, 0, 5.0, 0), QueueView("o", 1, 0, 5000.0, 1)),
    dead=1,
    dead_ids=("j1",),
    listeners=(Listener("::", 50052, "rpc-server"),),
    refused=(("CONFIG", "not allowed to look"),),
)


def test_whatever_is_wrong_comes_with_something_to_do() -> None:
    findings = [finding for finding in examine(ILL) if finding.severity in (WARN, ERROR)]
    assert len({finding.id for finding in findings}) >= 20
    assert all(finding.todo for finding in findings)


def test_every_finding_is_explained_in_the_docs() -> None:
    """The ids that a search of the sources finds, and those of all findings above, are those of the page."""
    sources = Path(doctor_checks.__file__).parent.glob("doctor_*.py")
    named = {
        found
        for source in sources
        for found in re.findall(
            r'(?:ok|note|warning|error|say)\(\s*"([a-z]+\.[a-z]+)"', source.read_text("utf-8")
        )
    }
    shown = {finding.id for facts in (HEALTHY, ILL) for finding in examine(facts)}
    documented = set(re.findall(r"^\| `([a-z]+\.[a-z]+)` \|", DOCS.read_text("utf-8"), re.MULTILINE))
    assert shown <= named
    assert documented == named


def test_an_unreachable_redis_is_the_only_finding() -> None:
    (finding,) = examine(replace(HEALTHY, unreachable="cannot reach Redis at redis://db:6379/0"))
    assert finding.severity is ERROR
    assert finding.found == "cannot reach Redis at redis://db:6379/0"


@pytest.mark.parametrize(
    ("severities", "expected"),
    [([], OK), ([OK, NOTE], NOTE), ([OK, WARN, NOTE], WARN), ([ERROR, WARN, OK], ERROR)],
)
def test_worst(severities: list[Severity], expected: Severity) -> None:
    assert worst([Finding("an.id", each, "found") for each in severities]) is expected


BLIND = replace(
    HEALTHY, info=None, config=None, access=None, slow_calls=None, functions=None, clock_ahead_seconds=None,
    latency_ms=None, nodes=None, queues=None, dead=None, listeners=None,
    refused=(("INFO", "not allowed to look"), ("TIME", "lost"), ("CONFIG", "not allowed to look")),
)  # fmt: skip


def test_what_could_not_be_looked_at_is_told_once_and_judged_not_at_all() -> None:
    findings = examine(BLIND)
    assert [finding.id for finding in findings] == ["redis.release", "access.open"] + ["doctor.blind"] * 2
    assert [finding.found for finding in findings if finding.severity is WARN] == [
        "not seen: INFO, CONFIG (not allowed to look)",
        "not seen: TIME (lost)",
    ]


def test_a_worker_of_an_older_release_tells_less() -> None:
    old = {name: value for name, value in UP.items() if name not in ("version", "open")}
    there = nodes(worker(backends=(old,), functions="", clock_ahead_seconds=None))
    assert {finding.severity for finding in examine(replace(HEALTHY, nodes=there))} == {OK}
