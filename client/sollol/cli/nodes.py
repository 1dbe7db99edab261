"""`sollol nodes`: the machines of the fabric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from . import output
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import duration, gib

if TYPE_CHECKING:
    from sollol_broker.registry import NodeView

NO_NODES = (
    "No worker is connected. `sollol up` starts one on this machine; on any other machine run\n"
    "  sollol-worker --redis URL\n"
    "with the URL by which that machine reaches this Redis."
)

_COLUMNS = (
    Column("NODE"),
    Column("WORKERS", "right"),
    Column("STATE"),
    Column("SLOTS", "right"),
    Column("MODELS", folds=True),
    Column("VRAM", "right"),
    Column("RAM", "right"),
    Column("LOAD", "right"),
    Column("SEEN", "right"),
)
_LEGEND = "SLOTS busy/all · MODELS * is in memory · VRAM, RAM free/all GiB · LOAD 1 min/CPUs · SEEN ago"
_MODELS_SHOWN = 8
# Two adverts missed; after three and a half the worker is no longer listed.
_SILENT_MS = 9_000


@click.command()
@fabric_options
def nodes(url: str, as_json: bool) -> None:
    """The machines of the fabric: workers, slots, models, memory."""
    with open_client(url) as client:
        views = client.nodes()
    if as_json:
        output.print_json(views)
    elif not views:
        output.say(NO_NODES)
    else:
        output.print_table(_COLUMNS, [_row(view) for view in views])
        output.aside(_LEGEND)


def _row(node: NodeView) -> list[str | Cell]:
    hardware = node.hardware
    slots = sum(worker.slots for worker in node.workers)
    busy = sum(worker.busy for worker in node.workers)
    seen_ms = min(worker.seen_ms_ago for worker in node.workers)
    return [
        Cell(node.name, "bold"),
        str(len(node.workers)),
        _state(node),
        Cell(f"{busy}/{slots}", "yellow" if busy >= slots else ""),
        _models(node),
        _memory(hardware.get("vram_free_mib", 0), hardware.get("vram_total_mib", 0)),
        _memory(hardware.get("ram_available_mib", 0), hardware.get("ram_total_mib", 0)),
        f"{hardware['load_1m']:.1f}/{hardware['cpu_count']}" if "load_1m" in hardware else "-",
        duration(seen_ms / 1000),
    ]


def _state(node: NodeView) -> Cell:
    """1. no sign of life, 2. a backend is down, 3. draining, 4. up."""
    if min(worker.seen_ms_ago for worker in node.workers) > _SILENT_MS:  # 1
        return Cell("silent", "red")
    backends = [backend for worker in node.workers for backend in worker.backends]
    down = sum(1 for backend in backends if backend["down"])
    if down:  # 2
        return Cell("down" if down == len(backends) else "part down", "red")
    if all(worker.state == "draining" for worker in node.workers):  # 3
        return Cell("draining", "yellow")
    return Cell("up", "green")  # 4


def _models(node: NodeView) -> str:
    loaded = {name for worker in node.workers for name, info in worker.models.items() if info["loaded"]}
    names = {name for worker in node.workers for name in worker.models}
    ordered = sorted(names, key=lambda name: (name not in loaded, name))
    shown = [f"{name}{'*' if name in loaded else ''}" for name in ordered[:_MODELS_SHOWN]]
    more = len(ordered) - len(shown)
    return ", ".join(shown) + (f", +{more}" if more else "") or "-"


def _memory(free_mib: int, total_mib: int) -> str:
    return f"{gib(free_mib)}/{gib(total_mib)}" if total_mib else "-"
