"""What the doctor makes of Redis itself."""

from __future__ import annotations

import pytest

from doctor_kit import (
    ERROR,
    GIB,
    NOTE,
    OK,
    WARN,
    config,
    info,
    look,
    nodes,
    only,
    worker,
)
from sollol.cli import doctor_server
from sollol.cli.doctor_facts import Functions, Severity
from sollol_broker.registry import AppView
from sollol_broker.words import Durability


@pytest.mark.parametrize(
    ("fields", "severity", "said"),
    [
        ({"redis_version": "8.2.9"}, OK, "Redis 8.2.9 at redis://:***@db:6379/0"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, OK, "Valkey 9.1.2"),
        ({"redis_version": "6.2.20"}, ERROR, "Redis 6.2.20"),
        (None, OK, "redis://:***@db:6379/0 answers"),
    ],
)
def test_server(fields: dict[str, str] | None, severity: Severity, said: str) -> None:
    finding = only(doctor_server.check_server, info=fields)
    assert finding.severity is severity
    assert said in finding.found


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
    ],
)
def test_persistence(
    info_fields: dict[str, str], settings: dict[str, str] | None, severity: Severity, said: str
) -> None:
    finding = only(
        doctor_server.check_persistence,
        info=info(**info_fields),
        config=None if settings is None else config(**settings),
    )
    assert finding.severity is severity
    assert said in finding.found


@pytest.mark.parametrize(
    ("field", "what"), [("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")]
)
def test_a_disk_that_takes_nothing(field: str, what: str) -> None:
    failed, _ = look(doctor_server.check_persistence, info=info(**{field: "err"}))
    assert (failed.id, failed.severity) == ("persistence.write", ERROR)
    assert f"could not write its {what}" in failed.found


@pytest.mark.parametrize(
    ("mode", "replicas", "severities"),
    [("single", 0, []), ("single", 1, [NOTE]), ("sentinel", 0, [WARN]), ("cluster", 2, [NOTE])],
)
def test_replicas(mode: str, replicas: int, severities: list[Severity]) -> None:
    findings = look(doctor_server.check_replicas, mode=mode, info=info(connected_slaves=str(replicas)))
    assert [finding.severity for finding in findings] == severities
    assert all("can lose" in each.found for each in findings if each.severity is NOTE)


@pytest.mark.parametrize(
    ("replicas", "severity", "said"),
    [(0, ERROR, "no job is accepted"), (1, WARN, "until the lost server is back"), (2, OK, "loses none")],
)
def test_replicas_that_are_waited_for(replicas: int, severity: Severity, said: str) -> None:
    told = info(connected_slaves=str(replicas))
    finding = only(doctor_server.check_replicas, durability=Durability.HA, info=told)
    assert finding.severity is severity
    assert said in finding.found


@pytest.mark.parametrize(
    ("replicas", "least", "severities"), [(1, "0", [NOTE]), (1, "1", []), (0, "0", []), (1, None, [])]
)
def test_a_primary_that_goes_on_alone(replicas: int, least: str | None, severities: list[Severity]) -> None:
    settings = config() if least is None else config(min_replicas_to_write=least)
    told = info(connected_slaves=str(replicas))
    findings = look(doctor_server.check_cut_off, info=told, config=settings)
    assert [finding.severity for finding in findings] == severities


@pytest.mark.parametrize(
    ("fields", "severity", "said"),
    [
        ({}, OK, "4 connections"),
        ({"connected_clients": "9500"}, WARN, "9,500 of 10,000"),
        (
            {"evicted_clients": "1", "client_output_buffer_limit_disconnections": "2"},
            NOTE,
            "3 connections cut off",
        ),
    ],
)
def test_clients(fields: dict[str, str], severity: Severity, said: str) -> None:
    finding = only(doctor_server.check_clients, info=info(**fields))
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


@pytest.mark.parametrize(
    ("used", "limit", "severity", "said"),
    [
        (1, 0, OK, "1.0 GiB of the machine's 16.0 GiB used, no limit set"),
        (13, 0, WARN, "no limit is set"),
        (1, 10, OK, "1.0 GiB of 10.0 GiB used (10%); at 85% new jobs are refused"),
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


def test_functions_that_a_full_disk_stops_are_not_put_on_the_user() -> None:
    stopped = Functions("sollol_abc", "unusable", "cannot work now: MISCONF Errors writing to the AOF file")
    assert "persistence" in only(doctor_server.check_functions, functions=stopped).todo


def test_libraries_of_other_releases() -> None:
    lying = Functions("sollol_abc", "present", others=("sollol_old", "sollol_older"))
    _, finding = look(doctor_server.check_functions, functions=lying)
    assert finding.severity is NOTE
    assert "sollol_old, sollol_older" in finding.found
    used = nodes(worker(functions="old"), worker(node="n2", functions="older"))
    assert len(look(doctor_server.check_functions, functions=lying, nodes=used)) == 1
    asking = (AppView("a", functions="older"),)
    assert (
        len(
            look(
                doctor_server.check_functions,
                functions=lying,
                nodes=nodes(worker(functions="old")),
                apps=asking,
            )
        )
        == 1
    )


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
