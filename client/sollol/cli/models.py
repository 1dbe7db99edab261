"""`sollol models`: the models, and who serves them."""

from __future__ import annotations

import click

from . import output
from .nodes import NO_NODES
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import size

_COLUMNS = (
    Column("MODEL"),
    Column("DOES"),
    Column("SIZE", "right"),
    Column("CONTEXT", "right"),
    Column("IN MEMORY ON", folds=True),
    Column("ALSO ON", folds=True),
)
_NO_MODELS = (
    "The workers serve no model yet. Load one where they run (`ollama pull llama3.2`, or llama-server);\n"
    "`sollol doctor` says which LLM servers are down."
)


@click.command()
@fabric_options
def models(url: str, as_json: bool) -> None:
    """The models that live workers serve, and where."""
    with open_client(url) as client:
        views = client.models()
        has_nodes = bool(views) or bool(client.nodes())
    if as_json:
        output.print_json(views)
    elif not views:
        output.say(_NO_MODELS if has_nodes else NO_NODES)
    else:
        output.print_table(
            _COLUMNS,
            [
                (
                    Cell(view.name, "bold"),
                    ", ".join(view.kinds),
                    size(view.size_bytes) if view.size_bytes else "-",
                    f"{view.context_tokens:,}" if view.context_tokens else "-",
                    Cell(", ".join(view.loaded_on) or "-", "green" if view.loaded_on else ""),
                    ", ".join(sorted(set(view.nodes) - set(view.loaded_on))) or "-",
                )
                for view in views
            ],
        )
