"""What `sollol doctor rpc` makes of rpc-servers, nodes and a model. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from sollol_broker.model_facts import ModelFacts
from sollol_coordinator.decide import Memory, Rules, plan_for
from sollol_coordinator.fabric import FabricView, Node
from sollol_coordinator.plan import Group, Impossible, OneNode, Place, serves_protocol
from sollol_worker_agent.rpc.wire import RpcReport, RpcState

from ..llama_cpp.by_hand import RemoteDevice, Split, split_over
from .doctor_facts import Finding, error, note, ok, warning
from .units import count, duration

# Per token and remote member: measured with two servers, 4.4 round trips.
_TRIPS_PER_TOKEN = 2.2
# From here on the network decides how fast a group is.
_SLOW_TRIP_MS = 2.0
# Loading 1 GiB takes half a minute.
_SLOW_MIB_PER_S = 32.0
_MODELS_SHOWN = 20
Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Asked:
    """A model to plan for.

    Attributes:
        facts: None = its file was found nowhere.
        where: the file, or the node that has it.
    """

    name: str
    facts: ModelFacts | None = None
    where: str = ""


@dataclass(frozen=True, slots=True)
class RpcFacts:
    """What was seen.

    Attributes:
        reports: of the endpoints that were named.
        own_version: protocol of this machine's llama.cpp; None = there is none.
        view: the fabric, when no endpoint was named. unreachable: why it could not be looked at.
    """

    rules: Rules
    reports: tuple[RpcReport, ...] = ()
    own_version: Version | None = None
    view: FabricView | None = None
    unreachable: str = ""
    asked: Asked | None = None

    @property
    def split(self) -> Split | None:
        """Over the endpoints that answer; None = no model, or none answers."""
        devices = [
            RemoteDevice(_device_name(report, at), device.free_mib)
            for report in self.reports
            for at, device in enumerate(report.devices)
        ]
        if not devices or self.asked is None or self.asked.facts is None:
            return None
        return split_over(self.asked.facts, self.rules.load, devices)


def examine(facts: RpcFacts) -> list[Finding]:
    """All findings, in the order in which they are told."""
    if facts.reports:
        return [*_endpoints(facts), *_model_by_hand(facts)]
    if facts.view is None:
        return [
            error("rpc.fabric", facts.unreachable, "name HOST:PORT of rpc-servers to look at those alone")
        ]
    return [*_nodes(facts.view), *_versions(facts.view), *_groups(facts.view), *_models(facts, facts.view)]


def _endpoints(facts: RpcFacts) -> Iterator[Finding]:
    for report in facts.reports:
        yield _state(report)
        if not _is_loopback(report.host):
            yield error(
                "rpc.exposed",
                f"{_name(report)}: whoever reaches it may read and write its memory; it asks for no password",
                "bind it to 127.0.0.1; groups of a fabric reach it through a tunnel of their own, others by ssh -L",
            )
        if report.state is not RpcState.IDLE:
            continue
        yield from _version(report, facts.own_version)
        for at, device in enumerate(report.devices):
            yield ok(
                "rpc.memory",
                f"{_device_name(report, at)}: {device.free_mib:,} of {device.total_mib:,} MiB free "
                "(a CPU gives all memory of its machine as free)",
            )
        yield _trip(report)
        if report.mib_per_s is not None:
            yield _pace(report, report.mib_per_s)


def _state(report: RpcReport) -> Finding:
    name, why = _name(report), report.why
    if report.state is RpcState.IDLE:
        devices = count(len(report.devices), "device")
        return ok("rpc.reachable", f"{name} is idle: protocol {_dotted(report.version)}, {devices}")
    if report.state is RpcState.BUSY:
        return note(
            "rpc.reachable",
            f"{name} is busy: {why}",
            "it serves one llama-server at a time: wait until that one ends, or start another rpc-server",
        )
    if report.state is RpcState.DOWN:
        return error(
            "rpc.reachable",
            f"{name} is down: {why}",
            f"sollol setup-llama-cpp --start --port {report.port} there, or systemctl start llama-rpc@{report.port}",
        )
    if report.state is RpcState.UNREACHABLE:
        return error("rpc.reachable", f"{name}: {why}", "look at the address, the network and the firewall")
    return error(
        "rpc.reachable",
        f"{name} is something else: {why}",
        "look at what listens there, and name another port",
    )


def _version(report: RpcReport, own: Version | None) -> Iterator[Finding]:
    if own is None or report.version is None:
        return
    if serves_protocol(own, report.version):
        yield ok("rpc.version", f"{_name(report)}: this machine's llama.cpp ({_dotted(own)}) can use it")
    else:
        yield error(
            "rpc.version",
            f"{_name(report)} speaks protocol {_dotted(report.version)}, this machine's llama.cpp {_dotted(own)}: "
            "older builds go on without it, newer ones abort",
            "install the same build of llama.cpp on both: sollol setup-llama-cpp",
        )


def _trip(report: RpcReport) -> Finding:
    cost = report.trip_ms * _TRIPS_PER_TOKEN
    found = (
        f"{_name(report)}: {report.trip_ms:.2f} ms for a round trip, about {cost:.1f} ms more for each token"
    )
    if report.trip_ms < _SLOW_TRIP_MS:
        return ok("rpc.latency", found)
    return warning(
        "rpc.latency", found, "wire the machines to one switch; WLAN and VPN are too slow for this"
    )


def _pace(report: RpcReport, mib_per_s: float) -> Finding:
    found = f"{_name(report)}: {mib_per_s:,.0f} MiB/s to it, {duration(1024 / mib_per_s)} to load 1 GiB"
    if mib_per_s >= _SLOW_MIB_PER_S:
        return ok("rpc.bandwidth", found)
    return warning(
        "rpc.bandwidth", found, "expect long loads; later ones of the same model come from its cache"
    )


def _model_by_hand(facts: RpcFacts) -> Iterator[Finding]:
    if facts.asked is None:
        return
    if facts.asked.facts is None:
        yield _no_file(facts.asked)
        return
    split = facts.split
    if split is None:
        yield error("rpc.split", f"{facts.asked.name}: no rpc-server to split it over", "see above")
        return
    for device, need in zip(split.devices, split.needs, strict=True):
        lack = split.missing_mib.get(device.name, 0.0)
        found = f"{facts.asked.name} on {device.name}: {need.layers} layers, {need.total_mib:,.0f} MiB"
        parts = (
            f"weights {need.weights_mib:,.1f}, cache {need.cache_mib:,.1f}, compute {need.compute_mib:,.1f}"
        )
        if lack:
            yield error(
                "rpc.split",
                f"{found} ({parts}): {lack:,.0f} MiB short",
                "add an rpc-server, or lower the context",
            )
        else:
            yield ok("rpc.split", f"{found} ({parts})")
    yield note("rpc.split", f"{split.head_mib:,.0f} MiB of main memory where llama-server runs")


def _nodes(view: FabricView) -> Iterator[Finding]:
    able = [node for node in view.nodes.values() if node.memory.rpc_version is not None]
    for node in sorted(view.nodes.values(), key=lambda each: each.name):
        yield _node(node)
    if not able:
        yield warning(
            "rpc.nodes",
            "no node can take part in a group",
            "run workers with sollol[local], or after `sollol setup-llama-cpp --build`",
        )


def _node(node: Node) -> Finding:
    """1. no llama.cpp, 2. no rpc-server, 3. closed, 4. in a group, 5. ready for one."""
    machine = node.memory
    if not machine.llama_build:  # 1
        return note("rpc.nodes", f"{node.name}: no llama.cpp", "sollol setup-llama-cpp --build there")
    found = f"{node.name}: {machine.llama_build}"
    if machine.rpc_version is None:  # 2
        return note("rpc.nodes", f"{found}, no rpc-server that works", "sollol setup-llama-cpp --build there")
    memory = ", ".join(f"{each.name} {each.free_mib:,.0f} MiB" for each in machine.devices)
    found += f", protocol {_dotted(machine.rpc_version)}, {memory}, {count(len(node.files), 'model file')}"
    if node.is_closed:  # 3
        return note("rpc.nodes", f"{found}; an operator has closed it", f"sollol nodes uncordon {node.name}")
    if node.group:  # 4
        return ok("rpc.nodes", f"{found}; in group {node.group}")
    return ok("rpc.nodes", found)  # 5


def _versions(view: FabricView) -> Iterator[Finding]:
    spoken = sorted(
        (node.memory.rpc_version[0], node.name)
        for node in view.nodes.values()
        if node.memory.rpc_version is not None
    )
    majors = {major: [name for _, name in each] for major, each in groupby(spoken, key=lambda pair: pair[0])}
    if len(majors) > 1:
        told = "; ".join(f"{major}: {', '.join(names)}" for major, names in majors.items())
        yield warning(
            "rpc.version",
            f"nodes speak different protocols, and only those of one kind form groups ({told})",
            "bring all to one build: sollol setup-llama-cpp --build",
        )


def _groups(view: FabricView) -> Iterator[Finding]:
    for group in view.groups:
        parts = ", ".join(name for name, _ in group.parts)
        found = f"{group.id} serves {group.model} on {parts}: {group.state.value}"
        if group.why:
            yield warning("rpc.groups", f"{found} ({group.why})", "sollol groups")
        else:
            yield ok("rpc.groups", f"{found} {group.progress}".rstrip())


def _models(facts: RpcFacts, view: FabricView) -> Iterator[Finding]:
    """Each model that only a group could serve; the one that is asked for in any case."""
    files = {name: model for node in view.nodes.values() for name, model in node.files.items()}
    if facts.asked is not None:
        if facts.asked.facts is None:
            yield _no_file(facts.asked)
        else:
            yield from _planned(facts.asked.name, facts.asked.facts, facts.rules, view)
        return
    unserved = sorted(files.keys() - view.served.keys())
    for name in unserved[:_MODELS_SHOWN]:
        yield from _planned(name, files[name], facts.rules, view)
    if len(unserved) > _MODELS_SHOWN:
        yield note("rpc.split", f"and {len(unserved) - _MODELS_SHOWN} more models; name one with --model")


def _planned(name: str, model: ModelFacts, rules: Rules, view: FabricView) -> Iterator[Finding]:
    """1. served, 2. by a group, 3. by one node, 4. by nobody, and why."""
    found = plan_for(view, name, model, Memory(), rules, 0.0)
    if where := view.served.get(name):
        yield ok("rpc.split", f"{name} is served by {', '.join(where)}")  # 1
    elif isinstance(found, Group):
        yield ok(
            "rpc.split",
            f"{name} needs a group: head {found.head}, {found.head_mib:,.0f} MiB of its main memory besides; "
            f"about {found.ms_per_token:.0f} ms per token",
        )  # 2
        yield from _places(name, found.places)
    elif isinstance(found, OneNode):
        how = "partly in its main memory" if found.is_partial else "alone"
        yield ok("rpc.split", f"{name} fits {found.node} {how}")  # 3
        yield from _places(name, found.places)
    else:
        yield from _impossible(name, found)  # 4


def _places(name: str, places: Sequence[Place]) -> Iterator[Finding]:
    for place in places:
        need = place.need
        yield ok(
            "rpc.split",
            f"{name} on {place.node} {place.device}: {need.layers} layers, {need.total_mib:,.0f} MiB "
            f"(weights {need.weights_mib:,.1f}, cache {need.cache_mib:,.1f}, compute {need.compute_mib:,.1f})",
        )


def _impossible(name: str, found: Impossible) -> Iterator[Finding]:
    missing = f"{found.missing_mib:,.0f} MiB short in all" if found.missing_mib else "nobody can have it"
    yield warning("rpc.split", f"{name} fits nowhere: {missing}", "add a node, or free memory on those below")
    for node, why in sorted(found.reasons.items()):
        yield note("rpc.split", f"{name} on {node}: {why}")


def _no_file(asked: Asked) -> Finding:
    return error(
        "rpc.model",
        f"no GGUF file of {asked.name} was found: it is no path, not in Ollama's store, and on no node",
        "name a file, or put it into a --models-dir of a worker",
    )


def plan_as_data(facts: RpcFacts) -> list[Mapping[str, object]]:
    """The split for programs: [{"node" or "device", "layers", "mib", "weights_mib", "cache_mib", "compute_mib"}, …]."""
    if facts.asked is None or facts.asked.facts is None:
        return []
    if (split := facts.split) is not None:
        rows = [((device.name, ""), need) for device, need in zip(split.devices, split.needs, strict=True)]
    elif facts.view is not None:
        found = plan_for(facts.view, facts.asked.name, facts.asked.facts, Memory(), facts.rules, 0.0)
        places = () if isinstance(found, Impossible) else found.places
        rows = [((place.node, place.device), place.need) for place in places]
    else:
        rows = []
    return [
        {
            "node": node,
            "device": device,
            "layers": need.layers,
            "mib": round(need.total_mib, 1),
            "weights_mib": round(need.weights_mib, 2),
            "cache_mib": round(need.cache_mib, 2),
            "compute_mib": round(need.compute_mib, 2),
        }
        for (node, device), need in rows
    ]


def _device_name(report: RpcReport, at: int) -> str:
    return _name(report) if len(report.devices) == 1 else f"{_name(report)} device {at}"


def _name(report: RpcReport) -> str:
    return f"{report.host}:{report.port}"


def _dotted(version: Version | None) -> str:
    return ".".join(map(str, version or ()))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
