"""`sollol warm`: models in memory before anybody asks them."""

from __future__ import annotations

from typing import Any

import click

from . import output
from .following import answer_fields
from .options import fabric_options, job_options, open_client
from .units import duration


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--node", metavar="NODE", help="There. Default: the node that would take the model's next job.")
@click.option(
    "--keep-alive", metavar="DURATION", help="How long it stays unused, as Ollama reads it: 30m, -1."
)
@job_options
@fabric_options
def warm(
    url: str,
    as_json: bool,
    models: tuple[str, ...],
    node: str | None,
    keep_alive: str | None,
    priority: int,
    options: dict[str, Any],
    timeout: float | None,
    deadline: float | None,
) -> None:
    """Bring models into memory, where their next jobs will run, and wait until they are there."""
    backend: dict[str, Any] = {"options": options} if options else {}
    if keep_alive is not None:
        backend["keep_alive"] = int(keep_alive) if keep_alive.lstrip("-").isdigit() else keep_alive
    with open_client(url) as client:
        jobs = [
            client.warm(model, node=node, priority=priority, timeout=timeout, deadline=deadline, **backend)
            for model in models
        ]
        answers = [(job.id, job.result()) for job in jobs]
    if as_json:
        output.print_json([answer_fields(job_id, answer) for job_id, answer in answers])
        return
    for _, answer in answers:
        took = duration(answer["load_duration"] / 1e9)
        click.echo(f"{answer['model']} is in memory on {answer.routing.node} ({took})")
