"""SOLLOL's names for rpc-servers: what is taken as an address, and what a registry keeps."""

from __future__ import annotations

import inspect

import pytest

from sollol.llama_cpp_coordinator import LlamaCppCoordinator
from sollol.rpc_auto_setup import auto_setup_rpc_backends
from sollol.rpc_discovery import check_rpc_server, discover_rpc_backends, endpoint, named
from sollol.rpc_registry import RPCBackend, RPCBackendRegistry
from sollol_broker.errors import InvalidJob
from sollol_worker_agent.rpc.wire import RpcDevice, RpcReport, RpcState


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.5:50053", ("10.0.0.5", 50053)),
        ("grpc://10.0.0.5:50052", ("10.0.0.5", 50052)),
        ("http://gpu-2:1/", ("gpu-2", 1)),
        ("10.0.0.5", ("10.0.0.5", 50052)),
        ("[::1]:5", ("::1", 5)),
        ("[::1]", ("::1", 50052)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert endpoint(text) == address


@pytest.mark.parametrize("text", ["", ":5", "host:", "host:0", "host:65536", "host:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidJob):
        endpoint(text)


def test_the_environment_names_many() -> None:
    assert named("a:1, b:2 c") == [("a", 1), ("b", 2), ("c", 50052)]
    assert named("") == []


@pytest.mark.parametrize("cidr", ["10.0.0.0/8", "10.0.0.0/21", "not a network", "::/64"])
def test_a_network_that_is_too_large_or_none_is_not_searched(cidr: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        discover_rpc_backends(cidr=cidr)

    assert refused.value.field == "cidr"


def test_a_registry_takes_both_ways_of_adding() -> None:
    registry = RPCBackendRegistry(enable_heartbeat=False)
    registry.add_backend("rpc_1", "grpc://10.0.0.5:50052")
    registry.add_backend("10.0.0.6", 50053)
    registry.add_backend("10.0.0.7")
    registry.load_from_config([{"host": "10.0.0.8", "port": 1}, "10.0.0.9:2"])

    assert [each.address for each in registry.get_all_backends()] == [
        "10.0.0.5:50052",
        "10.0.0.6:50053",
        "10.0.0.7:50052",
        "10.0.0.8:1",
        "10.0.0.9:2",
    ]
    first = registry.get_all_backends()[0]
    assert (first.name, first["host"], first["port"], first.is_healthy) == ("rpc_1", "10.0.0.5", 50052, False)


def test_the_same_server_is_kept_once_and_forgotten_by_address_or_name() -> None:
    registry = RPCBackendRegistry(enable_heartbeat=False)
    one = registry.add_backend("rpc_1", "grpc://10.0.0.5:50052")
    assert registry.add_backend("10.0.0.5", 50052) is one
    registry.add_backend("10.0.0.6")

    assert registry.remove_backend("rpc_1")
    assert registry.remove_backend("10.0.0.6", 50052)
    assert not registry.remove_backend("10.0.0.6", 50052)
    assert registry.get_all_backends() == []


def _answers(host: str, free_mib: int, trip_ms: float = 1.0) -> RPCBackend:
    report = RpcReport(host, 50052, RpcState.IDLE, (4, 0, 3), (RpcDevice(free_mib, 9000),), trip_ms)
    return RPCBackend(host, report=report)


def test_the_best_is_free_and_has_most_memory_and_is_near() -> None:
    registry = RPCBackendRegistry(enable_heartbeat=False)
    for backend in (
        _answers("small", 1000),
        _answers("far", 4000, 9.0),
        _answers("near", 4000),
        _answers("used", 8000),
    ):
        backend.is_in_use = backend.host == "used"
        registry._backends[backend.host, backend.port] = backend

    best = registry.get_best_backend()

    assert best is not None
    assert best.host == "near"
    assert len(registry.get_healthy_backends()) == 4
    stats = registry.get_stats()
    assert (stats["total_backends"], stats["healthy_backends"]) == (4, 4)
    assert {each["state"] for each in stats["backends"]} == {"idle", "in use"}


def test_the_arguments_of_earlier_releases_are_taken() -> None:
    def names(call: object) -> list[str]:
        assert callable(call)
        return list(inspect.signature(call).parameters)

    assert names(auto_setup_rpc_backends) == ["num_backends", "llama_dir", "auto_build", "discover_network"]
    assert names(check_rpc_server) == ["host", "port", "timeout"]
    assert names(discover_rpc_backends) == ["cidr", "port", "timeout", "auto_resolve_docker"]
    assert names(LlamaCppCoordinator)[:7] == [
        *("model_path", "rpc_backends", "host", "port", "n_gpu_layers", "ctx_size", "rpc_registry"),
    ]
    assert names(RPCBackendRegistry) == ["enable_heartbeat"]


def test_no_backend_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        auto_setup_rpc_backends(num_backends=0)
