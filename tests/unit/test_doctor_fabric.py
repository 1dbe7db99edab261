"""What the doctor makes of workers, backends and queues."""

from __future__ import annotations

from typing import Any

import pytest

from doctor_kit import (
    DOWN,
    ERROR,
    NOTE,
    OK,
    UP,
    WARN,
    look,
    nodes,
    only,
    worker,
)
from sollol.cli import doctor_fabric
from sollol.cli.doctor_facts import Severity
from sollol_broker.registry import AppView, QueueView, WorkerView
from sollol_broker.words import Durability


@pytest.mark.parametrize(
    ("workers", "vanished", "severities", "said"),
    [
        ((worker(), worker(id="n2.cd", node="n2")), 0, [OK], "2 workers on 2 nodes, 8 slots"),
        ((), 0, [ERROR], "none is connected"),
        ((), 2, [ERROR, WARN], "2 workers went"),
        ((worker(seen_ms_ago=11_000.0),), 0, [OK, WARN], "n1.ab on n1 has been silent for 11 s"),
        ((worker(state="draining"),), 0, [OK, WARN, NOTE], "draining"),
        ((worker(state="cordoned"), worker(node="n2")), 0, [OK, NOTE], "until `sollol nodes uncordon n1`"),
    ],
)
def test_workers(
    workers: tuple[WorkerView, ...], vanished: int, severities: list[Severity], said: str
) -> None:
    findings = look(doctor_fabric.check_workers, nodes=nodes(*workers), vanished=vanished)
    assert [finding.severity for finding in findings] == severities
    assert said in " / ".join(finding.found for finding in findings)


@pytest.mark.parametrize(
    ("workers", "severities", "said"),
    [
        ((worker(),), [OK], "ollama 0.33.0 at http://127.0.0.1:11434 on n1: up, 1/4 slots busy"),
        ((worker(backends=(UP, DOWN)),), [OK, WARN], "down, connection refused"),
        ((worker(backends=(DOWN,)), worker(node="n2")), [WARN, OK], "8080 on n1: down"),
        ((worker(backends=(DOWN,)),), [ERROR], "down, connection refused"),
        ((worker(backends=(), models={}),), [WARN], "has no LLM server"),
        ((worker(models={}),), [OK, WARN], "no model is there on n1"),
        ((worker(models={}, state="draining"),), [OK], "up"),
        ((worker(backends=({**UP, "version": "0.12.0"},)),), [OK, WARN], "ollama 0.12.0 at"),
        ((), [], ""),
    ],
)
def test_backends(workers: tuple[WorkerView, ...], severities: list[Severity], said: str) -> None:
    findings = look(doctor_fabric.check_backends, nodes=nodes(*workers))
    assert [finding.severity for finding in findings] == severities
    assert said in " / ".join(finding.found for finding in findings)


GPU = {"name": "RTX 4090", "is_estimate": False, "memory_total_mib": 24 * 1024, "driver": "570.1"}


@pytest.mark.parametrize(
    ("hardware", "severity", "said"),
    [
        ({}, OK, "computes on its CPU"),
        ({"gpus": [GPU, GPU]}, OK, "2 GPUs, 48 GiB, driver 570.1"),
        ({"gpus": [{**GPU, "driver": ""}]}, OK, "n1: 1 GPU, 24 GiB"),
        ({"gpus": [{**GPU, "is_estimate": True}]}, NOTE, "RTX 4090"),
        ({"gpus": [], "unread": "NVMLError: Driver Not Loaded"}, WARN, "Driver Not Loaded"),
    ],
)
def test_gpus(hardware: dict[str, Any], severity: Severity, said: str) -> None:
    finding = only(doctor_fabric.check_gpus, nodes=nodes(worker(), **hardware))
    assert finding.severity is severity
    assert said in finding.found


def test_clocks_of_workers() -> None:
    assert only(doctor_fabric.check_worker_clocks).severity is OK
    wrong = nodes(worker(clock_ahead_seconds=90.0), worker(node="n2", clock_ahead_seconds=-7.0))
    findings = look(doctor_fabric.check_worker_clocks, nodes=wrong)
    assert [finding.severity for finding in findings] == [WARN, WARN]
    assert "n1 is 90 s ahead of Redis" in findings[0].found
    assert "n2 is 7.0 s behind Redis" in findings[1].found
    assert look(doctor_fabric.check_worker_clocks, nodes=nodes(worker(clock_ahead_seconds=None))) == []


def test_versions() -> None:
    assert only(doctor_fabric.check_versions).found == "all run 1.0"
    finding = only(doctor_fabric.check_versions, nodes=nodes(worker(), worker(node="n2", version="1.1")))
    assert finding.severity is WARN
    assert finding.found == "here 1.0 (abc), on n2 1.1 (abc)"
    same_number = nodes(worker(functions="old"))
    assert only(doctor_fabric.check_versions, nodes=same_number).found == "here 1.0 (abc), on n1 1.0 (old)"
    assert look(doctor_fabric.check_versions, nodes=()) == []


def test_versions_of_applications() -> None:
    told = (AppView("chat", version="1.0", functions="abc"), AppView("old", version="0.9", functions="xyz"))
    finding = only(doctor_fabric.check_versions, apps=told)
    assert (finding.severity, finding.found) == (WARN, "here 1.0 (abc), on application old 0.9 (xyz)")
    assert only(doctor_fabric.check_versions, apps=told[:1]).severity is OK


@pytest.mark.parametrize(
    ("here", "on_node", "of_app", "severity", "said"),
    [
        ("local", "local", "local", OK, "local: what Redis has taken is accepted"),
        ("local", "", "", OK, "local"),
        ("ha", "ha", "ha", OK, "ha: what is accepted lies on a replica, too"),
        ("ha", "local", "ha", NOTE, "ha here, local on n1:"),
        ("local", "ha", "ha", NOTE, "local here, ha on application chat, n1:"),
    ],
)
def test_durability(here: str, on_node: str, of_app: str, severity: Severity, said: str) -> None:
    finding = only(
        doctor_fabric.check_durability,
        durability=Durability(here),
        nodes=nodes(worker(durability=on_node)),
        apps=(AppView("chat", durability=of_app),),
    )
    assert finding.severity is severity
    assert finding.found.startswith(said)


def test_dead_letters() -> None:
    assert only(doctor_fabric.check_dead_letters).found == "no dead letters"
    finding = only(doctor_fabric.check_dead_letters, dead=7, dead_ids=("j7", "j6"))
    assert finding.severity is WARN
    assert finding.found == "7 jobs took too many workers down, lately j7, j6"


def test_queues() -> None:
    assert only(doctor_fabric.check_queues).found == "2 waiting, 1 running"
    nobody = (QueueView("qwen3", 12, 0, 40.0, 0), QueueView("llama3.2", 2, 1, 3.0, 1))
    finding = only(doctor_fabric.check_queues, queues=nobody)
    assert finding.severity is WARN
    assert finding.found == "12 jobs for qwen3 and no worker that serves it; the oldest has waited 40 s"
    old = only(doctor_fabric.check_queues, queues=(QueueView("qwen3", 2, 1, 1200.0, 1),))
    assert (old.id, old.severity) == ("queues.old", WARN)
    assert old.found == "2 jobs for qwen3, 1 worker; the oldest has waited 20 min"
