"""What the leader does next for groups: a pure rule over what the fabric looks like. No clock, no Redis, no log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sollol_broker.groups import GroupState, GroupView
from sollol_broker.model_facts import ModelFacts

from .estimate import NO_CORRECTION, Correction, Load
from .fabric import FabricView, Node
from .plan import Group, Impossible, Links, Machine, OneNode, plan

# A member that has let down so many groups within the time that its faults are remembered gets a rest.
_MOST_FAULTS, _FAULT_SECONDS = 3, 600.0
# So long others are preferred to a node that let a group down.
_WARY_SECONDS = 60.0
# And so long two nodes that did not reach each other are not put together.
_CUT_SECONDS = 120.0
# After a failed try the next one waits so long, and twice as long each time, up to the most.
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 3.0, 120.0
# An idle group makes room for another model no sooner than this after its last job.
_LEAST_IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What an operator sets.

    Attributes:
        idle_seconds: a group without jobs is dissolved after so long.
        context_tokens, slots: of each group's llama-server.
    """

    idle_seconds: float = 600.0
    context_tokens: int = 4096
    slots: int = 1

    @property
    def load(self) -> Load:
        """How a group loads its model."""
        return Load(self.context_tokens * self.slots, self.slots)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the leader remembers from turn to turn; a new leader begins with nothing, which only costs time.

    Attributes:
        idle_since: group → when it was first seen without a job. faults: node → when it let a group down.
        cut: pairs of nodes that did not reach each other, and when.
        failures: model → how often forming has failed in a row, and when last. corrections: by model.
    """

    idle_since: Mapping[str, float] = field(default_factory=dict)
    faults: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    cut: Mapping[tuple[str, str], float] = field(default_factory=dict)
    failures: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    corrections: Mapping[str, Correction] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Form:
    """Form a group for a model."""

    model: str
    facts: ModelFacts
    plan: Group | OneNode


@dataclass(frozen=True, slots=True)
class Dissolve:
    """End a group. `lost`: nodes that let it down. `cut`: two nodes that did not reach each other any more."""

    group: GroupView
    why: str
    lost: tuple[str, ...] = ()
    cut: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Formable:
    """Whether a model that nobody serves could be served by a group, and why not."""

    model: str
    ok: bool
    reasons: Mapping[str, str]


Action = Form | Dissolve | Formable


def decide(
    view: FabricView, memory: Memory, rules: Rules, now: float, wishes: Sequence[str] = (), forming: str = ""
) -> list[Action]:
    """What to do now.

    1. A group that an operator wants dissolved, that has lost a part, or that nobody used for long, is dissolved.
    2. Each model that lies on some node and that no worker serves is planned for: formable or not, and why.
    3. One that jobs wait for gets a group: one at a time, not right after a failure, and only if it has none.
    4. Where it fits only without another, idle group, that one is dissolved.

    Args:
        now: seconds of any steady clock. wishes: ids or models of groups to dissolve.
        forming: the group that is being formed now; "" = none. It is looked after by whoever forms it.
    """
    actions: list[Action] = [
        ending
        for group in view.groups
        if (ending := _ending(group, view, memory, rules, now, wishes, forming))
    ]
    ended = {action.group.id for action in actions if isinstance(action, Dissolve)}
    grouped = {group.model for group in view.groups if group.state is not GroupState.BROKEN}
    may_form = not forming and not ended
    for model in sorted(_unserved(view), key=lambda name: (-view.waiting.get(name, 0), name)):
        facts = _facts(view, model)
        found = plan_for(view, model, facts, memory, rules, now)
        is_possible = isinstance(found, Group | OneNode)
        reasons = found.reasons if isinstance(found, Impossible) else {}
        freed = None
        if not is_possible and view.waiting.get(model):
            freed = _idle_group_in_the_way(view, model, facts, memory, rules, now)
        actions.append(Formable(model, is_possible or freed is not None or model in grouped, reasons))
        if not view.waiting.get(model) or model in grouped or not may_form:
            continue
        if isinstance(found, Group | OneNode):
            if _is_due(model, memory, now):
                actions.append(Form(model, facts, found))
                may_form = False
        elif freed is not None:
            actions.append(Dissolve(freed, f"its nodes are needed for {model}"))
            may_form = False
    return actions


def plan_for(
    view: FabricView,
    model: str,
    facts: ModelFacts,
    memory: Memory,
    rules: Rules,
    now: float,
    without: str = "",
) -> Group | OneNode | Impossible:
    """Where the model could run. `without`: as if that group were gone.

    A node that let a group down a moment ago is taken only where it does not work without it. A node that alone
    serves some other model, which nobody would serve any more, only where it takes more nodes without it.
    """
    machines = [_machine(node, model, memory, now, without) for node in view.nodes.values()]
    fresh = [each for each in machines if not _has_just_failed(each.name, memory, now)]
    correction = memory.corrections.get(model, NO_CORRECTION)
    links = Links({pair: math.inf for pair, at in memory.cut.items() if now - at < _CUT_SECONDS})
    for chosen in (fresh, machines):
        found = plan(facts, rules.load, chosen, links, correction=correction)
        if not isinstance(found, Impossible):
            break
    assert isinstance(found, Group | OneNode | Impossible)  # noqa: S101  # nobody serves it
    alone = {nodes[0] for nodes in view.served.values() if len(nodes) == 1}
    if isinstance(found, Group) and alone & {found.head, *found.members}:
        others = [each for each in chosen if each.name not in alone]
        heads = [each for each in chosen if each.has_file or each.name not in alone]
        for spared in (others, heads):
            instead = plan(facts, rules.load, spared, links, correction=correction)
            if isinstance(instead, Group) and len(instead.members) <= len(found.members):
                return instead
    return found


def next_memory(view: FabricView, memory: Memory, now: float) -> Memory:
    """What to remember from now on: who is idle since when, and who let a group down of late."""
    idle = {}
    for group in view.groups:
        if not view.waiting.get(group.model) and not view.running.get(group.model):
            idle[group.id] = memory.idle_since.get(group.id, now)
    faults = {
        node: recent
        for node, times in memory.faults.items()
        if (recent := tuple(at for at in times if now - at < _FAULT_SECONDS))
    }
    return replace(memory, idle_since=idle, faults=faults)


def with_faults(memory: Memory, nodes: Sequence[str], now: float) -> Memory:
    """These nodes have let a group down."""
    faults = dict(memory.faults)
    for node in nodes:
        faults[node] = (*faults.get(node, ()), now)
    return replace(memory, faults=faults)


def with_cut(memory: Memory, one: str, other: str, now: float) -> Memory:
    """These two did not reach each other."""
    return replace(memory, cut={**memory.cut, (one, other): now})


def after_failure(memory: Memory, model: str, now: float) -> Memory:
    """Forming a group for the model has failed."""
    count, _ = memory.failures.get(model, (0, 0.0))
    return replace(memory, failures={**memory.failures, model: (count + 1, now)})


def after_success(memory: Memory, model: str) -> Memory:
    """A group for the model works."""
    return replace(memory, failures={name: each for name, each in memory.failures.items() if name != model})


def _ending(
    group: GroupView,
    view: FabricView,
    memory: Memory,
    rules: Rules,
    now: float,
    wishes: Sequence[str],
    forming: str,
) -> Dissolve | None:
    """Whether a group is to end, and why."""
    if group.id in wishes or group.model in wishes:
        return Dissolve(group, "an operator wants it so")
    if group.id == forming or group.state is GroupState.BROKEN:
        return None
    if group.state is not GroupState.READY:
        return Dissolve(group, "whoever was forming it is gone")
    gone = tuple(
        name for name, _ in group.parts if name not in view.nodes or view.nodes[name].group != group.id
    )
    if gone:
        return _lost(group, view, gone)
    closed = [name for name, _ in group.parts if view.nodes[name].is_closed]
    if closed:
        return Dissolve(group, f"an operator has closed {', '.join(closed)}")
    if now - memory.idle_since.get(group.id, now) >= rules.idle_seconds:
        return Dissolve(group, f"nobody has used it for {rules.idle_seconds:.0f} s")
    return None


def _lost(group: GroupView, view: FabricView, gone: tuple[str, ...]) -> Dissolve:
    """Who is to blame when a group has lost nodes.

    1. The head says that the network has cut a member off: the link between the two.
    2. Members are gone: they are, for the head ends with them.
    3. Only the head is gone.
    """
    why = f"it has lost {', '.join(gone)}"
    fault = view.nodes[group.head].fault if group.head in view.nodes else {}
    if fault.get("group") == group.id and fault.get("node", group.head) != group.head:
        return Dissolve(group, f"{group.head}: {fault['why']}", cut=(group.head, fault["node"]))  # 1
    members = tuple(name for name in gone if name != group.head)
    return Dissolve(group, why, lost=members or gone)  # 2, 3


def _unserved(view: FabricView) -> set[str]:
    """Models that lie somewhere and that no worker outside a group serves."""
    groups = {group.model: {name for name, _ in group.parts} for group in view.groups}
    files = {model for node in view.nodes.values() for model in node.files}
    return {model for model in files if not set(view.served.get(model, ())) - groups.get(model, set())}


def _facts(view: FabricView, model: str) -> ModelFacts:
    return next(node.files[model] for node in view.nodes.values() if model in node.files)


def _machine(node: Node, model: str, memory: Memory, now: float, without: str) -> Machine:
    recent = memory.faults.get(node.name, ())
    why = node.memory.quarantined_because
    if len(recent) >= _MOST_FAULTS:
        why = f"it let {len(recent)} groups down within 10 minutes"
    elif node.is_closed:
        why = "an operator has closed it"
    return replace(
        node.memory,
        has_file=model in node.files,
        is_busy=bool(node.group) and node.group != without,
        quarantined_because=why,
    )


def _has_just_failed(node: str, memory: Memory, now: float) -> bool:
    return any(now - at < _WARY_SECONDS for at in memory.faults.get(node, ()))


def _is_due(model: str, memory: Memory, now: float) -> bool:
    count, at = memory.failures.get(model, (0, 0.0))
    wait = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** (count - 1)) if count else 0.0
    return now - at >= wait


def _idle_group_in_the_way(
    view: FabricView, model: str, facts: ModelFacts, memory: Memory, rules: Rules, now: float
) -> GroupView | None:
    for group in view.groups:
        idle = now - memory.idle_since.get(group.id, now)
        if group.state is GroupState.READY and idle >= _LEAST_IDLE_SECONDS:
            found = plan_for(view, model, facts, memory, rules, now, without=group.id)
            if not isinstance(found, Impossible):
                return group
    return None
