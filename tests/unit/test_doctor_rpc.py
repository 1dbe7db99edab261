"""What the doctor makes of rpc-servers, of nodes that could form groups, and of a model's split."""

from __future__ import annotations

from dataclasses import replace

import pytest

from known_models import LLAMA_70B, SMOLLM2
from sollol.cli.doctor_facts import Finding, Severity
from sollol.cli.doctor_rpc_checks import Asked, RpcFacts, examine, plan_as_data
from sollol.llama_cpp.by_hand import RemoteDevice, split_over
from sollol_broker.groups import GroupState, GroupView
from sollol_coordinator.decide import Rules
from sollol_coordinator.estimate import Load
from sollol_coordinator.fabric import FabricView, Node
from sollol_coordinator.plan import Device, Machine
from sollol_worker_agent.rpc.wire import RpcDevice, RpcReport, RpcState

_RULES = Rules(context_tokens=2048)
_IDLE = RpcReport("127.0.0.1", 50052, RpcState.IDLE, (4, 0, 3), (RpcDevice(900, 1000),), 0.2, 400.0)


def _by_id(facts: RpcFacts) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in examine(facts):
        found.setdefault(finding.id, []).append(finding)
    return found


def _worst(findings: list[Finding]) -> Severity:
    return max((each.severity for each in findings), key=list(Severity).index)


def test_an_idle_server_is_well() -> None:
    found = _by_id(RpcFacts(_RULES, (_IDLE,), (4, 0, 3)))

    assert set(found) == {"rpc.reachable", "rpc.version", "rpc.memory", "rpc.latency", "rpc.bandwidth"}
    assert {_worst(each) for each in found.values()} == {Severity.OK}
    assert "900 of 1,000 MiB free" in found["rpc.memory"][0].found


@pytest.mark.parametrize(
    ("state", "severity", "todo"),
    [
        (RpcState.BUSY, Severity.NOTE, "one llama-server at a time"),
        (RpcState.DOWN, Severity.ERROR, "--start --port 50052"),
        (RpcState.UNREACHABLE, Severity.ERROR, "firewall"),
        (RpcState.FOREIGN, Severity.ERROR, "name another port"),
    ],
)
def test_other_states_say_what_to_do(state: RpcState, severity: Severity, todo: str) -> None:
    (finding,) = examine(RpcFacts(_RULES, (RpcReport("127.0.0.1", 50052, state, why="so"),), (4, 0, 3)))

    assert (finding.id, finding.severity) == ("rpc.reachable", severity)
    assert todo in finding.todo


@pytest.mark.parametrize(
    ("theirs", "ours", "severity"),
    [
        ((4, 0, 3), (4, 0, 3), Severity.OK),
        ((4, 0, 3), (4, 1, 0), Severity.OK),
        ((4, 1, 0), (4, 0, 3), Severity.ERROR),
        ((7, 0, 0), (4, 0, 3), Severity.ERROR),
    ],
)
def test_protocols_are_compared_with_this_machines_own(
    theirs: tuple[int, int, int], ours: tuple[int, int, int], severity: Severity
) -> None:
    found = _by_id(RpcFacts(_RULES, (replace(_IDLE, version=theirs),), ours))

    assert _worst(found["rpc.version"]) is severity


@pytest.mark.parametrize(
    ("host", "is_told"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("10.0.0.5", True), ("gpu-2", True)],
)
def test_a_server_on_the_network_in_the_clear_is_an_error(host: str, is_told: bool) -> None:
    found = _by_id(RpcFacts(_RULES, (replace(_IDLE, host=host),), (4, 0, 3)))

    assert ("rpc.exposed" in found) is is_told


def test_slow_networks_are_told_with_what_they_cost() -> None:
    found = _by_id(RpcFacts(_RULES, (replace(_IDLE, trip_ms=10.0, mib_per_s=8.0),), (4, 0, 3)))

    assert _worst(found["rpc.latency"]) is _worst(found["rpc.bandwidth"]) is Severity.WARNING
    assert "22.0 ms more for each token" in found["rpc.latency"][0].found
    assert "2 min to load 1 GiB" in found["rpc.bandwidth"][0].found


def test_two_equal_servers_get_what_llama_server_gives_them() -> None:
    # What llama-server b10068 logged for this model with -ts 1,1 -c 2048.
    split = split_over(SMOLLM2, Load(2048), [RemoteDevice("a", 1000), RemoteDevice("b", 1000)])

    assert split.shares == (16, 15)
    assert [round(need.weights_mib, 2) for need in split.needs] == [33.82, 58.28]
    assert [need.cache_mib for need in split.needs] == [24.0, 21.0]
    assert split.missing_mib == {}


def test_layers_go_by_free_memory_and_what_lacks_is_told() -> None:
    devices = (RpcDevice(6000, 8000), RpcDevice(2000, 8000))
    facts = RpcFacts(
        _RULES, (replace(_IDLE, devices=devices),), (4, 0, 3), asked=Asked("big", LLAMA_70B, "/big.gguf")
    )
    split = facts.split
    assert split is not None

    assert sum(split.shares) == LLAMA_70B.layers + 1
    assert split.shares[0] == pytest.approx(3 * split.shares[1], abs=3)
    assert set(split.missing_mib) == {"127.0.0.1:50052 device 0", "127.0.0.1:50052 device 1"}
    short = [each for each in _by_id(facts)["rpc.split"] if each.severity is Severity.ERROR]
    assert len(short) == 2
    assert [row["layers"] for row in plan_as_data(facts)] == list(split.shares)


def test_a_model_that_lies_nowhere() -> None:
    found = _by_id(RpcFacts(_RULES, (_IDLE,), (4, 0, 3), asked=Asked("nothing")))

    assert found["rpc.model"][0].severity is Severity.ERROR


def _node(
    name: str, vram: float, *, has_file: bool = False, version: tuple[int, int, int] = (4, 0, 3)
) -> Node:
    machine = Machine(name, 12_000, (Device("GPU0", "cuda", vram),), "b10068", version)
    return Node(name, f"{name}.1", "10.0.0.1", machine, {"big": LLAMA_70B} if has_file else {})


def _view(*nodes: Node, groups: tuple[GroupView, ...] = (), served: str = "") -> FabricView:
    return FabricView(
        {node.name: node for node in nodes}, groups, {"big": (served,)} if served else {}, {}, {}
    )


def test_a_group_that_could_be_formed_is_shown_with_layers_and_memory() -> None:
    view = _view(_node("a", 15_800, has_file=True), _node("b", 15_800), _node("c", 15_800))
    facts = RpcFacts(Rules(), view=view)

    found = _by_id(facts)

    assert len(found["rpc.nodes"]) == 3
    assert "big needs a group: head a" in found["rpc.split"][0].found
    assert sum("27 layers" in each.found for each in found["rpc.split"]) == 3
    rows = plan_as_data(replace(facts, asked=Asked("big", LLAMA_70B, "a")))
    assert [(row["node"], row["device"], row["layers"]) for row in rows] == [
        ("a", "GPU0", 27),
        ("b", "GPU0", 27),
        ("c", "GPU0", 27),
    ]


def test_what_fits_nowhere_is_told_by_node() -> None:
    found = _by_id(RpcFacts(Rules(), view=_view(_node("a", 8_000, has_file=True), _node("b", 8_000))))

    first, *others = found["rpc.split"]
    assert first.severity is Severity.WARNING
    assert "big fits nowhere" in first.found
    assert {each.found.split(":")[0] for each in others} == {"big on a", "big on b"}


def test_nodes_of_different_protocols_are_told_apart() -> None:
    found = _by_id(RpcFacts(Rules(), view=_view(_node("a", 100), _node("b", 100, version=(7, 0, 0)))))

    (told,) = found["rpc.version"]
    assert told.severity is Severity.WARNING
    assert "4: a; 7: b" in told.found


def test_nodes_without_llama_cpp_are_told_what_to_do() -> None:
    bare = replace(_node("a", 100), memory=Machine("a", 1000))

    found = _by_id(RpcFacts(Rules(), view=_view(bare)))

    assert _worst(found["rpc.nodes"]) is Severity.WARNING
    assert "setup-llama-cpp --build" in found["rpc.nodes"][0].todo


def test_a_broken_group_is_told_with_its_reason() -> None:
    group = GroupView("g-1", "big", GroupState.BROKEN, "a", (("a", "a.1"), ("b", "b.1")), why="b is gone")

    found = _by_id(RpcFacts(Rules(), view=_view(_node("a", 100), groups=(group,))))

    assert "g-1 serves big on a, b: broken (b is gone)" in found["rpc.groups"][0].found


def test_what_is_served_needs_nothing() -> None:
    view = _view(_node("a", 8_000, has_file=True), served="z")

    assert "rpc.split" not in _by_id(RpcFacts(Rules(), view=view))
    (told,) = _by_id(RpcFacts(Rules(), view=view, asked=Asked("big", LLAMA_70B, "a")))["rpc.split"]
    assert told.found == "big is served by z"


def test_a_fabric_that_cannot_be_reached_is_an_error() -> None:
    (finding,) = examine(RpcFacts(Rules(), unreachable="no Redis"))

    assert (finding.id, finding.severity) == ("rpc.fabric", Severity.ERROR)
