"""What the doctor makes of who can get at prompts and servers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from doctor_kit import (
    ERROR,
    EVERYWHERE,
    NOTE,
    OK,
    UP,
    WARN,
    config,
    look,
    nodes,
    only,
    worker,
)
from sollol.cli import doctor_access
from sollol.cli.doctor_facts import Access, Severity
from sollol_broker.api_keys import ApiKey, KeyRole
from sollol_broker.listeners import Listener


@pytest.mark.parametrize(
    ("fields", "is_loopback", "severity", "todo"),
    [
        ({"redis_version": "8.2.1"}, False, ERROR, "upgrade it to Redis 8.2.9 or newer"),
        ({"redis_version": "8.2.1"}, True, WARN, "upgrade it to Redis 8.2.9 or newer"),
        ({"redis_version": "7.0.15"}, False, WARN, "take 7.0.15-1~deb12u10 or newer of your distribution"),
        ({"redis_version": "8.0.2"}, False, WARN, "take the latest of your distribution, or Redis 8.2.9"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.1"}, False, WARN, "dpkg -l '*valkey-server'"),
    ],
)
def test_known_holes(fields: dict[str, str], is_loopback: bool, severity: Severity, todo: str) -> None:
    local = {"is_loopback": True, "config": config(bind="127.0.0.1")} if is_loopback else {}
    finding = only(doctor_access.check_holes, info=fields, **local)
    assert finding.severity is severity
    assert todo in finding.todo


def test_a_number_that_debian_patches_is_no_accusation() -> None:
    assert "unless" in only(doctor_access.check_holes, info={"redis_version": "7.0.15"}).found
    assert look(doctor_access.check_holes, info=None) == []


OPEN, CLOSED = Access("default", default_is_open=True), Access("me", default_is_open=False)


@pytest.mark.parametrize(
    ("is_loopback", "access", "settings", "severity"),
    [
        (False, CLOSED, {}, OK),
        (False, OPEN, {}, ERROR),
        (True, CLOSED, {"protected_mode": "no"}, OK),
        (True, OPEN, {}, OK),
        (True, OPEN, {"protected_mode": "no"}, ERROR),
        (True, OPEN, {"protected_mode": "no", "bind": ""}, ERROR),
        (True, OPEN, {"protected_mode": "no", "bind": "127.0.0.1 -::1"}, OK),
        (True, OPEN, {"protected_mode": "no", "bind": "192.168.1.2", "port": "0"}, OK),
        (True, OPEN, {"protected_mode": "no", "bind": "192.168.1.2", "port": "0", "tls_port": "6380"}, ERROR),
    ],
)
def test_login(is_loopback: bool, access: Access, settings: dict[str, str], severity: Severity) -> None:
    changes = {"is_loopback": is_loopback, "access": access, "config": config(**settings)}
    assert only(doctor_access.check_login, **changes).severity is severity


@pytest.mark.parametrize(("is_protected", "severity"), [(True, OK), (False, ERROR)])
def test_login_when_the_acl_is_not_for_us_to_see(is_protected: bool, severity: Severity) -> None:
    for access in (None, Access("me", default_is_open=None)):
        finding = only(doctor_access.check_login, access=access, is_protected=is_protected)
        assert finding.severity is severity


@pytest.mark.parametrize(
    ("is_loopback", "is_encrypted", "is_told"), [(False, False, True), (True, False, False)]
)
def test_plain_text(is_loopback: bool, is_encrypted: bool, is_told: bool) -> None:
    findings = look(doctor_access.check_login, is_loopback=is_loopback, is_encrypted=is_encrypted)
    assert ("access.plaintext" in {finding.id for finding in findings}) is is_told


@pytest.mark.parametrize(
    ("access", "bind", "is_told"),
    [
        (Access("default", default_is_open=False), "*", True),
        (Access("default", default_is_open=False), "127.0.0.1", False),
        (CLOSED, "*", False),
        (OPEN, "*", False),
        (None, "*", False),
    ],
)
def test_roles(access: Access | None, bind: str, is_told: bool) -> None:
    changes = {"is_loopback": True, "access": access, "config": config(bind=bind)}
    assert [each.severity for each in look(doctor_access.check_roles, **changes)] == [NOTE] * is_told


@pytest.mark.parametrize(
    ("listener", "severity", "said"),
    [
        (Listener("127.0.0.1", 11434, "ollama"), OK, ""),
        (Listener("::ffff:127.0.0.1", 11434, "ollama"), OK, ""),
        (Listener(EVERYWHERE, 11434, "ollama"), WARN, "port 11434 of all addresses"),
        (Listener(EVERYWHERE, 11434), WARN, "Ollama"),
        (Listener(EVERYWHERE, 11434, "nginx"), OK, ""),
        (Listener("192.168.1.2", 8080, "llama-server"), WARN, "port 8080 of 192.168.1.2"),
        (Listener("::", 50052, "ggml-rpc-server"), ERROR, "run code here"),
        (Listener("::", 50052), ERROR, "rpc-server"),
        (Listener("::", 6400, "valkey-server"), NOTE, "Valkey"),
        (Listener(EVERYWHERE, 22, "sshd"), OK, ""),
    ],
)
def test_listeners_of_this_machine(listener: Listener, severity: Severity, said: str) -> None:
    finding = only(doctor_access.check_listeners, listeners=(listener,))
    assert finding.severity is severity
    assert said in finding.found


def test_listeners_of_other_machines() -> None:
    there = nodes(worker(backends=({**UP, "open": [EVERYWHERE, "::"]},)))
    finding = only(doctor_access.check_listeners, nodes=there)
    assert finding.severity is WARN
    assert finding.found.startswith("ollama on n1 listens on port 11434 of all addresses")
    # This very machine, which was looked at already.
    assert only(doctor_access.check_listeners, nodes=there, host="n1.lan").severity is OK
    assert look(doctor_access.check_listeners, nodes=(), listeners=None) == []


def test_a_backend_over_the_network() -> None:
    remote = nodes(worker(backends=({**UP, "url": "http://10.0.0.7:11434"},)))
    assert only(doctor_access.check_remote_backends, nodes=remote).severity is NOTE
    assert look(doctor_access.check_remote_backends) == []
    echo = nodes(worker(backends=({**UP, "url": "echo://?slots=1"},)))
    assert look(doctor_access.check_remote_backends, nodes=echo) == []


@pytest.mark.parametrize(
    ("calls", "settings", "severities"),
    [
        (0, {}, [OK]),
        (0, {"slowlog_log_slower_than": "-1", "slowlog_max_len": "128"}, [OK]),
        (0, {"slowlog_max_len": "128"}, [NOTE]),
        (0, {"commandlog_request_larger_than": "1048576"}, [NOTE]),
        (0, {"commandlog_request_larger_than": "-1"}, [OK]),
        (2, {}, [WARN]),
        (None, {}, [OK]),
        (None, None, []),
        (2, None, [WARN]),
    ],
)
def test_slow_log(calls: int | None, settings: dict[str, str] | None, severities: list[Severity]) -> None:
    told = None if settings is None else config(**settings)
    found = look(doctor_access.check_slow_log, slow_calls=calls, config=told)
    assert [finding.severity for finding in found] == severities


def test_what_is_sealed_is_nowhere_in_the_clear() -> None:
    sealed = only(doctor_access.check_slow_log, is_sealed=True, slow_calls=2)
    assert (sealed.severity, sealed.todo) == (OK, "")
    told, _ = look(doctor_access.check_login, is_sealed=True, is_encrypted=False)
    assert told.found == "the password crosses the network unencrypted"


DAY = 86_400.0
NOW = 1_000 * DAY


def _key(**changes: Any) -> ApiKey:
    return replace(ApiKey("d1" * 32, "laptop", KeyRole.APP, "chat", created=NOW - 400 * DAY), **changes)


@pytest.mark.parametrize(
    ("key", "severities"),
    [
        (_key(), [OK]),
        (_key(expires=NOW + 8 * DAY), [OK]),
        (_key(expires=NOW + 2 * DAY), [NOTE, OK]),
        (_key(role=KeyRole.ADMIN), [NOTE, OK]),
        (_key(role=KeyRole.ADMIN, expires=NOW + 30 * DAY), [OK]),
        (_key(role=KeyRole.ADMIN, revoked=NOW - 1), []),
        (_key(expires=NOW - 1), []),
    ],
)
def test_api_keys(key: ApiKey, severities: list[Severity]) -> None:
    found = look(doctor_access.check_api_keys, api_keys=(key,), redis_time=NOW)
    assert [finding.severity for finding in found] == severities
    assert not any(key.digest in finding.found for finding in found)


def test_no_api_keys() -> None:
    assert look(doctor_access.check_api_keys) == look(doctor_access.check_api_keys, api_keys=()) == []
