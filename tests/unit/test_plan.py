from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from known_models import LLAMA_70B, SMOLLM2
from sollol_coordinator.estimate import Load, estimate
from sollol_coordinator.plan import (
    Device,
    Group,
    Impossible,
    Links,
    Machine,
    NothingNeeded,
    OneNode,
    Place,
    plan,
    serves_protocol,
)

_LOAD = Load(4096)


def machine(
    name: str, vram: float = 15_800, ram: float = 12_000, *, has_file: bool = False, kind: str = "cuda"
) -> Machine:
    gpus = (Device("GPU0", kind, vram),) if vram else ()
    return Machine(name, ram, gpus, llama_build="b10068", rpc_version=(4, 0, 3), has_file=has_file)


def held(places: tuple[Place, ...], machines: list[Machine]) -> None:
    """Nobody gets more than it has free, and all layers are somewhere, once."""
    assert sum(place.need.layers for place in places) == LLAMA_70B.layers + 1
    free = {(each.name, device.name): device.free_mib for each in machines for device in each.devices}
    free |= {(each.name, "CPU"): each.ram_free_mib for each in machines}
    for place in places:
        assert 0 < place.need.total_mib <= free[place.node, place.device]


def test_seventy_billion_over_three_cards_of_16_gb() -> None:
    machines = [machine("a", has_file=True), machine("b"), machine("c")]

    group = plan(LLAMA_70B, _LOAD, machines)

    assert isinstance(group, Group)
    assert (group.head, set(group.members)) == ("a", {"b", "c"})
    held(group.places, machines)
    assert [place.need.layers for place in group.places] == [27, 27, 27]


def test_nothing_is_needed_where_somebody_serves_it() -> None:
    assert plan(LLAMA_70B, _LOAD, [machine("a")], serving=["b"]) == NothingNeeded("b")


def test_one_node_that_can_have_it_is_enough() -> None:
    machines = [
        machine("a", has_file=True),
        machine("b", vram=48_000, has_file=True),
        machine("c", vram=48_000),
    ]

    found = plan(LLAMA_70B, _LOAD, machines)

    assert isinstance(found, OneNode)
    assert (found.node, found.is_partial) == ("b", False)
    held(found.places, machines)


def test_a_machine_without_gpu_has_it_in_main_memory() -> None:
    need = estimate(SMOLLM2, _LOAD).total_mib
    box = machine("box", vram=0, ram=need * 1.2, has_file=True)

    found = plan(SMOLLM2, _LOAD, [box])

    assert isinstance(found, OneNode)
    assert [(place.device, place.need.layers) for place in found.places] == [("CPU", 31)]
    assert isinstance(plan(SMOLLM2, _LOAD, [replace(box, ram_free_mib=need * 0.9)]), Impossible)


def test_a_few_layers_in_main_memory_are_better_than_a_group() -> None:
    machines = [machine("a", vram=41_500, ram=20_000, has_file=True), machine("b")]

    found = plan(LLAMA_70B, _LOAD, machines, Links({("a", "b"): 20.0}))

    assert isinstance(found, OneNode)
    assert found.is_partial
    held(found.places, machines)


def test_half_a_model_in_main_memory_is_worse_than_a_group() -> None:
    machines = [machine("a", ram=64_000, has_file=True), machine("b"), machine("c")]

    assert isinstance(plan(LLAMA_70B, _LOAD, machines), Group)
    alone = plan(LLAMA_70B, _LOAD, machines[:1])
    assert isinstance(alone, OneNode)
    assert alone.is_partial


def test_fewer_members_before_better_links() -> None:
    machines = [
        machine("a", vram=24_000, has_file=True),
        machine("b"),
        machine("c"),
        machine("d", vram=22_000),
    ]
    links = Links({("a", "b"): 0.1, ("a", "c"): 0.1, ("a", "d"): 5.0})

    group = plan(LLAMA_70B, _LOAD, machines, links)

    assert isinstance(group, Group)
    assert group.members == ("d",)


def test_the_nearest_of_equal_members_is_taken() -> None:
    machines = [machine("a", vram=24_000, has_file=True), machine("far", 24_000), machine("near", 24_000)]

    group = plan(LLAMA_70B, _LOAD, machines, Links({("a", "far"): 3.0, ("near", "a"): 0.2}))

    assert isinstance(group, Group)
    assert group.members == ("near",)


def test_the_head_is_the_holder_with_the_most_memory() -> None:
    machines = [
        machine("a", has_file=True),
        machine("b", vram=24_000, has_file=True),
        machine("c", vram=30_000),
    ]

    group = plan(LLAMA_70B, _LOAD, machines)

    assert isinstance(group, Group)
    assert (group.head, group.members) == ("b", ("c",))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"is_busy": True}, "busy"),
        ({"llama_build": ""}, "setup-llama-cpp"),
        ({"quarantined_because": "it left three groups"}, "it left three groups"),
        ({"rpc_version": None}, "no rpc-server"),
    ],
)
def test_who_may_not_take_part_is_told_why(change: dict[str, object], why: str) -> None:
    third = replace(machine("c"), **change)  # type: ignore[arg-type]  # each is of its field's type

    found = plan(LLAMA_70B, _LOAD, [machine("a", has_file=True), machine("b"), third])

    assert isinstance(found, Impossible)
    assert why in found.reasons["c"]
    assert "MiB short" in found.reasons["b"]
    assert found.missing_mib > 0


def test_without_the_file_there_is_no_head() -> None:
    found = plan(LLAMA_70B, _LOAD, [machine("a"), machine("b"), machine("c"), machine("d")])

    assert isinstance(found, Impossible)
    assert "holds the model's file" in found.reasons["a"]


@pytest.mark.parametrize(
    ("client", "server", "works"),
    [
        ((4, 0, 3), (4, 0, 3), True),
        ((4, 1, 0), (4, 0, 9), True),
        ((4, 0, 3), (4, 1, 0), False),
        ((5, 0, 0), (4, 0, 3), False),
        ((7, 0, 0), (7, 0, 1), True),
    ],
)
def test_protocols_that_understand_each_other(
    client: tuple[int, int, int], server: tuple[int, int, int], works: bool
) -> None:
    assert serves_protocol(client, server) is works


def test_a_member_of_another_protocol_is_not_asked() -> None:
    machines = [machine("a", has_file=True), machine("b"), replace(machine("c"), rpc_version=(5, 0, 0))]

    assert isinstance(plan(LLAMA_70B, _LOAD, machines), Impossible)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 30_000), st.integers(500, 60_000), st.booleans(), st.booleans()),
        min_size=1,
        max_size=6,
    )
)
def test_no_plan_gives_a_device_more_than_it_has(nodes: list[tuple[int, int, bool, bool]]) -> None:
    machines = [
        replace(machine(f"n{at}", vram, ram, has_file=has_file), is_busy=is_busy)
        for at, (vram, ram, has_file, is_busy) in enumerate(nodes)
    ]

    found = plan(LLAMA_70B, _LOAD, machines)

    if isinstance(found, OneNode | Group):
        held(found.places, machines)
        busy = {each.name for each in machines if each.is_busy}
        assert not busy & {place.node for place in found.places}
    else:
        assert isinstance(found, Impossible)
        assert set(found.reasons) == {each.name for each in machines}
