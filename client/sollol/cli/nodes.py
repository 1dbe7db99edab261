"""`sollol nodes`: the machines of the fabric, and what an operator sets for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from . import output
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import duration, gib

if TYPE_CHECKING:
    from sollol_broker.controls import Controls
    from sollol_broker.operations import Controlled
    from sollol_broker.registry import NodeView
    from sollol_client import Client

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


_NO_WORKER = "no worker of it is connected now: this holds once one comes"
_WORD = click.argument("node", metavar="NODE")


@click.group(invoke_without_command=True)
@fabric_options
@click.pass_context
def nodes(ctx: click.Context, url: str, as_json: bool) -> None:
    """The machines of the fabric: workers, slots, models, memory.

    With a subcommand: keep jobs away from a node, or set which jobs it should get. What is set stays until it
    is set back, also when the node's workers start anew.
    """
    if ctx.invoked_subcommand is not None:
        return
    with open_client(url) as client:
        views = client.nodes()
    if as_json:
        output.print_json(views)
    elif not views:
        output.say(NO_NODES)
    else:
        output.print_table(_COLUMNS, [_row(view) for view in views])
        output.aside(_LEGEND)
        for view in views:
            told = _told(view.controls)
            if told:
                output.aside(f"{view.name}: {told}")


@nodes.command()
@_WORD
@fabric_options
def cordon(url: str, as_json: bool, node: str) -> None:
    """Give NODE no new jobs; those that run there end in peace."""
    with open_client(url) as client:
        done = client.cordon(node)
        _report(client, done, "takes no new jobs; what runs there goes on", as_json=as_json)
    if not as_json:
        output.aside(f"`sollol nodes uncordon {node}` lets it take jobs again")


@nodes.command()
@_WORD
@fabric_options
def uncordon(url: str, as_json: bool, node: str) -> None:
    """Let NODE take jobs again."""
    with open_client(url) as client:
        _report(client, client.uncordon(node), "takes jobs again", as_json=as_json)


@nodes.command(short_help="Empty NODE, such as before a restart.")
@_WORD
@click.option("--seconds", type=click.FloatRange(min=0, max=7 * 24 * 3600), metavar="N",
              help="How long running jobs may take to end.  [default: as its workers were started]")  # fmt: skip
@fabric_options
def drain(url: str, as_json: bool, node: str, seconds: float | None) -> None:
    """Empty NODE: no new jobs, and what still runs after N seconds goes to other nodes."""
    with open_client(url) as client:
        done = client.drain(node, seconds)
        limit = "its workers' usual time" if seconds is None else duration(seconds)
        _report(
            client,
            done,
            f"takes no new jobs; those that run there may end within {limit}, then go to other nodes",
            as_json=as_json,
        )
    if not as_json:
        output.aside(f"`sollol nodes` says when it is drained, `sollol nodes uncordon {node}` calls it off")


@nodes.command(name="set")
@_WORD
@click.option("--priority", type=click.IntRange(0, 10), metavar="0-10",
              help="How readily it gets jobs that others could do as well; 5 is usual.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="WORD",
              help="Beside those its workers were started with; jobs may ask for it. May be repeated.")  # fmt: skip
@click.option("--allow", multiple=True, metavar="PATTERN",
              help='Serve only models such as "llama*". May be repeated.')  # fmt: skip
@click.option("--deny", multiple=True, metavar="PATTERN",
              help="Never serve such models; wins over --allow. May be repeated.")  # fmt: skip
@fabric_options
def set_node(
    url: str,
    as_json: bool,
    node: str,
    priority: int | None,
    labels: tuple[str, ...],
    allow: tuple[str, ...],
    deny: tuple[str, ...],
) -> None:
    """Set which jobs NODE should get. An option replaces what it had set before; '' takes it away."""
    if priority is None and not (labels or allow or deny):
        raise click.UsageError("Nothing to set: name --priority, --label, --allow or --deny.")
    with open_client(url) as client:
        done = client.set_node(
            node, priority=priority, labels=_list(labels), allow=_list(allow), deny=_list(deny)
        )
        _report(client, done, _told(done.controls) or "nothing is set for it any more", as_json=as_json)


def _list(words: tuple[str, ...]) -> list[str] | None:
    return [word for word in words if word] if words else None


def _report(client: Client, done: Controlled, what: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json(done)
        return
    output.say(f"{done.node}: {what}")
    if not done.workers:
        known = ", ".join(view.name for view in client.nodes())
        output.aside(_NO_WORKER + (f" (connected: {known})" if known else ""))


def _told(controls: Controls) -> str:
    """What an operator has set, besides the state."""
    parts = [
        f"priority {controls.priority}" if controls.priority != 5 else "",
        f"labels {', '.join(controls.labels)}" if controls.labels else "",
        f"only {', '.join(controls.allow)}" if controls.allow else "",
        f"never {', '.join(controls.deny)}" if controls.deny else "",
    ]
    return " · ".join(part for part in parts if part)


def _row(node: NodeView) -> list[str | Cell]:
    hardware = node.hardware
    slots = sum(worker.slots for worker in node.workers)
    busy = sum(worker.busy for worker in node.workers)
    seen_ms = min(worker.seen_ms_ago for worker in node.workers)
    return [
        Cell(node.name, "bold"),
        str(sum(worker.kind == "worker" for worker in node.workers)),
        _state(node),
        Cell(f"{busy}/{slots}", "yellow" if 0 < slots <= busy else ""),
        _models(node),
        _memory(hardware.get("vram_free_mib", 0), hardware.get("vram_total_mib", 0)),
        _memory(hardware.get("ram_available_mib", 0), hardware.get("ram_total_mib", 0)),
        f"{hardware['load_1m']:.1f}/{hardware['cpu_count']}" if "load_1m" in hardware else "-",
        duration(seen_ms / 1000),
    ]


def _state(node: NodeView) -> Cell:
    """1. no sign of life, 2. a backend is down, 3. closed by an operator, 4. stopping, 5. no worker, 6. up."""
    if min(worker.seen_ms_ago for worker in node.workers) > _SILENT_MS:  # 1
        return Cell("silent", "red")
    backends = [backend for worker in node.workers for backend in worker.backends]
    down = sum(1 for backend in backends if backend["down"])
    if down:  # 2
        return Cell("down" if down == len(backends) else "part down", "red")
    if node.controls.is_closed:  # 3
        is_empty = node.controls.draining and not any(worker.busy for worker in node.workers)
        return Cell("drained" if is_empty else node.controls.state, "yellow")
    if all(worker.state == "draining" for worker in node.workers):  # 4
        return Cell("stopping", "yellow")
    if all(worker.kind == "reporter" for worker in node.workers):  # 5
        return Cell("reporting", "dim")
    return Cell("up", "green")  # 6


def _models(node: NodeView) -> str:
    loaded = {name for worker in node.workers for name, info in worker.models.items() if info["loaded"]}
    names = {name for worker in node.workers for name in worker.models}
    ordered = sorted(names, key=lambda name: (name not in loaded, name))
    shown = [f"{name}{'*' if name in loaded else ''}" for name in ordered[:_MODELS_SHOWN]]
    more = len(ordered) - len(shown)
    return ", ".join(shown) + (f", +{more}" if more else "") or "-"


def _memory(free_mib: int, total_mib: int) -> str:
    return f"{gib(free_mib)}/{gib(total_mib)}" if total_mib else "-"
