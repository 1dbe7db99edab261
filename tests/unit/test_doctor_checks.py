"""What the doctor makes of plain facts: one table per check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from sollol.cli import doctor_checks, doctor_server
from sollol.cli.doctor_checks import examine, worst
from sollol.cli.doctor_facts import Facts, Finding, Functions, Severity
from sollol.cli.doctor_server import safe_release, server_of
from sollol_broker.registry import QueueView, WorkerView

OK, WARN, ERROR = Severity.OK, Severity.WARN, Severity.ERROR
GIB = 2**30
UP = {"kind": "ollama", "url": "http://127.0.0.1:11434", "slots": 4, "busy": 1, "down": ""}
DOWN = {**UP, "url": "http://127.0.0.1:8080", "down": "connection refused"}
MODELS: dict[str, dict[str, Any]] = {"llama3.2": {"kinds": ["chat"], "loaded": True}}


def worker(**changes: Any) -> WorkerView:
    usual = WorkerView("n1.ab", "n1", "up", "1.0", 4, 1, 500.0, models=MODELS, backends=(UP,))
    return replace(usual, **changes)


HEALTHY = Facts(
    url="redis://:***@db:6379/0",
    is_loopback=False,
    is_protected=True,
    version="1.0",
    info={"redis_version": "8.2.2", "used_memory": str(GIB), "total_system_memory": str(16 * GIB)},
    config={
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "bind": "* -::*",
        "port": "6379",
        "protected-mode": "yes",
    },
    functions=Functions("sollol_abc", "present"),
    clock_ahead_seconds=0.01,
    latency_ms=0.4,
    workers=(worker(),),
    queues=(QueueView("llama3.2", 2, 1, 3.0, 1),),
)


def config(**changes: str) -> dict[str, str]:
    return {**(HEALTHY.config or {}), **{name.replace("_", "-"): value for name, value in changes.items()}}


def info(**changes: str) -> dict[str, str]:
    return {**(HEALTHY.info or {}), **changes}


def look(check: Callable[[Facts], Iterator[Finding]], **changes: Any) -> list[Finding]:
    return list(check(replace(HEALTHY, **changes)))


def only(check: Callable[[Facts], Iterator[Finding]], **changes: Any) -> Finding:
    (finding,) = look(check, **changes)
    return finding


def test_a_healthy_fabric_has_only_good_findings() -> None:
    findings = examine(HEALTHY)
    assert {finding.severity for finding in findings} == {OK}
    assert {finding.todo for finding in findings} == {""}
    assert {finding.check for finding in findings} == {
        "redis", "access", "persistence", "eviction", "memory", "functions", "clock", "latency", "workers",
        "backends", "versions", "dead letters", "queues",
    }  # fmt: skip
    assert worst(findings) is OK


def test_whatever_is_wrong_comes_with_something_to_do() -> None:
    ill = replace(
        HEALTHY,
        is_protected=False,
        info=None,
        config=None,
        functions=Functions("sollol_abc", "unusable", "no permission"),
        clock_ahead_seconds=60.0,
        latency_ms=300.0,
        workers=(worker(backends=(DOWN,), version="0.9", seen_ms_ago=12_000.0),),
        vanished=1,
        queues=(QueueView("m", 1, 0, 5.0, 0),),
        dead=1,
        dead_ids=("j1",),
    )
    findings = [finding for finding in examine(ill) if finding.severity is not OK]
    assert len(findings) >= 12
    assert all(finding.todo for finding in findings)


def test_an_unreachable_redis_is_the_only_finding() -> None:
    (finding,) = examine(replace(HEALTHY, unreachable="cannot reach Redis at redis://db:6379/0"))
    assert finding.severity is ERROR
    assert finding.found == "cannot reach Redis at redis://db:6379/0"


@pytest.mark.parametrize(
    ("severities", "expected"),
    [([], OK), ([OK, OK], OK), ([OK, WARN, OK], WARN), ([ERROR, WARN, OK], ERROR)],
)
def test_worst(severities: list[Severity], expected: Severity) -> None:
    assert worst([Finding(each, "check", "found") for each in severities]) is expected


@pytest.mark.parametrize(
    ("fields", "kind", "text", "version"),
    [
        ({"redis_version": "7.4.6"}, "Redis", "7.4.6", (7, 4, 6)),
        (
            {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.1.4"},
            "Valkey",
            "8.1.4",
            (8, 1, 4),
        ),
        ({}, "Redis", "0", (0,)),
    ],
)
def test_server_of(fields: dict[str, str], kind: str, text: str, version: tuple[int, ...]) -> None:
    assert server_of(fields) == (kind, text, version)


@pytest.mark.parametrize(
    ("kind", "version", "safe"),
    [
        ("Redis", (7, 0, 14), "7.0.15"),
        ("Redis", (7, 0, 15), ""),
        ("Redis", (7, 2, 10), "7.2.11"),
        ("Redis", (7, 2, 11), ""),
        ("Redis", (7, 4, 5), "7.4.6"),
        ("Redis", (7, 4, 6), ""),
        ("Redis", (8, 0, 3), "8.0.4"),
        ("Redis", (8, 2, 1), "8.2.2"),
        ("Redis", (8, 2, 2), ""),
        ("Redis", (8, 4, 0), ""),
        ("Redis", (9, 0), ""),
        ("Valkey", (7, 2, 10), "7.2.11"),
        ("Valkey", (8, 0, 5), "8.0.6"),
        ("Valkey", (8, 1, 3), "8.1.4"),
        ("Valkey", (8, 1, 4), ""),
        ("Valkey", (9, 1, 2), ""),
        ("Valkey", (7, 9, 0), "8.0.6"),
    ],
)
def test_safe_release(kind: str, version: tuple[int, ...], safe: str) -> None:
    assert safe_release(kind, version) == safe


@pytest.mark.parametrize(
    ("fields", "severity", "said"),
    [
        ({"redis_version": "8.2.2"}, OK, "Redis 8.2.2 at redis://:***@db:6379/0"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, OK, "Valkey 9.1.2"),
        ({"redis_version": "6.2.20"}, ERROR, "Redis 6.2.20"),
        ({"redis_version": "7.2.4"}, WARN, "known security holes"),
        (None, WARN, "not known: no permission"),
    ],
)
def test_server(fields: dict[str, str] | None, severity: Severity, said: str) -> None:
    finding = only(doctor_server.check_server, info=fields, refused=(("INFO", "no permission"),))
    assert finding.severity is severity
    assert said in finding.found


@pytest.mark.parametrize(
    ("is_loopback", "is_protected", "settings", "severity"),
    [
        (False, True, {}, OK),
        (False, False, {}, WARN),
        (True, True, {"protected_mode": "no"}, OK),
        (True, False, {}, OK),
        (True, False, {"protected_mode": "no"}, WARN),
        (True, False, {"protected_mode": "no", "bind": ""}, WARN),
        (True, False, {"protected_mode": "no", "bind": "127.0.0.1 -::1"}, OK),
        (True, False, {"protected_mode": "no", "bind": "192.168.1.2", "port": "0"}, OK),
        (True, False, {"protected_mode": "no", "bind": "192.168.1.2", "port": "0", "tls_port": "6380"}, WARN),
    ],
)
def test_access(is_loopback: bool, is_protected: bool, settings: dict[str, str], severity: Severity) -> None:
    finding = only(
        doctor_server.check_access,
        is_loopback=is_loopback,
        is_protected=is_protected,
        config=config(**settings),
    )
    assert finding.severity is severity


@pytest.mark.parametrize(
    ("info_fields", "settings", "severity", "said"),
    [
        ({}, {"appendfsync": "always"}, OK, "loses nothing"),
        ({}, {"appendfsync": "everysec"}, OK, "about a second"),
        ({}, {"appendfsync": "no"}, WARN, "half a minute"),
        ({}, {"appendonly": "no", "save": "3600 1 300 100 60 10000"}, WARN, "up to 60 min"),
        ({}, {"appendonly": "no", "save": ""}, WARN, "every job and answer is lost"),
        ({"aof_enabled": "1"}, None, OK, "append-only file"),
        ({"aof_enabled": "0"}, None, WARN, "since the last snapshot"),
        ({}, None, WARN, "not known: no permission"),
        ({"aof_last_write_status": "err"}, {}, ERROR, "could not write its append-only file"),
        ({"rdb_last_bgsave_status": "err"}, {}, ERROR, "could not write its snapshot"),
    ],
)
def test_persistence(
    info_fields: dict[str, str], settings: dict[str, str] | None, severity: Severity, said: str
) -> None:
    finding = only(
        doctor_server.check_persistence,
        info=info(**info_fields),
        config=None if settings is None else config(**settings),
        refused=(("CONFIG", "no permission"),),
    )
    assert finding.severity is severity
    assert said in finding.found


@pytest.mark.parametrize(
    ("policy", "maxmemory", "severity"),
    [
        ("noeviction", "0", OK),
        ("noeviction", "1000", OK),
        ("allkeys-lru", "0", WARN),
        ("volatile-ttl", "1000", ERROR),
    ],
)
def test_eviction(policy: str, maxmemory: str, severity: Severity) -> None:
    told = config(maxmemory_policy=policy, maxmemory=maxmemory)
    assert only(doctor_server.check_eviction, config=told).severity is severity
    in_info = info(maxmemory_policy=policy, maxmemory=maxmemory)
    assert only(doctor_server.check_eviction, config=None, info=in_info).severity is severity


def test_eviction_is_not_known_without_config_and_info() -> None:
    assert only(doctor_server.check_eviction, config=None, info=None).severity is WARN


@pytest.mark.parametrize(
    ("used", "limit", "severity", "said"),
    [
        (1, 0, OK, "1.0 GiB of the machine's 16.0 GiB used, no limit set"),
        (13, 0, WARN, "no limit is set"),
        (1, 10, OK, "1.0 GiB of 10.0 GiB used (10%)"),
        (7, 10, WARN, "at 85% new jobs are refused"),
        (9, 10, ERROR, "new jobs are refused"),
    ],
)
def test_memory(used: int, limit: int, severity: Severity, said: str) -> None:
    finding = only(
        doctor_server.check_memory,
        info=info(used_memory=str(used * GIB)),
        config=config(maxmemory=str(limit * GIB)),
    )
    assert finding.severity is severity
    assert said in finding.found


@pytest.mark.parametrize(
    ("functions", "severity", "said"),
    [
        (Functions("sollol_abc", "present"), OK, "sollol_abc"),
        (Functions("sollol_abc", "loaded"), OK, "loaded just now"),
        (Functions("sollol_abc", "unusable", "no permission"), ERROR, "no permission"),
    ],
)
def test_functions(functions: Functions, severity: Severity, said: str) -> None:
    finding = only(doctor_server.check_functions, functions=functions)
    assert finding.severity is severity
    assert said in finding.found


@pytest.mark.parametrize(
    ("ahead", "severity", "said"),
    [
        (0.3, OK, "within 300 ms"),
        (-1.9, OK, "within 1.9 s"),
        (90, WARN, "90 s ahead of"),
        (-90, WARN, "90 s behind"),
    ],
)
def test_clock(ahead: float, severity: Severity, said: str) -> None:
    finding = only(doctor_server.check_clock, clock_ahead_seconds=ahead)
    assert finding.severity is severity
    assert said in finding.found


@pytest.mark.parametrize(("latency_ms", "severity"), [(0.05, OK), (19.9, OK), (20.0, WARN)])
def test_latency(latency_ms: float, severity: Severity) -> None:
    assert only(doctor_server.check_latency, latency_ms=latency_ms).severity is severity


@pytest.mark.parametrize("check", [doctor_server.check_memory, doctor_server.check_functions,
                                   doctor_server.check_clock, doctor_server.check_latency])  # fmt: skip
def test_what_could_not_be_looked_at_is_left_out(check: Callable[[Facts], Iterator[Finding]]) -> None:
    assert look(check, info=None, functions=None, clock_ahead_seconds=None, latency_ms=None) == []


@pytest.mark.parametrize(
    ("workers", "vanished", "severities", "said"),
    [
        ((worker(), worker(id="n2.cd", node="n2")), 0, [OK], "2 workers on 2 nodes, 8 slots"),
        ((), 0, [ERROR], "none is connected"),
        ((), 2, [ERROR, WARN], "2 workers went"),
        ((worker(seen_ms_ago=11_000.0),), 0, [OK, WARN], "n1.ab on n1 has been silent for 11 s"),
        ((worker(state="draining"),), 0, [OK, OK], "draining"),
        ((worker(state="cordoned"),), 0, [OK, OK], "sollol nodes uncordon"),
        (None, 0, [ERROR], "not known: no permission"),
    ],
)
def test_workers(
    workers: tuple[WorkerView, ...] | None, vanished: int, severities: list[Severity], said: str
) -> None:
    findings = look(
        doctor_checks.check_workers,
        workers=workers,
        vanished=vanished,
        refused=(("workers", "no permission"),),
    )
    assert [finding.severity for finding in findings] == severities
    assert said in " / ".join(finding.found for finding in findings)


@pytest.mark.parametrize(
    ("workers", "severities", "said"),
    [
        ((worker(),), [OK], "ollama at http://127.0.0.1:11434 on n1: up, 1/4 slots busy"),
        ((worker(backends=(UP, DOWN)),), [OK, WARN], "down, connection refused"),
        ((worker(backends=(DOWN,)), worker(node="n2")), [WARN, OK], "8080 on n1: down"),
        ((worker(backends=(DOWN,)),), [ERROR], "down, connection refused"),
        ((worker(backends=(), models={}),), [WARN], "has no LLM server"),
        ((worker(models={}),), [OK, WARN], "no model is there on n1"),
        ((worker(models={}, state="draining"),), [OK], "up"),
        ((), [], ""),
    ],
)
def test_backends(workers: tuple[WorkerView, ...], severities: list[Severity], said: str) -> None:
    findings = look(doctor_checks.check_backends, workers=workers)
    assert [finding.severity for finding in findings] == severities
    assert said in " / ".join(finding.found for finding in findings)


def test_versions() -> None:
    assert only(doctor_checks.check_versions).found == "all run 1.0"
    finding = only(doctor_checks.check_versions, workers=(worker(), worker(node="n2", version="1.1")))
    assert finding.severity is WARN
    assert finding.found == "here 1.0, on n2 1.1"
    assert look(doctor_checks.check_versions, workers=()) == []


def test_dead_letters() -> None:
    assert only(doctor_checks.check_dead_letters).found == "none"
    finding = only(doctor_checks.check_dead_letters, dead=7, dead_ids=("j7", "j6"))
    assert finding.severity is WARN
    assert finding.found == "7 jobs took too many workers down, lately j7, j6"


def test_queues() -> None:
    assert only(doctor_checks.check_queues).found == "2 waiting, 1 running"
    nobody = (QueueView("qwen3", 12, 0, 40.0, 0), QueueView("llama3.2", 2, 1, 3.0, 1))
    finding = only(doctor_checks.check_queues, queues=nobody)
    assert finding.severity is WARN
    assert finding.found == "12 jobs for qwen3 and no worker that serves it; the oldest has waited 40 s"
