from __future__ import annotations

from dataclasses import replace

import pytest

from known_models import LLAMA_70B, SMOLLM2
from sollol_broker.groups import GroupState, GroupView
from sollol_coordinator.decide import (
    Action,
    Dissolve,
    Form,
    Formable,
    Memory,
    Rules,
    after_failure,
    after_success,
    decide,
    next_memory,
    with_cut,
    with_faults,
)
from sollol_coordinator.fabric import FabricView, Node
from sollol_coordinator.plan import Device, Group, Machine, OneNode

_RULES = Rules(idle_seconds=100.0)


def node(name: str, *, vram: float = 15_800, has_file: bool = False, group: str = "") -> Node:
    memory = Machine(name, 12_000, (Device("GPU0", "cuda", vram),), "b10068", (4, 0, 3))
    return Node(name, f"w-{name}", "10.0.0.1", memory, {"big": LLAMA_70B} if has_file else {}, group)


def fabric(
    *nodes: Node, groups: tuple[GroupView, ...] = (), waiting: int = 0, running: int = 0
) -> FabricView:
    return FabricView(
        {each.name: each for each in nodes},
        groups,
        {},
        {"big": waiting} if waiting else {},
        {"big": running} if running else {},
    )


def group(*names: str, state: GroupState = GroupState.READY, model: str = "big", id: str = "g1") -> GroupView:
    return GroupView(id, model, state, names[0], tuple((name, f"w-{name}") for name in names))


def three(**changes: str) -> list[Node]:
    return [node("a", has_file=True, **changes), node("b", **changes), node("c", **changes)]  # type: ignore[arg-type]  # by name


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_a_job_for_a_model_that_fits_no_node_makes_a_group() -> None:
    actions = decide(fabric(*three(), waiting=1), Memory(), _RULES, 0.0)

    assert kinds(actions) == ["Formable", "Form"]
    formable, form = actions
    assert isinstance(formable, Formable)
    assert (formable.model, formable.ok) == ("big", True)
    assert isinstance(form, Form)
    assert isinstance(form.plan, Group)
    assert form.plan.head == "a"


def test_without_a_job_it_is_only_said_that_a_group_could_be_formed() -> None:
    assert kinds(decide(fabric(*three()), Memory(), _RULES, 0.0)) == ["Formable"]


def test_why_it_is_impossible_is_said_too() -> None:
    (action,) = decide(fabric(*three()[:2], waiting=3), Memory(), _RULES, 0.0)

    assert isinstance(action, Formable)
    assert not action.ok
    assert set(action.reasons) == {"a", "b"}


def test_a_model_that_somebody_serves_needs_nothing() -> None:
    view = replace(fabric(*three(), waiting=9), served={"big": ("z",)})

    assert decide(view, Memory(), _RULES, 0.0) == []


def test_one_node_that_can_have_it_is_enough() -> None:
    large = node("a", vram=60_000, has_file=True)

    form = decide(fabric(large, node("b"), waiting=1), Memory(), _RULES, 0.0)[-1]

    assert isinstance(form, Form)
    assert isinstance(form.plan, OneNode)


@pytest.mark.parametrize(
    ("others", "members"),
    [
        ((node("b", vram=16_200), node("c"), node("d")), {"c", "d"}),
        ((node("b", vram=16_200), node("c")), {"b", "c"}),  # there is no other way
    ],
)
def test_a_node_that_alone_serves_another_model_is_spared(
    others: tuple[Node, ...], members: set[str]
) -> None:
    view = replace(fabric(node("a", has_file=True), *others, waiting=1), served={"small": ("b",)})

    form = decide(view, Memory(), _RULES, 0.0)[-1]

    assert isinstance(form, Form)
    assert isinstance(form.plan, Group)
    assert set(form.plan.members) == members


def test_there_is_one_group_per_model() -> None:
    ready = group("a", "b", "c")
    view = fabric(*three(group="g1"), groups=(ready,), waiting=5, running=1)

    assert kinds(decide(view, Memory(), _RULES, 0.0)) == ["Formable"]


def test_only_one_group_is_formed_at_a_time() -> None:
    forming = group("x", state=GroupState.LOADING, model="other", id="g9")
    view = fabric(*three(), groups=(forming,), waiting=1)

    assert kinds(decide(view, Memory(), _RULES, 0.0, forming="g9")) == ["Formable"]


@pytest.mark.parametrize("state", [GroupState.FORMING, GroupState.LOADING])
def test_what_a_leader_before_was_forming_is_ended(state: GroupState) -> None:
    view = fabric(*three(group="g1"), groups=(group("a", "b", state=state),), waiting=1)

    actions = decide(view, Memory(), _RULES, 0.0)

    assert isinstance(actions[0], Dissolve)
    assert "whoever was forming it is gone" in actions[0].why


def test_a_group_that_lost_a_node_is_ended() -> None:
    nodes = [*three(group="g1")[:2], node("c", group="")]

    (ending, _) = decide(fabric(*nodes, groups=(group("a", "b", "c"),), waiting=1), Memory(), _RULES, 0.0)

    assert isinstance(ending, Dissolve)
    assert ending.lost == ("c",)


def test_a_member_that_the_network_cut_off_is_not_put_with_that_head_again() -> None:
    fault = {"group": "g1", "node": "b", "why": "b is cut off"}
    nodes = [replace(node("a", has_file=True), fault=fault), node("b", group="g1"), node("c", group="g1")]
    (ending, _) = decide(fabric(*nodes, groups=(group("a", "b", "c"),), waiting=1), Memory(), _RULES, 0.0)

    assert isinstance(ending, Dissolve)
    assert (ending.cut, ending.lost) == (("a", "b"), ())
    memory = with_cut(Memory(), "a", "b", 1000.0)
    four = fabric(*three(), node("d"), waiting=1)
    form = decide(four, memory, _RULES, 1001.0)[-1]
    assert isinstance(form, Form)
    assert isinstance(form.plan, Group)
    assert set(form.plan.members) == {"c", "d"}
    assert kinds(decide(fabric(*three(), waiting=1), memory, _RULES, 1001.0)) == ["Formable"]


def test_when_members_and_head_are_gone_the_members_are_to_blame() -> None:
    nodes = [node("a", has_file=True), node("b"), node("c", group="g1")]

    (ending, _) = decide(fabric(*nodes, groups=(group("a", "b", "c"),), waiting=1), Memory(), _RULES, 0.0)

    assert isinstance(ending, Dissolve)
    assert ending.lost == ("b",)


def test_a_group_with_a_closed_node_is_ended() -> None:
    nodes = [*three(group="g1")[:2], replace(node("c", group="g1"), is_closed=True)]

    ending = decide(fabric(*nodes, groups=(group("a", "b", "c"),)), Memory(), _RULES, 0.0)[0]

    assert isinstance(ending, Dissolve)
    assert "operator has closed c" in ending.why


def test_an_idle_group_is_ended_and_a_busy_one_is_not() -> None:
    idle = fabric(*three(group="g1"), groups=(group("a", "b", "c"),))
    memory = next_memory(idle, Memory(), 1000.0)

    assert kinds(decide(idle, memory, _RULES, 1099.0)) == ["Formable"]
    assert isinstance(decide(idle, memory, _RULES, 1100.0)[0], Dissolve)
    busy = replace(idle, running={"big": 1})
    memory = next_memory(busy, memory, 1100.0)
    assert kinds(decide(busy, memory, _RULES, 1100.0)) == ["Formable"]


@pytest.mark.parametrize("wish", ["g1", "big"])
def test_an_operator_ends_a_group_by_id_or_model(wish: str) -> None:
    view = fabric(*three(group="g1"), groups=(group("a", "b", "c"),), running=1)

    ending = decide(view, Memory(), _RULES, 0.0, (wish,))[0]

    assert isinstance(ending, Dissolve)
    assert ending.why == "an operator wants it so"


def test_after_failures_the_next_try_waits_longer_each_time() -> None:
    view, memory = fabric(*three(), waiting=1), Memory()
    for wait in (3, 6, 12, 24, 48, 96, 120, 120):
        memory = after_failure(memory, "big", 1000.0)
        assert kinds(decide(view, memory, _RULES, 1000.0 + wait - 0.1)) == ["Formable"]
        assert kinds(decide(view, memory, _RULES, 1000.0 + wait)) == ["Formable", "Form"]
    assert kinds(decide(view, after_success(memory, "big"), _RULES, 1000.0)) == ["Formable", "Form"]


def test_a_node_that_just_failed_is_taken_only_if_it_must_be() -> None:
    memory = with_faults(Memory(), ("b",), 1000.0)
    four = [*three(), node("d")]

    form = decide(fabric(*four, waiting=1), memory, _RULES, 1001.0)[-1]
    needed = decide(fabric(*three(), waiting=1), memory, _RULES, 1001.0)[-1]

    assert isinstance(form, Form)
    assert isinstance(form.plan, Group)
    assert set(form.plan.members) == {"c", "d"}
    assert isinstance(needed, Form)
    assert isinstance(needed.plan, Group)
    assert set(needed.plan.members) == {"b", "c"}


def test_a_flapping_node_is_put_in_quarantine_for_a_while() -> None:
    memory = Memory()
    for at in (1000.0, 1100.0, 1200.0):
        memory = with_faults(memory, ("b",), at)
    view = fabric(*three(), waiting=1)

    (refused,) = decide(view, memory, _RULES, 1300.0)
    later = next_memory(view, memory, 1601.0)

    assert isinstance(refused, Formable)
    assert "let 3 groups down" in refused.reasons["b"]
    assert kinds(decide(view, later, _RULES, 1601.0)) == ["Formable", "Form"]


def test_an_idle_group_makes_room_for_a_model_that_jobs_wait_for() -> None:
    other = group("a", "b", model="other", id="g7")
    nodes = [node("a", has_file=True, group="g7"), node("b", group="g7"), node("c")]
    view = fabric(*nodes, groups=(other,), waiting=1)
    memory = next_memory(view, Memory(), 0.0)

    early = decide(view, memory, _RULES, 9.0)
    due = decide(view, memory, _RULES, 11.0)

    assert kinds(early) == ["Formable"]
    assert kinds(due) == ["Formable", "Dissolve"]
    assert isinstance(due[1], Dissolve)
    assert due[1].group.id == "g7"


def test_facts_come_from_whoever_has_the_file() -> None:
    small = Node("s", "w-s", "", Machine("s", 500.0, (), "b10068", (4, 0, 3)), {"small": SMOLLM2})
    view = replace(fabric(small), waiting={"small": 1})

    form = decide(view, Memory(), _RULES, 0.0)[-1]

    assert isinstance(form, Form)
    assert form.facts == SMOLLM2
