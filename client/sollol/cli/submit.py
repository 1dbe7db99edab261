"""`sollol submit` hands a job in, `sollol attach` follows one that was handed in before."""

from __future__ import annotations

from typing import Any

import click

from . import output
from .following import follow
from .options import fabric_options, job_options, open_client


@click.command()
@click.option("-m", "--model", required=True, metavar="NAME", help="As Ollama names it.")
@click.option("--chat", metavar="TEXT", help="A question.")
@click.option("--generate", metavar="TEXT", help="A prompt to continue.")
@click.option("--embed", multiple=True, metavar="TEXT", help="A text to turn into a vector. May be repeated.")
@click.option(
    "--rerank",
    multiple=True,
    metavar="TEXT",
    help="A text to order by how well it answers --query. Repeated.",
)
@click.option("--query", metavar="TEXT", help="What the texts of --rerank are held against.")
@click.option("--wait", is_flag=True, help="Wait, and show the answer as `sollol chat` does.")
@click.option(
    "--idempotency-key", metavar="KEY", help="The same key is the same job, however often it is sent."
)
@click.option("--wait-for-node", is_flag=True, help="Wait in line even if no node serves the model now.")
@job_options
@fabric_options
def submit(
    url: str,
    as_json: bool,
    model: str,
    chat: str | None,
    generate: str | None,
    embed: tuple[str, ...],
    rerank: tuple[str, ...],
    query: str | None,
    wait: bool,
    idempotency_key: str | None,
    wait_for_node: bool,
    priority: int,
    options: dict[str, Any],
    timeout: float | None,
    deadline: float | None,
) -> None:
    """Hand in a job, print its id and return; `sollol attach ID` shows the answer, for an hour after its end.

    \b
    id=$(sollol submit --model llama3.2 --chat "Hello")
    sollol attach $id
    """
    given = {"--chat": chat, "--generate": generate, "--embed": embed, "--rerank": rerank}
    asked = [name for name, value in given.items() if value]
    if len(asked) != 1:
        told = " and ".join(asked) or "none of them"
        raise click.UsageError(f"Exactly one of {', '.join(given)} is needed, got {told}.")
    if bool(rerank) != (query is not None):
        raise click.UsageError("--rerank needs a --query, and nothing else has one.")
    backend: dict[str, Any] = {"options": options} if options else {}
    with open_client(url) as client:
        job = client.submit(
            model=model,
            chat=chat or None,
            generate=generate or None,
            embed=list(embed) or None,
            rerank=list(rerank) or None,
            query=query,
            stream=not (embed or rerank),
            priority=priority,
            timeout=timeout,
            deadline=deadline,
            idempotency_key=idempotency_key,
            wait_for_node=wait_for_node,
            **backend,
        )
        if wait:
            follow(job, as_json=as_json)
            return
        job.accepted()
    if as_json:
        output.print_json({"job": job.id})
    else:
        output.say(job.id)


@click.command()
@click.argument("job_id", metavar="ID")
@fabric_options
def attach(url: str, as_json: bool, job_id: str) -> None:
    """Follow the job ID from its beginning: its text as it comes, or its answer if it has ended.

    Ctrl-C leaves the job running.
    """
    with open_client(url) as client:
        follow(client.attach(job_id), as_json=as_json)
