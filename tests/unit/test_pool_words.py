"""OllamaPool's small parts: addresses, arguments of earlier releases, priorities by role, addresses of containers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from sollol import InvalidJob, OllamaPool, Priority, is_docker_ip, priority_helpers, resolve_docker_ip
from sollol.discovery import neighbours
from sollol.docker_ip_resolver import (
    _gateway,
    auto_resolve_ips,
    get_deployment_context,
    resolve_docker_ip_with_alternatives,
)
from sollol.either_way import warn_once
from sollol.hedging import HedgingStrategy
from sollol.pool.address import NodeAddress, node_addresses
from sollol.pool.settings import REPLACED, as_hedge, as_strategy, warn_of_replaced
from sollol.pool.tally import Tally
from sollol.priority_helpers import get_priority_for_role, get_priority_for_task
from sollol.routing_strategy import RoutingStrategy
from sollol.sync_wrapper import OllamaPool as SyncPool


@pytest.fixture(autouse=True)
def _told_nothing_yet() -> None:
    warn_once.cache_clear()


@pytest.mark.parametrize(
    ("given", "url", "name", "priority"),
    [
        ("gpu-1", "http://gpu-1:11434", "gpu-1:11434", 5),
        ("10.0.0.5:8080", "http://10.0.0.5:8080", "10.0.0.5:8080", 5),
        ("https://llm.example", "https://llm.example:443", "llm.example:443", 5),
        ("http://gpu-1:11434/", "http://gpu-1:11434", "gpu-1:11434", 5),
        ("::1", "http://[::1]:11434", "::1:11434", 5),
        ({"host": "gpu-1", "port": "8080", "priority": 9}, "http://gpu-1:8080", "gpu-1:8080", 9),
        ({"host": "gpu-1"}, "http://gpu-1:11434", "gpu-1:11434", 5),
        ({"url": "http://gpu-1:1"}, "http://gpu-1:1", "gpu-1:1", 5),
    ],
)
def test_a_node_is_told_in_many_ways(given: Any, url: str, name: str, priority: int) -> None:
    address = NodeAddress.of(given)

    assert (address.url, address.name, address.priority) == (url, name, priority)
    assert NodeAddress.of(address) is address


def test_a_node_s_slots_are_told_where_they_were_given() -> None:
    node = {"host": "gpu-1", "port": 11434, "priority": 5, "slots": 4}
    assert NodeAddress.of(node).as_dict() == node
    assert NodeAddress.of("gpu-1").as_dict() == {"host": "gpu-1", "port": 11434, "priority": 5}


@pytest.mark.parametrize(
    "given",
    [
        {},
        7,
        {"port": 1},
        {"host": "a", "port": "x"},
        {"host": "a", "port": 70000},
        {"host": "a", "priority": 11},
        {"host": "a", "priority": True},
        {"host": "a", "slots": 0},
        {"host": "a", "slots": "4"},
        "ftp://a",
        "a:b",
        "a b",
    ],
)
def test_what_is_no_address_is_refused(given: Any) -> None:
    with pytest.raises(InvalidJob) as refused:
        NodeAddress.of(given)
    assert refused.value.field == "nodes"


def test_nodes_are_a_list_and_each_counts_once() -> None:
    assert [each.name for each in node_addresses(["a", {"host": "a", "priority": 9}, "b"])] == [
        "a:11434",
        "b:11434",
    ]
    with pytest.raises(InvalidJob, match="a list is needed"):
        node_addresses("a")


@pytest.mark.parametrize("name", sorted(REPLACED))
def test_an_argument_without_a_meaning_warns_once_and_names_what_replaces_it(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{name} has no meaning any more: ") as told:
        warn_of_replaced({name: True}, "OllamaPool")
    assert REPLACED[name] in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_replaced({name: True}, "OllamaPool")


def test_an_argument_that_never_was_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'enable_magic'"):
        OllamaPool(enable_magic=True)


def test_arguments_are_checked_before_anything_starts() -> None:
    with pytest.raises(InvalidJob, match="max_queue_size"):
        OllamaPool(max_queue_size=0)
    with pytest.raises(InvalidJob, match="routing_strategy"):
        OllamaPool(routing_strategy="magic")


def test_routing_strategies_are_taken_and_told_to_change_nothing() -> None:
    assert [str(each) for each in RoutingStrategy] == [
        "round_robin",
        "latency_first",
        "least_loaded",
        "fairness",
        "intelligent",
    ]
    with pytest.warns(DeprecationWarning, match="each worker compares itself"):
        assert as_strategy("round_robin", intelligent=True) is RoutingStrategy.ROUND_ROBIN
    assert as_strategy(RoutingStrategy.INTELLIGENT, intelligent=True) is RoutingStrategy.INTELLIGENT


@pytest.mark.parametrize(
    ("given", "hedge"), [(True, True), (False, None), (HedgingStrategy(num_hedges=3), True)]
)
def test_hedging(given: bool | HedgingStrategy, hedge: bool | None) -> None:
    assert as_hedge(given) is hedge


def test_the_sync_wrapper_is_the_same_class() -> None:
    assert SyncPool is OllamaPool


def test_a_tally_counts_totals_and_hosts() -> None:
    tally = Tally()
    for _ in range(4):
        tally.began()
    tally.answered("a", 10)
    tally.answered("a", 30)
    tally.failed()

    assert tally.as_dict() == {
        "total_requests": 4,
        "successful_requests": 2,
        "failed_requests": 1,
        "success_rate": 0.6667,
        "avg_latency_ms": 20,
        "hosts": {"a": {"requests": 2, "latency_ms": 20}},
    }


def test_priorities_by_name_role_and_task() -> None:
    assert [(each.name, each.value) for each in Priority] == [
        ("CRITICAL", 10),
        ("URGENT", 9),
        ("HIGH", 7),
        ("NORMAL", 5),
        ("LOW", 3),
        ("BATCH", 1),
    ]
    assert [get_priority_for_role(role) for role in ("researcher", "Editor", "summarizer")] == [8, 6, 5]
    assert (get_priority_for_role("nobody"), get_priority_for_role("nobody", default=2)) == (5, 2)
    assert get_priority_for_task("batch") == 1
    assert "researcher" in priority_helpers.list_available_roles()
    assert "summarization" in priority_helpers.list_available_tasks()
    assert "researcher 8" in priority_helpers.explain_priority_system()


def test_an_applications_own_roles_and_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priority_helpers, "_usual", priority_helpers.PriorityMapper())
    priority_helpers.register_role_priority("Jester", 2)
    priority_helpers.register_task_priority("juggling", 3)

    assert (get_priority_for_role("jester"), get_priority_for_task("Juggling")) == (2, 3)
    for wrong in (11, True, "high"):
        with pytest.raises(InvalidJob):
            priority_helpers.register_role_priority("jester", wrong)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(
    ("ip", "is_one"),
    [
        ("172.17.0.2", True),
        ("172.31.255.255", True),
        ("172.16.0.1", False),
        ("172.32.0.1", False),
        ("192.168.1.2", False),
        ("10.0.0.5", False),
        ("localhost", False),
        ("::1", False),
    ],
)
def test_docker_addresses(ip: str, is_one: bool) -> None:
    assert is_docker_ip(ip) is is_one


def test_a_containers_address_is_replaced_by_one_that_answers() -> None:
    asked: list[str] = []

    def only_here(host: str, port: int, timeout: float) -> bool:
        asked.append(host)
        return host == "127.0.0.1"

    outside = {"is_docker": False}
    assert resolve_docker_ip("172.17.0.2", 11434, 0.1, only_here, outside) == "127.0.0.1"
    assert asked == ["172.17.0.2", "127.0.0.1"]
    assert resolve_docker_ip("172.17.0.2", 1, 0.1, lambda *_: False, outside) is None
    inside = {"is_docker": True, "gateway": "172.18.0.1"}
    assert resolve_docker_ip_with_alternatives("172.17.0.2", 1, 0.1, lambda *_: True, inside) == [
        ("172.17.0.2", 1),
        ("host.docker.internal", 1),
        ("172.18.0.1", 1),
    ]
    nodes = [{"host": "172.17.0.2", "port": "1"}, {"host": "gpu-1", "port": "2"}]
    assert auto_resolve_ips(nodes, 0.1, only_here, outside) == [{"host": "127.0.0.1", "port": "1"}, nodes[1]]


def test_the_host_of_a_container_is_its_default_route(tmp_path: Path) -> None:
    routes = tmp_path / "route"
    routes.write_text("Iface\tDestination\tGateway\neth0\t000012AC\t00000000\neth0\t00000000\t010012AC\n")

    assert _gateway(routes) == "172.18.0.1"
    assert _gateway(tmp_path / "none") == ""
    assert get_deployment_context()["mode"] in ("docker", "bare_metal")


def test_only_private_networks_are_looked_through() -> None:
    found = list(neighbours(["192.168.7.10", "8.8.8.8"]))

    assert len(found) == 253
    assert "192.168.7.10" not in found
    assert {each.rpartition(".")[0] for each in found} == {"192.168.7"}
