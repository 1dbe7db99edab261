"""The fabric as the coordinator sees it: nodes with what they could bring into a group, groups, and what waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sollol_broker.broker import Broker
from sollol_broker.groups import GroupView, read_groups
from sollol_broker.model_facts import ModelFacts
from sollol_broker.registry import NodeView, Registry

from .plan import Device, Machine

# What a maker's GPUs are to llama.cpp, until it has been asked itself.
_KINDS = {"nvidia": "cuda", "amd": "rocm", "intel": "sycl", "apple": "metal"}
_MIB = 1024 * 1024
# Adverts come every 4 s; a node that has missed two may be dead, though its advert has not run out yet.
_SILENT_MS = 9_000


@dataclass(frozen=True, slots=True)
class Node:
    """A node that could take part in groups.

    Attributes:
        memory: as advertised, and as if its own models were out of memory: a reservation puts them out.
        files: of models, with what they need.
        group: that has it; "" = none. is_closed: an operator has cordoned or drained it.
        busy: jobs that it runs.
        fault: how its last group ended badly: group, node (who is to blame) and why; {} = it did not.
    """

    name: str
    worker: str
    address: str
    memory: Machine
    files: Mapping[str, ModelFacts] = field(default_factory=dict)
    group: str = ""
    is_closed: bool = False
    busy: int = 0
    fault: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FabricView:
    """All of it at one moment.

    Attributes:
        served: models that live workers serve, and on which nodes; a group's model included.
        waiting, running: jobs by model.
    """

    nodes: Mapping[str, Node]
    groups: tuple[GroupView, ...]
    served: Mapping[str, tuple[str, ...]]
    waiting: Mapping[str, int]
    running: Mapping[str, int]


async def look(broker: Broker, registry: Registry) -> FabricView:
    """Read it."""
    views = await registry.nodes()
    queues = await registry.queues()
    served: dict[str, list[str]] = {}
    for view in views:
        for worker in view.workers:
            for model in worker.models if worker.state == "up" else ():
                served.setdefault(model, []).append(view.name)
    nodes = [node for view in views if (node := node_of(view)) is not None]
    return FabricView(
        nodes={node.name: node for node in nodes},
        groups=tuple(await read_groups(broker)),
        served={model: tuple(sorted(set(where))) for model, where in served.items()},
        waiting={queue.model: queue.waiting for queue in queues if queue.waiting},
        running={queue.model: queue.running for queue in queues if queue.running},
    )


def node_of(view: NodeView) -> Node | None:
    """What a node could bring; None for one whose workers take no part in groups."""
    if not view.llama or not view.workers:
        return None
    llama, hardware = view.llama, view.hardware
    silent_ms = min(worker.seen_ms_ago for worker in view.workers)
    version = [int(part) for part in llama.get("rpc_version") or ()]
    # Out of memory before a group's turn: what its backends have loaded.
    own_mib = sum(
        info["size_bytes"] / _MIB
        for worker in view.workers
        for info in worker.models.values()
        if info.get("loaded")
    )
    gpus = tuple(
        Device(
            f"GPU{gpu['index']}",
            _KINDS.get(gpu["vendor"], gpu["vendor"]),
            min(gpu["memory_total_mib"], gpu["memory_free_mib"] + own_mib),
        )
        for gpu in hardware.get("gpus", ())
    )
    ram_free = float(hardware.get("ram_available_mib", 0))
    if not gpus:
        ram_free = min(float(hardware.get("ram_total_mib", 0)), ram_free + own_mib)
    machine = Machine(
        view.name,
        ram_free,
        gpus,
        llama_build=str(llama.get("build", "")),
        rpc_version=(version[0], version[1], version[2]) if len(version) == 3 else None,
        quarantined_because=f"silent for {silent_ms / 1000:.0f} s" if silent_ms > _SILENT_MS else "",
    )
    return Node(
        name=view.name,
        worker=str(llama.get("worker", "")),
        address=str(llama.get("address", "")),
        memory=machine,
        files={name: ModelFacts.from_json(text) for name, text in llama.get("files", {}).items()},
        group=str(llama.get("lent_to", "")),
        is_closed=view.controls.cordoned or view.controls.draining,
        busy=sum(worker.busy for worker in view.workers),
        fault=dict(llama.get("fault", {})),
    )
