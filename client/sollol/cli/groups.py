"""`sollol groups`: nodes that serve a model together which is too large for each of them."""

from __future__ import annotations

from collections.abc import Mapping

import click

from sollol_broker.errors import SollolError
from sollol_broker.groups import GroupState, GroupView

from . import output
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import megabits, milliseconds

_COLUMNS = (
    Column("GROUP"),
    Column("MODEL"),
    Column("STATE"),
    Column("HEAD"),
    Column("LAYERS AND MIB BY DEVICE", folds=True),
    Column("LINK FROM THE HEAD", folds=True),
    Column("", folds=True),
)
_STYLES = {GroupState.READY: "green", GroupState.BROKEN: "red"}
_NO_GROUPS = (
    "No groups. One is formed when a job asks for a model that fits no single node, `sollol-coordinator` runs, and the "
    "model's GGUF file lies on a node (in Ollama's store, or in a --models-dir of its worker)."
)


@click.group(invoke_without_command=True)
@fabric_options
@click.pass_context
def groups(ctx: click.Context, url: str, as_json: bool) -> None:
    """Nodes that serve a model together which is too large for each of them."""
    if ctx.invoked_subcommand is not None:
        return
    with open_client(url) as client:
        found = client.groups()
    if as_json:
        output.print_json(found)
    elif not found:
        output.say(_NO_GROUPS)
    else:
        output.print_table(_COLUMNS, [_row(group) for group in found])


@groups.command()
@click.argument("name", metavar="GROUP|MODEL")
@fabric_options
def dissolve(url: str, as_json: bool, name: str) -> None:
    """End a group, by its id or its model. Jobs that still wait for the model have it formed again."""
    with open_client(url) as client:
        known = [group.id for group in client.groups() if name in (group.id, group.model)]
        if not known:
            raise SollolError(f"there is no group {name}: `sollol groups` lists them")
        if not client.dissolve_group(name):
            raise SollolError("no coordinator leads, so nobody can dissolve it: start `sollol-coordinator`")
    if as_json:
        output.print_json({"dissolving": known})
    else:
        output.say(f"{', '.join(known)} will be dissolved in a moment")


def _row(group: GroupView) -> tuple[str | Cell, ...]:
    places = ", ".join(
        f"{each['node']} {each['device']}: {each['layers']} ({each['mib']:,.0f} MiB)" for each in group.places
    )
    nodes = ", ".join(name for name, _ in group.parts)
    state = Cell(group.state.value, _STYLES.get(group.state, "yellow"))
    return (
        Cell(group.id, "bold"),
        group.model,
        state,
        group.head,
        places or nodes,
        ", ".join(f"{node}: {_link(told)}" for node, told in sorted(group.links.items())),
        group.why or group.progress,
    )


def _link(told: Mapping[str, float]) -> str:
    """ "940 Mbit/s, 0.3 ms"."""
    trip = milliseconds(told.get("trip_ms", 0.0))
    return f"{megabits(told['mib_per_s'])}, {trip}" if "mib_per_s" in told else trip
